"""The AutoTuner that works with records. An attached process's tuner instance is given this class; detaching gives the old one back.

Frames decide what the overridden steps of FlashInfer's loop do; without a frame they behave as FlashInfer's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from flashinfer.autotuner import AutoTuner, TunableRunner, TuningConfig

from fi_cachestore.adapter import drive, pinned, ranking, serve
from fi_cachestore.adapter.frames import Frame, MemoryOnly, Trying
from fi_cachestore.adapter.joining import timings_averaged_over
from fi_cachestore.adapter.policy import from_rule, rule_fields
from fi_cachestore.adapter.state import AdapterState
from fi_cachestore.errors import PinnedMissError
from fi_cachestore.records.record import DEFAULT_TACTIC
from fi_cachestore.records.rules import Rule

_SCRATCH = {
    "profiling_cache": dict,
    "_ranked_tactics_cache": dict,
    "_profiling_cache_policies": dict,
    "_winner_partitions": dict,
    "_managed_decoded": dict,
}
_OVERRIDE_COUNT = 3 if hasattr(AutoTuner, "_override_cuda_graph_profile_replays") else 2
_FLAGS = ("_dirty", "_dirty_seq")
_FILE_SOURCES = {"_file_configs": dict, "_file_config_policies": dict}


_RAISED_ON = (PinnedMissError, MemoryError, torch.cuda.OutOfMemoryError)
"""What the caller is to see: a strict pin's word, and that memory ran out, which asking again would not mend."""


