"""What a process saw when it tried out a record of another one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.canonical import Value
from fi_cachestore.keys.digest import Digest, is_digest
from fi_cachestore.keys.schema import LeftOut, is_left_out
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.record import TacticSpace


class SpaceKind(StrEnum):
    """What a runner's tactic list proves.

    ``listed``: it is a function of the key, so another list contradicts. ``measured``: it comes from timing, so another list says
    nothing. ``indexed``: positions in some library's own order, so that even an equal list says nothing about what a position means.
    """

    LISTED = "listed"
    MEASURED = "measured"
    INDEXED = "indexed"


class Output(StrEnum):
    """How a tactic's result compares with that of the default tactic."""

    EQUAL = "equal"
    DIFFERS = "differs"
    NOT_FINITE = "not-finite"
    NOT_COMPARED = "not-compared"


@dataclass(frozen=True, slots=True)
class Observation:
    """What a process saw for one key: its own list (``None`` where it could not be read), and one run of a tactic of the record.

    ``validates`` is what ``validate_tactic`` said, ``None`` where the runner has none; ``failure`` the type of the exception that the
    run raised. ``tactic`` counts only where the record has a usable one.
    """

    key: Digest
    kind: SpaceKind
    space: TacticSpace | None
    tactic: Value
    validates: bool | None
    failure: str | None
    output: Output


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two processes: who, where, and the values it had of every parameter that is left out of the key."""

    process: str
    host: str
    left_out: LeftOut = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One key that was tried: the list that its record was measured with, and what was seen."""

    recorded: TacticSpace
    seen: Observation

    def to_value(self) -> Value:
        """Return the sample as plain data."""
        seen = self.seen
        rest = (seen.tactic, seen.validates, seen.failure, seen.output.value)
        return (seen.key, seen.kind.value, _space_value(self.recorded), _space_value(seen.space), *rest)


_SAMPLE_PARTS: Final = 8


def sample_from(value: Any) -> Sample:
    """Return the sample in a stored value.

    Raises:
        DamagedError: it is none.
    """
    if type(value) is not tuple or len(value) != _SAMPLE_PARTS:
        raise DamagedError(MissReason.CORRUPT, "not a sample")
    key, kind, recorded, space, tactic, validates, failure, output = value
    listed = _space_from(recorded)
    right = (
        listed is not None
        and type(key) is str
        and is_digest(key)
        and (validates is None or type(validates) is bool)
        and (failure is None or type(failure) is str)
        and kind in list(SpaceKind)
        and output in list(Output)
    )
    if not right or listed is None:
        raise DamagedError(MissReason.CORRUPT, "a sample with fields of other types")
    seen = Observation(Digest(key), SpaceKind(kind), _space_from(space), tactic, validates, failure, Output(output))
    return Sample(listed, seen)


def side_value(side: Side) -> Value:
    """Return one side as plain data."""
    return (side.process, side.host, dict(side.left_out))


def side_from(value: Any) -> Side:
    """Return the side in a stored value.

    Raises:
        DamagedError: it is none.
    """
    match value:
        case (str(process), str(host), left_out) if type(value) is tuple and is_left_out(left_out):
            return Side(process, host, left_out)
    raise DamagedError(MissReason.CORRUPT, "not a side of a comparison")


def _space_value(space: TacticSpace | None) -> Value:
    return None if space is None else (space.count, space.digest)


def _space_from(value: Any) -> TacticSpace | None:
    if value is None:
        return None
    match value:
        case (int(count), str(digest)) if type(value) is tuple and type(count) is int and count >= 0 and is_digest(digest):
            return TacticSpace(count, Digest(digest))
    raise DamagedError(MissReason.CORRUPT, "not a tactic space")
