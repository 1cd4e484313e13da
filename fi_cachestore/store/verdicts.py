"""Verdicts on disk: ``verdicts/<schema digest>/<what>.<generation>.rec``, and ``verdicts/refused/`` for single records.

Files are created once and never changed. A file that is damaged, or is not what its name says, counts as absent; what belongs there is
then written under the next generation, and the lowest sound generation counts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fi_cachestore.errors import DamagedError, StoreIOError
from fi_cachestore.keys.digest import Digest, is_digest
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, MissReason, body_of, seal, unseal
from fi_cachestore.records.overview import Glance
from fi_cachestore.records.verdict import (
    MAX_NUMBER,
    REFUSED,
    SCHEMA_STEM,
    VALIDATION,
    Override,
    Validation,
    Verdict,
    validated_by,
    verdict_from,
)
from fi_cachestore.store.filesystem import OsFileSystem, Reader, Writer
from fi_cachestore.store.overviews import OVERVIEW, Overviews
from fi_cachestore.store.publish import create_once

VERDICTS_FOLDER: Final = "verdicts"
MAX_GENERATIONS: Final = 8
_FILE_NAME: Final = re.compile(rf"({SCHEMA_STEM.pattern}|[0-9a-f]{{64}}-[0-9a-f]{{64}})\.([0-7])\.rec", re.ASCII)
_OVERRIDE: Final = "override-"
_ATTEMPTS: Final = 64
_MAX_LOOKED_INTO: Final = 512
_SETTLED_NS: Final = 2_000_000_000
"""Longer than the grain of any file system's times of change, and than clocks of one site differ."""