class CacheStoreTuner(AutoTuner):
    """FlashInfer's AutoTuner over records. Never constructed: live tuners are given this class while a session is attached."""

    _fi_cachestore: AdapterState

    # -- what callers use -------------------------------------------------------------------------------------------------------

    def choose_one(
        self, custom_op: str, runners: list[TunableRunner], tuning_config: TuningConfig, inputs: list[Any], **kwargs: Any
    ) -> tuple[TunableRunner, Any]:
        """Return runner and tactic from records; while tuning, measure what no record answers."""
        try:
            if not self.is_tuning_mode:
                known = self._fi_cachestore.memo.find(self, custom_op, runners, tuning_config, inputs, kwargs)
                if known is not None:
                    return runners[known[0]], known[1]
            if custom_op in self._effective_skip_ops or not runners:
                return super().choose_one(custom_op, runners, tuning_config, inputs, **kwargs)
            if (pin := self._fi_cachestore.current.pin) is not None:
                return pinned.choose(self, pin, custom_op, runners, tuning_config, inputs, kwargs)
            if self.is_tuning_mode:
                self._note_reentry()
                return drive.choose(self, custom_op, runners, tuning_config, inputs, kwargs)
            return serve.choose(self, custom_op, runners, tuning_config, inputs, kwargs)
        except _RAISED_ON:
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours must cost speed, never an engine; a runner's own comes again
            if _must_not_be_alone(self, custom_op, runners):
                return runners[0], DEFAULT_TACTIC
            found = _without_records(self, error, "choose_one", custom_op, runners, tuning_config, inputs, **kwargs)
            return cast("tuple[TunableRunner, Any]", found)

    def rank_tactics(
        self, custom_op: str, runners: list[TunableRunner], tuning_config: TuningConfig, inputs: list[Any], k: int = 1, **kwargs: Any
    ) -> list[Any]:
        """Return the best tactics of one runner from its record, or measure and record them."""
        try:
            if (pin := self._fi_cachestore.current.pin) is not None and runners:
                return [pinned.choose(self, replace(pin, strict=False), custom_op, runners, tuning_config, inputs, kwargs)[1]]
            if k > 1 and len(runners) == 1 and self.is_tuning_mode and custom_op not in self._effective_skip_ops:
                self._note_reentry()
                return ranking.rank(self, custom_op, runners[0], tuning_config, inputs, kwargs, k)
            return super().rank_tactics(custom_op, runners, tuning_config, inputs, k=k, **kwargs)  # a choice of one, by choose_one
        except _RAISED_ON:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            if _must_not_be_alone(self, custom_op, runners):
                return [DEFAULT_TACTIC]
            ranked = _without_records(self, error, "rank_tactics", custom_op, runners, tuning_config, inputs, k=k, **kwargs)
            return cast("list[Any]", ranked)

    def clear_cache(self) -> None:
        """Clear FlashInfer's memory, and what was remembered of answers."""
        super().clear_cache()
        if (state := _state_of(self)) is not None:
            for attached in state.attached:
                attached.session.refresh()
            state.forget()

    # -- steps of FlashInfer's loop ---------------------------------------------------------------------------------------------

    def search_cache(self, *args: Any, **kwargs: Any) -> tuple[bool, int, Any, Any]:
        """Inside a drive, say whether the next profile is to be measured; else as FlashInfer does."""
        frame = self._fi_cachestore.frames.top
        if isinstance(frame, Frame):
            return drive.next_profile(self, frame), 0, -1, None
        return super().search_cache(*args, **kwargs)

    def _profile_single_kernel(
        self, runner: TunableRunner, inputs: list[Any], tactic: Any, tuning_config: TuningConfig, *args: Any, **kwargs: Any
    ) -> float:
        self._note_reentry()
        frame = self._fi_cachestore.frames.top
        measure = super()._profile_single_kernel
        if isinstance(frame, Frame) and frame.trial is not None and frame.runner is runner:
            return drive.timed(frame, lambda tried: measure(runner, inputs, tried, tuning_config, *args, **kwargs), tactic)
        return measure(runner, inputs, tactic, tuning_config, *args, **kwargs)

    @property
    def _blocklist(self) -> Any:
        inner = vars(self).get("_blocklist")
        frame = self._fi_cachestore.frames.top
        return inner if inner is None or not isinstance(frame, Frame) else _ListingBlocklist(inner, frame)

    @_blocklist.setter
    def _blocklist(self, value: Any) -> None:
        vars(self)["_blocklist"] = value

    @property
    def _in_v2_context(self) -> bool:
        if isinstance(self._fi_cachestore.frames.top, Frame):
            return False  # a drive races the default itself, for runners that list anything at all
        return bool(super()._in_v2_context)

    @property
    def _active_managed_store(self) -> Any:
        if self._fi_cachestore.frames.top is not None:
            return None
        return super()._active_managed_store

    # -- overrides in force -----------------------------------------------------------------------------------------------------

    @property
    def _override_tuning_buckets(self) -> tuple[int, ...] | None:
        return super()._override_tuning_buckets if self.has_context() else self._fi_cachestore.ambient().buckets

    @property
    def _override_round_up(self) -> bool:
        return bool(super()._override_round_up) if self.has_context() else self._fi_cachestore.ambient().round_up

    @property
    def _override_cuda_graph_profile_replays(self) -> int | None:
        return super()._override_cuda_graph_profile_replays if self.has_context() else self._fi_cachestore.ambient().replays

    def get_effective_map_to_tuning_buckets(self, tuning_config: TuningConfig, spec_idx: int = 0) -> Any:
        """As FlashInfer's, by the rule in force. Runners ask for it each time they are made."""
        try:
            rule = None if self.has_context() else self._fi_cachestore.ambient()
            if rule is None or rule.buckets is not None or rule.round_up:
                return super().get_effective_map_to_tuning_buckets(tuning_config, spec_idx)
        except (AttributeError, TypeError):  # another thread has detached meanwhile
            return _plain(self).get_effective_map_to_tuning_buckets(tuning_config, spec_idx)
        return tuning_config.dynamic_tensor_specs[spec_idx].map_to_tuning_buckets

    @property
    def _effective_measure_policy(self) -> Any:
        inner = super()._effective_measure_policy
        if inner is not None:
            return inner
        tuning = self._fi_cachestore.tuning
        if tuning is not None:
            return tuning.overrides.policy
        return from_rule(self._fi_cachestore.ambient())

    @property
    def _effective_skip_ops(self) -> frozenset[str]:
        try:  # FlashInfer asks for this one before it takes its lock: another thread may detach just then
            own: frozenset[str] = super()._effective_skip_ops
            tuning = self._fi_cachestore.tuning
        except (AttributeError, TypeError):
            own, tuning = _plain(self)._effective_skip_ops, None
        return own if tuning is None else own | tuning.overrides.skip_ops

    def _note_reentry(self) -> None:
        """Remember that a runner that is being tried out asks the tuner: what it then lists comes from timing."""
        if isinstance(top := self._fi_cachestore.frames.top, Trying):
            top.is_reentered = True

    # -- for drive and serve ----------------------------------------------------------------------------------------------------

    def has_context(self) -> bool:
        """Whether a context of this thread says which buckets and rounding are in force."""
        return bool(self._get_override_stack())

    def rule_in_force(self) -> Rule:
        """Return what the open contexts amount to, for remembering it."""
        policy = rule_fields(getattr(self, "_effective_measure_policy", None))
        replays = getattr(self, "_override_cuda_graph_profile_replays", None)
        return Rule(self._override_tuning_buckets, self._override_round_up, replays, **policy)

    def effective_config(self, config: TuningConfig, *, ranking: bool = False) -> tuple[TuningConfig, Any]:
        """Return the config that FlashInfer will use for a call made now, and the measurement policy.

        ``rank_tactics`` takes neither replays nor the policy's execution mode.
        """
        replays = None if ranking else getattr(self, "_override_cuda_graph_profile_replays", None)
        if self._override_tuning_buckets is not None or self._override_round_up or replays is not None:
            config = self._apply_tuning_overrides(config)
        policy = getattr(self, "_effective_measure_policy", None)
        if policy is not None and not ranking:
            config = self._apply_measure_policy(config, policy)
        return config, policy

    def config_under(self, rule: Rule, config: TuningConfig) -> tuple[TuningConfig, Any]:
        """Return what ``effective_config`` would, were ``rule`` in force."""
        if rule.buckets is not None or rule.round_up or rule.replays is not None:
            stack: list[Any] = self._get_override_stack()
            stack.append((rule.buckets, rule.round_up, rule.replays)[:_OVERRIDE_COUNT])
            try:
                config = self._apply_tuning_overrides(config)
            finally:
                stack.pop()
        policy = from_rule(rule)
        return (config if policy is None else self._apply_measure_policy(config, policy)), policy

    @contextlib.contextmanager
    def isolated(self) -> Iterator[None]:
        """Run FlashInfer's loop without leaving winners in its memory: it takes the first runner that has any, ours takes the best.

        Holds the tuner's lock, as the loop itself does.
        """
        with self._swapped({name: make() for name, make in _SCRATCH.items()}, _FLAGS):
            yield

    @contextlib.contextmanager
    def memory_only(self) -> Iterator[None]:
        """Let FlashInfer answer a call from its memory, without the files and stores that it may have been given."""
        with self._fi_cachestore.frames.push(MemoryOnly()), self._swapped({name: make() for name, make in _FILE_SOURCES.items()}, ()):
            yield

    @contextlib.contextmanager
    def _swapped(self, fresh: dict[str, Any], kept: tuple[str, ...]) -> Iterator[None]:
        with self._lock, self._measuring_alone():
            names = [name for name in (*fresh, *kept) if name in vars(self)]
            before = {name: vars(self)[name] for name in names}
            vars(self).update({name: item for name, item in fresh.items() if name in before})
            try:
                yield
            finally:
                vars(self).update(before)

    @contextlib.contextmanager
    def trying_out(self) -> Iterator[Trying]:
        """Run a runner's code outside FlashInfer's loop, with no frame of a drive and no process group in its way; holds the lock."""
        trying = Trying()
        with self._lock, timings_averaged_over(None), self._fi_cachestore.frames.push(trying):
            yield trying

    def _measuring_alone(self) -> contextlib.AbstractContextManager[None]:
        """Hide FlashInfer's process group among ranks: one of them measures, and there is nothing to average."""
        tuning, top = self._fi_cachestore.tuning, self._fi_cachestore.frames.top
        if tuning is None or tuning.session.group is None or (isinstance(top, Frame) and top.is_together):
            return contextlib.nullcontext()
        return timings_averaged_over(None)

    @contextlib.contextmanager
    def averaging_over(self, process_group: Any) -> Iterator[None]:
        """Run FlashInfer's loop on all ranks of a group at once."""
        with self._lock, timings_averaged_over(process_group):
            yield

    def plain_choose_one(self, *args: Any, **kwargs: Any) -> tuple[TunableRunner, Any]:
        """FlashInfer's own ``choose_one``."""
        return super().choose_one(*args, **kwargs)

    def plain_rank_tactics(self, *args: Any, **kwargs: Any) -> list[Any]:
        """FlashInfer's own ``rank_tactics``."""
        return super().rank_tactics(*args, **kwargs)

    @property
    def state(self) -> AdapterState:
        """The adapter's state."""
        return self._fi_cachestore


