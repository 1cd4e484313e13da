"""Comparing two keys, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fi_cachestore.keys.canonical import Named, Value, encode
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.render import render


class _Absent:
    """Stands where the other key has a field and this one has none."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which two keys differ; ``left`` and ``right`` are values or ``ABSENT``."""

    path: str
    left: Value | _Absent
    right: Value | _Absent

    def __str__(self) -> str:
        """Return the field and both values."""
        return f"{self.path}: {show(self.left)} | {show(self.right)}"


def show(value: Value | _Absent) -> str:
    """Return a side of a difference in words."""
    return repr(value) if isinstance(value, _Absent) else render(value)


def diff(left: TuneKey, right: TuneKey) -> tuple[Difference, ...]:
    """Return the fields in which two keys differ, in the order of the parts; empty exactly when the digests are equal."""
    found: list[Difference] = []
    right_parts = right.parts()
    for name, value in left.parts().items():
        found.extend(_compare(name, value, right_parts[name]))
    return tuple(found)


def _compare(path: str, left: Value | _Absent, right: Value | _Absent) -> Iterator[Difference]:
    if isinstance(left, _Absent) or isinstance(right, _Absent):
        yield Difference(path, left, right)
    elif encode(left) == encode(right):
        return
    elif isinstance(left, Named) and isinstance(right, Named) and left.kind == right.kind:
        yield from _compare(f"{path}<{left.kind}>", left.content, right.content)
    elif isinstance(left, dict) and isinstance(right, dict):
        # By canonical bytes: Python's own look-up takes True for 1.
        lefts, rights = ({encode(key): (key, item) for key, item in side.items()} for side in (left, right))
        for code in {**lefts, **rights}:
            key = (lefts.get(code) or rights[code])[0]
            name = key if isinstance(key, str) else render(key)
            yield from _compare(f"{path}.{name}", lefts.get(code, (key, ABSENT))[1], rights.get(code, (key, ABSENT))[1])
    elif type(left) is type(right) and isinstance(left, tuple | list) and isinstance(right, tuple | list):
        for index in range(max(len(left), len(right))):
            yield from _compare(
                f"{path}[{index}]",
                left[index] if index < len(left) else ABSENT,
                right[index] if index < len(right) else ABSENT,
            )
    else:
        yield Difference(path, left, right)
