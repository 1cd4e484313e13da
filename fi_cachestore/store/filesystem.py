"""The file system as an argument: two small ports and their one real implementation, so that faults can be injected."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fi_cachestore.errors import DamagedError
from fi_cachestore.records.envelope import MissReason

_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY  # without O_NONBLOCK, opening a FIFO waits for ever
_STALE_RETRIES = 3
_NOT_A_FILE = {errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EISDIR}


class Reader(Protocol):
    """What look-ups need. Reads only."""

    def read(self, path: Path, limit_bytes: int) -> bytes:
        """Return the content of a regular file of at most ``limit_bytes``.

        Raises:
            FileNotFoundError: nothing is there.
            DamagedError: ``corrupt`` for something that is not such a file, ``unreadable`` where the system refuses.
        """

    def names(self, directory: Path) -> Iterator[str]:
        """Yield the names in ``directory``; nothing if it cannot be listed."""


class Writer(Protocol):
    """What publishing needs. Every method raises ``OSError`` on failure."""

    def create(self, path: Path, data: bytes, *, durable: bool) -> None:
        """Create ``path``, which must not exist, with ``data``; with ``durable``, on the medium before returning."""

    def link(self, source: Path, target: Path) -> None:
        """Give ``source`` a second name; ``FileExistsError`` if ``target`` is taken."""

    def rename(self, source: Path, target: Path) -> None:
        """Move ``source`` to ``target``."""

    def unlink(self, path: Path) -> None:
        """Remove a name."""

    def make_dirs(self, path: Path) -> None:
        """Create a directory and its parents, if missing, with the modes of the umask."""

    def sync_dir(self, path: Path) -> None:
        """Put the names in a directory on the medium."""


class OsFileSystem:
    """The real file system. Stateless, safe from any thread."""

    def read(self, path: Path, limit_bytes: int) -> bytes:
        """Return a regular file's content; see ``Reader.read``."""
        for _ in range(_STALE_RETRIES):
            try:
                return _read(path, limit_bytes)
            except OSError as error:
                if error.errno == errno.ESTALE:  # replaced on a network server while we held it: open it anew
                    continue
                if error.errno == errno.ENOENT and not os.path.lexists(path):
                    raise
                if error.errno == errno.ENOENT or error.errno in _NOT_A_FILE:
                    raise DamagedError(MissReason.CORRUPT, f"not a regular file ({error.strerror})") from error
                raise DamagedError(MissReason.UNREADABLE, str(error.strerror)) from error
        raise DamagedError(MissReason.UNREADABLE, "stale file handle")

    def names(self, directory: Path) -> Iterator[str]:
        """Yield the names in a directory; see ``Reader.names``."""
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                yield entry.name

    def create(self, path: Path, data: bytes, *, durable: bool) -> None:
        """Create a file; see ``Writer.create``."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)  # the umask decides
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; see ``Writer.link``."""
        os.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Move a file; see ``Writer.rename``."""
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name; see ``Writer.unlink``."""
        os.unlink(path)

    def make_dirs(self, path: Path) -> None:
        """Create directories; see ``Writer.make_dirs``."""
        os.makedirs(path, exist_ok=True)

    def sync_dir(self, path: Path) -> None:
        """Put names on the medium; see ``Writer.sync_dir``."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _read(path: Path, limit_bytes: int) -> bytes:
    fd = os.open(path, _READ_FLAGS)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError(MissReason.CORRUPT, "not a regular file")
        if status.st_size > limit_bytes:
            raise DamagedError(MissReason.CORRUPT, f"{status.st_size} bytes, the limit is {limit_bytes}")
        chunks = []
        left = limit_bytes + 1  # the file may grow while it is read
        while left > 0 and (chunk := os.read(fd, min(left, 1 << 16))):
            chunks.append(chunk)
            left -= len(chunk)
    finally:
        os.close(fd)
    if left <= 0:
        raise DamagedError(MissReason.CORRUPT, f"grew over the limit of {limit_bytes} bytes")
    return b"".join(chunks)
