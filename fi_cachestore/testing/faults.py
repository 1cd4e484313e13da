"""Injected faults: a file system that fails, or a process that dies, at a chosen step of writing."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from fi_cachestore.store.filesystem import OsFileSystem, Writer

Fault = Callable[[str, int], None]
"""Called with the name and number (from 1) of each step; raises or kills where the fault is to be."""


def fail_at(step: str, code: int) -> Fault:
    """Return a fault that raises ``OSError(code)`` at every step of that name: ``errno.ENOSPC`` at ``write``, for example."""

    def fault(name: str, _: int) -> None:
        if name == step:
            raise OSError(code, os.strerror(code))

    return fault


def kill_at(number: int) -> Fault:
    """Return a fault that ends this process, without any cleanup, at step ``number``."""

    def fault(_: str, count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


class FaultyWriter:
    """A writer whose every system call is a step that a fault may strike: before it, and for writing also halfway through."""

    def __init__(self, fault: Fault, inner: Writer | None = None) -> None:
        """Do what ``inner`` does, with faults."""
        self._fault = fault
        self._inner: Writer = OsFileSystem() if inner is None else inner
        self.steps: list[str] = []

    def _step(self, name: str) -> None:
        self.steps.append(name)
        self._fault(name, len(self.steps))

    def create(self, path: Path, chunks: Iterable[bytes], *, durable: bool) -> None:
        """Create a file in steps: open, half of each chunk, its rest, sync."""
        self._step("open")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            for data in chunks:
                self._step("write")
                os.write(fd, data[: len(data) // 2])
                self._step("write")
                os.write(fd, data[len(data) // 2 :])
            if durable:
                self._step("fsync")
                os.fsync(fd)
        finally:
            os.close(fd)

    def link(self, source: Path, target: Path) -> None:
        """Link."""
        self._step("link")
        self._inner.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Rename."""
        self._step("rename")
        self._inner.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Unlink."""
        self._step("unlink")
        self._inner.unlink(path)

    def make_dirs(self, path: Path) -> None:
        """Create directories."""
        self._step("mkdir")
        self._inner.make_dirs(path)

    def sync_dir(self, path: Path) -> None:
        """Put names on the medium."""
        self._step("fsync")
        self._inner.sync_dir(path)


DISK_FULL = errno.ENOSPC
"""What a full disk answers."""
