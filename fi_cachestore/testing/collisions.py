"""Looking for two calls that share a key although their tactics differ, in a grid of parameters, and showing the smallest such pair."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

from fi_cachestore.adapter import api
from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.errors import IncompleteKeyError
from fi_cachestore.keys.canonical import Value, encode
from fi_cachestore.keys.diff import diff
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.render import render
from fi_cachestore.testing.calls import Behaviour, TunedCall, legacy_key, listed_tactics, told_apart_by, trust_in

Factory = Callable[..., TunedCall | None]
"""Takes one value per parameter of the grid by name; gives the call, or ``None`` where there is no such combination."""

Grid = Mapping[str, Sequence[Any]]
"""The values that each parameter takes. Every combination is one point."""

_MAX_SHOWN: Final = 5


class Shared(StrEnum):
    """Which key two calls have in common."""

    KEY = "the key"
    LEGACY_KEY = "FlashInfer's own persisted key"


@dataclass(frozen=True, eq=False)
class Point:
    """One point of a grid: its parameters, and what is to be known of its call. ``positions`` are those of the values in the grid."""

    parameters: Mapping[str, Any]
    positions: tuple[int, ...]
    call: TunedCall
    view: RunnerView
    key: TuneKey | IncompleteKeyError
    legacy_key: str | None
    behaviour: Value

    def identity(self, shared: Shared) -> Hashable:
        """Return the key of that kind, ``None`` where the call has none."""
        if shared is Shared.LEGACY_KEY:
            return self.legacy_key
        return self.key.digest if isinstance(self.key, TuneKey) else None

    @cached_property
    def behaviour_bytes(self) -> bytes:
        """The behaviour, for comparing."""
        return encode(self.behaviour)

    def __str__(self) -> str:
        """Return the parameters."""
        return ", ".join(f"{name}={value!r:.60}" for name, value in self.parameters.items()) or "no parameters"


@dataclass(frozen=True, eq=False)
class Collision:
    """Two calls with one key and different tactics, as few parameters apart as can be."""

    shared: Shared
    left: Point
    right: Point

    @property
    def differing(self) -> tuple[str, ...]:
        """The parameters in which the two calls differ."""
        pairs = zip(self.left.parameters, self.left.positions, self.right.positions, strict=True)
        return tuple(name for name, left, right in pairs if left != right)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the key leaves out of either call, with its role."""
        found = [*self.left.view.left_out, *self.right.view.left_out]
        return tuple(dict.fromkeys(f"{path} ({role})" for path, role in found))

    @property
    def told_apart_by(self) -> tuple[str, ...]:
        """What the key leaves out and that has two values in the two calls: evidence is kept by such values, and a new one is verified."""
        return told_apart_by(self.left.view.left_out_values, self.right.view.left_out_values)

    def __str__(self) -> str:
        """Return both calls with their tactics, what they differ in, and what is the same."""
        names = ", ".join(self.differing)
        lines = [f"two calls share {self.shared} and have different tactics; they differ in {names}"]
        for point in (self.left, self.right):
            mine = ", ".join(f"{name}={point.parameters[name]!r:.60}" for name in self.differing)
            lines.append(f"  {mine}: {render(point.behaviour):.400}")
        rest = ", ".join(f"{name}={value!r:.60}" for name, value in self.left.parameters.items() if name not in self.differing)
        lines += [f"  with {rest}"] if rest else []
        return "\n".join([*lines, *(self._legacy_lines() if self.shared is Shared.LEGACY_KEY else self._key_lines())])

    def _key_lines(self) -> Iterator[str]:
        assert isinstance(self.left.key, TuneKey)  # noqa: S101 - they share it
        yield "  nothing in the key differs:"
        yield from (f"    {line}" for line in str(self.left.key.explain()).splitlines())
        if self.left_out:
            yield f"  left out of it: {', '.join(self.left_out)}"
        yield f"  {trust_in(self.told_apart_by)}"
        yield "  hold what differs as plain data that only the constructor sets, or return it from get_cache_key_extras"

    def _legacy_lines(self) -> Iterator[str]:
        yield f"  {self.left.legacy_key}"
        if isinstance(self.left.key, TuneKey) and isinstance(self.right.key, TuneKey):
            apart = [str(difference) for difference in diff(self.left.key, self.right.key)]
            yield f"  {Shared.KEY} {'tells them apart by ' + '; '.join(apart)[:400] if apart else 'is one, too'}"
        yield "  return what differs from get_cache_key_extras"


