"""Meeting the other ranks: who is there, whether all can take part, and what their sessions stand on."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import flashinfer.autotuner

from fi_cachestore import __version__
from fi_cachestore.config import Mode, Settings
from fi_cachestore.coordination.port import Clock, SystemClock
from fi_cachestore.coordination.ranks import Heart, Member, Patience, Ranks
from fi_cachestore.coordination.torch_store import Joined, join
from fi_cachestore.environment.manifest import manifest
from fi_cachestore.environment.process import boot_id
from fi_cachestore.group import Group
from fi_cachestore.store.open import read_only_paths
from fi_cachestore.store.roots import OpenRoot, root_name

logger: Final = logging.getLogger("fi_cachestore")

_BEATS_PER_DEATH: Final = 20
_MAX_BEAT_S: Final = 0.5
_FACET_CHARS: Final = 200


@dataclass(slots=True)
class Meeting:
    """Ranks that have met. ``why_not`` says why none of them shares anything, ``None`` where they do."""

    joined: Joined
    group: Group | None
    heart: Heart | None
    why_not: str | None

    def end(self, *, linger: bool) -> None:
        """Stop beating and let go of the store; with ``linger`` the first rank goes on serving it while this object lives."""
        if self.heart is not None:
            self.heart.stop()
        if not linger:
            self.joined.close()


def meet(process_group: Any, settings: Settings, clock: Clock, *, root_name: str, cannot: str, environment: Mapping[str, Any]) -> Meeting:
    """Meet the ranks of a process group; all of them must call this. ``cannot`` says why this one is not able to take part, if so.

    Where one cannot, or their modes or versions differ, none does.

    Raises:
        Exception: whatever the group's own collectives raise.
    """
    saying = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "mode": settings.mode.value.value,
        "version": __version__,
        "root": root_name,
        "cannot": cannot,
        "environment": environment,
    }
    addresses = [text for text in (settings.address.value, settings.master_address) if text]
    dead_after_s = settings.dead_after_s.value
    joined = join(process_group, saying, reachable_at=addresses, answer_s=dead_after_s)
    why_not = _why_not(joined)
    if why_not is not None or joined.board is None or joined.beats is None:
        joined.close()
        return Meeting(joined, None, None, why_not or "the ranks do not reach each other's store")
    members = [Member(rank, said["host"], said["pid"]) for rank, said in enumerate(joined.said)]
    _log_differences(joined)
    ranks = Ranks(joined.board, joined.rank, members, clock, Patience(dead_after_s, settings.max_wait_s.value))
    heart = Heart(ranks, joined.beats, min(_MAX_BEAT_S, dead_after_s / _BEATS_PER_DEATH))
    return Meeting(joined, Group(ranks, [said["root"] for said in joined.said]), heart, None)


def met(process_group: Any, settings: Settings, opened: OpenRoot | None, cannot: str, environment: Mapping[str, str]) -> Meeting | None:
    """Meet the ranks of a process group and start alike; ``None`` (said once) where nothing can be shared.

    In mode ``pin`` nothing is. Such ranks meet nevertheless, so that none of another mode waits for them.
    """
    instead = "every rank tunes for itself, in memory"
    if settings.mode.value is Mode.PIN:
        cannot, instead = cannot or f"mode {Mode.PIN}", "this one serves what it has pinned"
    name = "" if opened is None else root_name([opened.path, *read_only_paths(settings)], boot_id())
    try:
        meeting = meet(process_group, settings, SystemClock(), root_name=name, cannot=cannot, environment=environment)
    except Exception as error:  # noqa: BLE001 - whatever the group's collectives raise: the cache must not be what stops the engine
        logger.warning("the ranks of the group do not meet (%s); %s", str(error).splitlines()[0], instead)
        return None
    if meeting.group is None:
        logger.warning("%s; %s", meeting.why_not, instead)
        return None
    if opened is not None and (received := meeting.group.level(opened.records)):
        logger.info("%d records of other hosts came in", received)
    return meeting


def _why_not(joined: Joined) -> str | None:
    for rank, said in enumerate(joined.said):
        if said["cannot"]:
            return f"rank {rank} on {said.get('host', '?')} cannot take part: {said['cannot']}"
    first = joined.said[0]
    for name in ("mode", "version"):
        for rank, said in enumerate(joined.said):
            if said[name] != first[name]:
                return f"rank {rank} on {said['host']} has {name} {said[name]}, rank 0 {first[name]}"
    return f"mode {Mode.OFF}" if first["mode"] == Mode.OFF else None


def _log_differences(joined: Joined) -> None:
    """Name the facets in which another rank's environment differs from this one's: such ranks have keys of their own."""
    mine = joined.said[joined.rank]["environment"]
    for rank, said in enumerate(joined.said):
        different = sorted(name for name in mine.keys() | said["environment"].keys() if mine.get(name) != said["environment"].get(name))
        if different:
            rows = ", ".join(f"{name} ({said['environment'].get(name)} there, {mine.get(name)} here)" for name in different)
            logger.warning("rank %d on %s shares no records with this one: %s", rank, said["host"], rows)


def environment_of(environment: Any) -> dict[str, str]:
    """Return the facets that decide whether records are shared, as text."""
    facets = json.loads(manifest(environment)[1])["facets"]
    return {name: str(row["value"])[:_FACET_CHARS] for name, row in facets.items() if row["role"] != "performance"}


@contextlib.contextmanager
def timings_averaged_over(process_group: Any) -> Iterator[None]:
    """Give FlashInfer the process group, as its callers expect it during a session; at the end it has what it had.

    FlashInfer has one for all threads, and reads it while it measures. So it is changed only under the tuner's lock, which a thread
    that measures holds, in a session of its own, from before it hides the group until it is done.
    """
    if not hasattr(flashinfer.autotuner, "set_autotune_process_group"):
        yield  # an older FlashInfer averages nothing
        return
    lock = flashinfer.autotuner.AutoTuner.get()._lock
    with lock:
        before = flashinfer.autotuner.get_autotune_process_group()
        flashinfer.autotuner.set_autotune_process_group(process_group)
    try:
        yield
    finally:
        with lock:
            flashinfer.autotuner.set_autotune_process_group(before)
