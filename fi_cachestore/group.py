"""A session among ranks: records that all of them see alike, and one agreed choice per call at the end.

Sits between a session and ``coordination.ranks``; knows records, roots and agreements, nothing of FlashInfer or torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fi_cachestore.coordination.agreement import (
    DEFAULT,
    CallId,
    Pair,
    disputed,
    pack_choices,
    pack_pairs,
    settle,
    shared_count,
    unpack_choices,
    unpack_pairs,
)
from fi_cachestore.coordination.ranks import Ranks
from fi_cachestore.errors import BoardLostError, CacheStoreError, DamagedError, UnsupportedValueError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import body_of, seal
from fi_cachestore.records.record import Record
from fi_cachestore.store.port import Hit, Store

logger: Final = logging.getLogger("fi_cachestore")

_DIGEST_BYTES: Final = 32
_CHUNK_DIGESTS: Final = 16384
CHOICES: Final = "choices"
"""What ranks gather under when they are done with tuning."""
MAX_SENT_BYTES: Final = 256 * 1024 * 1024
"""What one rank sends to hosts that lack records, at most; what is left out is measured again where it is asked for."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the ranks settled: the pair to serve for calls that are not answered by this rank's own first choice, and counts of calls."""

    settled: dict[CallId, Pair] = field(default_factory=dict)
    shared_count: int = 0
    local_count: int = 0
    rank_stats: dict[int, Any] = field(default_factory=dict)


