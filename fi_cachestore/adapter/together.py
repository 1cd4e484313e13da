"""Ops whose runners communicate: all ranks serve, or all measure together. No claim is made, and nobody runs such an op alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from fi_cachestore.adapter.frames import Frame, Step
from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.adapter.serve import Description
from fi_cachestore.adapter.state import Attached
from fi_cachestore.environment.facets import Device
from fi_cachestore.errors import BoardLostError
from fi_cachestore.group import CHOICES, Group
from fi_cachestore.records.envelope import seal
from fi_cachestore.records.record import Record

if TYPE_CHECKING:
    from fi_cachestore.adapter.tuner import CacheStoreTuner

_VOTE_BYTES: Final = 32
_ABSENT: Final = bytes(_VOTE_BYTES)


def see_to(
    tuner: CacheStoreTuner,
    attached: Attached,
    described: Description,
    steps: Sequence[list[Step]],
    run_loop: Callable[[RunnerView, Frame], None],
) -> bool:
    """Have every profile of a communicating op answered on all ranks alike; return whether that was possible.

    ``steps`` has the profiles by runner. The ranks vote on what each holds: a record that all hold is served, everything else is measured
    by all of them in FlashInfer's own loop (``run_loop``), which averages over the group; the first rank publishes.
    """
    session, group = attached.session, attached.session.group
    if group is None:
        return False
    every = [step for of_runner in steps for step in of_runner]
    if any(not step.keys for step in every):
        return False
    for step in every:
        step.record = session.answered(step.keys)
    number = session.count(described.op)
    try:
        held = _vote(group, described.op, number, every)
        if held is None:
            return False
        for step, is_held in zip(every, held, strict=True):
            step.is_done = is_held
        if not all(held):
            _measure(tuner, attached, described, steps, run_loop)
            group.ranks.gather(f"measured/{described.op}/{number}", b"", past=CHOICES)
            session.known.adopt([step.key.digest for step in every])
    except BoardLostError as error:
        group.lose(error)
        return False
    records = [step.record for step in every if step.record is not None]
    tuner.state.remember_vote([*(step.key.digest for step in every), *(record.digest for record in records)])
    return True


def _vote(group: Group, op: str, number: int, steps: Sequence[Step]) -> list[bool] | None:
    """Return, by profile, whether all ranks hold the same record; ``None`` where a rank is missing or asks for another call.

    The first rank's finding counts for all: one that has given up another must not leave it alone in a collective.
    """
    ballot = b"".join(bytes.fromhex(step.key.digest) + _content(step.record) for step in steps)
    votes = group.ranks.gather(f"vote/{op}/{number}", ballot, past=CHOICES)
    finding = _counted(votes, len(ballot)) if len(votes) == group.ranks.size else b""
    decided = group.ranks.decide(f"vote/{op}/{number}", finding)
    return [bool(held) for held in decided] if len(decided) == len(steps) else None


def _counted(votes: Mapping[int, bytes], size: int) -> bytes:
    """Return a byte per profile, 1 where all ranks hold the same record; nothing where they ask for different calls."""
    if any(len(vote) != size for vote in votes.values()):
        return b""
    rows = [{vote[at : at + 2 * _VOTE_BYTES] for vote in votes.values()} for at in range(0, size, 2 * _VOTE_BYTES)]
    if any(len({row[:_VOTE_BYTES] for row in found}) > 1 for found in rows):
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
