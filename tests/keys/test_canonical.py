import enum
import math
import tracemalloc
from collections import OrderedDict, namedtuple

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fi_cachestore.errors import NotCanonicalError, UnsupportedValueError
from fi_cachestore.keys.canonical import MAX_BYTES, MAX_DEPTH, MAX_ITEMS, Named, decode, encode, encode_field
from fi_cachestore.keys.fields import join_fields

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])) | st.binary()
HASHABLE = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.builds(Named, st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner)
    ),
    max_leaves=12,
)


def typed(value):
    """A value in which equality is that of the encoding: types count, and a NaN equals itself."""
    if isinstance(value, float):
        return (float, "nan" if math.isnan(value) else value.hex())
    if isinstance(value, tuple | list):
        return (type(value), [typed(item) for item in value])
    if isinstance(value, dict):
        return (dict, sorted((repr(typed(key)), typed(item)) for key, item in value.items()))
    if isinstance(value, Named):
        return (Named, value.kind, typed(value.content))
    return (type(value), value)


@given(VALUES)
def test_decoding_gives_the_value_back(value):
    assert typed(decode(encode(value))) == typed(value)


@given(VALUES, VALUES)
@example(0.0, -0.0)
@example({1: 2}, {True: 2})
def test_equal_bytes_exactly_for_equal_values(left, right):
    assert (encode(left) == encode(right)) == (typed(left) == typed(right))


@given(VALUES)
def test_map_order_does_not_count(value):
    mapping = {"b": value, "a": 1, 3: None}
    assert encode(mapping) == encode(dict(reversed(mapping.items())))


@given(st.binary(max_size=200))
@example(b"\xcd\x00\x01")  # an integer wider than it must be
@example(b"\xd9\x01a")  # a string with a longer header than it must have
@example(b"\xca\x3f\x80\x00\x00")  # a bare float32
@example(b"\xd6\xff\x00\x00\x00\x00")  # msgpack's timestamp
@example(b"\x80")
@example(b"\x90")
@example(b"\x95\x02\xa1a\x01\xa1a\x02")  # a duplicate key
@example(b"\x95\x02\xa1b\x01\xa1a\x02")  # keys out of order
@example(b"\x92\xc3\x01")  # a tag that Python takes for 1
@example(b"\x95\x02\x01\xc0\xc3\xc0")  # keys that Python takes for one
@example(b"\xd4\x01\x31")  # a float as "1", not "0x1.0000000000000p+0"
@example(b"\xd4\x02\x05")  # a narrow integer in a wide one's clothes
@example(b"\xd4\x03\x05")  # an extension of somebody else's
@example(b"\xc7\x0a\x010x1p+99999")  # a float out of range
@example(b"\x93\x02\x91\x01\xc0")  # a list as a key
@example(b"\x93\x03\x01\xc0")  # a kind that is no text
@example(b"\x94\x03\xa1a\xc0\xc0")  # a kind with two contents
@example(b"\x92\x03\xa1a")  # a kind without content
@example(b"\xdc\x00\x02\x01\x05")  # an array with a longer header than it must have
def test_other_bytes_are_refused_or_are_canonical(data):
    try:
        value = decode(data)
    except NotCanonicalError:
        return
    assert encode(value) == data


LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=4) | st.binary(max_size=4)
EXTENSIONS = st.builds(msgpack.ExtType, st.integers(0, 4), st.binary(max_size=12) | st.floats().map(lambda x: x.hex().encode()))
WIRES = st.recursive(
    LEAVES | EXTENSIONS,
    lambda inner: st.builds(lambda tag, items: [tag, *items], st.sampled_from([0, 1, 2, 2, 3, 4, True]), st.lists(inner, max_size=6)),
    max_leaves=20,
)


@given(WIRES)
def test_what_looks_like_ours_is_refused_or_is_canonical(wire):
    data = msgpack.packb(wire, use_bin_type=True)
    try:
        value = decode(data)
    except NotCanonicalError:
        return
    assert encode(value) == data


def test_no_container_decodes_that_cannot_be_encoded():
    too_many = msgpack.packb([1, *([0] * (MAX_ITEMS + 1))])
    with pytest.raises(NotCanonicalError):
        decode(too_many)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=5), st.text(max_size=8))
