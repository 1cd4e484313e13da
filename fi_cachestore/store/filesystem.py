"""The file system as an argument: two small ports and their one real implementation, so that faults can be injected."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from fi_cachestore.errors import DamagedError
from fi_cachestore.records.envelope import MissReason

T = TypeVar("T")

_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY  # without O_NONBLOCK, opening a FIFO waits for ever
_STALE_RETRIES = 3
_NOT_A_FILE = {errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EISDIR}


class OpenFile(Protocol):
    """A regular file, open for reading at any place. Still readable when it is unlinked; closed with the last reference."""

    @property
    def size_bytes(self) -> int:
        """How long it was when it was opened."""

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Return so many bytes from ``offset`` on, fewer where the file ends.

        Raises:
            DamagedError: ``unreadable`` where the system refuses.
        """


class Reader(Protocol):
    """What look-ups need. Reads only."""

    def read(self, path: Path | str, limit_bytes: int) -> bytes:
        """Return the content of a regular file of at most ``limit_bytes``.

        Raises:
            FileNotFoundError: nothing is there.
            DamagedError: ``corrupt`` for something that is not such a file, ``unreadable`` where the system refuses.
        """

    def exists(self, path: str) -> bool:
        """Whether something has this name; not if that cannot be told. Costs a fourth of a ``read`` of what is not there."""

    def changed_unix_ns(self, directory: str) -> int | None:
        """Return when a name was last added to or removed from ``directory``, by the file system's clock; ``None`` if it cannot be told.

        It is the time of change of the directory itself, which nobody can set: a copy of it has another one.
        """

    def names(self, directory: Path | str) -> Iterator[str]:
        """Yield the names in ``directory``; nothing if it cannot be listed."""

    def open(self, path: Path) -> OpenFile:
        """Open a regular file of any size; raises what ``read`` raises."""


class Writer(Protocol):
    """What publishing needs. Every method raises ``OSError`` on failure."""

    def create(self, path: Path, chunks: Iterable[bytes], *, durable: bool) -> None:
        """Create ``path``, which must not exist, with ``chunks`` one after the other; with ``durable``, on the medium before returning."""

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

    def read(self, path: Path | str, limit_bytes: int) -> bytes:
        """Return a regular file's content; see ``Reader.read``."""
        return _explained(path, lambda: _read(path, limit_bytes))

    def open(self, path: Path) -> OpenFile:
        """Open a regular file; see ``Reader.open``."""
        return _explained(path, lambda: _OsFile(*_opened(path)))

    def exists(self, path: str) -> bool:
        """Ask for a name; see ``Reader.exists``."""
        return os.access(path, os.F_OK)

    def changed_unix_ns(self, directory: str) -> int | None:
        """Return a directory's time of change; see ``Reader.changed_unix_ns``."""
        try:
            return os.stat(directory).st_ctime_ns
        except OSError:
            return None

    def names(self, directory: Path | str) -> Iterator[str]:
        """Return the names in a directory; see ``Reader.names``."""
        try:
            return iter(os.listdir(directory))
        except OSError:
            return iter(())

    def create(self, path: Path, chunks: Iterable[bytes], *, durable: bool) -> None:
        """Create a file; see ``Writer.create``."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)  # the umask decides
        try:
            for chunk in chunks:
                view = memoryview(chunk)
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


class _OsFile:
    """See ``OpenFile``. Thread-safe: reads name their place, and nobody closes the file while somebody holds it."""

    __slots__ = ("_fd", "size_bytes")

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd, self.size_bytes = fd, size_bytes

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Read; see ``OpenFile.read_at``."""
        try:
            return os.pread(self._fd, size_bytes, offset)
        except OSError as error:
            raise DamagedError(MissReason.UNREADABLE, error.strerror or "cannot be read") from error

    def __del__(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


def _explained(path: Path | str, attempt: Callable[[], T]) -> T:
    """Return what ``attempt`` does; say of what kind its failure is."""
    for _ in range(_STALE_RETRIES):
        try:
            return attempt()
        except OSError as error:
            if error.errno == errno.ESTALE:  # replaced on a network server while we held it: open it anew
                continue
            if error.errno == errno.ENOENT and not os.path.islink(path):
                raise  # a file that has that name by now was put there since: it was not there when it was asked for
            if error.errno == errno.ENOENT or error.errno in _NOT_A_FILE:
                raise DamagedError(MissReason.CORRUPT, f"not a regular file ({error.strerror})") from error
            raise DamagedError(MissReason.UNREADABLE, str(error.strerror)) from error
    raise DamagedError(MissReason.UNREADABLE, "stale file handle")


def _opened(path: Path | str) -> tuple[int, int]:
    """Return the descriptor and size of a regular file."""
    fd = os.open(path, _READ_FLAGS)
    try:
        status = os.fstat(fd)
    except BaseException:
        os.close(fd)
        raise
    if stat.S_ISREG(status.st_mode):
        return fd, status.st_size
    os.close(fd)
    raise DamagedError(MissReason.CORRUPT, "not a regular file")


def _read(path: Path | str, limit_bytes: int) -> bytes:
    fd, size_bytes = _opened(path)
    try:
        if size_bytes > limit_bytes:
            raise DamagedError(MissReason.CORRUPT, f"{size_bytes} bytes, the limit is {limit_bytes}")
        asked_bytes = min(size_bytes, 1 << 16) + 1
        chunks = [os.read(fd, asked_bytes)]
        if len(chunks[0]) == size_bytes < asked_bytes:
            return chunks[0]
        left = limit_bytes + 1 - len(chunks[0])  # the file may grow while it is read
        while left > 0 and (chunk := os.read(fd, min(left, 1 << 16))):
            chunks.append(chunk)
            left -= len(chunk)
    finally:
        os.close(fd)
    if left <= 0:
        raise DamagedError(MissReason.CORRUPT, f"grew over the limit of {limit_bytes} bytes")
    return b"".join(chunks)
