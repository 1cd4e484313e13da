"""The record: every tactic that was measured for one key, and who measured it when and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fi_cachestore.errors import DamagedError, NotCanonicalError
from fi_cachestore.keys.canonical import Named, Value, encode
from fi_cachestore.keys.digest import Digest, content_digest, is_digest, tactics_digest
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.schema import LeftOut, is_left_out
from fi_cachestore.records.envelope import MissReason

DEFAULT_TACTIC: Final = -1
"""FlashInfer's name for "let the runner choose"."""

_KIND: Final = "fi_cachestore.record/1"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One tactic and its time in nanoseconds, or why it has none (the type of the exception)."""

    tactic: Value
    time_ns: int | None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class TacticSpace:
    """The runner's own tactic list, before any blocklist: how many, and a digest of their canonical bytes in order."""

    count: int
    digest: Digest

    @classmethod
    def of(cls, tactics: Sequence[Value]) -> TacticSpace:
        """Return the space that consists of ``tactics``; there is no limit to their number."""
        return cls(len(tactics), tactics_digest(b"".join(map(encode, tactics))))


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who measured, when, and under what; never part of the key.

    ``measured_unix_ns`` is wall-clock time, ``tuning_ns`` what the measurement cost, ``inputs`` what the tuner ran on
    (FlashInfer makes fresh contiguous tensors), ``performance`` the facets that are recorded and not compared.
    """

    measured_unix_ns: int
    tuning_ns: int
    host: str
    pid: int
    library: str
    inputs: str = "fresh contiguous tensors"
    performance: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a reader needs to judge the writer's word: the key's schema, and what the writer's process had for everything left out.

    ``process`` is the writer's identity, empty (which is nobody's) where it cannot be told; ``left_out`` has digests by parameter.
    """

    schema: Digest
    process: str
    left_out: LeftOut = field(default_factory=dict)


_FIELDS: Final = frozenset({"key", "measurements", "space", "default_raced", "provenance", "evidence"})
_PROVENANCE_FIELDS: Final = frozenset(Provenance.__slots__)


@dataclass(frozen=True, slots=True)
class Record:
    """What is known about one key. Immutable; a record without a usable measurement says "tried, nothing works".

    ``default_raced`` tells that tactic -1 was added by the tuner and is not in the runner's own list.
    """

    key: TuneKey
    measurements: tuple[Measurement, ...]
    space: TacticSpace
    provenance: Provenance
    evidence: Evidence
    default_raced: bool = False

    @property
    def digest(self) -> Digest:
        """The name of the record: its key's digest."""
        return self.key.digest

    @property
    def content(self) -> Digest:
        """A name for this very record, unlike those of other measurements of its key. Costs an encoding."""
        return content_digest(encode(self.to_value()))

    @property
    def usable(self) -> tuple[Measurement, ...]:
        """The measurements that have a time."""
        return tuple(m for m in self.measurements if m.time_ns is not None)

    @property
    def default_time_ns(self) -> int | None:
        """The time of tactic -1, if it was measured and ran."""
        return next((m.time_ns for m in self.measurements if type(m.tactic) is int and m.tactic == DEFAULT_TACTIC), None)

    def to_value(self) -> Value:
        """Return the record as the content of an envelope."""
        p = self.provenance
        return Named(
            _KIND,
            {
                "key": self.key.canonical,
                "measurements": [(m.tactic, m.time_ns, m.failure) for m in self.measurements],
                "space": (self.space.count, self.space.digest),
                "default_raced": self.default_raced,
                "provenance": {
                    "measured_unix_ns": p.measured_unix_ns,
                    "tuning_ns": p.tuning_ns,
                    "host": p.host,
                    "pid": p.pid,
                    "library": p.library,
                    "inputs": p.inputs,
                    "performance": p.performance,
                },
                "evidence": (self.evidence.schema, self.evidence.process, dict(self.evidence.left_out)),
            },
        )

    @classmethod
    def from_value(cls, value: Value) -> Record:
        """Return the record in an envelope's content.

        Raises:
            DamagedError: the content is not a record of this format.
        """
        content = _content(value)
        try:
            count, digest = content["space"]
            provenance = Provenance(**{name: content["provenance"][name] for name in _PROVENANCE_FIELDS})
            record = cls(
                key=TuneKey.from_canonical(content["key"]),
                measurements=tuple(Measurement(tactic, time_ns, failure) for tactic, time_ns, failure in content["measurements"]),
                space=TacticSpace(count, digest),
                provenance=provenance,
                evidence=Evidence(*content["evidence"]),
                default_raced=content["default_raced"],
            )
        except (KeyError, TypeError, ValueError, NotCanonicalError) as error:
            raise DamagedError(MissReason.CORRUPT, f"not a record: {type(error).__name__}: {error}"[:200]) from error
        _check(record)
        return record


def _content(value: Value) -> dict[str, Any]:
    if not isinstance(value, Named) or value.kind != _KIND or type(value.content) is not dict:
        raise DamagedError(MissReason.CORRUPT, "not a record of this format")
    content: dict[str, Any] = value.content
    if set(content) != _FIELDS or type(content["provenance"]) is not dict:
        raise DamagedError(MissReason.CORRUPT, "a record with other fields")
    rows_fit = type(content["measurements"]) is list and all(type(row) is tuple for row in content["measurements"])
    if (
        type(content["evidence"]) is not tuple
        or type(content["key"]) is not bytes
        or not rows_fit
        or set(content["provenance"]) != _PROVENANCE_FIELDS
    ):
        raise DamagedError(MissReason.CORRUPT, "a record with fields of other types")
    return content


def _check(record: Record) -> None:
    p, space, evidence = record.provenance, record.space, record.evidence
    right = (
        all(_is_count(n) for n in (p.measured_unix_ns, p.tuning_ns, p.pid, space.count))
        and all(type(text) is str for text in (p.host, p.library, p.inputs, space.digest))
        and type(p.performance) is dict
        and all(type(text) is str for text in (evidence.schema, evidence.process))
        and is_digest(evidence.schema)
        and is_left_out(evidence.left_out)
        and type(record.default_raced) is bool
        and _are_measurements(record.measurements)
    )
    if not right:
        raise DamagedError(MissReason.CORRUPT, "a record with fields of other types")


def _are_measurements(measurements: tuple[Measurement, ...]) -> bool:
    for m in measurements:
        if (type(m.time_ns) is not int or m.time_ns < 0) and m.time_ns is not None:
            return False
        if m.failure is not None and type(m.failure) is not str:
            return False
    return True


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
