"""Keys taken apart without decoding them whole: the same answer as decoding, for every spelling."""

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fi_cachestore.errors import NotCanonicalError, UnsupportedValueError
from fi_cachestore.keys import model
from fi_cachestore.keys.canonical import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ITEMS,
    Named,
    decode,
    decode_field,
    encode,
    encode_field,
)
from fi_cachestore.keys.fields import (
    SHARED_BYTES,
    SHARED_COUNT,
    Layout,
    encode_each,
    join_fields,
    list_items,
    shared,
    split_tuple,
)
from fi_cachestore.keys.model import RunnerIdentity, TuneKey
from fi_cachestore.testing.samples import sample_key

CANONICAL = sample_key().canonical
PARTS = set(sample_key().parts())


def whole(data):
    """Return the parts of a key by decoding all of it; ``None`` if it is none."""
    try:
        value = decode(data)
    except NotCanonicalError:
        return None
    if (
        not isinstance(value, Named)
        or value.kind != "fi_cachestore.key/1"
        or type(value.content) is not dict
        or set(value.content) != PARTS
    ):
        return None
    types = {"op": str, "runner": str, "inputs": tuple, "profile": tuple}
    types |= dict.fromkeys(("params", "arguments", "policy", "environment"), dict)
    fits = all(type(value.content[name]) is kind for name, kind in types.items())
    by_name = fits and all(type(name) is str for part, kind in types.items() if kind is dict for name in value.content[part])
    return value.content if by_name else None


def in_parts(data):
    try:
        return TuneKey.from_canonical(data).parts()
    except NotCanonicalError:
        return None


@given(st.integers(0, len(CANONICAL) - 1), st.integers(1, 255), st.sampled_from(["flip", "cut", "insert", "swap"]))
@example(0, 1, "flip")
@example(424, 68, "cut")  # leaves a mapping whose keys are not names
@settings(max_examples=600, deadline=None)
def test_changed_bytes_are_a_key_in_parts_exactly_if_they_are_one_as_a_whole(at, byte, change):
    changed = {
        "flip": CANONICAL[:at] + bytes([CANONICAL[at] ^ byte]) + CANONICAL[at + 1 :],
        "cut": CANONICAL[:at] + CANONICAL[at + byte % 9 + 1 :],
        "insert": CANONICAL[:at] + bytes([byte]) + CANONICAL[at:],
        "swap": CANONICAL[at:] + CANONICAL[:at],
    }[change]
    found = in_parts(changed)
    assert encode(found) == encode(whole(changed)) if found is not None else whole(changed) is None


def is_one_value(data):
    try:
        decode_field(data)
    except NotCanonicalError:
        return False
    return True


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.fixed_dictionaries(dict.fromkeys(("a", "b", "long name é"), VALUES)))
@settings(max_examples=200, deadline=None)
def test_fields_come_apart_as_they_were_joined(values):
    fields = {name: encode_field(value, name) for name, value in values.items()}
    joined = join_fields("kind", fields)
    assert Layout("kind", tuple(values)).split(joined) == fields
    cut = Layout("kind", tuple(values)).cut(joined)
    assert cut == fields or not all(map(is_one_value, cut.values()))
    assert {name: encode(decode_field(part)) for name, part in fields.items()} == {name: encode(value) for name, value in values.items()}
    for wrong in (joined + b"\0", joined[:-1], joined[1:]):
        with pytest.raises(NotCanonicalError):
            Layout("kind", tuple(values)).split(wrong)
    for names in (("a", "b"), ("a", "b", "other"), (*values, "z")):
        with pytest.raises(NotCanonicalError):
            Layout("kind", names).split(joined)


@given(st.lists(VALUES, max_size=20))
@settings(max_examples=100, deadline=None)
def test_tuples_come_apart(values):
    assert split_tuple(encode(tuple(values))) == [encode(value) for value in values]
    assert split_tuple(encode(values)) is None
    assert split_tuple(encode(tuple(values)) + b"\0") is None
    assert split_tuple(encode(tuple(values))[:-1]) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\xdc\x00\x01\x00", b"\x91\xc2", b"\x90", b"\xc0", msgpack.packb([0, *[0] * (MAX_ITEMS + 1)]), b"\xdd\xff\xff\xff\xff\x00"],
)
def test_what_is_no_canonical_tuple_does_not_come_apart(data):
    assert split_tuple(data) is None


@pytest.mark.parametrize(("depth", "allowed_count"), [(0, 48), (2, 46), (3, 45)])
def test_depth_counts_from_the_outside(depth, allowed_count):
    empty, around = b"\x91\x00", b"\x92\x00"
    decode_field(around * (allowed_count - 1) + empty, depth)
    with pytest.raises(NotCanonicalError):
        decode_field(around * allowed_count + empty, depth)


