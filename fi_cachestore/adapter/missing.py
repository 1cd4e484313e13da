"""Noting what a look-up missed, and sizes far beyond what was measured; on the slow path, once per very call."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fi_cachestore import __version__
from fi_cachestore.adapter.introspect import Call, RunnerView
from fi_cachestore.adapter.state import AdapterState
from fi_cachestore.coordination.port import Clock
from fi_cachestore.errors import Gap
from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.render import render
from fi_cachestore.missed import MissCollector
from fi_cachestore.records.choosing import Choice
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.record import Record
from fi_cachestore.store.missed_log import MissedLog
from fi_cachestore.store.port import Hit, Miss

if TYPE_CHECKING:
    from fi_cachestore.adapter.serve import Description

REFUSED: Final = "refused"
FAR_BEYOND: Final = 2
"""A size more than this many times the largest bucket is served what was measured for something much smaller. Between neighbouring
buckets that double, as FlashInfer's usual ones do, no size is."""


@dataclass(frozen=True, slots=True)
class Withheld:
    """A key whose record is not served, and why. ``is_doubted``: this process tried to verify it and could not."""

    key: TuneKey
    reason: MissReason
    is_doubted: bool


def note(
    state: AdapterState,
    described: Description,
    rows: Sequence[Record | None],
    refused: Sequence[Choice],
    withheld: Mapping[int, Withheld],
    *,
    is_covered: bool,
) -> None:
    """Note a decision that was just made: runners without a record that may be served, tactics refused, sizes far beyond the buckets.

    ``withheld`` has, by runner, a record that is there and may not be served. ``is_covered`` tells that some record serves the call
    nevertheless.
    """
    state.missed.decided()
    state.look_for_orphans(described.calls[0].device)
    for index, record in enumerate(rows):
        if record is None and (found := withheld.get(index)) is not None:
            state.missed.missed(found.key, found.reason, "", is_covered=is_covered)
        elif record is None:
            _note_miss(state, described, index, is_covered=is_covered)
    for record in {choice.record.digest: choice.record for choice in refused}.values():
        tactics = ", ".join(render(choice.tactic) for choice in refused if choice.record is record)
        state.missed.missed(record.key, REFUSED, f"the runner or FlashInfer's blocklist refuses: {tactics}", is_covered=is_covered)
    for dim, size, bucket in far_beyond(described.calls[0]):
        state.current.session.recorder.beyond(described.op)
        state.missed.beyond(described.op, dim, bucket, size)


def note_quarantined(state: AdapterState, described: Description, banned: Mapping[int, str]) -> None:
    """Note a call that stays in memory because key schemas are quarantined; ``banned`` says why, by runner."""
    state.missed.decided()
    for index, why in banned.items():
        for key in _keys(described.view(0, index), described.calls[0])[:1]:
            if isinstance(key, TuneKey):
                state.missed.missed(key, MissReason.QUARANTINED, why, is_covered=False)


def _note_miss(state: AdapterState, described: Description, index: int, *, is_covered: bool) -> None:
    """Note the key that a runner would be tuned under, with the first reason that says more than ``absent``."""
    first: TuneKey | None = None
    said = Miss(MissReason.ABSENT)
    gaps: list[Gap] = []
    for call_index, call in enumerate(described.calls):
        for key in _keys(described.view(call_index, index), call):
            if isinstance(key, Gap):
                gaps.append(key)
                continue
            first = first or key
            for attached in state.attached:
                answer = attached.session.find(key.digest)
                if isinstance(answer, Miss) and said.reason is MissReason.ABSENT and answer.reason is not MissReason.ABSENT:
                    first, said = key, answer
    if first is None:
        state.missed.in_memory(described.op, "no key at this size", tuple(gaps))
    else:
        state.missed.missed(first, said.reason, said.detail, is_covered=is_covered)


def _keys(view: RunnerView, call: Call) -> tuple[TuneKey, ...] | tuple[Gap, ...]:
    return view.keys(call.bucket(), serving=True)


def far_beyond(call: Call) -> list[tuple[int, int, int]]:
    """Return the dynamic dims of a call that are far beyond the largest of their buckets: position, size, bucket."""
    rows = zip(call.config.dynamic_tensor_specs, call.raw_dims, call.bucket().dims, strict=True)
    far = [(position, spec, size, bucket) for position, (spec, size, bucket) in enumerate(rows) if size > FAR_BEYOND * bucket]
    return [(position, size, bucket) for position, spec, size, bucket in far if _is_largest(bucket, spec.gen_tuning_buckets, size)]


def _is_largest(bucket: int, buckets: Any, size: int) -> bool:
    """Whether tuning at ``size`` would measure nothing larger than ``bucket``."""
    try:
        return bool(bucket >= max(buckets(size) if callable(buckets) else buckets))
    except Exception:  # noqa: BLE001 - a caller's function; nothing but a count depends on it
        return False


def collector(state_directory: Path | None, clock: Clock) -> MissCollector:
    """Return a collector that keeps misses in a directory; ``None`` keeps none."""
    log = None if state_directory is None else MissedLog(state_directory)
    return MissCollector(log, clock, f"fi_cachestore {__version__}")


def keep(state: AdapterState) -> None:
    """Keep what was missed so far. Never raises."""
    if state.attached:
        roots = dict.fromkeys(attached.root for attached in state.attached if attached.root is not None)
        state.missed.write(state.current.session.mode, list(roots), lambda digest: _is_answered(state, digest))


def keep_at_exit(state: AdapterState) -> None:
    """Keep it also when the process ends while a session is attached; also one that ``multiprocessing`` made, which runs no ``atexit``.

    A process that is killed keeps nothing after its last commit.
    """
    here = weakref.ref(state)
    Finalize(state, lambda: None if (alive := here()) is None else keep(alive), exitpriority=0)


def _is_answered(state: AdapterState, digest: Digest) -> bool:
    return any(isinstance(attached.session.find(digest), Hit) for attached in state.attached)
