"""Bundles: one pack by its digest, served alone; and making one from records that are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

from fi_cachestore.errors import DamagedError, NoSuchBundleError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.record import Record
from fi_cachestore.store.filesystem import OsFileSystem, Reader, Writer
from fi_cachestore.store.layers import ReadOnly
from fi_cachestore.store.loose import LooseReader
from fi_cachestore.store.pack import Pack, pack_path
from fi_cachestore.store.pack_writer import Sealed, write_pack
from fi_cachestore.store.packed import digests_of, found_in
from fi_cachestore.store.port import Found, Hit, Miss, Store
from fi_cachestore.store.roots import RECORDS_FOLDER


class Serving(Protocol):
    """A store that can say which bytes it serves."""

    def serving(self, digest: Digest) -> Found[Record] | Miss:
        """Return a record with its bytes."""


class FirstOf:
    """Several stores, searched in order."""

    def __init__(self, sources: Sequence[Serving]) -> None:
        """Search ``sources``."""
        self._sources = tuple(sources)

    def serving(self, digest: Digest) -> Found[Record] | Miss:
        """Return the record of the first that has one."""
        answer: Found[Record] | Miss = Miss(MissReason.ABSENT)
        for source in self._sources:
            answer = source.serving(digest)
            if isinstance(answer, Found):
                return answer
        return answer


class Bundle:
    """The records of one pack and nothing else. Never listed, never refreshed; safe from any thread."""

    def __init__(self, pack: Pack) -> None:
        """Serve from ``pack``."""
        self.root, self._pack = pack.path, pack
        self._check = LooseReader(pack.path.parent, RECORDS_FOLDER, Record).check

    def get(self, digest: Digest) -> Hit[Record] | Miss:
        """Return the highest valid generation that the pack has."""
        found = self.serving(digest)
        return found if isinstance(found, Miss) else found.hit

    def serving(self, digest: Digest) -> Found[Record] | Miss:
        """Return what ``get`` serves, with its bytes."""
        return found_in([self._pack], digest, self._check)

    def starting_with(self, prefix: str) -> Iterator[Digest]:
        """Yield the digests that start so, each once, in order."""
        return (digest for digest, _ in groupby(digests_of(self._pack, prefix)))

    def refresh(self) -> None:
        """Do nothing: a bundle never changes."""

    def __len__(self) -> int:
        """Return the number of digests."""
        return sum(1 for _ in self.starting_with(""))


def open_bundle(place: Path, digest: str, *, reader: Reader | None = None) -> Store[Record]:
    """Return the records of the pack with this digest, read-only: a file, or a pack of a root. Reads the whole file once to be sure of it.

    Raises:
        NoSuchBundleError: it is not there, or what is there is not that pack.
    """
    reader = OsFileSystem() if reader is None else reader
    path = pack_path(place, digest) if place.is_dir() else place
    try:
        pack = Pack(path, reader)
        pack.check()
    except FileNotFoundError as error:
        raise NoSuchBundleError(str(path), digest, "there is no such file") from error
    except DamagedError as damage:
        raise NoSuchBundleError(str(path), digest, damage.detail) from damage
    if pack.digest != digest:
        raise NoSuchBundleError(str(path), digest, f"it is the bundle {pack.digest}")
    return ReadOnly(Bundle(pack))


def write_bundle(
    folder: Path, source: Serving, digests: Iterable[Digest], *, reader: Reader | None = None, writer: Writer | None = None
) -> Pack:
    """Put what ``source`` serves for ``digests`` (ascending, each once) into one pack in ``folder``; what it does not serve is left out.

    The same records give the same bytes and the same name, whenever and wherever.

    Raises:
        StoreIOError: the file system refused.
        DamagedError: something else has the name of this pack.
    """
    served = (found for digest in digests if isinstance(found := source.serving(digest), Found))
    entries = (Sealed(found.entry.digest, found.generation, found.data, found.source) for found in served)
    files = OsFileSystem()
    return write_pack(folder, entries, 0, reader=files if reader is None else reader, writer=files if writer is None else writer)
