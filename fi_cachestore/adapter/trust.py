"""Whether stored records may be believed, for one runner of one call; and finding it out while tuning, by trying a sample of them.

What was seen holds for the values that no key has: those of the process that measured a record, together with those of the one that
asks. Two processes that agree prove nothing for a third with other values, nor for a record that such a third one wrote.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from fi_cachestore.adapter import cuda
from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.adapter.verify import observe
from fi_cachestore.environment.process import process_identity
from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.schema import LeftOut, joint, left_out_digest
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.observation import Observation, Side
from fi_cachestore.records.record import Evidence, Record
from fi_cachestore.session import Session
from fi_cachestore.validation.evidence import Contradiction, Undecided, judge
from fi_cachestore.validation.ledger import Ledger, Standing

if TYPE_CHECKING:
    from fi_cachestore.adapter.state import AdapterState
    from fi_cachestore.adapter.tuner import CacheStoreTuner

logger: Final = logging.getLogger("fi_cachestore")

QUARANTINED: Final = "quarantined key schema"
UNVERIFIED: Final = "records that could not be verified"
_MAX_TRIED: Final = 256
_TOO_MANY: Final = "too many values of parameters that are not in the key"
Row = tuple[Any, Record]
"""A profile of FlashInfer's, and the record that answers it."""


class Course(Enum):
    """How a tuning call goes on: by its records, in FlashInfer's memory, or (for the moment) with the default."""

    RECORDS = "records"
    MEMORY = "memory"
    DEFAULT = "default"


@dataclass(slots=True)
class Memory:
    """What a process knows for itself, whatever its sessions: what it measured with which values, and what it could not verify.

    ``told`` has the schemas that this process, or a rank it has been with, may not serve.
    """

    told: dict[Digest, str] = field(default_factory=dict)
    _measured: dict[Digest, set[str]] = field(default_factory=dict)
    _doubts: dict[Digest, dict[Digest, str]] = field(default_factory=dict)
    _process: tuple[int, str] = (0, "")

    @property
    def process(self) -> str:
        """The identity of this process; a fork has another."""
        pid = os.getpid()
        if self._process[0] != pid:
            self._process = (pid, process_identity())
        return self._process[1]

    def note_own(self, record: Record, after: LeftOut) -> None:
        """Remember what changed by itself while this process measured a record."""
        before = record.evidence.left_out
        changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
        self._measured.setdefault(record.digest, set()).update(changed)

    def is_own(self, view: RunnerView, record: Record) -> bool:
        """Whether this process measured a record itself, with the values that the runner has now.

        What the runner changed by running (a high-water mark, a buffer made by the first call) does not make it another's.
        """
        changing = self._measured.get(record.digest)
        if record.evidence.process != self.process or (changing is None and not self.process):
            return False
        before, now = record.evidence.left_out, view.left_out_values
        return before == now or {path for path in {*before, *now} if before.get(path) != now.get(path)} <= (changing or set())

    def doubt(self, schema: Digest, values: Digest) -> str:
        """Return why records of a schema are not served here for some left-out values; empty if nothing is known against them."""
        tried = self._doubts.get(schema, {})
        return _TOO_MANY if len(tried) >= _MAX_TRIED and values not in tried else tried.get(values, "")

    def note_tried(self, schema: Digest, values: Digest, doubt: str) -> None:
        """Remember that a sample was tried, and what was in the way, if so."""
        self._doubts.setdefault(schema, {})[values] = doubt


def evidence_of(memory: Memory, view: RunnerView) -> Evidence:
    """Return what this process can say about a record that it measures for ``view``."""
    return Evidence(view.schema_digest, memory.process, dict(view.left_out_values))


# -- looking up: reads only -------------------------------------------------------------------------------------------------------


