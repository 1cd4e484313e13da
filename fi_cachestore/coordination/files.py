"""Claims between the processes of one host: one lock file per digest.

Only ``flock`` through ``filelock.FileLock``, never its soft variants: an existence lock outlives its owner. Where ``flock`` does not
work there are no claims, and where it silently does nothing two processes may hold one: both cost double work and change no result.
Lock files stay where they are; unlinking one while it is held would give two holders.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from fi_cachestore.coordination.port import Busy, Claim, Unavailable
from fi_cachestore.keys.digest import Digest

_HOLDER_BYTES: Final = 512


class FileCoordinator:
    """Claims as lock files in one directory. Safe from any thread and process of the host; holds no state of its own."""

    def __init__(self, directory: Path) -> None:
        """Make claims in ``directory``, which is created when the first one is made."""
        self._directory = directory

    def claim(self, digest: Digest, purpose: str) -> Claim | Busy | Unavailable:
        """Try to lock the digest's file, once and without waiting. The system frees it when the holder dies, however it dies."""
        path = self._directory / digest[:2] / f"{digest}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
            lock.acquire()
        except Timeout:
            return Busy(_read_holder(path))
        except (OSError, NotImplementedError) as error:
            return Unavailable(f"{path}: {error}")
        _write_holder(path, purpose)
        return _FileClaim(lock)


class _FileClaim:
    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._lock.release(force=True)


def _write_holder(path: Path, purpose: str) -> None:
    """Leave a name for those who wait. A hint: it may be old or missing, and nothing is decided by it."""
    text = json.dumps({"host": socket.gethostname()[:64], "pid": os.getpid(), "op": purpose[:128]})
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _read_holder(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            holder = json.loads(os.read(fd, _HOLDER_BYTES))
        finally:
            os.close(fd)
        return f"process {int(holder['pid'])} on {holder['host']!s:.64} for {holder['op']!s:.128}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "an unnamed process"
