"""The fingerprint of a raw call: a tuple that is cheap to take, and equal only for calls that have the same keys and the same answer.

It has the op, the runners' classes and attributes, the inputs, the keyword arguments, the tuning config, and what FlashInfer has in force
for the calling thread. Nothing is rounded off: what has no reading has no fingerprint, and such a call is described at length.

Most calls are *straight*: on tensors and scalars, by runners of classes that a module holds, with plain attributes, or of classes that are
made for the call. For these, what must be the same as before is compared, part by part, and what may differ is taken from the objects.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from flashinfer.autotuner import AutoTuner, TunableRunner, TuningConfig

from fi_cachestore.adapter.classes import Classes, Lasting, merged
from fi_cachestore.adapter.configs import ConfigPlan, Configs
from fi_cachestore.adapter.introspect import Introspector
from fi_cachestore.adapter.made import Made, is_constant, made_of
from fi_cachestore.adapter.members import Attributes, ClassPlan, read_rest
from fi_cachestore.adapter.readings import (
    ATOMS,
    TENSORS,
    Getter,
    Readings,
    UnreadableError,
    getter,
    kept,
)
from fi_cachestore.adapter.standins import alignment
from fi_cachestore.adapter.tensors import Tensors
from fi_cachestore.adapter.values import attributes

Fingerprint = tuple[Any, ...]

_name: Final = attrgetter("__qualname__")
_address: Final = object.__hash__  # as ``id``, which is announced to audit hooks each time
_MAX_ANEW: Final = 128  # a config that is made for each call makes a new one each time
_LASTING: Final = ATOMS | TENSORS | {float, tuple, list, dict, set, frozenset}


@dataclass(frozen=True, slots=True)
class _Inputs:
    """How inputs of some types are read. ``is_simple``: none but tensors and numbers, text and the like, which run no code of others."""

    number: int
    tensors: Getter
    atoms: Getter
    others: tuple[int, ...]
    is_simple: bool


@dataclass(frozen=True, slots=True)
class _Straight:
    """How a straight call is read. ``number`` stands for all that is compared, and for the names of the attributes."""

    number: int
    config: ConfigPlan
    classes: Lasting
    tensors: Tensors
    tensors_of: Getter
    atoms: Getter
    rows: tuple[tuple[type, int, Getter], ...]

    def read(self, runners: Sequence[TunableRunner], config: TuningConfig, inputs: Sequence[Any]) -> Fingerprint | None:
        """Return the fingerprint of such a call, ``None`` where it is not what was looked at."""
        if not self.config.has_parts_of(config) or not self.classes.is_current():
            return None
        values = [*self.atoms(inputs)]
        try:
            for runner, (kind, count, direct) in zip(runners, self.rows):  # noqa: B905 - of one length
                if type(runner) is not kind or len(held := runner.__dict__) != count:
                    return None
                values += direct(held)
        except KeyError:
            return None
        return (self.number, tuple(map(type, values)), self.tensors.number(self.tensors_of(inputs)), *values)


@dataclass(frozen=True, slots=True)
class _Anew:
    """How a call is read whose runners are of classes that are made for it. ``number`` stands for all that is compared."""

    number: int
    config: ConfigPlan
    tensors: Tensors
    tensors_of: Getter
    atoms: Getter
    made: Made

    def read(self, runners: Sequence[TunableRunner], config: TuningConfig, inputs: Sequence[Any]) -> Fingerprint | None:
        """Return the fingerprint of such a call, ``None`` where it is not what was looked at."""
        if not self.config.has_parts_of(config):
            return None
        values = [*self.atoms(inputs)]
        loose: list[Hashable] = []
        try:
            if not self.made.read(runners, inputs, values, loose, self.config):
                return None
        except Exception:  # noqa: BLE001 - objects of runners: reading them at length meets the same
            return None
        types = tuple(map(type, values))
        if not ATOMS.issuperset(types):
            return None
        return (self.number, types, self.tensors.number(self.tensors_of(inputs)), tuple(loose), *values)


class Fingerprints:
    """Takes fingerprints. Thread-safe; keeps neither tensors nor runners. Bounded by forgetting, which costs time only."""

    def __init__(self, introspector: Introspector) -> None:
        """Know nothing yet."""
        self._classes = Classes(introspector)
        self._configs = Configs(lambda mappers: Readings(mappers, self._inner_runner, self._classes.of_class))
        self._straight: dict[tuple[Any, ...], _Straight | _Anew] = {}
        self._made: dict[tuple[Any, ...], Made] = {}
        self._inputs: dict[tuple[type | None, ...], _Inputs] = {}
        self._tensors: dict[tuple[str, int], Tensors] = {}
        self._numbers_by_content: dict[Hashable, int] = {}
        self._numbers = itertools.count()

    def of(
        self,
        tuner: AutoTuner,
        op: str,
        runners: Sequence[TunableRunner],
        config: TuningConfig,
        inputs: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Fingerprint:
        """Return the fingerprint of a call: for looking up only, as it may hold what must not be kept (see ``is_sound``).

        Raises:
            Exception: it has none. Objects of runners may raise anything when they are looked at.
        """
        call = (op, _address(config), *map(type, inputs), *map(_name, map(type, runners)))
        has = tuner.__dict__
        if kwargs or has["_override_local"].stack or has["_skip_ops_local"].stack or _is_in_force(has):
            return self._in_full(has, call, runners, config, inputs, kwargs)
        plan = self._straight.get(call)
        return (plan and plan.read(runners, config, inputs)) or self._in_full(has, call, runners, config, inputs, kwargs)

    def _in_full(
        self,
        has: Mapping[str, Any],
        call: tuple[Any, ...],
        runners: Sequence[TunableRunner],
        config: TuningConfig,
        inputs: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Fingerprint:
        known = self._configs.plan(config)
        readings, given, in_force = known.readings, self._look_at_inputs(inputs), _in_force(has, call[0], known.readings)
        parts: list[Any] = [call[0], known.number, given.number, len(runners), *map(readings.cells, known.loose), in_force]
        values = [*given.atoms(inputs)]
        tensors = self._tensors.get((call[0], given.number)) or kept(self._tensors, (call[0], given.number), Tensors(self._numbers))
        parts += (tensors.number(given.tensors(inputs)), *(readings.of(inputs[index]) for index in given.others))
        read = [self._read_runner(runner, parts, values, readings) for runner in runners]
        for runner, (plan, _) in zip(runners, read, strict=True):
            self._ask(runner, plan, given, inputs, parts, readings)
        if kwargs:
            parts += (tuple(kwargs), _arguments([plan for plan, _ in read], kwargs, readings))
        elif in_force is None and not given.others and self._configs.is_known(known, config):
            straight = self._look_straight(call, runners, known, given, tensors, read)
            if straight is None:
                found = self._read_anew(call, runners, known, given, tensors, read, config, inputs)
            else:
                found = straight.read(runners, config, inputs)
            if found is not None:
                return found
        return (tuple(parts), tuple(map(type, values)), *values)

    def learn(self, runners: Sequence[TunableRunner]) -> None:
        """Look again at runners some of whose attributes are no longer plain data.

        Raises:
            Exception: they cannot be looked at.
        """
        self._straight.clear()
        self._made.clear()
        for runner in runners:
            self._classes.relearn(runner)

    def _look_straight(
        self,
        call: tuple[Any, ...],
        runners: Sequence[TunableRunner],
        config: ConfigPlan,
        given: _Inputs,
        tensors: Tensors,
        read: Sequence[tuple[ClassPlan, Attributes]],
    ) -> _Straight | None:
        """Return how a call is read straight from now on, ``None`` for one that is not."""
        lasting = [self._classes.lasting.get(type(runner)) for runner in runners]
        if None in lasting or not all(plan.is_bare and not has.special and not plan.facts.is_asked for plan, has in read):
            return None
        content = (call[0], config.number, given.number, *(has.number for _, has in read))
        number = self._numbers_by_content.get(content)
        if number is None:
            number = kept(self._numbers_by_content, content, next(self._numbers))
        rows = tuple((type(runner), len(vars(runner)), has.direct) for runner, (_, has) in zip(runners, read, strict=True))
        made = _Straight(number, config, merged(lasting, config.functions), tensors, given.tensors, given.atoms, rows)
        kept(self._straight, call, made)
        return made

    def _read_anew(
        self,
        call: tuple[Any, ...],
        runners: Sequence[TunableRunner],
        known: ConfigPlan,
        given: _Inputs,
        tensors: Tensors,
        read: Sequence[tuple[ClassPlan, Attributes]],
        config: TuningConfig,
        inputs: Sequence[Any],
    ) -> Fingerprint | None:
        """Return the fingerprint of a call by what its classes are made of, and note how it is taken; ``None`` for one that has none.

        The config may be new each time, and the classes another's of the same name: the same call has the same one all the same.
        """
        place = (
            known.number,
            given.number,
            *(mapper if is_constant(mapper) else None for mapper in known.mappers),
            *(has.number for _, has in read),
        )
        made = self._made.get(place)
        for is_known in (True, False):
            if not is_known:
                made = made_of(runners, read, inputs, known)
            if made is None:
                continue
            content = ("made", call[0], known.number, given.number, made.content)
            number = self._numbers_by_content.get(content)
            if number is None:
                number = kept(self._numbers_by_content, content, next(self._numbers))
            straight = _Anew(number, known, tensors, given.tensors, given.atoms, made)
            if (found := straight.read(runners, config, inputs)) is not None:
                kept(self._made, place, made)
                kept(self._straight, call, straight, _MAX_ANEW)
                return found
        return None

    # -- runners ----------------------------------------------------------------------------------------------------------------

    def _read_runner(self, runner: TunableRunner, parts: list[Any], values: list[Any], readings: Readings) -> tuple[ClassPlan, Attributes]:
        plan = self._classes.plan(runner)
        held = attributes(runner) if plan.facts.has_slots else runner.__dict__
        has = plan.attributes.get(tuple(held)) or self._classes.attributes(plan, held)
        parts.append(has.number)
        values += has.direct(held)
        parts.extend(readings.parameter(name, held[name], plan.facts.node) for name in has.special)
        if not plan.is_bare:
            read_rest(type(runner), plan, parts, values, readings)
        return plan, has

    def _inner_runner(self, runner: TunableRunner, readings: Readings) -> Hashable:
        """Return the reading of a runner that another one holds."""
        parts: list[Any] = []
        values: list[Any] = []
        self._read_runner(runner, parts, values, readings)
        if not ATOMS.issuperset(map(type, values)):
            self._classes.relearn(runner)
            raise UnreadableError
        return tuple(parts), tuple(map(type, values)), tuple(values)

    @staticmethod
    def _ask(runner: TunableRunner, plan: ClassPlan, given: _Inputs, inputs: Sequence[Any], parts: list[Any], readings: Readings) -> None:
        """Read what a runner's extras say of these inputs, where that does not follow from the rest, and the addresses it may look at."""
        facts = plan.facts
        if not facts.purity.is_absent and not (facts.purity.is_pure and given.is_simple):
            if not facts.purity.is_released:
                raise UnreadableError
            parts.append(readings.of(runner.get_cache_key_extras(list(inputs))))
        for index, limit_bytes in facts.pointers:
            parts.append(alignment(inputs[index], limit_bytes) if index < len(inputs) else None)

    def _look_at_inputs(self, inputs: Sequence[Any]) -> _Inputs:
        """Sort inputs by their types. Types that are not Python's or torch's own are not kept: somebody may make them anew each time."""
        kinds = tuple(kind if kind in _LASTING else None for kind in map(type, inputs))
        found = self._inputs.get(kinds)
        if found is None:
            tensors = [index for index, kind in enumerate(kinds) if kind in TENSORS]
            atoms = [index for index, kind in enumerate(kinds) if kind in ATOMS]
            others = tuple(index for index, kind in enumerate(kinds) if kind not in ATOMS | TENSORS)
            is_simple = all(kinds[index] is float for index in others)
            found = kept(self._inputs, kinds, _Inputs(next(self._numbers), getter(tensors), getter(atoms), others, is_simple))
        return found


