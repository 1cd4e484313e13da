"""The records that a session knows: in memory, on disk, and put forward by other ranks; and how a new one becomes known to all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from fi_cachestore.errors import CacheStoreError, UnsupportedValueError
from fi_cachestore.group import Group
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.choosing import supersedes
from fi_cachestore.records.envelope import MissReason, seal
from fi_cachestore.records.record import Record
from fi_cachestore.report import Recorder
from fi_cachestore.store.memory import MemoryStore
from fi_cachestore.store.port import Hit, Miss, Present, Store, Successors


class Renewal:
    """What a session that measures everything again has been through. Thread-safe: digests are only added."""

    def __init__(self, started_unix_ns: int, successors: Successors[Record] | None) -> None:
        """Count what was measured before ``started_unix_ns`` as stale; better measurements go to ``successors``."""
        self.started_unix_ns, self.successors = started_unix_ns, successors
        self._renewed: set[Digest] = set()

    def is_stale(self, record: Record) -> bool:
        """Whether a record is still to be measured again: neither this session nor, meanwhile, another one has."""
        return record.digest not in self._renewed and record.provenance.measured_unix_ns < self.started_unix_ns

    def note(self, digest: Digest) -> None:
        """Remember that a key was measured here."""
        self._renewed.add(digest)


class Known:
    """Thread-safe. ``group`` is the ranks to share with while the session tunes, ``None`` for a session of one or one that is over."""

    def __init__(
        self,
        records: Store[Record] | None,
        group: Group | None,
        recorder: Recorder,
        refused: Callable[[CacheStoreError], None],
        earlier: Known | None = None,
    ) -> None:
        """Start with what ``earlier`` holds in memory. ``refused`` hears what a store says that does not take a record."""
        self.group = group
        self.renewal: Renewal | None = None
        self._records, self._recorder, self._refused = records, recorder, refused
        self._memory: MemoryStore[Record] = MemoryStore() if earlier is None else earlier._memory  # noqa: SLF001 - the same class
        self._misses: dict[Digest, Miss] = {}
        self._agreed: set[Digest] = set()
        self._unshared: set[Digest] = set()

    # -- look-ups ---------------------------------------------------------------------------------------------------------------

    def find(self, digest: Digest) -> Hit[Record] | Miss:
        """Return what memory and disk have. Reads only; a miss is remembered until ``refresh``."""
        found = self._memory.get(digest)
        if isinstance(found, Hit):
            return found
        known = self._misses.get(digest)
        return known if known is not None else self.look(digest)

    def look(self, digest: Digest) -> Hit[Record] | Miss:
        """Return what the disk has now, whatever is remembered; a record in memory stays the one that counts."""
        if self._records is None:
            return Miss(MissReason.ABSENT)
        misses = self._misses  # a refresh meanwhile leaves it behind
        answer = self._records.get(digest)
        if isinstance(answer, Hit):
            misses.pop(digest, None)
            if self.renewal is not None and not self.renewal.is_stale(answer.entry):
                self._memory.replace(answer.entry)  # somebody else has renewed it
            kept = self._memory.publish(answer.entry)
            return Hit(kept.entry, kept.source) if isinstance(kept, Present) else answer
        if misses.setdefault(digest, answer) is answer:
            self._recorder.miss(answer.reason)
        misses[digest] = answer
        return answer

    def refresh(self) -> None:
        """Forget remembered misses, so that what others published or packed since is found."""
        if self._records is not None:
            self._records.refresh()
        self._misses = {}

    def preload(self) -> None:
        """Take every record of the store into memory."""
        for digest in () if self._records is None else self._records:
            self.find(digest)

    def take_in(self, record: Record) -> None:
        """Serve a record from somewhere else, unless there is one."""
        self._misses.pop(record.digest, None)
        self._memory.publish(record)

    def held(self) -> Iterator[bytes]:
        """Yield the records in memory, sealed: those that were asked for or measured, and may be shared."""
        found = (self._memory.get(digest) for digest in self._memory if digest not in self._unshared)
        for hit in found:
            if isinstance(hit, Hit):
                with contextlib.suppress(UnsupportedValueError):  # too large for the format
                    yield seal(hit.entry.to_value())

    # -- among ranks ------------------------------------------------------------------------------------------------------------

    def ask_ranks(self, digests: Iterable[Digest]) -> None:
        """Learn in one exchange what other ranks have put forward, before they are asked for one by one."""
        if self.group is not None and not self.group.is_one_root:
            self.adopt(digest for digest in digests if digest not in self._agreed)

    def adopt(self, digests: Iterable[Digest]) -> None:
        """Let what other ranks have put forward count here."""
        if self.group is not None:
            for record in self.group.find(list(digests)).values():
                self._agree(record)

    def shared(self, digest: Digest, found: Hit[Record] | Miss) -> Record | None:
        """Return the record that counts for all ranks: what one finds for itself is put before the others, and the first counts."""
        group = self.group
        if self._is_stale(found):
            found = Miss(MissReason.ABSENT)
        if group is None or digest in self._agreed or digest in self._unshared:
            return found.entry if isinstance(found, Hit) else None
        if not isinstance(found, Hit):
            self.adopt([digest])
            found = self._memory.get(digest)
            return found.entry if isinstance(found, Hit) and not self._is_stale(found) else None
        return self._agree(found.entry if group.is_one_root else group.offer(found.entry))

    def _is_stale(self, found: Hit[Record] | Miss) -> bool:
        return self.renewal is not None and isinstance(found, Hit) and self.renewal.is_stale(found.entry)

    def _agree(self, record: Record) -> Record:
        self._agreed.add(record.digest)
        self._unshared.discard(record.digest)
        self._memory.replace(record)
        return record

    # -- new records ------------------------------------------------------------------------------------------------------------

    def keep(self, record: Record, *, share: bool) -> Record:
        """Make a measured record known, to others too with ``share``; return the one that counts from now on: the first."""
        self._misses.pop(record.digest, None)
        if self.renewal is not None:
            self.renewal.note(record.digest)
            if (old := self._serving(record.digest)) is not None:
                return self._renewed(self.renewal.successors, record, old, share=share)
        if not share:
            self._unshared.add(record.digest)
            return self._kept(self._in_memory(record))
        winner = self._published(record)
        return self._kept(winner) if self.group is None else self._agree(self.group.offer(winner))

    def _kept(self, record: Record) -> Record:
        kept = self._memory.publish(record)
        return kept.entry if isinstance(kept, Present) else record

    def _serving(self, digest: Digest) -> Record | None:
        """Return what the store serves now, which somebody may have renewed meanwhile; else what is in memory."""
        stored = self._memory.get(digest) if self._records is None else self._records.get(digest)
        found = stored if isinstance(stored, Hit) else self._memory.get(digest)
        return found.entry if isinstance(found, Hit) else None

    def _renewed(self, successors: Successors[Record] | None, record: Record, old: Record, *, share: bool) -> Record:
        """Let the better of two measurements count, the old one if it is as good; return it."""
        winner = old
        if supersedes(record, old):
            winner = self._superseded(successors, record, old) if share and successors is not None else self._in_memory(record)
        if winner is record and not share:
            self._unshared.add(record.digest)
        self._memory.replace(winner)
        return winner if self.group is None or not share else self._agree(self.group.offer(winner))

    def _superseded(self, successors: Successors[Record], record: Record, old: Record) -> Record:
        try:
            answer = successors.supersede(record, old)
        except CacheStoreError as error:
            self._refused(error)
            return self._in_memory(record)
        if isinstance(answer, Present):
            return answer.entry
        self._recorder.add("renewed_count")
        return record

    def _published(self, record: Record) -> Record:
        if self._records is None:
            return self._in_memory(record)
        try:
            answer = self._records.publish(record)
        except CacheStoreError as error:
            self._refused(error)
            return self._in_memory(record)
        return answer.entry if isinstance(answer, Present) else record

    def _in_memory(self, record: Record) -> Record:
        self._recorder.add("unshared_count")
        return record
