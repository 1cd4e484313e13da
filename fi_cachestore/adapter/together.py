"""Ops whose runners communicate: all ranks serve, or all measure together. No claim is made, and nobody runs such an op alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from fi_cachestore.adapter import trust
from fi_cachestore.adapter.frames import Frame, Step
from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.adapter.serve import Description
from fi_cachestore.adapter.state import Attached
from fi_cachestore.environment.facets import Device
from fi_cachestore.errors import BoardLostError
from fi_cachestore.group import CHOICES, Group
from fi_cachestore.records.envelope import seal
from fi_cachestore.records.record import Record
from fi_cachestore.session import Session

if TYPE_CHECKING:
    from fi_cachestore.adapter.tuner import CacheStoreTuner

_VOTE_BYTES: Final = 32
_ABSENT: Final = bytes(_VOTE_BYTES)
_BANNED: Final = b"\xff" * _VOTE_BYTES
_NOT_ASKED: Final = "collective op that not all ranks of a group ask for"


def see_to(
    tuner: CacheStoreTuner,
    attached: Attached,
    described: Description,
    steps: Sequence[list[Step]],
    run_loop: Callable[[RunnerView, Frame], None],
) -> str:
    """Have every profile of a communicating op answered on all ranks alike; return why that is not possible, empty where it was.

    ``steps`` has the profiles by runner. The ranks vote on what each holds: a record that all hold is served, everything else is measured
    by all of them in FlashInfer's own loop (``run_loop``), which averages over the group; the first rank publishes. A key schema that
    one rank may not serve is a veto: none of them serves or measures the call.
    """
    session, group = attached.session, attached.session.group
    if group is None:
        return _NOT_ASKED
    every = [step for of_runner in steps for step in of_runner]
    if any(not step.keys for step in every):
        return _NOT_ASKED
    for step in every:
        step.record = session.answered(step.keys)
    number = session.count(described.op)
    ballot = b"".join(_ballot(tuner, session, described.view(0, index), of_runner) for index, of_runner in enumerate(steps))
    try:
        held = _vote(group, f"vote/{described.op}/{number}", ballot)
        if held is None:
            return trust.QUARANTINED if _BANNED in ballot else _NOT_ASKED
        for step, is_held in zip(every, held, strict=True):
            step.is_done = is_held
        if not all(held):
            _measure(tuner, attached, described, steps, run_loop)
            group.ranks.gather(f"measured/{described.op}/{number}", b"", past=CHOICES)
            session.known.adopt([step.key.digest for step in every])
    except BoardLostError as error:
        group.lose(error)
        return _NOT_ASKED
    records = [step.record for step in every if step.record is not None]
    tuner.state.remember_vote([*(step.key.digest for step in every), *(record.digest for record in records)])
    return ""


def _ballot(tuner: CacheStoreTuner, session: Session, view: RunnerView, steps: Sequence[Step]) -> bytes:
    """Return what this rank holds for the profiles of one runner."""
    why = trust.banned_because(tuner.state, view)
    if why:
        session.belief.note_quarantined(view.schema_digest, why)
    return b"".join(bytes.fromhex(step.key.digest) + (_BANNED if why else _content(step.record)) for step in steps)


def _vote(group: Group, name: str, ballot: bytes) -> list[bool] | None:
    """Return, by profile, whether all ranks hold the same record; ``None`` where a rank is missing, asks for another call or has a veto.

    The first rank's finding counts for all: one that has given up another must not leave it alone in a collective.
    """
    votes = group.ranks.gather(name, ballot, past=CHOICES)
    finding = _counted(votes, len(ballot)) if len(votes) == group.ranks.size else b""
    decided = group.ranks.decide(name, finding)
    return [bool(held) for held in decided] if len(decided) == len(ballot) // (2 * _VOTE_BYTES) else None


def _counted(votes: Mapping[int, bytes], size: int) -> bytes:
    """Return a byte per profile, 1 where all ranks hold the same record; nothing where they ask for different calls or one has a veto."""
    if any(len(vote) != size for vote in votes.values()):
        return b""
    rows = [{vote[at : at + 2 * _VOTE_BYTES] for vote in votes.values()} for at in range(0, size, 2 * _VOTE_BYTES)]
    if any(len({row[:_VOTE_BYTES] for row in found}) > 1 for found in rows):
        return b""
    if any(row[_VOTE_BYTES:] == _BANNED for found in rows for row in found):
        return b""
    return bytes(len(found) == 1 and next(iter(found))[_VOTE_BYTES:] != _ABSENT for found in rows)


def _content(record: Record | None) -> bytes:
    return _ABSENT if record is None else blake2b(seal(record.to_value()), digest_size=_VOTE_BYTES).digest()


def _measure(
    tuner: CacheStoreTuner,
    attached: Attached,
    described: Description,
    steps: Sequence[list[Step]],
    run_loop: Callable[[RunnerView, Frame], None],
) -> None:
    session = attached.session
    leads = session.group is not None and session.group.ranks.rank == 0
    for index, of_runner in enumerate(steps):
        if all(step.is_done for step in of_runner):
            continue
        view = described.view(0, index)
        frame = Frame(session, view, view.call.device or Device("cpu"), of_runner, is_together=True, leads=leads)
        with tuner.averaging_over(attached.process_group):
            run_loop(view, frame)
