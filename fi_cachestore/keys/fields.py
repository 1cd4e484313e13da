"""Canonical values taken apart and put together by their bytes, so that what many have in common is encoded and decoded once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final, TypeVar

import msgpack

from fi_cachestore.errors import NotCanonicalError, UnsupportedValueError
from fi_cachestore.keys.canonical import DICT, LIST, MAX_BYTES, MAX_ITEMS, NAMED, TUPLE, Value, bounded, encode, packed_wire

SHARED_COUNT: Final = 2048
SHARED_BYTES: Final = 4096
_FEW_ITEMS: Final = 15
_SHORT_HEAD, _LONG_HEAD = 2, 4  # bytes of an array's head, for few items and for more, with its tag
_SHORT_ARRAY, _LONG_ARRAY = 0x90, b"\xdc"

T = TypeVar("T")


def shared(decoder: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Return ``decoder`` with a memory: what it makes of short bytes is given to everyone who has the same, so it must never be changed.

    Bounded by number and size; what was refused is refused anew. Thread-safe.
    """
    remembered = lru_cache(maxsize=SHARED_COUNT)(decoder)
    return lambda data: remembered(data) if len(data) <= SHARED_BYTES else decoder(data)


def encode_each(values: Sequence[Value]) -> bytes:
    """Return the bytes of values one after the other, each as ``encode`` gives it; there is no limit to their number.

    Raises:
        UnsupportedValueError: as ``encode`` does.
    """
    try:
        packed = encode(tuple(values))
    except UnsupportedValueError:  # together they are over a limit, or one of them is at fault, and is named
        return b"".join(map(encode, values))
    return packed[_SHORT_HEAD if len(values) < _FEW_ITEMS else _LONG_HEAD :]


def list_items(data: bytes) -> tuple[int, bytes]:
    """Return how many items an encoded list has, and their bytes one after the other, as ``encode_each`` gives them; nothing is decoded.

    Raises:
        NotCanonicalError: there is no list in front.
    """
    is_long = data[:1] == _LONG_ARRAY
    size, head = int.from_bytes(data[1:3] if is_long else data[:1], "big"), _LONG_HEAD if is_long else _SHORT_HEAD
    count = size - 1 if is_long else size - 1 - _SHORT_ARRAY
    if data[head - 1 : head] != bytes((LIST,)) or not 0 <= count <= MAX_ITEMS or (count < _FEW_ITEMS) is is_long:
        raise NotCanonicalError("not a list", len(data))
    return count, data[head:]


def join_fields(kind: str, fields: Mapping[str, bytes]) -> bytes:
    """Return ``encode(Named(kind, {name: value...}))`` from fields that are encoded already, so that many values can share some.

    Raises:
        UnsupportedValueError: longer than the limit.
    """
    rows = sorted((packed_wire(name), content) for name, content in fields.items())
    heads = packed_wire(NAMED) + packed_wire(kind), packed_wire(DICT)
    outer, inner = (_array_head(count) for count in (3, 1 + 2 * len(rows)))
    return bounded(b"".join([outer, heads[0], inner, heads[1], *(part for row in rows for part in row)]), "value", kind)


class Layout:
    """The fields of one kind, for taking apart what ``join_fields`` has joined. Immutable; worked out once, when a module is imported."""

    def __init__(self, kind: str, names: Sequence[str]) -> None:
        """Know the names between the fields, and their order."""
        rows = sorted((packed_wire(name), name) for name in names)
        head = _array_head(3) + packed_wire(NAMED) + packed_wire(kind) + _array_head(1 + 2 * len(rows)) + packed_wire(DICT)
        befores = [(b"" if index else head) + packed for index, (packed, _) in enumerate(rows)]
        self._kind = kind
        self._places = [(name, before, len(before)) for before, (_, name) in zip(befores, rows, strict=True)]
        self._first, *self._rest = self._places

    def split(self, data: bytes) -> dict[str, bytes]:
        """Return the bytes of the fields. They are not decoded; ``decode_field`` does that.

        Raises:
            NotCanonicalError: other bytes than ``join_fields`` writes around its fields.
        """
        parts, at = {}, 0
        unpacker = msgpack.Unpacker(max_buffer_size=MAX_BYTES)
        try:
            unpacker.feed(data)
            for name, before, before_bytes in self._places:
                start = at + before_bytes
                if data[at:start] != before:
                    raise self._other(data)
                unpacker.read_bytes(before_bytes)
                unpacker.skip()
                at = unpacker.tell()
                parts[name] = data[start:at]
        except (ValueError, msgpack.UnpackException) as error:
            raise self._other(data) from error
        if at != len(data):
            raise NotCanonicalError("more than the fields", len(data))
        return parts

    def cut(self, data: bytes) -> dict[str, bytes]:
        """Return what ``split`` does, at a fourth of its cost, found by the names between the fields.

        It is that if every part is one value, as decoding it shows: no value begins with another one. A name may stand inside a value,
        though: where a part is none, nothing is said about ``data``.

        Raises:
            NotCanonicalError: there is a field missing.
        """
        name, before, start = self._first
        if not data.startswith(before):
            raise self._other(data)
        parts = {}
        for following, between, between_bytes in self._rest:
            end = data.find(between, start)
            if end < 0:
                raise self._other(data)
            parts[name] = data[start:end]
            name, start = following, end + between_bytes
        parts[name] = data[start:]
        return parts

    def _other(self, data: bytes) -> NotCanonicalError:
        return NotCanonicalError(f"other fields than those of {self._kind}", len(data))


def split_tuple(data: bytes) -> list[bytes] | None:
    """Return the bytes of the items of an encoded tuple, not decoded; ``None`` for anything else."""
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_BYTES)
    try:
        unpacker.feed(data)
        count = unpacker.read_array_header()
        head = _array_head(count) + packed_wire(TUPLE)
        if not 0 < count <= MAX_ITEMS + 1 or data[: len(head)] != head:
            return None
        unpacker.skip()  # the tag
        ends = [len(head)]
        for _ in range(count - 1):
            unpacker.skip()
            ends.append(unpacker.tell())
    except (ValueError, msgpack.UnpackException):
        return None
    return [data[start:end] for start, end in itertools.pairwise(ends)] if ends[-1] == len(data) else None


def _array_head(count: int) -> bytes:
    head: bytes = msgpack.Packer().pack_array_header(count)
    return head
