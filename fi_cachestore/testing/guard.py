"""A guard over a test run: every call that goes through FlashInfer's tuner is described, and two tactic spaces under one key are found."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self
from unittest import mock

import torch
from flashinfer.autotuner import AutoTuner, TunableRunner, TuningConfig

from fi_cachestore.adapter import api, policy
from fi_cachestore.adapter.introspect import Call, RunnerView
from fi_cachestore.adapter.tuner import CacheStoreTuner
from fi_cachestore.adapter.values import attributes, is_plain
from fi_cachestore.errors import Gap, IncompleteKeyError
from fi_cachestore.keys.canonical import Value, encode
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.render import render
from fi_cachestore.keys.schema import LeftOut
from fi_cachestore.testing.calls import listed, told_apart_by, trust_in

_SKIPPED: Final = ("flashinfer.", "fi_cachestore.adapter.", __name__)
_MAX_PLACES: Final = 2
_METHODS: Final = ("choose_one", "rank_tactics")

Identity = Callable[[RunnerView], TuneKey | str | None]
"""Gives the key of a described call, ``None`` where it has none."""


def cachestore_key(view: RunnerView) -> TuneKey | None:
    """Return the key of this library."""
    try:
        return api.key_of(view)
    except IncompleteKeyError:
        return None


@dataclass(frozen=True, slots=True)
class Sighting:
    """One call as it was seen: where it was made, its runner, what the runner offers, and what the key leaves out."""

    place: str
    op: str
    runner: str
    tactics: Value
    left_out: tuple[str, ...]
    left_out_values: LeftOut

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.op} of {self.runner}, called at {self.place}: {render(self.tactics):.400}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two calls with one key whose runners offer different tactics. ``explanation`` is the key taken apart."""

    key: str
    first: Sighting
    second: Sighting
    explanation: str

    def __str__(self) -> str:
        """Return both calls and the key."""
        left_out = ", ".join(dict.fromkeys((*self.first.left_out, *self.second.left_out)))
        lines = ["two calls share a key and have different tactics", f"  {self.first}", f"  {self.second}"]
        lines += [f"  left out of the key: {left_out}"] if left_out else []
        lines.append(f"  {trust_in(told_apart_by(self.first.left_out_values, self.second.left_out_values))}")
        return "\n".join([*lines, *(f"    {line}" for line in self.explanation.splitlines())])


