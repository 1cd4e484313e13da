"""A session: which work is done, which is ours, which is somebody else's, and what became of it; alone or among ranks.

Knows nothing of FlashInfer: the adapter asks ``begin`` for every (runner, profile), measures where the answer is ``Mine``, and hands
the record to ``finish``. Everything a session needs is passed in, so that tests drive it with their own clock, store and claims.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from fi_cachestore.belief import Belief
from fi_cachestore.choices import Choices
from fi_cachestore.config import Mode
from fi_cachestore.coordination.port import Busy, Clock, Coordinator, Unavailable
from fi_cachestore.errors import CacheStoreError, DamagedError
from fi_cachestore.group import Group
from fi_cachestore.keys.canonical import Value
from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.known import Known, Renewal
from fi_cachestore.records.envelope import body_of, decoded
from fi_cachestore.records.record import Record
from fi_cachestore.records.rules import Rule
from fi_cachestore.records.settlement import Settlement
from fi_cachestore.report import Recorder, Report
from fi_cachestore.store.port import Hit, Miss, Store, Successors
from fi_cachestore.store.rulebook import RuleBook
from fi_cachestore.store.rules_log import RulesLog
from fi_cachestore.validation.ledger import Ledger
from fi_cachestore.validation.sentinel import Sentinel
from fi_cachestore.work import Answered, Elsewhere, Limits, Mine, Spent, Wait

logger = logging.getLogger("fi_cachestore")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.1


@dataclass(frozen=True, slots=True)
class Ports:
    """What a session works with. The stores are ``None`` for a session that keeps everything in memory, ``group`` for one without ranks.

    Without a ``ledger`` every record is believed; without a ``sentinel`` runs of others' tactics leave no marks. ``pack`` puts loose
    records into packs, where it is worth it; it never raises.
    """

    records: Store[Record] | None
    rules: RulesLog | None
    coordinator: Coordinator
    clock: Clock
    settled: Store[Settlement] | None = None
    group: Group | None = None
    ledger: Ledger | None = None
    pack: Callable[[], object] | None = None
    successors: Successors[Record] | None = None
    sentinel: Sentinel | None = None


class Session:
    """One tuning or serving session of a process. Thread-safe."""

    def __init__(
        self, mode: Mode, ports: Ports, limits: Limits | None = None, *, share_tuning: bool = True, earlier: Session | None = None
    ) -> None:
        """Start with what ``earlier`` keeps in memory, else empty: records are read when they are asked for.

        Without ``share_tuning`` a session among ranks measures for itself, keeps that in memory, and agrees with the others at the end.
        """
        self.mode = mode
        self._ports = ports
        self._limits = limits or Limits()
        self.group = ports.group
        self.recorder = Recorder()
        self.belief: Belief = Belief(ports.ledger, ports.sentinel)
        self._shares = share_tuning
        memory, sharing = None if earlier is None else earlier.known, ports.group if share_tuning else None
        self.known: Known = Known(ports.records, sharing, self.recorder, self._store_refused, memory)
        if mode is Mode.REFRESH:
            self.known.renewal = Renewal(ports.clock.unix_ns(), ports.successors)
        self._counted_once: set[Digest] = set()
        self._spent: set[Digest] = set()
        self._ready: dict[Digest, Mine] = {}
        self._waiting: dict[Digest, Wait] = {}
        self._rules = RuleBook(ports.rules)
        self.choices: Choices = Choices(self._record, ports.settled, None if earlier is None else earlier.choices)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._suspects: set[str] = set()
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    # -- look-ups ---------------------------------------------------------------------------------------------------------------

    def find(self, digest: Digest) -> Hit[Record] | Miss:
        """Return what is known about ``digest``. Reads only; a miss is remembered until ``refresh``."""
        return self.known.find(digest)

    def _record(self, digest: Digest) -> Record | None:
        return found.entry if isinstance(found := self.find(digest), Hit) else None

    def refresh(self) -> None:
        """Forget remembered misses, so that what others published since is found."""
        self.known.refresh()
        self._rules.reload()
        self.choices.refresh()
        self.belief.refresh()

    def preload(self) -> None:
        """Read every record now."""
        self.known.preload()

    def take_in(self, sealed: bytes) -> bool:
        """Serve a record that another rank left, or believe what it verified; return whether it was a record."""
        try:
            body = body_of(sealed)
            if self.belief.take_in(decoded(body)):
                return False
            self.known.take_in(Record.from_body(body))
        except DamagedError as error:
            logger.warning("what a rank left is not a record: %s", error)
            return False
        return True

    # -- tuning -----------------------------------------------------------------------------------------------------------------

    def begin(self, key: TuneKey, alternatives: Collection[TuneKey] = ()) -> Answered | Mine | Elsewhere | Spent:
        """Say what is to be done about ``key``. ``alternatives`` are other keys whose record would serve as well.

        Holds nothing but the claim it returns; the caller ends it with ``finish`` or ``abandon``.
        """
        digest = key.digest
        if (found := self._first_hit((key, *alternatives))) is not None:
            return Answered(found)
        if digest in self._spent:
            return Spent()
        mine = self._ready.pop(digest, None) or self._claim(key)
        if not isinstance(mine, Mine):
            return Mine(None, share=False) if key.op in self._suspects else mine
        if (again := self._look(digest)) is not None:  # published between the look-up and the claim
            self.abandon(mine)
            return Answered(self._counted(again))
        return replace(mine, share=False) if self._is_cut_off() or not self._shares else mine

    def answered(self, keys: Iterable[TuneKey]) -> Record | None:
        """Return the record of the first of ``keys`` that has one. Claims nothing."""
        return self._first_hit(keys)

    def ask_ranks(self, keys: Iterable[TuneKey]) -> None:
        """Learn in one exchange which of ``keys`` other ranks have a record of, before they are asked for one by one."""
        self.known.ask_ranks(key.digest for key in keys)

    def _first_hit(self, keys: Iterable[TuneKey]) -> Record | None:
        for key in keys:
            if (found := self.known.shared(key.digest, self.find(key.digest))) is not None:
                return self._counted(found)
        return None

    def _look(self, digest: Digest) -> Record | None:
        return self.known.shared(digest, self.known.look(digest))

    def _is_cut_off(self) -> bool:
        """Whether ranks that share no directory can no longer hear of each other: what is measured now stays here."""
        return self.group is not None and self.group.is_lost and not self.group.is_one_root

    def _counted(self, record: Record) -> Record:
        """Count a record when it first answers; how often it is asked for says nothing."""
        digest = record.digest
        with self._lock:
            if digest in self._counted_once:
                return record
            self._counted_once.add(digest)
        if digest in self._waiting:
            self.recorder.add("waited_count")
        else:
            self.recorder.add("hit_count")
            self.recorder.add("saved_ns", record.provenance.tuning_ns)
        return record

    def _claim(self, key: TuneKey) -> Mine | Elsewhere:
        match self._ports.coordinator.claim(key.digest, key.op):
            case Busy(holder, progress):
                return Elsewhere(holder, progress)
            case Unavailable(why):
                self.warn_once("claims", "claims between processes do not work here (%s); every process measures for itself", why)
                return Mine(None)
            case claim:
                return Mine(claim)

    def finish(self, mine: Mine, record: Record) -> Record:
        """Keep a measured record, publish it if it may be shared, free the claim; return the record that counts from now on.

        If another process published the key meanwhile, theirs counts: the first writer wins. A store that refuses costs one warning.
        """
        self.recorder.add("tuned_count" if record.usable else "failed_count")
        self.recorder.add("spent_ns", record.provenance.tuning_ns)
        try:
            winner = self.known.keep(record, share=mine.share)
        finally:
            self.abandon(mine)
        with self._lock:
            self._counted_once.add(record.digest)
        return winner

    def _store_refused(self, error: CacheStoreError) -> None:
        self.warn_once(type(error).__name__, "%s; results of this session that cannot be stored stay in memory", error)

    def give_up(self, mine: Mine, key: TuneKey, *, counted_as: str) -> None:
        """End work that has no result to keep: it is not tried again in this session, and the claim is free."""
        self._spent.add(key.digest)
        self.recorder.add(counted_as)
        self.abandon(mine)

    def abandon(self, mine: Mine) -> None:
        """Free the claim and leave everything else as it was: the work is open again."""
        if mine.claim is not None:
            mine.claim.release()

    def await_any(self, keys: Collection[TuneKey]) -> None:
        """Wait until one of ``keys`` has a record or can be claimed, or its holder has had its time. The caller must hold no claim.

        A key that was waited for longer than the limit is handed out as ``Mine`` without a claim, its result to stay in memory.
        """
        clock = self._ports.clock
        started = clock.monotonic_ns()
        for key in keys:
            self._waiting.setdefault(key.digest, Wait(started, "", started))
        pause_s = _FIRST_PAUSE_S
        while not self._any_ready(keys):
            clock.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self.recorder.add("waited_ns", clock.monotonic_ns() - started)

    def _any_ready(self, keys: Collection[TuneKey]) -> bool:
        for key in keys:
            if self._look(key.digest) is not None:
                return True
            answer = self._claim(key)
            if isinstance(answer, Mine):
                self._ready[key.digest] = answer
                return True
            if self._is_too_long(self._waiting[key.digest], answer):
                if self.group is not None:
                    self._suspects.add(key.op)
                self._ready[key.digest] = Mine(None, share=False)
                return True
        return False

    def _is_too_long(self, wait: Wait, other: Elsewhere) -> bool:
        """Whether somebody else has had their time: in all, or without progress where they can be seen at work."""
        now = self._ports.clock.monotonic_ns()
        if other.progress != wait.progress:
            wait.progress, wait.progress_since_ns = other.progress, now
        waited_s, stalled_s = (now - wait.since_ns) / 1e9, (now - wait.progress_since_ns) / 1e9
        if waited_s <= self._limits.max_wait_s and (not other.progress or stalled_s <= self._limits.stall_s):
            return False
        logger.warning(
            "waited %.0f s for %s, without progress for %.0f s; measuring here, for memory only", waited_s, other.holder, stalled_s
        )
        return True

    def count(self, op: str) -> int:
        """Return how often this was asked for an op before: the number of a call that all ranks make."""
        with self._lock:
            self._counts[op] += 1
            return self._counts[op]

    def note_work(self, work: str) -> None:
        """Say what is being measured, for those who wait."""
        if self.group is not None:
            self.group.ranks.note(work)

    # -- rules, reports, end ----------------------------------------------------------------------------------------------------

    def note_rule(self, device: dict[str, Value], rule: Rule) -> None:
        """Remember under which rule a tuning call was made."""
        self._rules.note(device, rule)

    def rules_in_force(self, device: dict[str, Value]) -> tuple[Rule, ...]:
        """Return the rules to try, in order, for a look-up outside any context."""
        return self._rules.in_force(device)

    def commit(self) -> None:
        """End the session: agree with the other ranks, and keep for later processes: rules, packs, an overview of verdicts.

        Never raises; a store that refuses costs one warning. Among ranks, every rank must call this or ``leave``.
        """
        if self.mode.publishes:
            try:
                self._rules.store()
            except CacheStoreError as error:
                self.warn_once("rules", "%s; a process that only attaches will look for records under each op's own buckets", error)
        if self.group is not None:
            self._agree(self.group)
        if self._ports.pack is not None and self.report().tuned_count:
            self._ports.pack()
        if self.mode.publishes:
            self.belief.keep_overview()

    def _agree(self, group: Group) -> None:
        counts = self.report()
        stats = {
            "host": group.ranks.members[group.ranks.rank].host,
            "measured_count": counts.tuned_count + counts.failed_count,
            "waited_count": counts.waited_count,
            "spent_ns": counts.spent_ns,
            "waited_ns": counts.waited_ns,
            "suspects": sorted(self._suspects),
            "quarantined": self.belief.quarantined,
            "verified": self.belief.verified,
        }
        agreement, refusal = self.choices.commit(group, self._ports.records, stats, self._ports.clock.unix_ns())
        if refusal is not None:
            self.warn_once("settled", "%s; later starts will settle it again", refusal)
        self.recorder.agreed(agreement.shared_count, len(agreement.settled), agreement.local_count, agreement.rank_stats)
        self._suspects.update(op for row in agreement.rank_stats.values() for op in (row or {}).get("suspects", ()))
        self.belief.hear(agreement.rank_stats.values())
        self.group = self.known.group = None

    @property
    def suspects(self) -> frozenset[str]:
        """Ops that stood still while one rank alone measured them: their runners probably communicate. After ``commit``, of all ranks."""
        return frozenset(self._suspects)

    def leave(self) -> None:
        """End the session without agreeing, so that no other rank waits for this one. Never raises."""
        if self.group is not None:
            self.group.ranks.leave()
            self.group = self.known.group = None

    def drop(self, keys: Iterable[TuneKey]) -> None:
        """Free claims on ``keys`` that were taken while waiting and not used."""
        for key in keys:
            if (unused := self._ready.pop(key.digest, None)) is not None:
                self.abandon(unused)

    def report(self) -> Report:
        """Return what happened so far."""
        return replace(self.recorder.report(), quarantined=self.belief.quarantined)

    def warn_once(self, topic: str, message: str, *values: object) -> None:
        """Log a warning, once per topic and session."""
        with self._lock:
            if topic in self._warned:
                return
            self._warned.add(topic)
        logger.warning(message, *values)
