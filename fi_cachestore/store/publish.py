"""The only code that creates a file in a cache directory."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from fi_cachestore.errors import StoreIOError
from fi_cachestore.store.filesystem import Writer

TEMPORARY_SUFFIX = ".tmp"


def temporary_name() -> str:
    """Return a name nobody else uses: host, process and 64 random bits, so that leftovers can be traced to their writer."""
    return f".{_host()}-{os.getpid()}-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"


@lru_cache(maxsize=1)
def _host() -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in socket.gethostname())[:40]


def create_once(writer: Writer, path: Path, data: bytes, *, durable: bool) -> bool:
    """Create ``path`` with ``data`` unless something has that name; return whether it was created.

    Atomic: ``path`` appears with all of ``data`` or not at all, and an existing file is never touched. The data go to a new file in the
    same directory, which is then linked (``link`` does not replace). The temporary name is removed on every exit but a kill. With
    ``durable``, file and name are on the medium before this returns: two ``fsync`` calls, milliseconds on most disks.

    Raises:
        StoreIOError: the file system refused (full, read-only, no hard links).
    """
    temporary = path.parent / temporary_name()
    try:
        try:
            _write(writer, temporary, data, durable=durable)
            created = _link(writer, temporary, path)
        finally:
            with contextlib.suppress(OSError):
                writer.unlink(temporary)
        if durable and created:
            writer.sync_dir(path.parent)
    except OSError as error:
        raise StoreIOError(str(path), "publishing", error.strerror or type(error).__name__) from error
    return created


def create_named_by_content(writer: Writer, folder: Path, chunks: Iterable[bytes], name: Callable[[], str]) -> tuple[Path, bool]:
    """Create a file from ``chunks``, named by what ``name`` returns after the last one; return its path and whether it was created.

    Never held in memory, always durable, else as ``create_once``. What ``chunks`` raises ends the file and is raised here.

    Raises:
        StoreIOError: the file system refused.
    """
    temporary = folder / temporary_name()
    try:
        writer.make_dirs(folder)
        try:
            writer.create(temporary, chunks, durable=True)
            path = folder / name()
            created = _link(writer, temporary, path)
        finally:
            with contextlib.suppress(OSError):
                writer.unlink(temporary)
        writer.sync_dir(folder)
        writer.sync_dir(folder.parent)
    except OSError as error:
        raise StoreIOError(str(folder), "publishing", error.strerror or type(error).__name__) from error
    return path, created


def _write(writer: Writer, temporary: Path, data: bytes, *, durable: bool) -> None:
    try:
        writer.create(temporary, (data,), durable=durable)
    except FileNotFoundError:  # the directory is new, or was removed under us
        writer.make_dirs(temporary.parent)
        if durable:
            writer.sync_dir(temporary.parent.parent)
        writer.create(temporary, (data,), durable=durable)


def _link(writer: Writer, temporary: Path, path: Path) -> bool:
    try:
        writer.link(temporary, path)
    except FileExistsError:
        return False
    return True