def is_sound(fingerprint: Fingerprint) -> bool:
    """Whether a fingerprint may be kept: all that it has stands for itself."""
    return ATOMS.issuperset(fingerprint[1])


def _arguments(plans: Sequence[ClassPlan], kwargs: Mapping[str, Any], readings: Readings) -> Hashable:
    """Return the reading of keyword arguments, with the roles that all runners agree on."""
    first, *rest = (plan.facts.arguments for plan in plans)
    agreed = {name: role for name, role in first.items() if all(other.get(name) == role for other in rest)}
    return tuple(readings.parameter(name, item, agreed) for name, item in kwargs.items())


def _is_in_force(has: Mapping[str, Any]) -> bool:
    """Whether FlashInfer has something rare in force: a measurement policy for this thread, a blocklist, no CUPTI."""
    managed, blocklist = has.get("_v2_local"), has.get("_blocklist")
    is_measured = managed is not None and managed.measure is not None
    return is_measured or (blocklist is not None and bool(blocklist._invalid)) or bool(has.get("_cupti_disabled"))


def _in_force(has: Mapping[str, Any], op: str, readings: Readings) -> Hashable:
    """Return what FlashInfer has in force for this thread: overrides of the config, measurement policy, blocklist.

    Raises:
        UnreadableError: the op is skipped, or something in force cannot be read.
    """
    overrides, skipped = has["_override_local"].stack, has["_skip_ops_local"].stack
    if skipped and op in skipped[-1]:
        raise UnreadableError
    if not overrides and not _is_in_force(has):
        return None
    policy, blocked = getattr(has.get("_v2_local"), "measure", None), getattr(has.get("_blocklist"), "_invalid", None)
    return tuple(map(readings.of, (overrides[-1:], policy, blocked, has.get("_cupti_disabled"))))
