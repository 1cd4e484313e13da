"""The rules of the last sessions on a root: ``sessions/<device digest>/<number>.rec``, one immutable file per change, the last few kept."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, seal, unseal
from fi_cachestore.records.rules import SessionRules
from fi_cachestore.store.filesystem import OsFileSystem, Reader, Writer
from fi_cachestore.store.numbered import append, newest_first

KEPT_COUNT: Final = 8


class RulesLog:
    """What sessions used, newest first. Safe from any process: numbers are taken by creating their file, and files never change."""

    def __init__(self, root: Path, *, durable: bool = True, reader: Reader | None = None, writer: Writer | None = None) -> None:
        """Use ``root/sessions``; nothing needs to exist."""
        real = OsFileSystem()
        self._root = root
        self._durable = durable
        self._reader: Reader = real if reader is None else reader
        self._writer: Writer = real if writer is None else writer

    @property
    def folder(self) -> Path:
        """Where the rules are."""
        return self._root / "sessions"

    def latest(self, digest: Digest) -> tuple[SessionRules, ...]:
        """Return the rules kept for a device model, newest first. Bad files count as absent; reads only."""
        found = []
        for path in newest_first(self._reader, self.folder / digest, KEPT_COUNT):
            with contextlib.suppress(DamagedError, FileNotFoundError):
                found.append(self.load(path, digest))
        return tuple(found)

    def load(self, path: Path, digest: Digest) -> SessionRules:
        """Return the rules in one file.

        Raises:
            DamagedError: not such a file, or that of another device model.
            FileNotFoundError: nothing is there.
        """
        rules = SessionRules.from_value(unseal(self._reader.read(path, MAX_SEALED_BYTES)))
        if rules.digest != digest:
            raise DamagedError("foreign", "rules of another device model")
        return rules

    def append(self, rules: SessionRules) -> None:
        """Make ``rules`` the newest, unless they are already, and drop what is older than the last few.

        Raises:
            StoreIOError: the file system refused.
        """
        digest = rules.digest
        newest = self.latest(digest)[:1]
        if newest == (rules,):
            return
        append(self._reader, self._writer, self.folder / digest, seal(rules.to_value()), kept_count=KEPT_COUNT, durable=self._durable)
