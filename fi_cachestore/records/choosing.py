"""Which tactic to use: one pure function of records, the same on every machine and in every order of tuning."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from fi_cachestore.keys.canonical import Value, encode
from fi_cachestore.records.record import DEFAULT_TACTIC, Record

TIE_BAND = Fraction(2, 100)
"""Times closer than this to the fastest count as equal: two measurements that differ by noise choose the same kernel."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One runner of a call, by its position in the call's list, with its record."""

    runner_index: int
    record: Record


@dataclass(frozen=True, slots=True)
class Choice:
    """A runner (position in the call's list) and one of its tactics, with the measured time in nanoseconds."""

    runner_index: int
    tactic: Value
    time_ns: int
    record: Record


def preference(candidates: Iterable[Candidate]) -> Iterator[Choice]:
    """Yield every usable tactic, best first.

    Best is the fastest, but whatever lies within the tie band of the fastest yields to the earlier one in: the call's default (its
    first runner with tactic -1), then runners by name, then tactics by canonical bytes. Pure; the order of ``candidates`` is irrelevant.
    """
    remaining = [
        Choice(candidate.runner_index, m.tactic, m.time_ns, candidate.record)
        for candidate in candidates
        for m in candidate.record.measurements
        if m.time_ns is not None
    ]
    remaining.sort(key=lambda choice: choice.time_ns)
    while remaining:
        band_count = sum(1 for _ in itertools.takewhile(_within_band_of(remaining[0]), remaining))
        best = min(range(band_count), key=lambda index: _rank(remaining[index])) if band_count > 1 else 0
        yield remaining.pop(best)


def _within_band_of(fastest: Choice) -> Callable[[Choice], bool]:
    limit = fastest.time_ns * (TIE_BAND.denominator + TIE_BAND.numerator)
    return lambda choice: choice.time_ns * TIE_BAND.denominator <= limit


def supersedes(new: Record, old: Record) -> bool:
    """Whether a new measurement of a key is worth more than the old one: its best tactic is faster by more than the tie band.

    Both sides are compared by the new times: what was measured under another driver or clock says nothing of today. A tactic that does not
    run any more is beaten by any that does.
    """
    before, now = (next(preference([Candidate(0, record)]), None) for record in (old, new))
    if now is None:
        return False
    if before is None:
        return True
    name = encode(before.tactic)
    today_ns = next((m.time_ns for m in new.usable if encode(m.tactic) == name), None)
    return today_ns is None or today_ns > now.time_ns * (1 + TIE_BAND)


def ranked(record: Record) -> list[Value]:
    """Return the runner's own working tactics, fastest first (equal times by canonical bytes); a raced default is not among them."""
    own = [m for m in record.usable if not (record.default_raced and _is_default(m.tactic))]
    return [m.tactic for m in sorted(own, key=lambda m: (m.time_ns, encode(m.tactic)))]


def _rank(choice: Choice) -> tuple[bool, str, str, bytes]:
    is_call_default = choice.runner_index == 0 and _is_default(choice.tactic)
    return (not is_call_default, choice.record.key.runner.type, choice.record.digest, encode(choice.tactic))


def _is_default(tactic: Value) -> bool:
    return type(tactic) is int and tactic == DEFAULT_TACTIC
