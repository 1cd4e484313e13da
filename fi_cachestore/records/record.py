"""The record: every tactic that was measured for one key, and who measured it when and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from fi_cachestore.errors import DamagedError, NotCanonicalError
from fi_cachestore.keys.canonical import Named, Value, decode_field, encode
from fi_cachestore.keys.digest import Digest, content_digest, is_digest, tactics_digest
from fi_cachestore.keys.fields import Layout, shared
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.schema import LeftOut, is_left_out
from fi_cachestore.records.envelope import MissReason

DEFAULT_TACTIC: Final = -1
"""FlashInfer's name for "let the runner choose"."""

_KIND: Final = "fi_cachestore.record/1"

T = TypeVar("T")


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


_LAYOUT: Final = Layout(_KIND, ("key", "measurements", "space", "default_raced", "provenance", "evidence"))
_PROVENANCE_COUNT: Final = len(Provenance.__slots__)


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
    def from_body(cls, body: bytes) -> Record:
        """Return the record in an envelope's body. What many records have in common is decoded and checked once, and shared.

        Raises:
            DamagedError: the content is not a record of this format.
        """
        try:
            try:
                return cls(**_decoded(_LAYOUT.cut(body)))
            except (NotCanonicalError, TypeError, ValueError):  # the name of a field may stand inside another one
                return cls(**_decoded(_LAYOUT.split(body)))
        except (NotCanonicalError, TypeError, ValueError) as error:
            raise DamagedError(MissReason.CORRUPT, f"not a record: {type(error).__name__}: {error}"[:200]) from error


def _decoded(parts: dict[str, bytes]) -> dict[str, Any]:
    """Return the fields of a record.

    Raises:
        NotCanonicalError: a part is not the canonical form of one value.
        TypeError, ValueError: it is that of something else.
    """
    return {
        "key": TuneKey.from_canonical(_of_type(bytes, decode_field(parts["key"]))),
        "measurements": _measurements(_of_type(list, decode_field(parts["measurements"]))),
        "space": _space(parts["space"]),
        "provenance": _provenance(_of_type(dict, decode_field(parts["provenance"]))),
        "evidence": _evidence(parts["evidence"]),
        "default_raced": _of_type(bool, decode_field(parts["default_raced"])),
    }


def _measurements(rows: list[Any]) -> tuple[Measurement, ...]:
    found = []
    for row in rows:
        tactic, time_ns, failure = _of_type(tuple, row)
        if (time_ns is not None and not _is_count(time_ns)) or (failure is not None and type(failure) is not str):
            raise TypeError
        found.append(Measurement(tactic, time_ns, failure))
    return tuple(found)


@shared
def _space(data: bytes) -> TacticSpace:
    count, digest = _of_type(tuple, decode_field(data))
    if not _is_count(count):
        raise TypeError
    return TacticSpace(count, Digest(_of_type(str, digest)))


def _provenance(fields: dict[str, Any]) -> Provenance:
    found = Provenance(**fields)  # raises for a field too many, or one that is missing
    right = (
        len(fields) == _PROVENANCE_COUNT
        and type(found.measured_unix_ns) is type(found.tuning_ns) is type(found.pid) is int
        and min(found.measured_unix_ns, found.tuning_ns, found.pid) >= 0
        and type(found.host) is type(found.library) is type(found.inputs) is str
        and type(found.performance) is dict
    )
    if not right:
        raise TypeError
    return found


@shared
def _evidence(data: bytes) -> Evidence:
    schema, process, left_out = _of_type(tuple, decode_field(data))
    if not is_digest(_of_type(str, schema)) or not is_left_out(left_out):
        raise TypeError
    return Evidence(Digest(schema), _of_type(str, process), left_out)


def _of_type(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise TypeError
    return value


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
