"""Canonical bytes: one value, one encoding, on every machine.

The wire form is a closed subset of msgpack. Plain msgpack is not canonical (tuples and lists collapse, map order and integer
width are free, duplicate map keys decode), so containers are arrays that begin with a tag, maps are arrays of sorted pairs, floats
and wide integers are extension types, and ``decode`` accepts only bytes that ``encode`` gives back unchanged.

===========  =========================================================================
value        wire form
===========  =========================================================================
None, bool   nil, true, false
int          msgpack integer of minimal width; outside 64 bits: ext 2, big-endian two's complement
float        ext 1, the ASCII of ``float.hex()``
str, bytes   str, bin
tuple        ``[0, item...]``
list         ``[1, item...]``
dict         ``[2, key, value, key, value...]``, sorted by the bytes of the keys
Named        ``[3, kind, content]``
===========  =========================================================================

Subclasses are refused, not packed as their base: ``IntEnum`` members, named tuples and ``str`` subclasses differ from plain data.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgpack

from fi_cachestore.errors import NotCanonicalError, UnsupportedValueError

MAX_DEPTH = 48
"""Containers inside containers; deeper values are refused on both sides."""
MAX_ITEMS = 4096
"""Items of one container. With msgpack's own limit of 1024 open containers, no bytes make the decoder allocate more than 64 MiB."""
MAX_BYTES = 512 * 1024
"""Length of one encoded value."""

TUPLE, LIST, DICT, NAMED = range(4)
"""The tags of containers."""
_SEQUENCES = frozenset({TUPLE, LIST})
_CONTAINERS = (tuple, list, dict)
_LEAVES = frozenset({type(None), bool, int, str, bytes})
_AS_THEY_ARE = frozenset({type(None), bool, bytes})
_EXT_FLOAT, _EXT_WIDE_INT = 1, 2
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


@dataclass(frozen=True, slots=True)
class Named:
    """A value of a kind that plain data cannot express, such as a dtype: ``Named("dtype", "torch.bfloat16")``."""

    kind: str
    content: Value


Value: TypeAlias = "bool | int | float | str | bytes | tuple[Value, ...] | list[Value] | dict[Any, Value] | Named | None"


def encode(value: Value) -> bytes:
    """Return the canonical bytes of ``value``.

    Pure and thread-safe. Different values (types included: ``True``, ``1``, ``1.0``, ``"1"``, ``(1,)``, ``[1]``) give different bytes.

    Raises:
        UnsupportedValueError: a type outside the closed set, text that is not Unicode, or a size over the limits; names the field.
    """
    return _packed(value, 0, "value")


def encode_field(value: Value, name: str) -> bytes:
    """Return the bytes of ``value`` as one of the fields that ``fields.join_fields`` joins; errors name it.

    Raises:
        UnsupportedValueError: as ``encode`` does.
    """
    return _packed(value, 2, name)


def decode_field(data: bytes, depth: int = 2) -> Value:
    """Return the value that ``encode_field`` has encoded, or one that stands ``depth`` containers deep.

    Raises:
        NotCanonicalError: as ``decode`` does.
    """
    return _decoded(data, depth)


def packed_wire(wire: object) -> bytes:
    """Return the bytes of a wire form."""
    packed: bytes = msgpack.packb(wire)
    return packed


def _packed(value: Value, depth: int, path: str) -> bytes:
    try:
        packed = packed_wire(_to_wire(value, depth))
    except UnsupportedValueError as error:
        raise UnsupportedValueError(f"{path}{error.path}", error.type_name, error.why) from None
    return bounded(packed, path, type(value).__qualname__)


def bounded(packed: bytes, path: str, type_name: str) -> bytes:
    """Return ``packed``.

    Raises:
        UnsupportedValueError: it is longer than the limit.
    """
    if len(packed) > MAX_BYTES:
        raise UnsupportedValueError(path, type_name, f"{len(packed)} bytes encoded, the limit is {MAX_BYTES}")
    return packed


def decode(data: bytes) -> Value:
    """Return the value whose canonical bytes are ``data``.

    Pure and thread-safe; time and memory are bounded by the limits above, whatever the bytes.

    Raises:
        NotCanonicalError: anything that ``encode`` does not write, including other spellings of the same value.
    """
    return _decoded(data, 0)


def _decoded(data: bytes, depth: int) -> Value:
    size = len(data)
    if size > MAX_BYTES:
        raise NotCanonicalError(f"longer than {MAX_BYTES} bytes", size)
    try:
        wire = _unpacked(data)
        if packed_wire(wire) != data:  # widths and lengths; what msgpack itself does not know about is checked on the way down
            raise NotCanonicalError("another spelling of the same value", size)
        return _from_wire(wire, depth)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise NotCanonicalError(f"{type(error).__name__}: {error}"[:200], size) from error


def skim(data: bytes) -> Any:
    """Return the wire form of canonical bytes, unchecked: for looking through very many, never for serving what was found.

    Raises:
        NotCanonicalError: no msgpack, or over the limits.
    """
    try:
        return _unpacked(data)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise NotCanonicalError(f"{type(error).__name__}: {error}"[:200], len(data)) from error


