"""A session: which work is done, which is ours, which is somebody else's, and what became of it.

Knows nothing of FlashInfer: the adapter asks ``begin`` for every (runner, profile), measures where the answer is ``Mine``, and hands
the record to ``finish``. Everything a session needs is passed in, so that tests drive it with their own clock, store and claims.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

from fi_cachestore.config import Mode
from fi_cachestore.coordination.port import Busy, Claim, Clock, Coordinator, Unavailable
from fi_cachestore.errors import CacheStoreError
from fi_cachestore.keys.canonical import Value, encode
from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.record import Record
from fi_cachestore.records.rules import NO_RULE, Rule, SessionRules
from fi_cachestore.report import Recorder, Report
from fi_cachestore.store.memory import MemoryStore
from fi_cachestore.store.port import Hit, Miss, Present, Store
from fi_cachestore.store.rules_log import RulesLog

logger = logging.getLogger("fi_cachestore")

_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Answered:
    """A record answers; nothing is to be measured."""

    record: Record


@dataclass(frozen=True, slots=True)
class Mine:
    """The caller measures. ``claim`` is ``None`` where claims do not work; ``share`` tells whether the result may be published."""

    claim: Claim | None
    share: bool = True


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another process or thread measures it now."""

    holder: str


@dataclass(frozen=True, slots=True)
class Spent:
    """This session has tried it, without a result that could be kept."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What a session works with. ``records`` and ``rules`` are ``None`` for a session that keeps everything in memory."""

    records: Store[Record] | None
    rules: RulesLog | None
    coordinator: Coordinator
    clock: Clock