def _must_not_be_alone(tuner: Any, op: str, runners: list[TunableRunner]) -> bool:
    """Whether FlashInfer's own loop would measure an op whose runners communicate, and this rank wait there for the others for ever."""
    state = _state_of(tuner)
    return state is not None and tuner.is_tuning_mode and serve.communicates(state, op, runners)


def _without_records(tuner: Any, error: Exception, method: str, op: str, /, *call: Any, **kwargs: Any) -> Any:
    """Have FlashInfer answer a call that could not be answered: we are at fault, or another thread has detached, as it may here too."""
    state = _state_of(tuner)
    if state is not None and state.attached:
        try:
            with tuner.memory_only():
                found = getattr(super(CacheStoreTuner, tuner), method)(op, *call, **kwargs)
        except Exception:
            if _state_of(tuner) is state and isinstance(tuner, CacheStoreTuner):
                raise  # FlashInfer fails as well
        else:
            state.note_ephemeral(op, f"answering it failed ({type(error).__name__}: {error})"[:200])
            return found
    return getattr(_plain(tuner), method)(op, *call, **kwargs)


def _state_of(tuner: Any) -> AdapterState | None:
    """Return the adapter's state; it is gone with the last session."""
    return cast("AdapterState | None", vars(tuner).get("_fi_cachestore"))


def _plain(tuner: Any) -> Any:
    """Return a tuner of FlashInfer's own class with this one's attributes: it stays so, whatever class others give this one meanwhile."""
    cls = next(cls for cls in type(tuner).__mro__ if not issubclass(cls, CacheStoreTuner))
    plain = object.__new__(cls)
    plain.__dict__ = vars(tuner)
    return plain


class _ListingBlocklist:
    """Shows a frame the runner's own list on its way to FlashInfer's blocklist."""

    def __init__(self, inner: Any, frame: Frame) -> None:
        self._inner, self._frame = inner, frame

    def filter(self, custom_op: str, runner: Any, tactics: list[Any]) -> Any:
        tactics = list(tactics)
        if self._frame.trial is not None and self._frame.runner is runner:
            self._frame.trial.listed = list(tactics)
        return self._inner.filter(custom_op, runner, tactics)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