def why_not(state: AdapterState, session: Session, view: RunnerView, record: Record) -> MissReason | None:
    """Return why a record that a session knows may not be served for ``view``, ``None`` if it may."""
    ledger = session.belief.ledger
    if ledger is None:
        return None
    standing = ledger.standing(view.schema_digest, _values(view, record))
    if (standing is Standing.VALIDATED and ledger.refuses_nothing()) or state.is_voted(record.digest):
        return None
    if standing is Standing.QUARANTINED:
        return MissReason.QUARANTINED
    if ledger.is_refused(record):
        return MissReason.REFUSED
    if standing is Standing.VALIDATED or state.trust.is_own(view, record):
        return None
    return MissReason.UNPROVEN


def banned_because(state: AdapterState, view: RunnerView) -> str:
    """Return why any session's ledger bans the schema of a view's keys, empty if none does: such keys do not tell calls apart."""
    for attached in state.attached:
        ledger = attached.session.belief.ledger
        if ledger is not None and (why := ledger.banned_because(view.schema_digest)):
            return why
    return ""


def is_doubted(state: AdapterState, session: Session, view: RunnerView, record: Record) -> bool:
    """Whether this process tried to verify records like this one and could not; what is refused among ranks is not meant."""
    refused = any(session.choices.is_refused(record.digest, measurement.tactic) for measurement in record.usable)
    return not refused and bool(state.trust.doubt(view.schema_digest, _values(view, record)))


def _values(view: RunnerView, record: Record) -> Digest:
    """Return a name for the left-out values of writer and reader together."""
    theirs, own = record.evidence.left_out, view.left_out_values
    return left_out_digest(own if theirs == own else joint(theirs, own))


# -- tuning -----------------------------------------------------------------------------------------------------------------------


def examine(tuner: CacheStoreTuner, session: Session, view: RunnerView, rows: Sequence[Row]) -> Course:
    """Verify what of ``rows`` this process may not believe yet; return how the call goes on.

    Where it is not to be answered from records, FlashInfer answers it in its memory. Among ranks, what is in doubt here is refused
    instead, so that all of them settle on something that every one can serve.
    """
    ledger = session.belief.ledger
    if ledger is None:
        return Course.RECORDS
    groups, doubted = _unproven(tuner, session, ledger, view, rows), []
    if groups is None:
        return Course.RECORDS
    if groups:
        if cuda.is_capturing():
            return Course.DEFAULT
        doubted = [group for values, group in groups.items() if _doubt(tuner, session, ledger, view, values, group)]
        _refuse(
            session, (record for group in groups.values() for _, record in group if ledger.is_refused(record))
        )  # as has just turned out
    if why := ledger.banned_because(view.schema_digest):
        session.belief.note_quarantined(view.schema_digest, why)
        _refuse(session, (record for _, record in rows))
        return Course.MEMORY
    if session.group is None:
        return Course.MEMORY if doubted else Course.RECORDS
    _refuse(session, (record for group in doubted for _, record in group))
    return Course.RECORDS


def _unproven(
    tuner: CacheStoreTuner, session: Session, ledger: Ledger, view: RunnerView, rows: Sequence[Row]
) -> dict[Digest, list[Row]] | None:
    """Return what is to be verified, by the left-out values of writer and reader; refuse what is not served to anybody.

    Where there are rows and all of them are validated, which a banned schema's are not, it is ``None``.
    """
    groups: dict[Digest, list[Row]] = {}
    refuses_nothing, alike, is_validated, are_all = ledger.refuses_nothing(), None, False, bool(rows)
    for profile, record in rows:
        theirs = record.evidence.left_out
        if theirs is not alike:  # asked once for all that were measured with the same values
            is_known = alike is not None and theirs == alike
            alike = theirs
            if not is_known:
                is_validated = ledger.standing(view.schema_digest, _values(view, record)) is Standing.VALIDATED and refuses_nothing
        if is_validated:
            continue
        are_all = False
        match why_not(tuner.state, session, view, record):
            case MissReason.UNPROVEN if record.usable:
                groups.setdefault(_values(view, record), []).append((profile, record))
            case MissReason.REFUSED:
                _refuse(session, [record])
    return None if are_all else groups


