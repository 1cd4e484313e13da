import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fi_cachestore.errors import NotCanonicalError, UnsupportedValueError
from fi_cachestore.keys.canonical import Named, decode, encode, encode_field
from fi_cachestore.keys.digest import left_out_digest_of, part_digest, schema_digest
from fi_cachestore.keys.schema import KeySchema, SchemaDigests, is_left_out, left_out_digest, left_out_value, stored_digest
from fi_cachestore.testing.samples import sample_schema

SCHEMA = sample_schema()
TEXT = st.text(max_size=6).filter(lambda text: text.isprintable())
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
LEFT_OUT = st.dictionaries(TEXT, st.tuples(TEXT, PLAIN), max_size=5)
CHANGES = {
    "op": "other",
    "runner": "sample.module:Other",
    "parameters": (*SCHEMA.parameters, ("more", "int", "semantic")),
    "contract": part_digest(b"other"),
    "environment": {**SCHEMA.environment, "gpu_name": "Other GPU"},
}


def digests(values):
    return {path: left_out_value(role, value) for path, (role, value) in values.items()}


def canonical(values):
    return encode({path: (role, value) for path, (role, value) in values.items()})


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_digest(name):
    assert replace(SCHEMA, **{name: CHANGES[name]}).digest != SCHEMA.digest


@pytest.mark.parametrize("part", range(3))
def test_path_type_and_role_of_a_parameter_change_the_digest(part):
    first, *rest = SCHEMA.parameters
    changed = tuple("x" if at == part else text for at, text in enumerate(first))
    assert replace(SCHEMA, parameters=(changed, *rest)).digest != SCHEMA.digest


SCHEMAS = st.builds(
    KeySchema,
    TEXT,
    TEXT,
    st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=20).map(tuple),
    st.sampled_from([part_digest(b"one"), part_digest(b"two")]),
    st.dictionaries(TEXT, TEXT | st.sampled_from([True, 1, 1.0, 0.0, -0.0, None, (1,), (True,)]), max_size=3),
)


@given(SCHEMAS, st.lists(TEXT, min_size=2, max_size=2))
def test_the_digest_is_that_of_all_parts_one_after_the_other(schema, ops):
    for op in ops:  # what the second has in common with the first is remembered
        named = replace(schema, op=op)
        head = ["fi_cachestore.schema/1", op, schema.runner, schema.contract, schema.environment, len(schema.parameters)]
        assert named.digest == schema_digest(b"".join(map(encode, [*head, *sorted(schema.parameters)])))


ENVIRONMENTS = [{"facet": value} for value in ("1", 1, True, 1.0, 0.0, -0.0, False, (1,), (True,), [1], None)]


def test_environments_that_are_equal_to_python_have_digests_of_their_own():
    assert len({replace(SCHEMA, environment=values).digest for values in ENVIRONMENTS}) == len(ENVIRONMENTS)


def digest_by(digests, schema):
    return digests.of(schema.op, schema.runner, schema.parameters, schema.contract, schema.environment)


@given(st.lists(SCHEMAS, max_size=4), st.lists(TEXT, min_size=2, max_size=2))
def test_digests_of_many_schemas_are_those_of_each(schemas, ops):
    digests = SchemaDigests()
    for schema in [replace(schema, op=op) for op in ops for schema in schemas]:
        assert digest_by(digests, schema) == schema.digest


@pytest.mark.parametrize("name", CHANGES)
def test_many_digests_take_no_schema_for_another(name):
    digests, other = SchemaDigests(), replace(SCHEMA, **{name: CHANGES[name]})
    assert [digest_by(digests, each) for each in (SCHEMA, other, SCHEMA)] == [SCHEMA.digest, other.digest, SCHEMA.digest]


def test_an_environment_that_is_gone_is_not_taken_for_one_in_its_place():
    """Python gives a new object the place of an old one that nobody holds: the second value here, if it is not held."""
    digests = SchemaDigests()
    for value in ("one", "other"):
        environment = {"facet": value}
        assert (
            digests.of("op", "runner", (), SCHEMA.contract, environment)
            == KeySchema("op", "runner", (), SCHEMA.contract, {"facet": value}).digest
        )
        del environment


def test_of_many_digests_a_bounded_number_is_remembered():
    digests, environments = SchemaDigests(), [{"facet": str(number)} for number in range(1000)]
    free = sys.getrefcount(environments[0])
    for _ in range(2):
        for number in range(len(environments)):
            expected = replace(SCHEMA, environment={"facet": str(number)}).digest
            assert digest_by(digests, replace(SCHEMA, environment=environments[number])) == expected
    held = [number for number in range(len(environments)) if sys.getrefcount(environments[number]) > free]
    assert 0 < len(held) <= 256


@given(SCHEMAS, st.lists(TEXT, min_size=2, max_size=2))
def test_a_stored_schema_with_sorted_parameters_shows_its_digest(schema, ops):
    for op in ops:
        named = replace(schema, op=op, parameters=tuple(sorted(schema.parameters)))
        assert stored_digest(encode_field(named.to_value(), "schema")) == named.digest


