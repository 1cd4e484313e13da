"""How sizes are rounded to buckets, as a value: floor, ceil, or the mapper function without its bucket list.

A longer bucket list must not orphan records, and a record tuned under one direction must never be served to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, Final

from fi_cachestore.adapter.sources import release_of
from fi_cachestore.keys.canonical import Named

_TUNER_MODULES: Final = frozenset({"flashinfer.autotuner.autotuner", "flashinfer.autotuner", "flashinfer.fused_moe.utils"})
_LIST_MAPPER: Final = "make_bucket_mapper.<locals>._mapper"
# Mappers of FlashInfer whose bound number only ends their list of buckets.
_CAPPED: Final = {("flashinfer.fused_moe.utils", "map_to_hybrid_bucket"): frozenset({"max_num_tokens"})}
# Mappers that FlashInfer hands to runners, which then round for themselves.
_HELD_NAMES: Final = frozenset({"map_to_hybrid_bucket", "map_to_hybrid_bucket_uncapped", "_clamped_po2_mapper", "_mapper"})


def known_rounding(mapper: object) -> Named | None:
    """Return the identity of one of FlashInfer's own mappers, else ``None``."""
    if isinstance(mapper, FunctionType) and mapper.__module__ in _TUNER_MODULES and mapper.__qualname__ == _LIST_MAPPER:
        return Named("rounding", "ceil" if _cells(mapper).get("round_map") else "floor")
    if isinstance(mapper, partial) and isinstance(mapper.func, FunctionType):
        dropped = _CAPPED.get((mapper.func.__module__, mapper.func.__qualname__))
        if dropped is not None and not mapper.args and set(mapper.keywords) <= dropped:
            return Named("rounding", f"{mapper.func.__module__}:{mapper.func.__qualname__}")
    return None


def is_mapper(value: object, config_mappers: tuple[Callable[[int], int], ...]) -> bool:
    """Whether a runner's parameter is a bucket mapper: one of the call's own, or one of FlashInfer's."""
    if any(value is mapper for mapper in config_mappers) or known_rounding(value) is not None:
        return True
    function = value.func if isinstance(value, partial) else value
    return isinstance(function, FunctionType) and release_of(function.__module__) is not None and function.__name__ in _HELD_NAMES


def without_bucket_lists(cells: dict[str, Any]) -> dict[str, Any]:
    """Drop the sequences of sizes from a mapper's closure; everything else may decide the direction and stays."""
    return {name: value for name, value in cells.items() if not _is_size_list(value)}


def _is_size_list(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) > 0 and all(type(size) is int for size in value)


def _cells(function: FunctionType) -> dict[str, Any]:
    return {name: cell.cell_contents for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)}