class VerdictFolder:
    """The verdicts of one root. Reading never raises for what is found; safe from any thread and process."""

    def __init__(self, root: Path, *, durable: bool = True, reader: Reader | None = None, writer: Writer | None = None) -> None:
        """Use ``root/verdicts``; nothing needs to exist. Without a ``writer`` it is only read."""
        self.folder = root / VERDICTS_FOLDER
        self._prefix = str(self.folder)
        self._durable = durable
        self._reader: Reader = OsFileSystem() if reader is None else reader
        self._writer = writer
        self.overviews = Overviews(self.folder, reader=self._reader, writer=writer)

    def schemas(self) -> frozenset[Digest]:
        """Return the digests of the schemas that something is kept about: one listing."""
        return frozenset(map(Digest, filter(is_digest, self._reader.names(self.folder))))

    def stems(self, folder: str) -> frozenset[str]:
        """Return what one folder has files for: one listing, which proves nothing about their content."""
        return frozenset([found[1] for name in self._reader.names(f"{self._prefix}/{folder}") if (found := _FILE_NAME.fullmatch(name))])

    def glances(self, schemas: Iterable[Digest], now_unix_ns: int, known: Mapping[Digest, Glance], *, most: int) -> dict[Digest, Glance]:
        """Look through the folders of ``schemas``; return what those have that hold at most ``most`` files and were not changed just now.

        What is in ``known`` and has not changed is taken from there; of the others no more are read than 512 files, which leaves folders
        out. A change that the next one cannot be told from by its time is one of the last moments. A folder without a file is one that
        could not be listed.
        """
        found, left = {}, _MAX_LOOKED_INTO
        for schema in schemas:
            changed_unix_ns = self._reader.changed_unix_ns(f"{self._prefix}/{schema}")
            glance = known.get(schema)
            if glance is not None and glance.changed_unix_ns == changed_unix_ns:
                found[schema] = glance
            elif changed_unix_ns and changed_unix_ns <= now_unix_ns - _SETTLED_NS:
                stems = self.stems(schema)
                if 0 < len(stems) <= min(most, left):
                    left -= len(stems)
                    left_out = [Digest(stem.removeprefix(VALIDATION)) for stem in stems if stem.startswith(VALIDATION)]
                    sound = [f"{VALIDATION}{digest}" for digest in left_out if self.is_validated(schema, digest, [])]
                    found[schema] = Glance(changed_unix_ns, stems, frozenset(sound))
        return found

    def is_as_seen(self, schema: Digest, glance: Glance) -> bool:
        """Whether a schema's folder has had no new file since. One question to the file system."""
        return self._reader.changed_unix_ns(f"{self._prefix}/{schema}") == glance.changed_unix_ns

    def get(self, folder: str, stem: str, damaged: list[DamagedError]) -> Verdict | None:
        """Return the verdict that counts under a name; what is wrong with files in its place is added to ``damaged``."""
        for generation in range(MAX_GENERATIONS):
            try:
                return self.load(folder, stem, generation)
            except FileNotFoundError:
                return None
            except DamagedError as damage:
                damaged.append(damage)
        return None

    def is_validated(self, schema: Digest, left_out: Digest, damaged: list[DamagedError]) -> bool:
        """Whether a validation counts for a schema and left-out values; what is wrong with files in its place is added to ``damaged``.

        Of a sound file only what makes its name is looked at.
        """
        stem = f"{VALIDATION}{left_out}"
        try:
            body = body_of(self._reader.read(self._path(schema, stem, 0), MAX_SEALED_BYTES))
            if validated_by(body) == (schema, left_out):
                return True
        except (DamagedError, FileNotFoundError):
            pass  # it is looked at again, and in full
        return isinstance(self.get(schema, stem, damaged), Validation)

    def load(self, folder: str, stem: str, generation: int) -> Verdict:
        """Return the verdict in one file.

        Raises:
            DamagedError: not a verdict, or one that belongs elsewhere (``foreign``).
            FileNotFoundError: nothing is there.
        """
        verdict = verdict_from(unseal(self._reader.read(self._path(folder, stem, generation), MAX_SEALED_BYTES)))
        if (verdict.folder, verdict.stem) != (folder, stem):
            raise DamagedError(MissReason.FOREIGN, f"holds {verdict.folder[:12]}/{verdict.stem[:24]}")
        return verdict

    def latest_override(self, folder: str, stems: frozenset[str], damaged: list[DamagedError]) -> Override | None:
        """Return the sound override with the highest number."""
        for stem in sorted((stem for stem in stems if stem.startswith(_OVERRIDE)), reverse=True):
            found = self.get(folder, stem, damaged)
            if isinstance(found, Override):
                return found
        return None

    def create(self, verdict: Verdict) -> Verdict:
        """Keep ``verdict`` unless a sound one has its name; return the one that is kept: the first.

        Raises:
            StoreIOError: the file system refused, or the root is only read.
            UnsupportedValueError: it is too large for the format.
        """
        data = seal(verdict.to_value())
        for generation in range(MAX_GENERATIONS):
            if self._create(verdict, generation, data):
                return verdict
            try:
                return self.load(verdict.folder, verdict.stem, generation)
            except (DamagedError, FileNotFoundError):
                continue
        raise StoreIOError(self._path(verdict.folder, verdict.stem, 0), "publishing", "every name for it is taken by a bad file")

    def append(self, override: Override) -> Override:
        """Keep ``override`` under the next free number, and return it with that number.

        Raises:
            StoreIOError: the file system refused, or the root is only read.
        """
        for _ in range(_ATTEMPTS):
            numbers = [int(stem.removeprefix(_OVERRIDE)) for stem in self.stems(override.folder) if stem.startswith(_OVERRIDE)]
            numbered = replace(override, number=max(numbers, default=-1) + 1)
            if numbered.number > MAX_NUMBER:
                break
            if self._create(numbered, 0, seal(numbered.to_value())):
                return numbered
        raise StoreIOError(str(self.folder / override.folder), "publishing an override", "every number tried is taken")

    def files(self) -> Iterator[tuple[Path, tuple[str, str, int] | None]]:
        """Yield every name below the folder with the arguments to ``load`` it, ``None`` for names that no verdict has; no overviews."""
        for folder in sorted(self._reader.names(self.folder)):
            if folder == OVERVIEW:
                continue
            if folder != REFUSED and not is_digest(folder):
                yield self.folder / folder, None
                continue
            for name in sorted(self._reader.names(self.folder / folder)):
                found = _FILE_NAME.fullmatch(name)
                yield self.folder / folder / name, (folder, found[1], int(found[2])) if found else None

    def _create(self, verdict: Verdict, generation: int, data: bytes) -> bool:
        path = self._path(verdict.folder, verdict.stem, generation)
        if self._writer is None:
            raise StoreIOError(path, "publishing", "the root is read-only")
        return create_once(self._writer, Path(path), data, durable=self._durable)

    def _path(self, folder: str, stem: str, generation: int) -> str:
        return f"{self._prefix}/{folder}/{stem}.{generation}.rec"


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The verdicts of a root and of its read-only layers; ``own`` alone is ever written."""

    own: VerdictFolder
    layers: Sequence[VerdictFolder] = field(default=())

    def __iter__(self) -> Iterator[VerdictFolder]:
        """Yield all of them, the root's own first."""
        return itertools.chain((self.own,), self.layers)