@pytest.mark.parametrize("part", ["extras", "inputs"])
def test_a_key_that_is_as_deep_as_can_be_comes_back_and_a_deeper_one_does_not(part):
    deep = ()
    for _ in range(45):
        deep = (deep,)
    key = sample_key(**{part: deep})
    assert TuneKey.from_canonical(key.canonical) == key
    with pytest.raises(NotCanonicalError):
        TuneKey.from_canonical(key.canonical.replace(encode(deep), b"\x92\x00" + encode(deep)))


def test_equal_parts_are_decoded_once_and_shared():
    first, second = (TuneKey.from_canonical(sample_key(number).canonical) for number in (1, 2))
    assert first.environment is second.environment
    assert first.inputs is second.inputs
    assert first.runner.params is not second.runner.params


def test_what_is_kept_of_parts_is_bounded():
    for number in range(3 * SHARED_COUNT):
        TuneKey.from_canonical(sample_key(number, inputs=(number,)).canonical)
    assert model._shared_part.cache_info().currsize <= SHARED_COUNT
    before = model._shared_part.cache_info().currsize
    large = sample_key(extras="x" * 2 * SHARED_BYTES)
    assert TuneKey.from_canonical(large.canonical) == large
    assert model._shared_part.cache_info().currsize == before


def test_what_is_shared_is_bounded_by_number_and_size_and_errors_are_not_kept():
    seen = []

    @shared
    def decoder(data):
        seen.append(data)
        return decode_field(data)

    small, large = encode("x"), encode("x" * SHARED_BYTES)
    assert [decoder(data) for data in (small, small, large, large)] == ["x", "x", "x" * SHARED_BYTES, "x" * SHARED_BYTES]
    assert seen == [small, large, large]
    for number in range(SHARED_COUNT):
        decoder(encode(number))
    decoder(small)
    assert seen.count(small) == 2
    for _ in range(2):
        with pytest.raises(NotCanonicalError):
            decoder(b"\xc1")
    assert seen.count(b"\xc1") == 2


@pytest.mark.parametrize("part", ["op", "runner", "extras", "profile"])
@pytest.mark.parametrize("inside", ["¦extras", "¦inputs", "¦params", "¦policy", "¦runner", "§profile", "©arguments", "«environment"])
def test_the_name_of_a_part_may_stand_inside_any_part(part, inside):
    """As UTF-8 these end in the byte that msgpack puts before a text of six to eleven bytes, and that text."""
    identity = RunnerIdentity(inside, {inside: inside})
    value = {"op": inside, "runner": identity, "extras": (inside,), "profile": (inside,)}[part]
    key = sample_key(**{part: value})
    assert inside.encode()[1:] in key.canonical
    assert TuneKey.from_canonical(key.canonical) == key
    assert TuneKey.from_canonical(key.canonical).parts() == key.parts()


@pytest.mark.parametrize("cut", ["head", "name"])
def test_other_fields_are_not_cut(cut):
    wrong = b"\x91\x00" if cut == "head" else CANONICAL.replace(b"policy", b"polity")
    with pytest.raises(NotCanonicalError):
        Layout("fi_cachestore.key/1", tuple(PARTS)).cut(wrong)


# -- values one after the other ---------------------------------------------------------------------------------------------------


def nested(depth):
    return () if depth == 1 else (nested(depth - 1),)


@pytest.mark.parametrize(
    "values",
    [
        *([*range(count)] for count in (0, 1, 13, 14, 15, 16, 255, MAX_ITEMS - 1, MAX_ITEMS, MAX_ITEMS + 1, 3 * MAX_ITEMS)),
        [nested(MAX_DEPTH), nested(MAX_DEPTH - 1)],
        ["x" * (MAX_BYTES // 2)] * 3,
        [None, True, 1, 1.0, "a", b"a", (1,), [1], {"a": 1}, Named("kind", (1,))],
    ],
    ids=lambda values: str(len(values)),
)
def test_values_one_after_the_other_are_encoded_as_each_alone(values):
    together = b"".join(map(encode, values))
    assert encode_each(values) == encode_each(tuple(values)) == together
    if len(values) <= MAX_ITEMS and len(together) < MAX_BYTES and values != [nested(MAX_DEPTH), nested(MAX_DEPTH - 1)]:
        assert list_items(encode(values)) == (len(values), together)


@pytest.mark.parametrize("values", [[1, object()], ["x" * (MAX_BYTES + 1)], [nested(MAX_DEPTH + 1)], [1, "\ud800"]], ids=lambda _: "")
def test_what_is_no_value_among_others_is_named_as_it_is_alone(values):
    with pytest.raises(UnsupportedValueError) as alone:
        encode(values[-1])
    with pytest.raises(UnsupportedValueError) as among:
        encode_each(values)
    assert str(among.value) == str(alone.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x91",
        b"\x90",
        b"\xdc",
        b"\xdc\x00",
        b"\xdc\x00\x01\x01",
        b"\xdc\xff\xff\x01",
        *map(encode, (None, 1, 145, "a", (1,), {"a": 1})),
    ],
    ids=repr,
)
def test_other_bytes_are_no_list(data):
    with pytest.raises(NotCanonicalError):
        list_items(data)
