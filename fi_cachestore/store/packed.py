"""Records in packs and loose beside them, as one store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Generic

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.canonical import encode
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MissReason, seal
from fi_cachestore.store.filesystem import Reader
from fi_cachestore.store.layers import merged
from fi_cachestore.store.loose import LooseReader, LooseStore
from fi_cachestore.store.pack import PACK_NAME, PACKS_FOLDER, Pack, Row
from fi_cachestore.store.port import E, Found, Hit, Miss, Present, Published

_MAX_PACKS: Final = 128
"""An open pack costs a file descriptor, a look-up one read in each. Packing keeps a root far below this; see ``packing``."""
_LISTINGS: Final = 4


class PackSet:
    """The packs of a root, newest first: listed when first asked for and when told to. Thread-safe.

    A file that is no sound pack is left out. All packs are opened at once: one that is removed later goes on to be read.
    """

    def __init__(self, root: Path, reader: Reader) -> None:
        """Use ``root/packs``; nothing needs to exist."""
        self.folder = root / PACKS_FOLDER
        self._reader = reader
        self._packs: tuple[Pack, ...] | None = None
        self._names: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def current(self) -> tuple[Pack, ...]:
        """Return the packs, newest first."""
        packs = self._packs
        if packs is None:
            self.refresh()
            packs = self._packs or ()
        return packs

    def since(self, seen: tuple[Pack, ...]) -> tuple[Pack, ...]:
        """List again; return the packs if they are others than the caller has ``seen``: another thread may have listed them before."""
        self.refresh()
        packs = self.current()
        return () if packs is seen else packs

    def refresh(self) -> None:
        """List again."""
        with self._lock:
            for _ in range(_LISTINGS):
                names = frozenset(sorted(filter(PACK_NAME.fullmatch, self._reader.names(self.folder)))[:_MAX_PACKS])
                if self._packs is not None and names == self._names:
                    return
                opened = {pack.path.name: pack for pack in self._packs or ()}
                found = [opened.get(name) or self._opened(name) for name in names]
                if None not in found:
                    break  # else one was merged into another since it was listed: that one is in the next listing
            self._names = names
            self._packs = tuple(sorted((pack for pack in found if isinstance(pack, Pack)), key=lambda pack: pack.age_order, reverse=True))

    def _opened(self, name: str) -> Pack | DamagedError | None:
        try:
            return Pack(self.folder / name, self._reader)
        except FileNotFoundError:
            return None
        except DamagedError as damage:
            return damage


def found_in(packs: Iterable[Pack], digest: Digest, check: Callable[[bytes, Digest], E]) -> Found[E] | Miss:
    """Return the highest valid generation in ``packs``, of equal ones the first; without one, why the first was refused. Never raises."""
    first_miss: Miss | None = None
    rows: list[tuple[Row, Pack]] = []
    for pack in packs:
        try:
            rows += [(row, pack) for row in pack.find(digest)]
        except DamagedError as damage:
            first_miss = first_miss or Miss(MissReason(damage.reason), damage.detail)
    if len(rows) > 1:
        rows.sort(key=lambda pair: -pair[0].generation)
    for row, pack in rows:
        try:
            data = pack.sealed(row)
            return Found(check(data, digest), data, row.generation, str(pack.path))
        except DamagedError as damage:
            first_miss = first_miss or Miss(MissReason(damage.reason), f"{pack.path}: {damage.detail}")
    return first_miss or Miss(MissReason.ABSENT)


class PackedReader(Generic[E]):
    """The reading side of a root: its packs, newest first, then its loose entries. Safe from any thread and process."""

    def __init__(self, loose: LooseReader[E], packs: PackSet) -> None:
        """Serve from both."""
        self.root = loose.root
        self._loose, self._packs = loose, packs

    def get(self, digest: Digest) -> Hit[E] | Miss:
        """Return the highest valid generation. Never raises, whatever the files hold."""
        found = self.serving(digest)
        return found if isinstance(found, Miss) else found.hit

    def serving(self, digest: Digest) -> Found[E] | Miss:
        """Return what ``get`` serves, with its bytes."""
        seen = self._packs.current()
        packed = found_in(seen, digest, self._loose.check)
        if isinstance(packed, Miss):
            return self._loose_or_packed_since(seen, digest, packed)
        if not self._loose.has(digest, packed.generation + 1):
            return packed
        later = self._loose.serving(digest, packed.generation + 1)
        return later if isinstance(later, Found) else packed

    def _loose_or_packed_since(self, seen: tuple[Pack, ...], digest: Digest, miss: Miss) -> Found[E] | Miss:
        """Return a loose entry. Where there is none, it may just have been packed: a pack is there before the loose file goes away."""
        loose = self._loose.serving(digest)
        if isinstance(loose, Found):
            return loose
        if isinstance(packed := found_in(self._packs.since(seen), digest, self._loose.check), Found):
            return packed
        return loose if miss.reason is MissReason.ABSENT else miss

    def packed(self, digest: Digest) -> Found[E] | Miss:
        """Return what packs have: the highest valid generation, of equal ones that in the newest pack."""
        return found_in(self._packs.current(), digest, self._loose.check)

    def starting_with(self, prefix: str) -> Iterator[Digest]:
        """Yield the digests that start so, each once, in order."""
        return merged([*(digests_of(pack, prefix) for pack in self._packs.current()), self._loose.starting_with(prefix)])

    def refresh(self) -> None:
        """Look again for packs that others have made."""
        self._packs.refresh()

    def __iter__(self) -> Iterator[Digest]:
        """Yield the digests, each once, in order."""
        return self.starting_with("")

    def __len__(self) -> int:
        """Return the number of digests."""
        return sum(1 for _ in self)


class PackedStore(PackedReader[E]):
    """Reads packs and loose entries and publishes loose ones; ``packing`` turns those into packs."""

    def __init__(self, loose: LooseStore[E], packs: PackSet) -> None:
        """Serve from both, publish to ``loose``."""
        super().__init__(loose, packs)
        self._own = loose

    def publish(self, entry: E) -> Published | Present[E]:
        """Store ``entry`` unless it is packed or loose already; see ``Store.publish``.

        Whoever packs makes the pack visible before the loose file goes away. So if the name was free because the first entry had been
        packed, a listing made after that shows its pack; that entry counts, and ours is taken back.
        """
        digest, seen = entry.digest, self._packs.current()
        if isinstance(first := found_in(seen, digest, self._loose.check), Found):
            return Present(first.entry, first.source)
        answer = self._own.publish(entry)
        if isinstance(first := found_in(self._packs.since(seen), digest, self._loose.check), Found):
            if isinstance(answer, Published):
                ours = seal(entry.to_value())
                if first.data == ours:
                    return answer
                self._own.withdraw(digest, 0, ours)
            return Present(first.entry, first.source)
        return answer

    def supersede(self, entry: E, over: E) -> Published | Present[E]:
        """Store ``entry`` as the next generation if ``over`` is what serves here; else somebody was first, and what serves now counts.

        Where nothing serves here (``over`` is a read-only layer's), ``entry`` is the first generation.

        Raises:
            StoreIOError: the file system refused, or there are no generations left.
            RecordTooLargeError: the entry exceeds the format's limit.
        """
        self._packs.refresh()
        serving = self.serving(entry.digest)
        if isinstance(serving, Miss):
            return self.publish(entry)
        if encode(serving.entry.to_value()) != encode(over.to_value()):
            return Present(serving.entry, serving.source)
        answer, generation = self._own.publish_after(entry, serving.generation)
        self._packs.refresh()
        packed = self.packed(entry.digest)
        if isinstance(answer, Present) or isinstance(packed, Miss) or packed.generation < generation:
            return answer
        ours = seal(entry.to_value())  # the name was free because the first of this generation had been packed: see ``publish``
        if packed.data == ours:
            return answer
        self._own.withdraw(entry.digest, generation, ours)
        return Present(packed.entry, packed.source)


def digests_of(pack: Pack, prefix: str) -> Iterator[Digest]:
    """Yield the digests in a pack that start so, as far as its index can be read."""
    try:
        for row in pack.rows(prefix):
            yield row.digest
    except DamagedError:
        return