class KeyGuard:
    """Watches ``choose_one`` and ``rank_tactics`` of all tuners while it is entered; leaves FlashInfer as it found it.

    Each call is described as it is made; when it has returned, each of its runners lists its tactics for the call's bucket once more, on
    inputs made as the tuner makes them. A runner object that has not changed is not asked again under the same key. ``call_count`` calls
    were seen, ``gaps`` has why some had no key (these are shared with nobody), ``conflicts`` what was found. Calls made while a CUDA
    graph is captured are not looked at. Thread-safe.
    """

    def __init__(self, identity: Identity = cachestore_key) -> None:
        """Compare calls that have one ``identity``: by default the key of this library."""
        self.call_count = 0
        self.gaps: tuple[Gap, ...] = ()
        self.conflicts: tuple[Conflict, ...] = ()
        self._identity = identity
        self._first: dict[str, Sighting] = {}
        self._asked: dict[int, tuple[weakref.ref[TunableRunner], set[tuple[str, object]]]] = {}
        self._lock = threading.Lock()
        self._doing = _Doing()
        self._patches: list[Any] = []

    def __enter__(self) -> Self:
        """Start watching."""
        for owner in (AutoTuner, CacheStoreTuner):
            for name in _METHODS:
                self._patches.append(mock.patch.object(owner, name, self._watched(vars(owner)[name])))
                self._patches[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching; FlashInfer's methods are the very ones they were."""
        while self._patches:
            self._patches.pop().stop()

    def _watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(
            tuner: AutoTuner, custom_op: str, runners: Any, tuning_config: TuningConfig, inputs: Any, *args: Any, **kwargs: Any
        ) -> Any:
            doing = self._doing
            # One call goes through several methods of a tuner; while a CUDA graph is captured, nothing may be allocated.
            if doing.is_looking or custom_op in doing.ops or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
                return method(tuner, custom_op, runners, tuning_config, inputs, *args, **kwargs)
            doing.ops.append(custom_op)
            try:
                arguments = kwargs if method.__name__ == "choose_one" else {name: item for name, item in kwargs.items() if name != "k"}
                described = self._described(
                    tuner, custom_op, runners, (tuning_config, method.__name__ == "rank_tactics"), inputs, arguments
                )
                try:
                    return method(tuner, custom_op, runners, tuning_config, inputs, *args, **kwargs)
                finally:
                    self._look_at(described)
            finally:
                doing.ops.pop()

        return call

    def _described(
        self,
        tuner: AutoTuner,
        op: str,
        runners: Sequence[TunableRunner],
        asked: tuple[TuningConfig, bool],
        inputs: Sequence[Any],
        arguments: Mapping[str, Any],
    ) -> list[tuple[TuneKey | str, RunnerView]]:
        """Describe a call as it is made. One that cannot be looked at is a gap; FlashInfer meets the same error, and says so itself."""
        found: list[tuple[TuneKey | str, RunnerView]] = []
        gaps: tuple[Gap, ...]
        try:
            config, measure_policy = CacheStoreTuner.effective_config(tuner, asked[0], ranking=asked[1])  # type: ignore[arg-type]
            call = Call(api.introspector(), op, config, inputs, arguments, policy.resolved(config, measure_policy))
            views = [RunnerView(call, runner) for runner in runners]
            found = [(key, view) for view in views if (key := self._identity(view)) is not None]
        except Exception as error:  # noqa: BLE001 - code of runners and mappers
            gaps = (Gap(op, "call", type(error).__name__, f"describing it failed: {error}"[:200]),)
        else:
            gaps = tuple(gap for view in views for gap in view.gaps)
        with self._lock:
            self.call_count += 1
            self.gaps = tuple(dict.fromkeys((*self.gaps, *gaps)))
        return found

    def _look_at(self, described: Sequence[tuple[TuneKey | str, RunnerView]]) -> None:
        self._doing.is_looking = True
        try:
            for key, view in described:
                if self._is_new(view.runner, _name(key)):
                    self._compare(key, view)
        finally:
            self._doing.is_looking = False

    def _is_new(self, runner: TunableRunner, key: str) -> bool:
        """Whether this object, as it is now, has not been asked under ``key`` yet."""
        state = tuple((name, repr(item) if is_plain(item) else id(item)) for name, item in attributes(runner).items())
        with self._lock:
            known = self._asked.get(id(runner))
            if known is None or known[0]() is not runner:
                known = self._asked[id(runner)] = (weakref.ref(runner), set())
            is_new = (key, state) not in known[1]
            known[1].add((key, state))
            return is_new

    def _compare(self, key: TuneKey | str, view: RunnerView) -> None:
        tactics = listed(view, twice=not view.contract.type)
        if tactics is None:
            return
        left_out = tuple(f"{path} ({role})" for path, role in view.left_out)
        seen = Sighting(_caller(), view.call.op, type(view.runner).__qualname__, tactics, left_out, view.left_out_values)
        with self._lock:
            first = self._first.setdefault(_name(key), seen)
            if encode(first.tactics) != encode(tactics):
                self.conflicts = (*self.conflicts, Conflict(_name(key), first, seen, key if isinstance(key, str) else str(key.explain())))


class _Doing(threading.local):
    """What the guard does on one thread: the ops it is inside of, and whether it lists tactics itself."""

    def __init__(self) -> None:
        self.ops: list[str] = []
        self.is_looking = False


def _name(key: TuneKey | str) -> str:
    return key if isinstance(key, str) else key.digest


def _caller() -> str:
    """Return the nearest places in code that is neither FlashInfer's nor ours, innermost first."""
    found: list[str] = []
    frame = inspect.currentframe()
    while frame is not None and len(found) < _MAX_PLACES:
        if not str(frame.f_globals.get("__name__")).startswith(_SKIPPED):
            found.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        frame = frame.f_back
    return ", ".join(found)
