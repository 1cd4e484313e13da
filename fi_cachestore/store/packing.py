"""Turning loose records into packs, and small packs into larger ones, beside readers, publishers and other packers.

The order is what makes it safe, no lock is: a pack is on the medium, then visible, and only then do the loose files go away whose bytes it
holds.

- A reader that finds neither pack nor loose file lists the packs again (``packed``), and then finds what was packed meanwhile.
- A publisher that took a free name lists the packs again, and yields to what is in them (``packed``).
- A packer lists the packs again when it has read the last loose file. Such a file may be that of a publisher that is about to yield to a
  record packed earlier; that pack was visible before the file was there, so it is in this listing. If that differs from the first listing,
  the packer gives up.
- What a packer removes is, byte for byte, in a pack that it has made and seen. Another packer that removes that pack has first put its
  content into its own.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Generic

from fi_cachestore.errors import DamagedError, StoreIOError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, MissReason, check_seal
from fi_cachestore.store.filesystem import Reader, Writer
from fi_cachestore.store.loose import QUARANTINE, LooseReader
from fi_cachestore.store.pack import Pack, Row
from fi_cachestore.store.pack_writer import Sealed, write_pack
from fi_cachestore.store.packed import PackSet
from fi_cachestore.store.port import E

WORTHWHILE_COUNT: Final = 256
"""Loose records from which on a session packs them. A pack costs every reader a file descriptor and every look-up one more read; with
256 records that is repaid by the files and folders saved (a block of 4 KiB each), and packs stay few."""
MERGED_COUNT: Final = 65536
"""Packs with more records than this are merged by ``plan_one_pack`` only: a session's end must not take long."""
_MAX_SEQUENCE: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class LooseFile:
    """A loose record: its name says all of this."""

    digest: Digest
    generation: int
    path: Path


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """What packing would do: which loose records go into a new pack, and which packs are merged into it."""

    root: str
    loose: tuple[LooseFile, ...]
    merged: tuple[Pack, ...]
    kept: tuple[Pack, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.loose and not self.merged


@dataclass(slots=True)
class Packing:
    """What packing did: ``path`` is the new pack, empty if none was needed; ``why_not`` says what stopped it."""

    path: str = ""
    record_count: int = 0
    size_bytes: int = 0
    removed_count: int = 0
    merged: list[str] = field(default_factory=list)
    why_not: str = ""


class _Stopped(Exception):  # noqa: N818 - not an error: somebody else was at work, or nothing is left to do
    pass


@dataclass(slots=True)
class _Found:
    """Packs that held something bad, and packs that could not be read to the end."""

    damaged: set[Pack] = field(default_factory=set)
    unread: set[Pack] = field(default_factory=set)


class Packer(Generic[E]):
    """Packs one root. Safe from any process; two at once cost double work."""

    def __init__(self, loose: LooseReader[E], *, reader: Reader, writer: Writer) -> None:
        """Pack the entries of ``loose``."""
        self._loose, self._reader, self._writer = loose, reader, writer

    def loose_count(self) -> int:
        """Return how many loose records there are."""
        return sum(1 for _, digest, _ in self._loose.files() if digest is not None)

    def plan(self, *, merged_count: int = MERGED_COUNT) -> PackingPlan:
        """Return what ``pack`` would do. Packs of more than ``merged_count`` records are left alone.

        A pack is merged if it is not larger than the loose records and all smaller packs together: so every record is copied a few times in
        its life, and a root has no more packs than the logarithm of its records.
        """
        packs = PackSet(self._loose.root, self._reader).current()
        loose = tuple(LooseFile(digest, generation, path) for path, digest, generation in self._loose.files() if digest is not None)
        merged: list[Pack] = []
        total = len(loose)
        for pack in sorted(packs, key=lambda pack: (pack.count, pack.digest)):
            if pack.count > min(total, merged_count):
                break
            merged.append(pack)
            total += pack.count
        return PackingPlan(str(self._loose.root), loose, tuple(merged), tuple(pack for pack in packs if pack not in merged))

    def plan_one_pack(self) -> PackingPlan:
        """Return a plan that leaves a single pack, however long that takes."""
        plan = self.plan(merged_count=0)
        return replace(plan, merged=plan.kept, kept=()) if plan.loose or len(plan.kept) > 1 else plan

    def pack(self, plan: PackingPlan) -> Packing:
        """Do what was planned. Never raises for what it finds or for other packers at work; see ``Packing.why_not``.

        Raises:
            StoreIOError: the file system refused.
        """
        done = Packing()
        found = _Found()
        made: tuple[Pack, ...] = ()
        try:
            made = (self._written(plan, found),)
            done.path, done.record_count, done.size_bytes = str(made[0].path), made[0].count, made[0].size_bytes
        except _Stopped as stopped:
            done.why_not = str(stopped)
        except DamagedError as damage:
            done.why_not = damage.detail
        for file in plan.loose:
            done.removed_count += self._remove_packed(file, (*made, *plan.kept))
        if made:
            for pack in plan.merged:
                if pack not in found.unread and pack.path != made[0].path:
                    self._remove_merged(pack, is_damaged=pack in found.damaged)
                    done.merged.append(pack.path.name)
        return done

    # -- making the pack --------------------------------------------------------------------------------------------------------

    def _written(self, plan: PackingPlan, found: _Found) -> Pack:
        packs = (*plan.merged, *plan.kept)
        sequence = min(max((pack.sequence for pack in packs), default=0) + 1, _MAX_SEQUENCE)
        names = {pack.path.name for pack in packs}
        entries = self._entries(plan, found)
        first = next(entries, None)
        if first is None:
            raise _Stopped
        return write_pack(
            PackSet(self._loose.root, self._reader).folder,
            self._until_others_pack(itertools.chain([first], entries), names),
            sequence,
            reader=self._reader,
            writer=self._writer,
        )

    def _until_others_pack(self, entries: Iterable[Sealed], names: set[str]) -> Iterator[Sealed]:
        yield from entries
        if {pack.path.name for pack in PackSet(self._loose.root, self._reader).current()} != names:
            message = "another process packed at the same time"
            raise _Stopped(message)

    def _entries(self, plan: PackingPlan, found: _Found) -> Iterator[Sealed]:
        """Yield what serves now, in order: of equal generations that in the newest pack, a loose one only where no pack has any."""
        newest_first = sorted(plan.merged, key=lambda pack: pack.age_order, reverse=True)
        sources = [*(_packed_rows(pack, found) for pack in newest_first), _loose_rows(plan.loose)]
        for _, rows in itertools.groupby(heapq.merge(*sources, key=lambda row: row[:2]), key=lambda row: row[:2]):
            candidates = list(rows)
            for candidate in candidates:
                entry = self._checked(candidate, plan, found, is_alone=len(candidates) == 1)
                if entry is not None:
                    yield entry
                    break

    def _checked(self, candidate: _Candidate, plan: PackingPlan, found: _Found, *, is_alone: bool) -> Sealed | None:
        digest, generation, source = candidate
        try:
            if isinstance(source, Path):
                data = self._reader.read(source, MAX_SEALED_BYTES)
                self._loose.check(data, digest)
                return None if self._is_in(plan.kept, digest, generation) else Sealed(digest, generation, data, str(source))
            return Sealed(digest, generation, self._copied(*source, found, is_alone=is_alone), str(source[0].path))
        except (DamagedError, FileNotFoundError):
            return None

    def _copied(self, pack: Pack, row: Row, found: _Found, *, is_alone: bool) -> bytes:
        """Return a record out of a pack as it is. Its seal has to be right, also one of a later version, which goes along."""
        try:
            data = pack.sealed(row)
            check_seal(data)
            if not is_alone:
                self._loose.check(data, row.digest)
        except DamagedError as damage:
            (found.unread if damage.reason == MissReason.UNREADABLE else found.damaged).add(pack)
            raise
        return data

    def _is_in(self, packs: Sequence[Pack], digest: Digest, generation: int) -> bool:
        for pack in packs:
            with contextlib.suppress(DamagedError):
                for row in pack.find(digest):
                    if row.generation == generation:
                        self._loose.check(pack.sealed(row), digest)
                        return True
        return False

    # -- removing what is in it -------------------------------------------------------------------------------------------------

    def _remove_packed(self, file: LooseFile, packs: Sequence[Pack]) -> bool:
        """Remove a loose file whose very bytes are in one of ``packs``."""
        with contextlib.suppress(DamagedError, OSError):
            data = self._reader.read(file.path, MAX_SEALED_BYTES)
            if any(_holds(pack, file, data) for pack in packs):
                self._writer.unlink(file.path)
                return True
        return False

    def _remove_merged(self, pack: Pack, *, is_damaged: bool) -> None:
        """Remove a pack that was merged; one that held something bad goes to quarantine."""
        shelf = self._loose.root / QUARANTINE
        try:
            if is_damaged:
                self._writer.make_dirs(shelf)
                self._writer.rename(pack.path, shelf / f"{pack.digest}.bad")
            else:
                self._writer.unlink(pack.path)
        except FileNotFoundError:
            return  # another packer was faster
        except OSError as error:
            raise StoreIOError(str(pack.path), "removing a merged pack", error.strerror or type(error).__name__) from error


_Candidate = tuple[Digest, int, "Path | tuple[Pack, Row]"]


def _packed_rows(pack: Pack, found: _Found) -> Iterator[_Candidate]:
    """Yield the rows of a pack as long as they are in order: a pack is not believed to be, and the new one must."""
    last = ("", -1)
    try:
        for row in pack.rows():
            if (row.digest, row.generation) <= last:
                break
            last = row.digest, row.generation
            yield row.digest, row.generation, (pack, row)
        else:
            return
    except DamagedError:
        pass
    found.unread.add(pack)


def _loose_rows(files: Sequence[LooseFile]) -> Iterator[_Candidate]:
    for file in sorted(files, key=lambda file: (file.digest, file.generation)):
        yield file.digest, file.generation, file.path


def _holds(pack: Pack, file: LooseFile, data: bytes) -> bool:
    with contextlib.suppress(DamagedError):
        rows = (row for row in pack.find(file.digest) if row.generation == file.generation and row.size_bytes == len(data))
        return any(pack.sealed(row) == data for row in rows)
    return False
