"""The Coordinator port, and the clock that waits are measured with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from fi_cachestore.keys.digest import Digest


class Clock(Protocol):
    """Time as an argument."""

    def monotonic_ns(self) -> int:
        """Return nanoseconds that never go back."""

    def unix_ns(self) -> int:
        """Return wall-clock nanoseconds since 1970."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        """Return the monotonic clock."""
        return time.monotonic_ns()

    def unix_ns(self) -> int:
        """Return the wall clock."""
        return time.time_ns()

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


class Claim(Protocol):
    """The right to measure one digest. Losing it costs at most double work."""

    def release(self) -> None:
        """Give it back. Never raises; a second call does nothing. A holder that dies gives it back as well."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody else holds the claim; ``holder`` names who, as far as known. A change of ``progress`` means that they get on with it."""

    holder: str
    progress: str = ""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Claims do not work here, and why: everybody measures."""

    why: str


class Coordinator(Protocol):
    """Hands out claims."""

    def claim(self, digest: Digest, purpose: str) -> Claim | Busy | Unavailable:
        """Try to claim ``digest``; returns at once. ``purpose`` (the op) is shown to those who wait."""
