"""Frames: what the tuner is in the middle of, per thread.

FlashInfer re-enters itself (runners call ``rank_tactics`` inside ``get_valid_tactics``), so each call pushes a frame, and the look-up,
the timing hook and the harvest touch the top frame only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from flashinfer.autotuner import TunableRunner

from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.adapter.tactics import is_default, is_storable, tactic_value
from fi_cachestore.environment.facets import Device
from fi_cachestore.keys.canonical import Value, encode
from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.records.record import Measurement, Record, TacticSpace
from fi_cachestore.session import Session
from fi_cachestore.work import Mine

_NOTHING: Final = object()


@dataclass(slots=True)
class Step:
    """One profile of one runner: its keys (the first is tuned under), and what became of it. ``is_own``: the record was measured here."""

    keys: tuple[TuneKey, ...]
    record: Record | None = None
    is_done: bool = False
    is_own: bool = False

    @property
    def key(self) -> TuneKey:
        """The key to tune under."""
        return self.keys[0]


@dataclass(slots=True)
class Trial:
    """The measurement of one step that is under way: times as they come in, and the runner's own list.

    ``has_met_runner``: at least one attempt got as far as the runner's code. Where none did, it is measuring that fails, not the tactics.
    """

    step: Step
    mine: Mine
    started_ns: int
    listed: list[Any] | None = None
    tried: list[tuple[Any, Value, int | None, str | None]] = field(default_factory=list)
    is_default_raced: bool = False
    is_out_of_memory: bool = False
    has_met_runner: bool = False

    def note(self, tactic: Any, time_ms: float | None, failure: str | None) -> None:
        """Keep the time of a tactic, or why it has none."""
        is_time = time_ms is not None and 0 <= time_ms < float("inf")
        time_ns = round(time_ms * 1e6) if is_time and time_ms is not None else None
        self.tried.append((tactic, tactic_value(tactic, len(self.tried)), time_ns, None if is_time else failure or "NotATime"))

    def is_all_failed(self) -> bool:
        """Whether tactics were tried and none has a time."""
        return bool(self.tried) and all(time_ns is None for _, _, time_ns, _ in self.tried)

    def default(self) -> tuple[int | None, str | None] | None:
        """Return time and failure of tactic -1, ``None`` if it was not tried."""
        return next(((time_ns, failure) for tactic, _, time_ns, failure in self.tried if is_default(tactic)), None)

    def measurements(self) -> tuple[Measurement, ...]:
        """Return what was measured."""
        return tuple(Measurement(value, time_ns, failure) for _, value, time_ns, failure in self.tried)

    def objects(self) -> dict[bytes, Any]:
        """Return the runner's own tactic objects by the bytes of their values."""
        return {encode(value): tactic for tactic, value, _, _ in self.tried}

    def space(self) -> TacticSpace:
        """Return the runner's own list: as it gave it, or (where FlashInfer shows none) as it was tried."""
        own = self.listed
        if own is None:
            own = [tactic for tactic, _, _, _ in self.tried[1 if self.is_default_raced else 0 :]]
        return TacticSpace.of([tactic_value(tactic, position) for position, tactic in enumerate(own)])

    def is_storable(self) -> bool:
        """Whether another process could read the result."""
        return all(is_storable(value) for _, value, _, _ in self.tried)


@dataclass(slots=True)
class Frame:
    """One drive of FlashInfer's loop. ``races_default`` is false where the caller wants a ranking of the runner's own list.

    ``is_together``: all ranks drive it in step, and the one that ``leads`` publishes.
    """

    session: Session
    view: RunnerView
    device: Device
    steps: list[Step]
    races_default: bool = True
    is_together: bool = False
    leads: bool = False
    position: int = 0
    trial: Trial | None = None
    elsewhere: list[TuneKey] = field(default_factory=list)

    @property
    def runner(self) -> TunableRunner:
        """The one runner of the drive."""
        return self.view.runner


class MemoryOnly:
    """A frame for calls that FlashInfer answers by itself: in its memory, without its own files."""


@dataclass(slots=True)
class Trying(MemoryOnly):
    """A frame for trying out what another process measured. ``is_reentered``: the runner's code asked the tuner meanwhile."""

    is_reentered: bool = False


class Frames(threading.local):
    """The frames of one thread."""

    def __init__(self) -> None:
        """Start with none."""
        self.stack: list[Frame | MemoryOnly] = []

    @property
    def top(self) -> Frame | MemoryOnly | None:
        """The innermost frame."""
        return self.stack[-1] if self.stack else None

    @contextlib.contextmanager
    def push(self, frame: Frame | MemoryOnly) -> Iterator[None]:
        """Make ``frame`` the innermost one."""
        self.stack.append(frame)
        try:
            yield
        finally:
            self.stack.pop()


@dataclass(slots=True)
class OwnObjects:
    """The runners' own tactic objects seen in this process, by record and value. Bounded by forgetting everything."""

    limit_count: int = 65536
    _known: dict[tuple[Digest, bytes], Any] = field(default_factory=dict)

    def remember(self, digest: Digest, objects: dict[bytes, Any]) -> None:
        """Keep the objects of one record."""
        if len(self._known) + len(objects) > self.limit_count:
            self._known.clear()
        self._known.update({(digest, value): tactic for value, tactic in objects.items()})

    def get(self, digest: Digest, value: bytes) -> tuple[bool, Any]:
        """Return whether there is one, and it."""
        found = self._known.get((digest, value), _NOTHING)
        return (False, None) if found is _NOTHING else (True, found)
