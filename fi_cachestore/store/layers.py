"""Several stores searched in order, at most one of them writable."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Generic, Protocol

from fi_cachestore.errors import StoreIOError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.store.port import E, E_co, Hit, Miss, Present, Published, Store


class Readable(Protocol[E_co]):
    """A directory of entries, to be read."""

    root: Path

    def get(self, digest: Digest) -> Hit[E_co] | Miss:
        """Return an entry; see ``Store.get``."""

    def starting_with(self, prefix: str) -> Iterator[Digest]:
        """Yield digests; see ``Store.starting_with``."""

    def refresh(self) -> None:
        """Look again; see ``Store.refresh``."""

    def __len__(self) -> int:
        """Return how many digests there are."""


def merged(sorted_digests: Sequence[Iterator[Digest]]) -> Iterator[Digest]:
    """Yield what several ascending iterators yield, ascending, each once."""
    return (digest for digest, _ in groupby(heapq.merge(*sorted_digests)))


class ReadOnly(Generic[E]):
    """A store that is never written: a container image's layer, a mounted share."""

    def __init__(self, inner: Readable[E]) -> None:
        """Serve from ``inner``."""
        self._inner = inner

    def get(self, digest: Digest) -> Hit[E] | Miss:
        """Return what ``inner`` has."""
        return self._inner.get(digest)

    def publish(self, entry: E) -> Published | Present[E]:
        """Refuse.

        Raises:
            StoreIOError: always, unless the entry is there already.
        """
        match self._inner.get(entry.digest):
            case Hit(theirs, source):
                return Present(theirs, source)
            case Miss():
                raise StoreIOError(str(self._inner.root), "publishing", "the root is read-only")

    def starting_with(self, prefix: str) -> Iterator[Digest]:
        """Yield the digests that start so, in order."""
        return self._inner.starting_with(prefix)

    def refresh(self) -> None:
        """Look again for what others have packed."""
        self._inner.refresh()

    def __iter__(self) -> Iterator[Digest]:
        """Yield the digests."""
        return self._inner.starting_with("")

    def __len__(self) -> int:
        """Return the number of digests."""
        return len(self._inner)


class Layered(Generic[E]):
    """Searches ``layers`` in order; the first hit serves. Publishes to ``writable``, which is one of them."""

    def __init__(self, layers: Sequence[Store[E]], writable: Store[E]) -> None:
        """Keep the order of search."""
        self._layers, self._writable = tuple(layers), writable

    def get(self, digest: Digest) -> Hit[E] | Miss:
        """Return the first hit; without one, the first miss that says more than ``absent``."""
        answer = Miss(MissReason.ABSENT)
        for layer in self._layers:
            match layer.get(digest):
                case Hit() as hit:
                    return hit
                case Miss() as miss if answer.reason is MissReason.ABSENT:
                    answer = miss
        return answer

    def publish(self, entry: E) -> Published | Present[E]:
        """Store in the writable layer."""
        return self._writable.publish(entry)

    def starting_with(self, prefix: str) -> Iterator[Digest]:
        """Yield the digests of all layers that start so, each once, in order."""
        return merged([layer.starting_with(prefix) for layer in self._layers])

    def refresh(self) -> None:
        """Look again for what others have packed, in every layer."""
        for layer in self._layers:
            layer.refresh()

    def __iter__(self) -> Iterator[Digest]:
        """Yield the digests of all layers, each once."""
        return self.starting_with("")

    def __len__(self) -> int:
        """Return the number of different digests."""
        return sum(1 for _ in self)