def note_measured(state: AdapterState, view: RunnerView, own: Sequence[Record]) -> None:
    """Remember records as this process's own, and what measuring them changed in the runner."""
    after = _now(view) if own else {}
    for record in own:
        state.trust.note_own(record, after)


def _refuse(session: Session, records: Iterable[Record]) -> None:
    for record in records:
        for measurement in record.usable:
            session.choices.refuse(record.digest, measurement.tactic)


def _doubt(tuner: CacheStoreTuner, session: Session, ledger: Ledger, view: RunnerView, values: Digest, group: Sequence[Row]) -> str:
    """Return why this process doubts a group of records, empty where it does not; try a sample of them the first time."""
    memory, schema = tuner.state.trust, view.schema_digest
    if known := memory.doubt(schema, values):
        return known
    cuda.synchronize(view.call.inputs)
    doubt = _verify(tuner, session, ledger, view, group)
    memory.note_tried(schema, values, doubt)
    if doubt:
        memory.note_tried(schema, left_out_digest(joint(group[0][1].evidence.left_out, _now(view))), doubt)
        logger.warning("%s: records of another process are not served: %s", view.call.op, doubt)
    tuner.state.forget()
    return doubt


def _verify(tuner: CacheStoreTuner, session: Session, ledger: Ledger, view: RunnerView, group: Sequence[Row]) -> str:
    """Try a sample of records whose writers had the same left-out values; write the verdict. Return what is in the way of serving."""
    seen: list[tuple[Record, Observation]] = []
    for profile, record in _sample(session, group):
        session.note_work(f"{record.key.op} {record.digest[:12]} verifying")
        session.recorder.add("verified_count")
        found = observe(tuner, session.recorder, view, profile, record, session.belief.guard)
        if isinstance(found, Undecided):
            return found.why
        match judge(record, found):
            case Contradiction() as contradiction:
                ledger.quarantine(
                    view.schema, _writer(record), _reader(tuner, view), record, found, contradiction, tuner.state.clock.unix_ns()
                )
                what = f"{contradiction.reason.value} ({contradiction.detail})"
                return f"{what}; its key schema {view.schema_digest[:12]} is quarantined"
            case Undecided(why):
                return why
        seen.append((record, found))
    return "" if not seen or _promoted(tuner, ledger, view, seen) else _TOO_MANY  # all may be refused by now


def _promoted(tuner: CacheStoreTuner, ledger: Ledger, view: RunnerView, seen: Sequence[tuple[Record, Observation]]) -> bool:
    after = _now(view)
    writer, reader = _writer(seen[0][0]), _reader(tuner, view)
    together = (joint(writer.left_out, reader.left_out), after, joint(writer.left_out, after), joint(reader.left_out, after))
    return ledger.promote(view.schema, writer, reader, seen, tuner.state.clock.unix_ns(), also_seen=together)


def _now(view: RunnerView) -> LeftOut:
    """Return the left-out values that a view's runner has by now: its code may have changed them."""
    try:
        return RunnerView(view.call, view.runner).left_out_values
    except Exception:  # noqa: BLE001 - a runner's code
        return view.left_out_values


def _sample(session: Session, group: Sequence[Row]) -> list[Row]:
    """Return the rows of the smallest and the largest profile that may be tried."""
    ordered = sorted(group, key=lambda row: row[0].get_opt_shapes())
    low = next((row for row in ordered if session.belief.may_try(row[1])), None)
    high = next((row for row in reversed(ordered) if session.belief.may_try(row[1])), None)
    found = [row for row in (low, high) if row is not None]
    return found[:1] if low is high else found


def _writer(record: Record) -> Side:
    return Side(record.evidence.process, record.provenance.host, record.evidence.left_out)


def _reader(tuner: CacheStoreTuner, view: RunnerView) -> Side:
    return Side(tuner.state.trust.process, socket.gethostname(), view.left_out_values)
