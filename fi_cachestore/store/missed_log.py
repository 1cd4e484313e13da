"""What the last sessions missed: a folder in the user's state directory, apart from every root, for people."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, seal, unseal
from fi_cachestore.records.missed import MissedSession
from fi_cachestore.store.filesystem import OsFileSystem, Reader, Writer
from fi_cachestore.store.numbered import append, newest_first

KEPT_COUNT: Final = 16
"""Files of one user: at most this many times the format's limit for one file."""


class MissedLog:
    """Sessions, newest first. Safe from any process: files never change, and bad ones count as absent."""

    def __init__(self, state: Path, *, reader: Reader | None = None, writer: Writer | None = None) -> None:
        """Use ``state/missed``; nothing needs to exist."""
        real = OsFileSystem()
        self._state = state
        self._reader: Reader = real if reader is None else reader
        self._writer: Writer = real if writer is None else writer

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._state / "missed"

    def latest(self) -> Iterator[MissedSession]:
        """Yield the sessions kept, newest first. Reads only, one file at a time."""
        for path in newest_first(self._reader, self.folder, KEPT_COUNT):
            with contextlib.suppress(DamagedError, FileNotFoundError):
                yield MissedSession.from_value(unseal(self._reader.read(path, MAX_SEALED_BYTES)))

    def append(self, session: MissedSession) -> Path:
        """Make ``session`` the newest, and drop what is older than the last few. Not durable: a power cut may take it.

        Raises:
            StoreIOError: the file system refused.
            UnsupportedValueError: the session is too large for the format.
        """
        return append(self._reader, self._writer, self.folder, seal(session.to_value()), kept_count=KEPT_COUNT, durable=False)

    def remove(self, path: Path) -> None:
        """Drop a file that another one has replaced. Best effort."""
        with contextlib.suppress(OSError):
            self._writer.unlink(path)
