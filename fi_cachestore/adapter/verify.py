"""Trying out a record of another process on a live runner: the runner's own list, ``validate_tactic``, and one run beside the default's.

Runs a runner's code as FlashInfer's profiler does, and outlives whatever that raises; no tensor is kept.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from flashinfer import autotuner as flashinfer_autotuner

from fi_cachestore.adapter import cuda
from fi_cachestore.adapter.frames import Trying
from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.adapter.outputs import Watch, compare
from fi_cachestore.adapter.tactics import find_in, is_default, is_plain_value, tactic_value
from fi_cachestore.keys.canonical import Value
from fi_cachestore.records.choosing import Candidate, preference
from fi_cachestore.records.observation import Observation, Output, SpaceKind
from fi_cachestore.records.record import DEFAULT_TACTIC, Record, TacticSpace
from fi_cachestore.report import Recorder
from fi_cachestore.validation.evidence import Undecided

if TYPE_CHECKING:
    from fi_cachestore.adapter.tuner import CacheStoreTuner

Guard = Callable[[Record, Value], AbstractContextManager[None]]
"""Marks the run of a tactic of a record, so that a process that dies in it is found out."""

_MORE_LISTS: Final = 3


def observe(
    tuner: CacheStoreTuner, recorder: Recorder, view: RunnerView, profile: Any, record: Record, guard: Guard
) -> Observation | Undecided:
    """Return what this process sees for the key of ``record``, or why nothing can be seen. Never raises for the runner's errors.

    The caller holds no claim, and has synchronised the call's stream. Holds the tuner's lock, as FlashInfer does while it measures.
    """
    try:
        with tuner.trying_out() as trying:
            tensors = own_inputs(tuner, view, profile)
            return _Trial(tuner, recorder, view, profile, record, guard, tensors, trying).observe()
    except cuda.OUT_OF_MEMORY:
        cuda.clear_error()
        with contextlib.suppress(Exception):
            torch.cuda.empty_cache()
        return Undecided("memory ran out")
    except Exception as error:  # noqa: BLE001 - a runner's code: what it raises outside the tactic's run says nothing about the tactic
        cuda.clear_error()
        return Undecided(f"trying it out failed: {type(error).__name__}: {error}"[:200])


def own_inputs(tuner: CacheStoreTuner, view: RunnerView, profile: Any) -> list[Any]:
    """Return inputs for a profile, made as the tuner makes them. Raises what the hooks of the op raise."""
    tensors: list[Any] = tuner._prepare_input_tensors(profile, view.call.inputs)
    hook = view.call.config.inputs_pre_hook
    return tensors if hook is None else list(hook(tensors))


@dataclass(slots=True)
class _Trial:
    tuner: CacheStoreTuner
    recorder: Recorder
    view: RunnerView
    profile: Any
    record: Record
    guard: Guard
    tensors: list[Any]
    trying: Trying

    def observe(self) -> Observation | Undecided:
        """List, compare lists, and run; what need not be looked at any more is left."""
        listed = self._listed()
        values = _values(listed)
        kind = self._kind(values)
        space = TacticSpace.of(values)
        if self._contradicts(kind, space) and (self.trying.is_reentered or self._lists_vary(space)):
            kind = SpaceKind.MEASURED  # its list comes from timing
        tactic = self._tactic()
        if tactic is None or self._contradicts(kind, space):
            return Observation(self.record.digest, kind, space, DEFAULT_TACTIC, None, None, Output.NOT_COMPARED)
        try:
            own = tactic if is_plain_value(tactic) else find_in(listed, tactic)
        except LookupError:
            return Undecided("the runner does not list the recorded tactic")
        validates = self._validates(own)
        failure, output = (None, Output.NOT_COMPARED) if validates is False else self._run(kind, tactic, own)
        return Observation(self.record.digest, kind, space, tactic, validates, failure, output)

    # -- the list ---------------------------------------------------------------------------------------------------------------

    def _listed(self) -> list[Any]:
        self.recorder.add("listing_count")
        return list(self.view.runner.get_valid_tactics(self.tensors, self.profile))

    def _kind(self, values: Sequence[Value]) -> SpaceKind:
        """Return what the list proves: as reviewed; without a review, positions prove nothing."""
        contract = self.view.contract
        if contract.type:
            return SpaceKind(contract.space)
        is_range = bool(values) and all(type(value) is int and value == position for position, value in enumerate(values))
        return SpaceKind.INDEXED if is_range else SpaceKind.LISTED

    def _contradicts(self, kind: SpaceKind, space: TacticSpace) -> bool:
        recorded = self.record.space
        return (kind is SpaceKind.LISTED and space != recorded) or (kind is SpaceKind.INDEXED and space.count != recorded.count)

    def _lists_vary(self, space: TacticSpace) -> bool:
        """Whether another list of this very process is another one: asked only where a quarantine is the alternative."""
        return any(TacticSpace.of(_values(self._listed())) != space for _ in range(_MORE_LISTS))

    # -- the tactic -------------------------------------------------------------------------------------------------------------

    def _tactic(self) -> Value:
        """Return the tactic to try: the best one that is not blocked, the default last; ``None`` where none may be run."""
        blocklist = vars(self.tuner).get("_blocklist")
        found = [choice.tactic for choice in preference([Candidate(0, self.record)])]
        found.sort(key=is_default)
        for tactic in found:
            if blocklist is None or blocklist.filter(self.view.call.op, self.view.runner, [tactic]):
                return tactic
        return None

    def _validates(self, tactic: Any) -> bool | None:
        validate = getattr(self.view.runner, "validate_tactic", None)
        if validate is None or is_default(tactic):
            return None
        try:
            return bool(validate(self.tensors, tactic))
        except cuda.OUT_OF_MEMORY:
            raise
        except Exception:  # noqa: BLE001 - a runner's code: a check that fails is a check not passed
            return False

    def _run(self, kind: SpaceKind, tactic: Value, own: Any) -> tuple[str | None, Output]:
        """Run the default twice and the tactic once; return what the tactic raised, and how its result compares."""
        with self.guard(self.record, tactic):
            self._prepare(own)
        with Watch([self.tensors, self.view.call.arguments]) as watch:
            first, again = ([], []) if is_default(own) else self._results_of_default(watch)
            try:
                with self.guard(self.record, tactic):
                    result = self._forward(own)
            except cuda.OUT_OF_MEMORY:
                raise
            except Exception as error:  # noqa: BLE001 - a runner's code
                cuda.clear_error()
                return type(error).__name__, Output.NOT_COMPARED
            output = Output.EQUAL if is_default(own) else compare(first, again, watch.outputs(result))
        counts = output is Output.NOT_FINITE or self._counts_output(kind, tactic)
        return None, output if counts else Output.NOT_COMPARED

    def _counts_output(self, kind: SpaceKind, tactic: Value) -> bool:
        """Whether results must agree: where a tactic is a position, or might be one."""
        return kind is SpaceKind.INDEXED or (kind is SpaceKind.LISTED and not self.view.contract.type and type(tactic) is int)

    def _prepare(self, tactic: Any) -> None:
        """Compile and set up, as FlashInfer does before it measures."""
        runner, arguments = self.view.runner, self.view.call.arguments
        if "do_preparation" not in inspect.signature(runner.forward).parameters:
            return
        precompile = getattr(runner, "precompile_tactics", None)
        if precompile is None or not precompile(self.tensors, [tactic], self.profile, **arguments):
            runner(self.tensors, tactic=DEFAULT_TACTIC, do_preparation=True, **arguments)

    def _results_of_default(self, watch: Watch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        try:
            return watch.outputs(self._forward(DEFAULT_TACTIC)), watch.outputs(self._forward(DEFAULT_TACTIC))
        except cuda.OUT_OF_MEMORY:
            raise
        except Exception:  # noqa: BLE001 - a runner's code: without a default nothing can be compared
            cuda.clear_error()
            return [], []

    def _forward(self, tactic: Any) -> Any:
        self.recorder.add("run_count")
        with _as_measured():
            result = self.view.runner(self.tensors, tactic=tactic, **self.view.call.arguments)
            cuda.synchronize([*self.tensors, *self.view.call.arguments.values()])
        return result


def _values(tactics: Sequence[Any]) -> list[Value]:
    return [tactic_value(tactic, position) for position, tactic in enumerate(tactics)]


@contextlib.contextmanager
def _as_measured() -> Iterator[None]:
    """Have runners that ask FlashInfer whether they are being measured hear yes: they then leave out buffers made for another tactic."""
    module = getattr(flashinfer_autotuner, "autotuner", flashinfer_autotuner)
    scope = getattr(module, "_profile_measurement_scope", contextlib.nullcontext)
    with scope():
        yield
