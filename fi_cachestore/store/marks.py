"""Marks on disk: ``marks/<key>-<content>.<random>.mark``, a sealed mark, and after it whatever a dying process wrote."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from fi_cachestore.errors import DamagedError, UnsupportedValueError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, MissReason, seal, unseal_front
from fi_cachestore.records.mark import Mark
from fi_cachestore.store.filesystem import OsFileSystem, Reader, Writer
from fi_cachestore.store.publish import create_once

MARKS_FOLDER: Final = "marks"
_NAME: Final = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})\.[0-9a-f]{16}\.mark", re.ASCII)
_MAX_TRACE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class MarkFile:
    """A mark, where it is, and whether its process left a trace when it ended."""

    path: Path
    mark: Mark
    is_traced: bool


class MarkFolder:
    """The marks of one root. Reading never raises for what is found. Nothing is put on the medium: a power cut says nothing of a tactic."""

    def __init__(self, root: Path, *, reader: Reader | None = None, writer: Writer | None = None) -> None:
        """Use ``root/marks``; nothing needs to exist."""
        real = OsFileSystem()
        self.folder = root / MARKS_FOLDER
        self._reader: Reader = real if reader is None else reader
        self._writer: Writer = real if writer is None else writer

    def create(self, mark: Mark) -> Path:
        """Put up a mark and return where.

        Raises:
            StoreIOError: the file system refused.
        """
        path = self.folder / f"{mark.key}-{mark.content}.{secrets.token_hex(8)}.mark"
        try:
            data = seal(mark.to_value())
        except UnsupportedValueError:  # a tactic too large for a file: the mark matters, not what is in it
            data = seal(Mark(mark.key, mark.content, mark.op[:100], None, mark.process, mark.host, mark.unix_ns).to_value())
        create_once(self._writer, path, data, durable=False)
        return path

    def open_for_trace(self, path: Path) -> BinaryIO:
        """Open a mark for what its process writes when it dies; ``OSError`` on failure."""
        return path.open("ab", buffering=0)

    def remove(self, path: Path) -> None:
        """Take a mark away; it may be gone."""
        with contextlib.suppress(OSError):
            self._writer.unlink(path)

    def of(self, key: Digest, content: Digest) -> Iterator[MarkFile]:
        """Yield the sound marks of one record."""
        for path, names in self.files():
            if names == (key, content):
                with contextlib.suppress(DamagedError, FileNotFoundError):
                    yield self.load(path)

    def load(self, path: Path) -> MarkFile:
        """Return the mark in a file.

        Raises:
            DamagedError: it holds none, or one of another record.
            FileNotFoundError: nothing is there.
        """
        value, trace = unseal_front(self._reader.read(path, MAX_SEALED_BYTES + _MAX_TRACE_BYTES))
        mark = Mark.from_value(value)
        if not path.name.startswith(f"{mark.key}-{mark.content}."):
            raise DamagedError(MissReason.FOREIGN, f"holds a mark of {mark.key[:12]}")
        return MarkFile(path, mark, bool(trace))

    def files(self) -> Iterator[tuple[Path, tuple[Digest, Digest] | None]]:
        """Yield every name in the folder with the record it claims to be about, ``None`` for names that no mark has."""
        for name in sorted(self._reader.names(self.folder)):
            found = _NAME.fullmatch(name)
            yield self.folder / name, (Digest(found[1]), Digest(found[2])) if found else None