def test_a_stored_schema_that_hides_its_digest_shows_no_other():
    named = replace(SCHEMA, op="\u00e6runner and more")  # the bytes before the next field stand in this text
    assert stored_digest(encode(named.to_value())) != named.digest
    turned = replace(SCHEMA, parameters=SCHEMA.parameters[::-1])
    assert stored_digest(encode(turned.to_value())) != turned.digest


@pytest.mark.parametrize("name", CHANGES)
def test_a_stored_schema_with_another_field_has_another_digest(name):
    assert stored_digest(encode(replace(SCHEMA, **{name: CHANGES[name]}).to_value())) != stored_digest(encode(SCHEMA.to_value()))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encode(None),
        encode({}),
        encode(Named("fi_cachestore.schema/1", {})),
        encode(Named("fi_cachestore.schema/1", {"op": "a", "runner": "b"})),
        encode(Named("fi_cachestore.schema/1", SCHEMA.to_value().content | {"parameters": ()})),
        encode(Named("fi_cachestore.schema/1", SCHEMA.to_value().content | {"parameters": 1})),
        encode(Named("fi_cachestore.schemas/1", SCHEMA.to_value().content)),
    ],
    ids=repr,
)
def test_other_bytes_are_no_stored_schema(data):
    with pytest.raises(NotCanonicalError):
        stored_digest(data)


def test_the_order_of_parameters_does_not():
    assert replace(SCHEMA, parameters=SCHEMA.parameters[::-1]).digest == SCHEMA.digest


def test_parameters_do_not_run_into_each_other():
    rows = [(("a", "b", "c"), ("d", "e", "f")), (("a", "b", "c"),), (("a", "b", "cd"), ("", "e", "f"))]
    assert len({replace(SCHEMA, parameters=row).digest for row in rows}) == 3


def test_a_schema_of_any_size_has_a_digest():
    many = replace(SCHEMA, parameters=tuple((f"p{i}", "int", "semantic") for i in range(10_000)))
    assert len(many.digest) == 64
    assert len(left_out_digest({f"p{i}": part_digest(b"") for i in range(10_000)})) == 64


def test_a_schema_comes_back_equal():
    assert KeySchema.from_value(decode(encode(SCHEMA.to_value()))) == SCHEMA


def changed(**changes):
    value = SCHEMA.to_value()
    return Named(value.kind, {name: item for name, item in {**value.content, **changes}.items() if item != "left out"})


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        {},
        Named("fi_cachestore.key/1", SCHEMA.to_value().content),
        Named("fi_cachestore.schema/1", [1]),
        changed(op="left out"),
        changed(more=1),
        changed(op=1),
        changed(runner=b""),
        changed(contract="AB" * 32),
        changed(parameters=()),
        changed(parameters=[1]),
        changed(parameters=[("a", "b")]),
        changed(parameters=[("a", "b", 1)]),
        changed(parameters=[["a", "b", "c"]]),
        changed(environment=[]),
        changed(environment={1: "a"}),
    ],
    ids=str,
)
def test_anything_else_is_no_schema(damaged):
    with pytest.raises(NotCanonicalError):
        KeySchema.from_value(damaged)


@given(LEFT_OUT, LEFT_OUT)
def test_equal_digests_mean_equal_left_out_values(a, b):
    assert (left_out_digest(digests(a)) == left_out_digest(digests(b))) == (canonical(a) == canonical(b))


@given(LEFT_OUT, st.randoms())
def test_the_order_of_left_out_values_is_irrelevant(values, random):
    rows = list(digests(values).items())
    random.shuffle(rows)
    assert left_out_digest(dict(rows)) == left_out_digest(digests(values))


@given(LEFT_OUT.filter(len), st.data())
def test_one_changed_value_role_or_path_changes_the_digest(values, data):
    path = data.draw(st.sampled_from(sorted(values)))
    role, value = values[path]
    rest = {name: row for name, row in values.items() if name != path}
    before = left_out_digest(digests(values))
    assert left_out_digest(digests(rest)) != before
    assert left_out_digest(digests({**rest, path: (role + "x", value)})) != before
    assert left_out_digest(digests({**rest, path: (role, (value,))})) != before
    assert left_out_digest(digests({**rest, path + "x": (role, value)} if path + "x" not in rest else rest)) != before


def test_types_of_left_out_values_are_told_apart():
    values = [True, 1, 1.0, "1", b"1", (1,), (True,), None, 0, False, 0.0, -0.0, "", Named("dtype", "torch.bfloat16")]
    for _ in range(2):
        assert len({left_out_value("placement", value) for value in values}) == len(values)
    assert left_out_value("placement", 1) == left_out_digest_of(encode(("placement", 1)))


@given(LEFT_OUT)
def test_the_digest_of_left_out_values_is_that_of_their_rows_one_after_the_other(values):
    rows = digests(values)
    assert left_out_digest(rows) == left_out_digest_of(b"".join(encode((path, rows[path])) for path in sorted(rows)))


def test_a_value_without_canonical_form_has_no_digest():
    with pytest.raises(UnsupportedValueError):
        left_out_value("placement", object())


@pytest.mark.parametrize("value", [None, [], {"a": 1}, {"a": "ab"}, {1: "ab" * 32}, {"a": "AB" * 32}], ids=str)
def test_other_values_are_no_left_out_values(value):
    assert not is_left_out(value)
    assert is_left_out({"a": "ab" * 32})