class Session:
    """One tuning or serving session of a process. Thread-safe."""

    def __init__(self, mode: Mode, ports: Ports, *, max_wait_s: float, earlier: Session | None = None) -> None:
        """Start with what ``earlier`` keeps in memory, else empty: records are read when they are asked for."""
        self.mode = mode
        self._ports = ports
        self._max_wait_ns = int(max_wait_s * 1e9)
        self._recorder = Recorder()
        self._overlay: MemoryStore[Record] = MemoryStore() if earlier is None else earlier._overlay  # noqa: SLF001 - the same class
        self._misses: dict[Digest, Miss] = {}
        self._known: set[Digest] = set()
        self._spent: set[Digest] = set()
        self._ready: dict[Digest, Mine] = {}
        self._waiting_since_ns: dict[Digest, int] = {}
        self._rules = _Rules(ports.rules)
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    # -- look-ups ---------------------------------------------------------------------------------------------------------------

    def find(self, digest: Digest) -> Hit[Record] | Miss:
        """Return what is known about ``digest``. Reads only; a miss is remembered until ``refresh``."""
        found = self._overlay.get(digest)
        if isinstance(found, Hit):
            return found
        known = self._misses.get(digest)
        return known if known is not None else self._look(digest)

    def _look(self, digest: Digest) -> Hit[Record] | Miss:
        if self._ports.records is None:
            return Miss(MissReason.ABSENT)
        answer = self._ports.records.get(digest)
        if isinstance(answer, Hit):
            self._misses.pop(digest, None)
            kept = self._overlay.publish(answer.entry)
            return Hit(kept.entry, kept.source) if isinstance(kept, Present) else answer
        if digest not in self._misses:
            self._recorder.miss(answer.reason)
        self._misses[digest] = answer
        return answer

    def refresh(self) -> None:
        """Forget remembered misses, so that what others published since is found."""
        self._misses.clear()
        self._rules.reload()

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
            return mine
        if isinstance(again := self._look(digest), Hit):  # published between the look-up and the claim
            self.abandon(mine)
            return Answered(self._counted(again.entry))
        return mine

    def answered(self, keys: Iterable[TuneKey]) -> Record | None:
        """Return the record of the first of ``keys`` that has one. Claims nothing."""
        return self._first_hit(keys)

    def _first_hit(self, keys: Iterable[TuneKey]) -> Record | None:
        for key in keys:
            if isinstance(found := self.find(key.digest), Hit):
                return self._counted(found.entry)
        return None

    def _counted(self, record: Record) -> Record:
        """Count a record when it first answers; how often it is asked for says nothing."""
        digest = record.digest
        with self._lock:
            if digest in self._known:
                return record
            self._known.add(digest)
        if digest in self._waiting_since_ns:
            self._recorder.add("waited_count")
        else:
            self._recorder.add("hit_count")
            self._recorder.add("saved_ns", record.provenance.tuning_ns)
        return record

    def _claim(self, key: TuneKey) -> Mine | Elsewhere:
        match self._ports.coordinator.claim(key.digest, key.op):
            case Busy(holder):
                return Elsewhere(holder)
            case Unavailable(why):
                self.warn_once("claims", "claims between processes do not work here (%s); every process measures for itself", why)
                return Mine(None)
            case claim:
                return Mine(claim)

    def finish(self, mine: Mine, record: Record) -> Record:
        """Keep a measured record, publish it if it may be shared, free the claim; return the record that counts from now on.

        If another process published the key meanwhile, theirs counts: the first writer wins. A store that refuses costs one warning.
        """
        self._recorder.add("tuned_count" if record.usable else "failed_count")
        self._recorder.add("spent_ns", record.provenance.tuning_ns)
        try:
            winner = self._publish(record) if mine.share else self._in_memory(record)
        finally:
            self.abandon(mine)
        self._misses.pop(record.digest, None)
        with self._lock:
            self._known.add(record.digest)
        kept = self._overlay.publish(winner)
        return kept.entry if isinstance(kept, Present) else winner

    def _publish(self, record: Record) -> Record:
        if self._ports.records is None:
            return self._in_memory(record)
        try:
            answer = self._ports.records.publish(record)
        except CacheStoreError as error:
            self.warn_once(type(error).__name__, "%s; results of this session that cannot be stored stay in memory", error)
            return self._in_memory(record)
        return answer.entry if isinstance(answer, Present) else record

    def _in_memory(self, record: Record) -> Record:
        self._recorder.add("unshared_count")
        return record

    def give_up(self, mine: Mine, key: TuneKey, *, out_of_memory: bool) -> None:
        """End work that has no result to keep: it is not tried again in this session, and the claim is free."""
        self._spent.add(key.digest)
        self._recorder.add("out_of_memory_count" if out_of_memory else "unshared_count")
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
            self._waiting_since_ns.setdefault(key.digest, started)
        pause_s = _FIRST_PAUSE_S
        while not self._any_ready(keys):
            clock.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _any_ready(self, keys: Collection[TuneKey]) -> bool:
        for key in keys:
            if isinstance(self._look(key.digest), Hit):
                return True
            answer = self._claim(key)
            if isinstance(answer, Mine):
                self._ready[key.digest] = answer
                return True
            waited_ns = self._ports.clock.monotonic_ns() - self._waiting_since_ns[key.digest]
            if waited_ns > self._max_wait_ns:
                logger.warning("waited %.0f s for %s, which measures it; measuring here, for memory only", waited_ns / 1e9, answer.holder)
                self._ready[key.digest] = Mine(None, share=False)
                return True
        return False

    # -- rules, reports, end ----------------------------------------------------------------------------------------------------

    def note_rule(self, device: dict[str, Value], rule: Rule) -> None:
        """Remember under which rule a tuning call was made."""
        self._rules.note(device, rule)

    def rules_in_force(self, device: dict[str, Value]) -> tuple[Rule, ...]:
        """Return the rules to try, in order, for a look-up outside any context."""
        return self._rules.in_force(device)

    def commit(self) -> None:
        """Keep the rules of this session for later processes. Never raises; a store that refuses costs one warning."""
        if self.mode is not Mode.AUTO:
            return
        try:
            self._rules.store()
        except CacheStoreError as error:
            self.warn_once("rules", "%s; a process that only attaches will look for records under each op's own buckets", error)

    def drop(self, keys: Iterable[TuneKey]) -> None:
        """Free claims on ``keys`` that were taken while waiting and not used."""
        for key in keys:
            if (unused := self._ready.pop(key.digest, None)) is not None:
                self.abandon(unused)

    @property
    def recorder(self) -> Recorder:
        """Where the adapter counts."""
        return self._recorder

    def report(self) -> Report:
        """Return what happened so far."""
        return self._recorder.report()

    def warn_once(self, topic: str, message: str, *values: object) -> None:
        """Log a warning, once per topic and session."""
        with self._lock:
            if topic in self._warned:
                return
            self._warned.add(topic)
        logger.warning(message, *values)


class _Rules:
    """The rules of this session and those kept by earlier ones, per device model."""

    def __init__(self, log: RulesLog | None) -> None:
        self._log = log
        self._own: dict[bytes, SessionRules] = {}
        self._orders: dict[bytes, tuple[Rule, ...]] = {}

    def note(self, device: dict[str, Value], rule: Rule) -> None:
        name = encode(device)
        own = self._own.get(name, SessionRules(device, ()))
        if own.rules[-1:] != (rule,):
            kept = tuple(earlier for earlier in own.rules if earlier != rule)
            self._own[name] = replace(own, rules=(*kept, rule))
            self._orders.pop(name, None)

    def in_force(self, device: dict[str, Value]) -> tuple[Rule, ...]:
        name = encode(device)
        order = self._orders.get(name)
        if order is None:
            own = self._own.get(name)
            kept = () if self._log is None else self._log.latest(SessionRules(device, ()).digest)
            sessions = (own, *kept) if own is not None else kept
            tried = [rule for session in sessions for rule in session.search_order()]
            order = self._orders[name] = tuple(dict.fromkeys((*tried, NO_RULE)))
        return order

    def reload(self) -> None:
        self._orders.clear()

    def store(self) -> None:
        if self._log is not None:
            for rules in self._own.values():
                self._log.append(rules)
