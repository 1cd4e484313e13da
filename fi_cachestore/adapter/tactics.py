"""Tactics: as values for a record, and back as the runner's own objects.

A tactic of plain data is given back as it was stored. Anything else (enum members, named tuples, dataclasses, numpy and foreign
integers or sequences) is found in the runner's own list by its canonical bytes; nothing is ever built from a stored type name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from flashinfer.autotuner import OptimizationProfile, StaticDim, TunableRunner

from fi_cachestore.adapter.roles import Role
from fi_cachestore.adapter.walker import Walker
from fi_cachestore.errors import UnsupportedValueError
from fi_cachestore.keys.canonical import Named, Value, encode
from fi_cachestore.records.record import DEFAULT_TACTIC

UNSTORABLE: Final = "unstorable"
_NO_ROLES: Final[Mapping[str, Role]] = {}


class _TacticWalker(Walker):
    """Every field of a tactic counts, whatever its name."""

    def _role(self, where: str, name: str, item: object) -> Role | None:  # noqa: ARG002 - the walker's signature
        return None


def tactic_value(tactic: Any, position: int) -> Value:
    """Return a tactic as a value. One that has no canonical form becomes ``Named("unstorable", position)``: known to this process only."""
    walker = _TacticWalker("tactic", lambda _: _NO_ROLES, {})
    value = walker.value(tactic, "tactic")
    if not walker.gaps:
        with contextlib.suppress(UnsupportedValueError):
            encode(value)
            return cast("Value", value)
    return Named(UNSTORABLE, position)


def is_storable(value: Value) -> bool:
    """Whether another process can make sense of the tactic."""
    return not (isinstance(value, Named) and value.kind == UNSTORABLE)


def is_plain_value(value: Value) -> bool:
    """Whether the value is plain data, which is its own tactic."""
    if isinstance(value, Named):
        return False
    if isinstance(value, tuple | list):
        return all(map(is_plain_value, value))
    return not isinstance(value, dict) or all(is_plain_value(key) and is_plain_value(item) for key, item in value.items())


def is_default(tactic: Any) -> bool:
    """Whether a tactic is FlashInfer's "let the runner choose"."""
    return type(tactic) is int and tactic == DEFAULT_TACTIC


def own_list(runner: TunableRunner, inputs: Sequence[Any], shapes: Sequence[Sequence[int]]) -> list[Any] | None:
    """Return the runner's tactic list for these very inputs, ``None`` if it has none."""
    profile = OptimizationProfile([[StaticDim(size) for size in shape] for shape in shapes], [None] * len(shapes))
    try:
        return list(runner.get_valid_tactics(list(inputs), profile))
    except Exception:  # noqa: BLE001 - a runner's code: whatever it raises means that it offers nothing here
        return None


def find_in(tactics: Sequence[Any], value: Value) -> Any:
    """Return the object in ``tactics`` whose value is ``value``.

    Raises:
        LookupError: there is none.
    """
    wanted = encode(value)
    for position, tactic in enumerate(tactics):
        candidate = tactic_value(tactic, position)
        if is_storable(candidate) and encode(candidate) == wanted:
            return tactic
    raise LookupError
