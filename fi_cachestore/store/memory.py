"""A store in this process's memory: the overlay of a session, and the model that other stores are tested against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic

from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.store.port import E, Hit, Miss, Present, Published


class MemoryStore(Generic[E]):
    """Entries in a dict. Thread-safe: each method is one operation of a dict or list, of those that are atomic without a GIL too."""

    def __init__(self) -> None:
        """Start empty."""
        self._entries: dict[Digest, E] = {}

    def get(self, digest: Digest) -> Hit[E] | Miss:
        """Return the entry, or a miss with reason ``absent``."""
        entry = self._entries.get(digest)
        return Miss(MissReason.ABSENT) if entry is None else Hit(entry, "memory")

    def publish(self, entry: E) -> Published | Present[E]:
        """Keep ``entry`` unless its digest is there."""
        kept = self._entries.setdefault(entry.digest, entry)
        return Published("memory") if kept is entry else Present(kept, "memory")

    def replace(self, entry: E) -> None:
        """Keep ``entry`` in place of what is there: several ranks have agreed on it."""
        self._entries[entry.digest] = entry

    def starting_with(self, prefix: str) -> Iterator[Digest]:
        """Yield the digests that start so, in order."""
        return iter(sorted(digest for digest in list(self._entries) if digest.startswith(prefix)))

    def refresh(self) -> None:
        """Do nothing: memory has no other writers."""

    def __iter__(self) -> Iterator[Digest]:
        """Yield the digests."""
        return self.starting_with("")

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)
