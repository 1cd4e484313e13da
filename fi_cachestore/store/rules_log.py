"""The rules of the last sessions on a root: ``sessions/<device digest>/<number>.rec``, one immutable file per change, the last few kept."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final

from fi_cachestore.errors import DamagedError, StoreIOError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, seal, unseal
from fi_cachestore.records.rules import SessionRules
from fi_cachestore.store.filesystem import OsFileSystem, Reader, Writer
from fi_cachestore.store.publish import create_once

RULES_NAME: Final = re.compile(r"([0-9]{8})\.rec", re.ASCII)
KEPT_COUNT: Final = 8
_ATTEMPTS: Final = 16


class RulesLog:
    """What sessions used, newest first. Safe from any process: numbers are taken by creating their file, and files never change."""

    def __init__(self, root: Path, *, durable: bool = True, reader: Reader | None = None, writer: Writer | None = None) -> None:
        """Use ``root/sessions``; nothing needs to exist."""
        real = OsFileSystem()
        self.folder = root / "sessions"
        self._durable = durable
        self._reader: Reader = real if reader is None else reader
        self._writer: Writer = real if writer is None else writer

    def latest(self, digest: Digest) -> tuple[SessionRules, ...]:
        """Return the rules kept for a device model, newest first. Bad files count as absent; reads only."""
        found = []
        for number in self._numbers(digest)[-KEPT_COUNT:]:
            with contextlib.suppress(DamagedError, FileNotFoundError):
                found.append(self.load(self._path(digest, number), digest))
        return tuple(reversed(found))

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
        data = seal(rules.to_value())
        for _ in range(_ATTEMPTS):
            numbers = self._numbers(digest)
            number = numbers[-1] + 1 if numbers else 0
            if create_once(self._writer, self._path(digest, number), data, durable=self._durable):
                for old in numbers[: -(KEPT_COUNT - 1)]:
                    with contextlib.suppress(OSError):
                        self._writer.unlink(self._path(digest, old))
                return
        raise StoreIOError(str(self.folder), "publishing rules", "other processes took every number tried")

    def _numbers(self, digest: Digest) -> list[int]:
        names = map(RULES_NAME.fullmatch, self._reader.names(self.folder / digest))
        return sorted(int(found[1]) for found in names if found)

    def _path(self, digest: Digest, number: int) -> Path:
        return self.folder / digest / f"{number:08d}.rec"
