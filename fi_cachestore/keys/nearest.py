"""The stored keys that are most like one that has no record: by how many fields differ, op and runner first."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, zip_longest
from math import log2
from typing import Any, Final

from fi_cachestore.errors import NotCanonicalError
from fi_cachestore.keys.canonical import MAX_DEPTH, skim
from fi_cachestore.keys.diff import Difference, diff
from fi_cachestore.keys.model import TuneKey

_SHORT_LIST: Final = 64
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Near:
    """A stored key and the fields in which it differs; ``left`` of a difference is the key that was asked about."""

    key: TuneKey
    differences: tuple[Difference, ...]


def nearest(asked: Sequence[TuneKey], stored: Iterable[bytes], limit: int) -> list[tuple[Near, ...]]:
    """Return, for each key asked about, the ``limit`` most similar of the ``stored`` keys' canonical bytes, itself left out.

    First those of the same op, then of the same runner class, then the fewest differing fields, then the nearest numbers. Pure. Reads
    ``stored`` once and keeps a short list per key: some ten microseconds for each pair of keys of one op. What is no key is passed over.
    """
    lists = [_ShortList(key) for key in asked]
    for canonical in stored:
        parts = _skimmed(canonical)
        if parts is not None:
            for short in lists:
                short.consider(parts, canonical)
    return [short.best(limit) for short in lists]


def runner_class(runner_type: str) -> str:
    """Return module and name of a runner's class, without the digest of its source."""
    return runner_type.partition(" ")[0]


class _ShortList:
    """The best candidates for one key by a rough count, which may take ``True`` for 1; ``best`` compares those exactly."""

    def __init__(self, key: TuneKey) -> None:
        self._key = key
        self._parts = _skimmed(key.canonical) or {}
        self._class = runner_class(key.runner.type)
        self._rows: list[tuple[bool, bool, int, int, bytes]] = []
        self._numbers = count()

    def consider(self, parts: dict[str, Any], canonical: bytes) -> None:
        front = parts["op"] != self._key.op, runner_class(parts["runner"]) != self._class
        is_full = len(self._rows) >= _SHORT_LIST
        if is_full and front > self._rows[-1][:2]:
            return
        differing = sum(_difference_count(mine, parts.get(name), 0) for name, mine in self._parts.items())
        if not is_full or (*front, differing) < self._rows[-1][:3]:
            insort(self._rows, (*front, differing, next(self._numbers), canonical))
            del self._rows[_SHORT_LIST:]

    def best(self, limit: int) -> tuple[Near, ...]:
        found = []
        for row in self._rows:
            try:
                near = TuneKey.from_canonical(row[-1])
            except NotCanonicalError:
                continue
            differences = diff(self._key, near)
            if differences:
                found.append((row[:2], len(differences), _distance(differences), near.digest, Near(near, differences)))
        return tuple(row[-1] for row in sorted(found, key=lambda row: row[:4])[:limit])


def _skimmed(canonical: bytes) -> dict[str, Any] | None:
    """Return the parts of a key in wire form, ``None`` for bytes that are no key."""
    try:
        wire = skim(canonical)
        [_, _, [_, *flat]] = wire
        parts = dict(zip(flat[::2], flat[1::2], strict=True))
    except (NotCanonicalError, TypeError, ValueError):
        return None
    is_key = isinstance(parts.get("op"), str) and isinstance(parts.get("runner"), str)
    return parts if is_key else None


def _difference_count(left: Any, right: Any, depth: int) -> int:
    """Return in how many leaves two wire forms differ."""
    if left == right:
        return 0
    if depth > MAX_DEPTH or type(left) is not list or type(right) is not list or left[:1] != right[:1]:
        return 1
    match left[:1]:
        case [2]:
            return _pairs_count(left[1:], right[1:], depth)
        case [3] if left[1:2] != right[1:2]:
            return 1
    return sum(_difference_count(a, b, depth + 1) for a, b in zip_longest(left[1:], right[1:], fillvalue=_MISSING))


def _pairs_count(left: list[Any], right: list[Any], depth: int) -> int:
    try:
        lefts, rights = dict(zip(left[::2], left[1::2], strict=False)), dict(zip(right[::2], right[1::2], strict=False))
    except TypeError:  # keys that are containers
        return 1
    return sum(_difference_count(lefts.get(key, _MISSING), rights.get(key, _MISSING), depth + 1) for key in {**lefts, **rights})


def _distance(differences: Sequence[Difference]) -> float:
    """Return how far numbers are apart, in doublings, so that of several buckets the nearest comes first."""
    pairs = [(row.left, row.right) for row in differences]
    return sum(abs(log2(left) - log2(right)) for left, right in pairs if type(left) is int and type(right) is int and min(left, right) > 0)