class Group:
    """One rank's part in a session among ranks. Thread-safe. Once the board is lost it answers like a session of one."""

    def __init__(self, ranks: Ranks, roots: Sequence[str]) -> None:
        """``roots`` names, by rank, the directories that it reads and writes: equal names are the same directories."""
        self.ranks = ranks
        self._roots = tuple(roots)
        self._sent: set[Digest] = set()
        self._lost: str | None = None

    @property
    def is_one_root(self) -> bool:
        """Whether all ranks read and write the same directories, so that what one finds there all do."""
        return len(set(self._roots)) == 1 and bool(self._roots[0])

    @property
    def is_lost(self) -> bool:
        """Whether the ranks cannot be reached any more."""
        return self._lost is not None

    def is_writer(self) -> bool:
        """Whether this rank is the one that writes to its root what came from other hosts."""
        return self._roots.index(self._roots[self.ranks.rank]) == self.ranks.rank

    def lose(self, error: BoardLostError) -> None:
        """Go on without the others; say so once."""
        if self._lost is None:
            self._lost = str(error)
            logger.warning("%s", error)

    # -- records ----------------------------------------------------------------------------------------------------------------

    def offer(self, record: Record) -> Record:
        """Put a record before all ranks; return the one that counts for all of them: the first (``record`` itself, if it is that)."""
        if self.is_lost:
            return record
        try:
            sealed = seal(record.to_value())
            held = self.ranks.offer(record.digest, sealed)
        except UnsupportedValueError:
            return record  # too large for the format: the store has said so
        except BoardLostError as error:
            self.lose(error)
            return record
        self._sent.add(record.digest)
        return record if held == sealed else _opened(held, record.digest) or record

    def find(self, digests: Sequence[Digest]) -> dict[Digest, Record]:
        """Return the records that ranks have put forward."""
        if self.is_lost or not digests:
            return {}
        try:
            values = self.ranks.fetch(digests)
        except BoardLostError as error:
            self.lose(error)
            return {}
        found = {digest: _opened(values[digest], digest) for digest in digests if digest in values}
        return {digest: record for digest, record in found.items() if record is not None}

    # -- join -------------------------------------------------------------------------------------------------------------------

    def level(self, store: Store[Record] | None) -> int:
        """Give every root what others have and it lacks, so that all ranks start alike; return how many records came in here.

        One rank per root speaks for it. Every rank must call this; it returns when all have what they lacked, or are gone.
        """
        if self.is_lost or len(set(self._roots)) == 1:
            return 0
        try:
            received = self._exchange(store)
            self.ranks.gather("level", b"")
        except BoardLostError as error:
            self.lose(error)
            return 0
        return received

    def _exchange(self, store: Store[Record] | None) -> int:
        speakers = sorted({self._roots.index(root) for root in self._roots})
        if self.ranks.rank not in speakers:
            return 0
        mine = set() if store is None else set(store)
        held = {rank: set(_digests(data)) for rank, data in self.ranks.gather("held", _packed(mine), speakers).items()}
        sets = list(held.values())
        somebody_lacks = {digest for one in sets for digest in one if not all(digest in other for other in sets)}
        to_send = [digest for digest in sorted(mine & somebody_lacks) if min(r for r in held if digest in held[r]) == self.ranks.rank]
        self._send(store, to_send)
        self.ranks.gather("sent", b"", speakers)
        wanted = sorted(somebody_lacks - mine)
        return sum(self.keep(store, wanted[at : at + 64]) for at in range(0, len(wanted), 64))

    def _send(self, store: Store[Record] | None, digests: Iterable[Digest]) -> None:
        sent_bytes = 0
        for number, digest in enumerate(digests):
            found = None if store is None else store.get(digest)
            if not isinstance(found, Hit):
                continue
            sent_bytes += len(seal(found.entry.to_value()))
            if sent_bytes > MAX_SENT_BYTES:
                logger.warning("more than %d MiB of records to send; the rest is left out", MAX_SENT_BYTES >> 20)
                return
            self.offer(found.entry)
            self.ranks.note(f"sending record {number}")

    def keep(self, store: Store[Record] | None, digests: Sequence[Digest]) -> int:
        """Write records that others put forward to this rank's root; return how many there were. A store that refuses costs one warning."""
        if store is None:
            return 0
        try:
            records = list(self.find(digests).values())
            for record in records:
                store.publish(record)
        except CacheStoreError as error:
            logger.warning("records of other hosts are not kept here: %s", error)
            return 0
        return len(records)

    # -- commit -----------------------------------------------------------------------------------------------------------------

    def commit(
        self, calls: Mapping[CallId, Pair], options: Callable[[CallId], Sequence[Pair]], store: Store[Record] | None, stats: Any
    ) -> Agreement:
        """Agree on one pair for every call that two or more ranks made. Every rank must call this; it waits for all that work.

        ``calls`` has this rank's choices, ``options`` gives what it can use for a call, best first, ``stats`` (plain data) is told to all.
        Without the board nothing is agreed.
        """
        if self.is_lost:
            return Agreement(local_count=len(calls))
        try:
            choices = {r: unpack_choices(data) for r, data in self.ranks.gather(CHOICES, pack_choices(calls)).items()}
            agreed = self._settled(choices, calls, options)
            told = self.ranks.gather("told", json.dumps(stats).encode() + b"\n" + _packed(self._sent))
            if not self.is_one_root and self.is_writer():
                self.keep(store, sorted({digest for data in told.values() for digest in _sent_in(data)}))
        except BoardLostError as error:
            self.lose(error)
            return Agreement(local_count=len(calls))
        self._part()
        shared = shared_count(choices)
        local = sum(1 for call in calls if not any(call in choices[r] for r in choices if r != self.ranks.rank))
        return Agreement(agreed, shared, local, {rank: _stats_in(data) for rank, data in told.items()})

    def _part(self) -> None:
        """Let the first rank, which serves the board, wait until nobody needs it any more."""
        try:
            if self.ranks.rank == 0:
                self.ranks.gather("done", b"")
            else:
                self.ranks.post("done", b"")
        except BoardLostError as error:
            logger.debug("%s", error)

    def _settled(
        self, choices: Mapping[int, Mapping[CallId, Pair]], calls: Mapping[CallId, Pair], options: Callable[[CallId], Sequence[Pair]]
    ) -> dict[CallId, Pair]:
        """Agree on who takes part and what is disputed, by the first rank's word; then on a pair for each."""
        proposal = json.dumps(sorted(choices)).encode() + b"\n" + b"".join(disputed(choices))
        participants, open_calls = _plan(self.ranks.decide("plan", proposal))
        if self.ranks.rank not in participants:
            return self._adopted(participants, calls, options)
        if not open_calls:
            return {}
        for call in open_calls:
            if call in calls:
                self.ranks.post(f"options/{call.hex()}", pack_pairs(options(call)))
        present = self.ranks.gather("options", b"", participants)
        pairs = {call: self._options_of(call, sorted(present)) for call in open_calls}
        settled = unpack_choices(self.ranks.decide("settled", pack_choices({call: settle(of) for call, of in pairs.items()})))
        return {call: pair if pair in options(call) else DEFAULT for call, pair in settled.items() if call in calls}

    def _options_of(self, call: CallId, ranks: Sequence[int]) -> dict[int, list[Pair]]:
        posted = self.ranks.posted(f"options/{call.hex()}", ranks)
        return {rank: unpack_pairs(data) for rank, data in posted.items()}

    def _adopted(
        self, participants: Sequence[int], calls: Mapping[CallId, Pair], options: Callable[[CallId], Sequence[Pair]]
    ) -> dict[CallId, Pair]:
        """Return what the others serve, for a rank that they had given up: it takes their word where it can."""
        logger.warning("this rank was given up by the others; it takes what they agreed on")
        theirs: dict[CallId, Pair] = {}
        for _, data in sorted(self.ranks.posted(CHOICES, participants).items(), reverse=True):
            theirs |= unpack_choices(data)
        theirs |= unpack_choices(self.ranks.decided("settled"))
        return {
            call: theirs[call] if theirs[call] in options(call) else DEFAULT
            for call in calls
            if theirs.get(call, calls[call]) != calls[call]
        }


def _opened(sealed: bytes, digest: Digest) -> Record | None:
    """Return the record in what a rank put forward; anything else than the record asked for is nothing."""
    try:
        record = Record.from_body(body_of(sealed))
    except DamagedError as error:
        logger.warning("what a rank put forward for %s is not a record: %s", digest[:12], error)
        return None
    return record if record.digest == digest else None


def _packed(digests: Iterable[Digest]) -> bytes:
    return b"".join(map(bytes.fromhex, sorted(digests)))


def _digests(data: bytes) -> list[Digest]:
    return [Digest(data[at : at + _DIGEST_BYTES].hex()) for at in range(0, len(data) - _DIGEST_BYTES + 1, _DIGEST_BYTES)]


def _plan(data: bytes) -> tuple[list[int], list[CallId]]:
    ranks, calls = _parted(data)
    return [rank for rank in ranks or [] if type(rank) is int], unpack_pairs(calls)


def _stats_in(data: bytes) -> Any:
    return _parted(data)[0]


def _sent_in(data: bytes) -> list[Digest]:
    return _digests(_parted(data)[1])


def _parted(data: bytes) -> tuple[Any, bytes]:
    """Return the JSON line and the bytes after it."""
    line, _, rest = data.partition(b"\n")
    try:
        return json.loads(line), rest
    except (ValueError, RecursionError):
        return None, b""
