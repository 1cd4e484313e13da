"""What an attached tuner works with: the sessions, in order, what they remember of calls, and the rules in force."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from flashinfer.autotuner import AutoTuner

from fi_cachestore.adapter.cardinality import Cardinality
from fi_cachestore.adapter.fingerprint import Fingerprints
from fi_cachestore.adapter.frames import Frames, OwnObjects
from fi_cachestore.adapter.introspect import Introspector
from fi_cachestore.adapter.joining import Meeting
from fi_cachestore.adapter.memo import Memo
from fi_cachestore.adapter.orphans import OrphanWatch, device_at_hand
from fi_cachestore.adapter.policy import rule_fields
from fi_cachestore.adapter.trust import Memory
from fi_cachestore.config import Mode
from fi_cachestore.coordination.port import Clock
from fi_cachestore.environment.facets import Device
from fi_cachestore.errors import Gap
from fi_cachestore.keys.canonical import Value
from fi_cachestore.keys.digest import Digest
from fi_cachestore.missed import MissCollector
from fi_cachestore.records.rules import NO_RULE, Rule
from fi_cachestore.session import Session

logger: Final = logging.getLogger("fi_cachestore")

_MAX_REMEMBERED: Final = 65536


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one very call: a position in its list of runners and a tactic. ``is_hit`` is false for the default.

    ``in_memory_because`` is why FlashInfer answers such calls in its memory instead, empty where it does not. ``is_for_now`` is an answer
    that was given inside a graph capture, where runners are not asked for their lists.
    """

    runner_index: int
    tactic: Any
    is_hit: bool
    in_memory_because: str = ""
    is_for_now: bool = False


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a session was opened with; in force on every thread while it tunes."""

    rule: Rule = NO_RULE
    policy: Any = None
    skip_ops: frozenset[str] = frozenset()
    collective_ops: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        policy: Any,
        collective_ops: str | Collection[str],
        *,
        tuning_buckets: tuple[int, ...] | None,
        round_up: bool | None,
        skip_ops: str | set[str] | None,
        replays: int | None,
    ) -> Overrides:
        """Return them from the arguments of ``autotune``; ``replays`` is FlashInfer's ``cuda_graph_profile_replays``."""
        buckets = None if tuning_buckets is None else tuple(sorted(set(tuning_buckets)))
        skipped = frozenset({skip_ops} if isinstance(skip_ops, str) else skip_ops or ())
        collective = frozenset({collective_ops} if isinstance(collective_ops, str) else collective_ops)
        return cls(Rule(buckets, bool(round_up), replays, **rule_fields(policy)), policy, skipped, collective)


@dataclass(frozen=True, slots=True)
class Pin:
    """The one bundle that a session serves; with ``strict``, what it lacks is an error."""

    digest: str
    strict: bool


@dataclass(slots=True, eq=False)
class Attached:
    """One session on the tuner. ``identity`` names root and mode, ``tuning_count`` counts open contexts."""

    session: Session
    overrides: Overrides
    identity: tuple[object, ...]
    root: Path | None = None
    orphans: OrphanWatch | None = None
    process_group: Any = None
    tuning_count: int = 0
    devices: set[Device] = field(default_factory=set)
    pin: Pin | None = None


class _Own(threading.local):
    """The sessions that one thread has opened tuning contexts of, the newest last."""

    def __init__(self) -> None:
        self.sessions: list[Attached] = []


