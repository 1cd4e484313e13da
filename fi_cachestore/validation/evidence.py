"""Judging a record of another process by what this one sees: pure functions, no input or output."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from fi_cachestore.keys.canonical import Value, encode
from fi_cachestore.records.choosing import Candidate, preference
from fi_cachestore.records.observation import Observation, Output, Side, SpaceKind
from fi_cachestore.records.record import DEFAULT_TACTIC, Record

OUT_OF_MEMORY: Final = frozenset({"OutOfMemoryError", "MemoryError"})
"""Failures that say something about this moment and nothing about the record."""


class Reason(StrEnum):
    """In what a record and an observation contradict each other."""

    LIST = "another tactic list"
    COUNT = "another number of tactics"
    REFUSED = "the runner refuses the tactic"
    RAISED = "the tactic raises"
    NOT_FINITE = "the tactic's result is not finite"
    OUTPUT = "the tactic's result differs from the default's"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was seen bears the record out."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """What was seen refutes the record, or its key."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """Nothing follows from what was seen: the record is not served here, and nothing is kept."""

    why: str


Judgement: TypeAlias = Agreement | Contradiction | Undecided


def tactic_to_try(record: Record) -> Value:
    """Return the tactic whose run proves most: the best one other than the default, else the default.

    What is returned for a record without a usable tactic is not run.
    """
    best = [choice.tactic for choice in preference([Candidate(0, record)])]
    return next((tactic for tactic in best if not _is_default(tactic)), DEFAULT_TACTIC)


def judge(record: Record, seen: Observation) -> Judgement:
    """Compare a record with what its reader saw for the same key. Pure.

    A contradiction needs positive proof, an agreement too: what could not be tried is undecided. Where the list alone proves something
    (``listed``), a record without a usable tactic is judged by it; elsewhere it has nothing to be judged by.
    """
    if seen.key != record.digest:
        return Undecided("the observation is of another key")
    by_list = _judge_list(record, seen)
    if by_list is not None:
        return by_list
    if not record.usable:
        return Agreement() if seen.kind is SpaceKind.LISTED else Undecided("the record has no tactic that could be tried")
    if encode(seen.tactic) not in {encode(m.tactic) for m in record.usable}:
        return Undecided("the tactic that was tried is not one of the record's")
    return _judge_run(record, seen)


def _judge_list(record: Record, seen: Observation) -> Contradiction | Undecided | None:
    if seen.kind is SpaceKind.MEASURED:
        return None
    if seen.space is None:
        return Undecided("the runner's own list could not be read")
    here, there = seen.space, record.space
    if here.count != there.count:
        reason = Reason.COUNT if seen.kind is SpaceKind.INDEXED else Reason.LIST
        return Contradiction(reason, f"{there.count} tactics recorded, {here.count} here")
    if seen.kind is SpaceKind.LISTED and here.digest != there.digest:
        return Contradiction(Reason.LIST, f"{here.count} tactics, digest {there.digest[:12]} recorded, {here.digest[:12]} here")
    return None


def _judge_run(record: Record, seen: Observation) -> Judgement:
    if seen.validates is False:
        return Contradiction(Reason.REFUSED, "validate_tactic says no")
    if seen.failure is not None:
        if seen.failure in OUT_OF_MEMORY:
            return Undecided("memory ran out")
        return Contradiction(Reason.RAISED, seen.failure)
    match seen.output:
        case Output.DIFFERS:
            return Contradiction(Reason.OUTPUT, "beyond the tolerance of its dtype")
        case Output.NOT_FINITE:
            return Contradiction(Reason.NOT_FINITE, "where the default's is")
        case Output.NOT_COMPARED if seen.kind is SpaceKind.INDEXED:
            return Undecided("positions in a list prove nothing without a comparison of results")
    if seen.kind is SpaceKind.INDEXED and _is_default(seen.tactic) and not all(_is_default(m.tactic) for m in record.usable):
        return Undecided("the default tactic proves nothing about the others")
    return Agreement()


def _is_default(tactic: Value) -> bool:
    return type(tactic) is int and tactic == DEFAULT_TACTIC


__all__ = [
    "OUT_OF_MEMORY",
    "Agreement",
    "Contradiction",
    "Judgement",
    "Observation",
    "Output",
    "Reason",
    "Side",
    "SpaceKind",
    "Undecided",
    "judge",
    "tactic_to_try",
]
