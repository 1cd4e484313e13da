"""Overviews on disk: ``verdicts/overview/<number>.rec``, the newest with the highest number, the last two kept."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fi_cachestore.errors import DamagedError, StoreIOError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, seal, unseal
from fi_cachestore.records.overview import Glance, overview_from, overview_value
from fi_cachestore.store.filesystem import Reader, Writer
from fi_cachestore.store.numbered import append, newest_first

OVERVIEW: Final = "overview"
_KEPT_COUNT: Final = 2


class Overviews:
    """The overviews in one folder of verdicts. Safe from any process. Never put on the medium: what a power cut tears counts as absent."""

    def __init__(self, verdicts: Path, *, reader: Reader, writer: Writer | None) -> None:
        """Use ``verdicts/overview``; nothing needs to exist. Without a ``writer`` it is only read."""
        self.folder = verdicts / OVERVIEW
        self._reader, self._writer = reader, writer

    def newest(self) -> dict[Digest, Glance]:
        """Return the newest sound overview, empty if there is none. Never raises, reads only."""
        for path in newest_first(self._reader, self.folder, _KEPT_COUNT):
            with contextlib.suppress(DamagedError, FileNotFoundError):
                return self.load(path)
        return {}

    def load(self, path: Path) -> dict[Digest, Glance]:
        """Return what one file has.

        Raises:
            DamagedError: not an overview.
            FileNotFoundError: nothing is there.
        """
        return overview_from(unseal(self._reader.read(path, MAX_SEALED_BYTES)))

    def append(self, glances: Mapping[Digest, Glance]) -> None:
        """Make ``glances`` the newest overview, and drop all but the one before.

        Raises:
            StoreIOError: the file system refused, or the root is only read.
            UnsupportedValueError: they are too many for the format.
        """
        if self._writer is None:
            raise StoreIOError(str(self.folder), "publishing", "the root is read-only")
        append(self._reader, self._writer, self.folder, seal(overview_value(glances)), kept_count=_KEPT_COUNT, durable=False)