def find_collisions(factory: Factory, grid: Grid, *, behaviour: Behaviour = listed_tactics) -> tuple[Collision, ...]:
    """Return the minimal pairs: two points of ``grid`` with one key, of ours or of FlashInfer's own, and different tactics.

    Of pairs that differ in the same parameters, or in more than another pair of that kind, only the first is given. Every point is built
    once. ``behaviour`` is what is compared: by default the runner's own list at the call's bucket.
    """
    points = tuple(_points(factory, grid, behaviour))
    return tuple(itertools.chain.from_iterable(_minimal(points, tuple(grid), shared) for shared in Shared))


def assert_keys_distinct(factory: Factory, grid: Grid, *, behaviour: Behaviour = listed_tactics) -> None:
    """Check that any two points of ``grid`` with different tactics have different keys, and that every point has a key.

    A grid whose points all offer the same tactics shows nothing.

    Raises:
        AssertionError: names the minimal pairs, the fields that do not differ, and calls without a complete key.
    """
    __tracebackhide__ = True
    points = tuple(_points(factory, grid, behaviour))
    without = [f"{point}: {point.key}" for point in points if isinstance(point.key, IncompleteKeyError)]
    if without:
        raise AssertionError(_joined(f"{len(without)} of {len(points)} calls have no key: they are tuned anew by every process", without))
    _assert_none(_minimal(points, tuple(grid), Shared.KEY))


def assert_legacy_keys_distinct(factory: Factory, grid: Grid, *, behaviour: Behaviour = listed_tactics) -> None:
    """Check the same of the keys under which FlashInfer itself stores tactics: those that a restart without this library relies on.

    Raises:
        AssertionError: names the minimal pairs, and what would tell them apart.
    """
    __tracebackhide__ = True
    _assert_none(_minimal(tuple(_points(factory, grid, behaviour)), tuple(grid), Shared.LEGACY_KEY))


def _assert_none(found: Sequence[Collision]) -> None:
    __tracebackhide__ = True
    if found:
        raise AssertionError(_joined(f"{len(found)} minimal pairs of calls share a key" if len(found) > 1 else "", map(str, found)))


def _joined(heading: str, items: Any) -> str:
    lines = list(items)
    more = [f"and {len(lines) - _MAX_SHOWN} more"] if len(lines) > _MAX_SHOWN else []
    return "\n".join(filter(None, [heading, *lines[:_MAX_SHOWN], *more]))


def _points(factory: Factory, grid: Grid, behaviour: Behaviour) -> Iterator[Point]:
    values = [list(values) for values in grid.values()]
    for positions in itertools.product(*(range(len(of_parameter)) for of_parameter in values)):
        parameters = {name: of[position] for name, of, position in zip(grid, values, positions, strict=True)}
        call = factory(**parameters)
        if call is None:
            continue
        view = call.describe()
        try:
            key: TuneKey | IncompleteKeyError = api.key_of(view)
        except IncompleteKeyError as error:
            key = error
        yield Point(parameters, positions, call, view, key, legacy_key(view), behaviour(call))


def _minimal(points: Sequence[Point], names: tuple[str, ...], shared: Shared) -> list[Collision]:
    """Return one pair per smallest set of parameters: ever larger sets are varied, those that hold one already known are not."""
    telling = [point for point in points if point.behaviour is not None and point.identity(shared) is not None]
    suspects = [point for group in _groups(telling, lambda point: point.identity(shared)) if _differ(group) for point in group]
    if not suspects:
        return []
    found: list[Collision] = []
    for count in range(1, len(names) + 1):
        for varied in itertools.combinations(range(len(names)), count):
            if not any(set(known.differing) <= {names[i] for i in varied} for known in found):
                pair = _pair(suspects, shared, frozenset(varied))
                found += [] if pair is None else [pair]
    return found


def _pair(points: Sequence[Point], shared: Shared, varied: frozenset[int]) -> Collision | None:
    """Return the first two points with one key and different tactics that differ in ``varied`` only."""

    def alike(point: Point) -> Hashable:
        return point.identity(shared), tuple(-1 if i in varied else position for i, position in enumerate(point.positions))

    for group in _groups(points, alike):
        other = next((point for point in group if point.behaviour_bytes != group[0].behaviour_bytes), None)
        if other is not None:
            return Collision(shared, group[0], other)
    return None


def _groups(points: Sequence[Point], alike: Callable[[Point], Hashable]) -> Iterator[list[Point]]:
    groups: dict[Hashable, list[Point]] = defaultdict(list)
    for point in points:
        groups[alike(point)].append(point)
    yield from groups.values()


def _differ(group: Sequence[Point]) -> bool:
    return len({point.behaviour_bytes for point in group}) > 1