class AdapterState:
    """Shared by all threads of the process; the newest session comes first."""

    def __init__(self, introspector: Introspector, clock: Clock, original: type, missed: MissCollector, cardinality: Cardinality) -> None:
        """Start without sessions. ``original`` is the class that the tuner had; ``missed`` is told what look-ups miss.

        ``cardinality`` counts values and keys over all sessions.
        """
        self.introspector = introspector
        self.missed = missed
        self.cardinality = cardinality
        self.clock = clock
        self.frames = Frames()
        self.objects = OwnObjects()
        self.trust = Memory()
        self._own = _Own()
        self.attached: tuple[Attached, ...] = ()
        self.aside: tuple[Attached, ...] = ()
        self.original = original
        self.suspended_because: str | None = None
        self._fingerprints = Fingerprints(introspector)
        self.memo = Memo(self._fingerprints, is_open=False)
        self._answers: dict[bytes, Decision] = {}
        self._tuned: set[bytes] = set()
        self._in_force: list[Rule] = []
        self._said: dict[object, object] = {}
        self._lingering: list[Meeting] = []
        self._communicating: set[str] = set()
        self._voted: set[Digest] = set()
        self._forgetting = threading.Lock()

    # -- sessions ---------------------------------------------------------------------------------------------------------------

    def put_first(self, attached: Attached) -> None:
        """Make a session the newest. One with the same root and mode that is not tuning gives way: its records live on in this one.

        Beside one that serves a pinned bundle nothing else is served: the others stand aside until it goes.
        """
        others = [known for known in self.attached if known.tuning_count > 0 or known.identity != attached.identity]
        if attached.pin is not None:
            self.aside, others = (*others, *self.aside), []
        self.attached = (attached, *others)
        self.forget()
        self.look_for_orphans(device_at_hand())

    def remove(self, attached: Attached) -> None:
        """Take a session off, wherever it stands."""
        left = tuple(known for known in self.attached if known is not attached)
        aside = tuple(known for known in self.aside if known is not attached)
        if not any(known.pin is not None for known in left):
            left, aside = (*left, *aside), ()
        self.attached, self.aside = left, aside  # in one step each: other threads look meanwhile
        self.forget()

    def remember_communicating(self, ops: frozenset[str]) -> None:
        """Have ops measured by all ranks together from now on; say so once. Forgets all answers: a session has ended."""
        for op in sorted(ops - self._communicating):
            logger.warning(
                "%s stood still while one rank measured it: it is taken for one whose ranks communicate; name it in collective_ops", op
            )
        self._communicating |= ops
        self.forget()

    def hold(self, quarantined: Mapping[str, str]) -> None:
        """Have no session serve records of these schemas, now or later."""
        for schema, why in quarantined.items():
            self.trust.told[Digest(schema)] = why
            for attached in (*self.attached, *self.aside):
                attached.session.belief.hold(Digest(schema), why)
        if quarantined:
            self.forget()

    def communicates(self, op: str) -> bool:
        """Whether an op is known, or was named, as one whose runners communicate."""
        return op in self._communicating or any(op in attached.overrides.collective_ops for attached in self.attached)

    def remember_vote(self, digests: Iterable[Digest]) -> None:
        """Remember records that all ranks hold alike."""
        self._voted.update(digests)

    def is_voted(self, digest: Digest) -> bool:
        """Whether all ranks are known to hold the same record."""
        return digest in self._voted

    def part(self, meeting: Meeting, *, linger: bool) -> None:
        """End a meeting of ranks. One that this rank leaves early is served on until the next one ends, for those who are still in it."""
        meeting.end(linger=linger)
        earlier, self._lingering = self._lingering, [meeting] if linger else []
        for over in earlier:
            over.joined.close()

    @property
    def current(self) -> Attached:
        """The newest session."""
        return self.attached[0]

    @property
    def tuning(self) -> Attached | None:
        """The session with an open tuning context that a call made now belongs to: this thread's own, else the newest."""
        for known in reversed(self._own.sessions):
            if any(known is attached for attached in self.attached):
                return known
        for attached in self.attached:
            if attached.tuning_count > 0:
                return attached
        return None

    @contextlib.contextmanager
    def belonging_to(self, attached: Attached) -> Iterator[None]:
        """Have this thread's calls belong to a session, whatever other threads open meanwhile: its ranks wait for one another in it."""
        self._own.sessions.append(attached)
        try:
            yield
        finally:
            self._own.sessions.pop()

    def suspend(self, why: str) -> None:
        """From now on keep everything in memory, and say so once."""
        if self.suspended_because is None:
            self.suspended_because = why
            self.forget()
            logger.warning("%s: fi_cachestore stays out of the way; every process tunes for itself, in memory", why)

    def look_for_orphans(self, device: Device | None) -> None:
        """Say, once per session's root and kind of device, what a change of the environment has left behind."""
        if device is None:
            return
        for attached in self.attached:
            topic = (*attached.identity[:2], device.type)
            if attached.orphans is not None and self._is_first(("orphans", topic)):
                attached.orphans.say(device, self.introspector.environments)

    # -- rules ------------------------------------------------------------------------------------------------------------------

    def ambient(self) -> Rule:
        """Return the rule for code that asks FlashInfer without a call at hand, outside any context of this thread."""
        if (tuning := self.tuning) is not None:
            return tuning.overrides.rule
        in_force = self._in_force  # a change of rules leaves it behind
        if not in_force:
            in_force.append(self.rules(default_device())[0])
        return in_force[0]

    def rules(self, device: Device) -> tuple[Rule, ...]:
        """Return the rules to try for a look-up outside any context, in order; the last is every op's own."""
        if (tuning := self.tuning) is not None:
            return (tuning.overrides.rule,)
        model = self.device_model(device)
        tried = [rule for attached in self.attached for rule in attached.session.rules_in_force(model)[:-1]]
        return tuple(dict.fromkeys((*tried, NO_RULE)))

    def device_model(self, device: Device) -> dict[str, Value]:
        """Return what rules are kept under."""
        return self.introspector.environments.of(device).device_model()

    # -- memory of answers ------------------------------------------------------------------------------------------------------

    @property
    def answers(self) -> dict[bytes, Decision]:
        """The remembered answers to very calls: as long as nothing changes, the same mapping."""
        return self._answers

    def remember(self, answers: dict[bytes, Decision], call: bytes, decision: Decision) -> None:
        """Remember an answer, hit or miss, in the mapping that was there before it was worked out: a change since has left that behind."""
        if len(answers) >= _MAX_REMEMBERED:
            answers.clear()
        answers[call] = decision

    def is_tuned(self, call: bytes) -> bool:
        """Whether all profiles of a very call were seen to in the open session."""
        return call in self._tuned

    def set_tuned(self, call: bytes) -> None:
        """Remember that all profiles of a very call were seen to."""
        if len(self._tuned) >= _MAX_REMEMBERED:
            self._tuned.clear()
        self._tuned.add(call)

    def forget_answers(self) -> None:
        """Drop remembered answers: there are new records."""
        with self._forgetting:  # else a memory that was open before another thread's change might come after the one that is not
            self._answers = {}
            self.memo = Memo(self._fingerprints, is_open=self._is_serving())

    def forget(self) -> None:
        """Drop every remembered answer and rule: sessions, records or rules have changed."""
        self._in_force = []
        self._tuned.clear()
        self.forget_answers()

    def _is_serving(self) -> bool:
        """Whether records alone answer calls now, through a tuner whose ways are known."""
        is_stored = any(attached.session.mode is not Mode.EPHEMERAL for attached in self.attached)
        return is_stored and self.suspended_because is None and self.tuning is None and self.original is AutoTuner

    # -- ephemeral calls --------------------------------------------------------------------------------------------------------

    def note_ephemeral(self, op: str, reason: str, gaps: tuple[Gap, ...] = ()) -> None:
        """Count a call that stays in memory; say so once per op and reason."""
        for attached in self.attached[:1]:  # none, where another thread has just taken off the last
            attached.session.recorder.ephemeral(reason, gaps)
        self.missed.in_memory(op, reason, gaps)
        if not self._is_first((op, reason, gaps)):
            return
        detail = "; ".join(map(str, gaps)) or reason
        logger.warning("%s stays ephemeral (tuned per process, in memory): %s", op, detail)

    def _is_first(self, topic: object) -> bool:
        """Whether nobody has asked for a topic before: what is said once is said by one thread."""
        mine = object()
        return self._said.setdefault(topic, mine) is mine


def default_device() -> Device:
    """Return the device that calls of this process are about, as far as can be told without one."""
    return Device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else Device("cpu")