def _unpacked(data: bytes) -> Any:
    return msgpack.unpackb(
        data,
        raw=False,
        use_list=True,
        strict_map_key=True,
        max_array_len=2 * MAX_ITEMS + 1,
        max_map_len=0,
        max_str_len=MAX_BYTES,
        max_bin_len=MAX_BYTES,
        max_ext_len=MAX_BYTES,
    )


def _to_wire(value: Any, depth: int) -> object:
    kind = type(value)
    if kind is str:
        return _text(value)
    if value is None or kind is bool or kind is bytes:
        return value
    if kind is int:
        return value if _INT_MIN <= value <= _INT_MAX else _wide_int(value)
    if kind is float:
        return msgpack.ExtType(_EXT_FLOAT, value.hex().encode("ascii"))
    if depth >= MAX_DEPTH:
        raise UnsupportedValueError("", kind.__qualname__, f"nested more than {MAX_DEPTH} deep")
    if kind is Named:
        return [NAMED, _text(value.kind), _inside(value.content, f"<{value.kind}>", depth)]
    if kind in _CONTAINERS:
        if len(value) > MAX_ITEMS:
            raise UnsupportedValueError("", kind.__qualname__, f"more than {MAX_ITEMS} items")
        if kind is dict:
            return [DICT, *_pairs(value, depth)]
        return [TUPLE if kind is tuple else LIST, *(_inside(item, i, depth) for i, item in enumerate(value))]
    raise UnsupportedValueError("", f"{kind.__module__}.{kind.__qualname__}")


def _inside(value: Any, place: object, depth: int) -> object:
    """Encode a part; an error on the way up learns the path to it."""
    kind = type(value)
    if (kind is str and value.isascii()) or kind in _AS_THEY_ARE or (kind is int and _INT_MIN <= value <= _INT_MAX):
        return value  # most parts: no further call
    try:
        return _to_wire(value, depth + 1)
    except UnsupportedValueError as error:
        step = f"[{place}]" if isinstance(place, int) else place if isinstance(place, str) and place[:1] == "<" else f".{place}"
        raise UnsupportedValueError(f"{step}{error.path}", error.type_name, error.why) from None


def _pairs(mapping: dict[Any, Any], depth: int) -> list[object]:
    if all(type(key) is str and key.isascii() for key in mapping):  # the bytes of short text ascend by length, then as the text does
        return [part for key in sorted(mapping, key=_by_length) for part in (key, _inside(mapping[key], key, depth))]
    rows = []
    for key, item in mapping.items():
        wire = _inside(key, "(key)", depth)
        rows.append((packed_wire(wire), wire, _inside(item, str(key), depth)))
    rows.sort(key=lambda row: row[0])
    return [part for _, key, item in rows for part in (key, item)]


def _by_length(text: str) -> tuple[int, str]:
    return len(text), text


def _text(text: str) -> str:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UnsupportedValueError("", "str", "lone surrogates are not Unicode text") from error
    return text


def _wide_int(value: int) -> msgpack.ExtType:
    return msgpack.ExtType(_EXT_WIDE_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _from_wire(wire: Any, depth: int) -> Value:
    return wire if type(wire) in _LEAVES else _from_container(wire, depth)


def _from_container(wire: Any, depth: int) -> Value:
    """Return what an array stands for, which is used up. Most items are leaves: those cost no call."""
    if type(wire) is not list:
        return _from_ext(wire)
    if not wire or depth >= MAX_DEPTH:
        message = "nested too deep, or an array without a tag"
        raise ValueError(message)
    tag, count = wire[0], len(wire)
    if type(tag) is not int:  # True equals 1
        message = "an array without a tag"
        raise TypeError(message)
    is_sorted = tag != DICT or _is_ascending(wire[1::2])  # told by the wire form of the keys
    for index, item in enumerate(wire):
        if type(item) not in _LEAVES:
            wire[index] = _from_container(item, depth + 1)
    if tag in _SEQUENCES and count <= MAX_ITEMS + 1:
        return tuple(wire[1:]) if tag == TUPLE else wire[1:]
    if tag == NAMED and count == 3 and type(wire[1]) is str:  # noqa: PLR2004 - tag, kind and content
        return Named(wire[1], wire[2])
    if tag == DICT and count % 2 == 1 and is_sorted:
        found = dict(zip(wire[1::2], wire[2::2], strict=True))
        if 2 * len(found) == count - 1:
            return found
    message = "an array with an unknown tag, too long, or with keys that are out of order or equal"
    raise ValueError(message)


def _is_ascending(keys: Sequence[Any]) -> bool:
    """Whether the bytes of ``keys`` ascend: those of short text, which most keys are, do so by length and then as the text does."""
    length, last = -1, ""
    for key in keys:
        if type(key) is not str or not key.isascii():
            return all(a < b for a, b in itertools.pairwise(map(packed_wire, keys)))
        here = len(key)
        if here < length or (here == length and key <= last):
            return False
        length, last = here, key
    return True


def _from_ext(wire: Any) -> Value:
    if type(wire) is not msgpack.ExtType:
        message = f"a {type(wire).__name__}"
        raise TypeError(message)
    value: Value = None
    if wire.code == _EXT_FLOAT:
        value = float.fromhex(wire.data.decode("ascii"))
    elif wire.code == _EXT_WIDE_INT:
        value = int.from_bytes(wire.data, "big", signed=True)
    if _to_wire(value, 0) != wire:
        message = f"extension type {wire.code} with another spelling of its value"
        raise ValueError(message)
    return value
