"""Readings of tuning configs: looked at once, compared on every call.

A config may be made anew for each call, and its specs, buckets and mappers may be changed in place: a config that is known is known by a
weak reference, and its parts are compared. Only configs whose functions hold nothing but plain data are known; others are read in full.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import FunctionType
from typing import Any, Final

from flashinfer.autotuner import TuningConfig

from fi_cachestore.adapter.bodies import Same, same_as_read
from fi_cachestore.adapter.readings import Readings, UnreadableError, is_of_module, is_scalar, kept
from fi_cachestore.adapter.rounding import known_rounding

_MAX_CONFIGS: Final = 64
_OPTIONAL: Final = [name for name in ("use_cold_l2_graph_replay", "cuda_graph_profile_replays") if hasattr(TuningConfig, name)]
_facts: Final = attrgetter("dynamic_tensor_specs", "constraint_specs", "use_cuda_graph", "use_cold_l2_cache", *_OPTIONAL)
_spec_facts: Final = attrgetter("input_idx", "dim_idx", "gen_tuning_buckets", "map_to_tuning_buckets")
_constraint_facts: Final = attrgetter("input_idx", "dim_idx", "infer_shape")


@dataclass(frozen=True, slots=True)
class ConfigPlan:
    """A config as it was looked at: its specs, constraints and functions, each with its parts.

    ``number`` stands for what it has; ``functions`` are those that are looked at with the runners', all but those that have
    ``has_new_defaults``, made anew with them; ``loose`` are functions whose closures may be rebound.
    """

    ref: weakref.ref[TuningConfig]
    facts: tuple[Any, ...]
    specs: list[tuple[Any, ...]]
    constraints: list[tuple[Any, ...]]
    every_function: tuple[FunctionType, ...]
    functions: tuple[FunctionType, ...]
    has_new_defaults: bool
    are_same: Same
    loose: tuple[FunctionType, ...]
    number: int
    readings: Readings

    @property
    def mappers(self) -> list[Any]:
        """Its bucket mappers, in the order of its specs."""
        return [spec[-1] for spec in self.specs]

    def is_current(self, config: TuningConfig) -> bool:
        """Whether this is the config, with the same specs and functions as before, and these with the same code and defaults."""
        return self.has_parts_of(config) and self.are_same(self.every_function)

    def has_parts_of(self, config: TuningConfig) -> bool:
        """Whether this is the config, with the same specs and functions as before; not whether ``functions`` have the same code."""
        facts = _facts(config)
        if self.ref() is not config or facts != self.facts or facts[0] is not self.facts[0] or facts[1] is not self.facts[1]:
            return False
        for spec, places, dims, buckets, mapper in self.specs:
            if spec.input_idx is not places or spec.dim_idx is not dims:
                return False
            if spec.gen_tuning_buckets is not buckets or spec.map_to_tuning_buckets is not mapper:
                return False
        for rule, place, dim, infer in self.constraints:
            if rule.input_idx is not place or rule.dim_idx is not dim or rule.infer_shape is not infer:
                return False
        return not self.has_new_defaults or self.are_same(self.every_function)


class Configs:
    """Reads configs. Thread-safe; bounded by forgetting."""

    def __init__(self, readings_for: Callable[[Sequence[Any]], Readings]) -> None:
        """``readings_for`` makes what takes readings for a call with some bucket mappers."""
        self._readings_for = readings_for
        self._known: dict[int, ConfigPlan] = {}
        self._numbers_by_content: dict[Hashable, int] = {}
        self._numbers = itertools.count()

    def plan(self, config: TuningConfig) -> ConfigPlan:
        """Return how a config is read, as it is now.

        Raises:
            UnreadableError: it cannot be.
        """
        known = self._known.get(id(config))
        return known if known is not None and known.is_current(config) else self._look_at(config)

    def _look_at(self, config: TuningConfig) -> ConfigPlan:
        if type(config) is not TuningConfig:
            raise UnreadableError
        facts = _facts(config)
        specs = [(spec, *_spec_facts(spec)) for spec in facts[0]]
        constraints = [(rule, *_constraint_facts(rule)) for rule in facts[1]]
        rows = [item for _, *row in (*specs, *constraints) for item in row]
        every = tuple(dict.fromkeys(item for item in rows if isinstance(item, FunctionType)))
        functions = tuple(function for function in every if function.__defaults__ is None or is_of_module(function))
        readings = self._readings_for([spec[-1] for spec in specs])
        content = (len(specs), readings.of(facts[2:]), *map(readings.of, rows))
        number = self._numbers_by_content.get(content)
        if number is None:
            number = kept(self._numbers_by_content, content, next(self._numbers))
        loose = tuple(function for function in every if function.__closure__ and known_rounding(function) is None)
        made = ConfigPlan(
            weakref.ref(config),
            facts,
            specs,
            constraints,
            every,
            functions,
            functions != every,
            same_as_read(every),
            loose,
            number,
            readings,
        )
        is_tame = type(facts[0]) is type(facts[1]) is tuple and all(map(_is_tame, (*facts[2:], *rows)))
        return kept(self._known, id(config), made, _MAX_CONFIGS) if is_tame else made

    def is_known(self, plan: ConfigPlan, config: TuningConfig) -> bool:
        """Whether a config is known by identity, and nothing in it needs to be read again."""
        return self._known.get(id(config)) is plan and not plan.loose


def _is_tame(item: Any) -> bool:
    """Whether keeping an object keeps nothing else alive that matters, and nothing in it changes but cells and code."""
    if not isinstance(item, FunctionType):
        return is_scalar(item)
    cells = item.__closure__ or ()
    return is_scalar(item.__defaults__ or ()) and item.__kwdefaults__ is None and all(is_scalar(cell.cell_contents) for cell in cells)