def test_fields_that_are_joined_give_the_bytes_of_the_whole(fields, kind):
    encoded = {name: encode_field(value, name) for name, value in fields.items()}
    assert join_fields(kind, encoded) == encode(Named(kind, dict(fields)))


def test_fields_that_are_joined_have_the_limit_of_the_whole():
    half = encode_field("x" * (MAX_BYTES // 2), "half")
    with pytest.raises(UnsupportedValueError, match="bytes"):
        join_fields("kind", {"a": half, "b": half})


def test_a_field_counts_the_containers_around_it():
    encode_field(nested(MAX_DEPTH - 2), "a")
    with pytest.raises(UnsupportedValueError, match=r"^a.*deep"):
        encode_field(nested(MAX_DEPTH - 1), "a")


@given(VALUES.map(encode), st.data())
def test_a_changed_byte_never_decodes_to_the_same_value(data, draw):
    at = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[at] ^= draw.draw(st.integers(1, 255))
    try:
        value = decode(bytes(changed))
    except NotCanonicalError:
        return
    assert typed(value) != typed(decode(data))


def test_look_alikes_all_differ():
    alike = [True, 1, 1.0, "1", b"1", (1,), [1], None, Named("dtype", "torch.bfloat16"), "torch.bfloat16", {1: 1}, {"1": 1}, Named("1", 1)]
    alike += [0, False, 0.0, -0.0, "", b"", (), [], {}, Named("", None), "None", math.nan, math.inf]
    assert len({encode(value) for value in alike}) == len(alike)


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        Color.RED,
        Text("a"),
        namedtuple("Point", "x")(1),
        OrderedDict(a=1),
        {1, 2},
        frozenset({1}),
        object(),
        len,
        1j,
        range(3),
        bytearray(b"a"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_types_outside_the_closed_set_are_refused_with_their_path(value):
    with pytest.raises(UnsupportedValueError) as caught:
        encode({"outer": (1, [Named("box", {"inner": value})])})
    assert caught.value.path == "value.outer[1][0]<box>.inner"
    assert caught.value.type_name.rpartition(".")[2] == type(value).__qualname__


def test_text_that_is_not_unicode_is_refused():
    with pytest.raises(UnsupportedValueError, match="surrogates"):
        encode(["\ud800"])


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_depth_is_bounded_on_both_sides():
    assert decode(encode(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    with pytest.raises(UnsupportedValueError, match="deep"):
        encode(nested(MAX_DEPTH + 1))
    with pytest.raises(NotCanonicalError):
        decode(b"\x92\x01" * (MAX_DEPTH + 1) + b"\x01")
    with pytest.raises(NotCanonicalError):
        decode(b"\x92\x01" * 100_000)


def test_length_is_bounded_on_both_sides():
    assert len(decode(encode(list(range(MAX_ITEMS))))) == MAX_ITEMS
    assert len(decode(encode(dict.fromkeys(range(MAX_ITEMS))))) == MAX_ITEMS
    for too_many in (list(range(MAX_ITEMS + 1)), dict.fromkeys(range(MAX_ITEMS + 1))):
        with pytest.raises(UnsupportedValueError, match="items"):
            encode(too_many)
    with pytest.raises(UnsupportedValueError, match="bytes"):
        encode("x" * (MAX_BYTES + 1))
    with pytest.raises(NotCanonicalError, match="longer"):
        decode(b"\xc0" * (MAX_BYTES + 1))


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of four billion
        b"\xdc\xff\xff" * 1000,  # arrays of 65535 in each other
        (b"\xdc" + (2 * MAX_ITEMS + 1).to_bytes(2, "big")) * 100_000,  # the longest allowed, in each other
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x9f" * 100_000,
    ],
    ids=range(8),
)
def test_hostile_headers_allocate_little(data):
    tracemalloc.start()
    try:
        with pytest.raises(NotCanonicalError):
            decode(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100 << 20


def test_the_wire_form_is_msgpack():
    assert msgpack.unpackb(encode((1, "a", None))) == [0, 1, "a", None]
