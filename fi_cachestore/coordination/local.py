"""Claims inside one process: for sessions without a directory."""

from __future__ import annotations

import threading

from fi_cachestore.coordination.port import Busy, Claim
from fi_cachestore.keys.digest import Digest


class LocalCoordinator:
    """Claims between threads. Thread-safe."""

    def __init__(self) -> None:
        """Start with nothing claimed."""
        self._lock = threading.Lock()
        self._held: dict[Digest, str] = {}

    def claim(self, digest: Digest, purpose: str) -> Claim | Busy:
        """Claim ``digest`` unless a thread of this process holds it."""
        with self._lock:
            holder = self._held.get(digest)
            if holder is not None:
                return Busy(holder)
            self._held[digest] = f"thread {threading.current_thread().name} for {purpose}"
        return _LocalClaim(self, digest)

    def release(self, digest: Digest) -> None:
        """Make ``digest`` free."""
        with self._lock:
            self._held.pop(digest, None)


class _LocalClaim:
    def __init__(self, owner: LocalCoordinator, digest: Digest) -> None:
        self._owner: LocalCoordinator | None = owner
        self._digest = digest

    def release(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.release(self._digest)
