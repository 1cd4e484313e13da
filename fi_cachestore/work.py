"""What a session says about a piece of work, and how long it waits for others to do it."""

from __future__ import annotations

from dataclasses import dataclass

from fi_cachestore.config import DEFAULT_MAX_WAIT_S, DEFAULT_STALL_S
from fi_cachestore.coordination.port import Claim
from fi_cachestore.records.record import Record


@dataclass(frozen=True, slots=True)
class Answered:
    """A record answers; nothing is to be measured."""

    record: Record


@dataclass(frozen=True, slots=True)
class Mine:
    """The caller measures. ``claim`` is ``None`` where claims do not work; ``share`` tells whether the result may be published."""

    claim: Claim | None
    share: bool = True


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another process or thread measures it now; a change of ``progress`` means that they get on with it."""

    holder: str
    progress: str = ""


@dataclass(frozen=True, slots=True)
class Spent:
    """This session has tried it, without a result that could be kept."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long is waited for somebody else's measurement: ``max_wait_s`` in all, ``stall_s`` while what they say they do is the same."""

    max_wait_s: float = DEFAULT_MAX_WAIT_S
    stall_s: float = DEFAULT_STALL_S


@dataclass(slots=True)
class Wait:
    """How long somebody has been waited for, and since when what they say they do is the same."""

    since_ns: int
    progress: str = ""
    progress_since_ns: int = 0
