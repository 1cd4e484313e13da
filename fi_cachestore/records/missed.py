"""What a process looked up in vain: kept for people when it ends, and never part of a decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from fi_cachestore.errors import DamagedError, NotCanonicalError
from fi_cachestore.keys.canonical import Named, Value
from fi_cachestore.keys.digest import Digest, key_digest
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.records.envelope import MissReason

_KIND: Final = "fi_cachestore.missed/1"


@dataclass(frozen=True, slots=True)
class Missed:
    """A key that had no record that may be served. ``call_count`` are calls that differ, not how often they were made.

    ``is_covered`` tells that another runner's record, or another tactic of the same one, served the calls nevertheless.
    """

    canonical: bytes
    reason: str
    detail: str
    call_count: int
    is_covered: bool

    @property
    def digest(self) -> Digest:
        """The key's digest."""
        return key_digest(self.canonical)

    @property
    def key(self) -> TuneKey:
        """The key; one that was read from a file has been found to be one."""
        return TuneKey.from_canonical(self.canonical)


@dataclass(frozen=True, slots=True)
class InMemory:
    """Calls of an op that were left to FlashInfer's memory: why, what their keys lack, and how many."""

    op: str
    reason: str
    gaps: tuple[str, ...]
    call_count: int


@dataclass(frozen=True, slots=True)
class Beyond:
    """Calls of an op far beyond the largest bucket of one of its dynamic dims: they are served what was measured at ``bucket``."""

    op: str
    dim: int
    bucket: int
    largest_size: int
    call_count: int


@dataclass(frozen=True, slots=True)
class MissedSession:
    """What one process missed, from its first session to its last. ``decided_count`` are the different calls it looked up.

    ``dropped_count`` misses were over the limits. ``roots`` are the directories of its sessions, the newest first.
    """

    library: str
    host: str
    pid: int
    mode: str
    roots: tuple[str, ...]
    started_unix_ns: int
    ended_unix_ns: int
    decided_count: int
    dropped_count: int
    missed: tuple[Missed, ...]
    in_memory: tuple[InMemory, ...]
    beyond: tuple[Beyond, ...]

    def to_value(self) -> Value:
        """Return the content of an envelope."""
        return Named(
            _KIND,
            {
                **{name: getattr(self, name) for name in _PLAIN},
                "missed": [(m.canonical, m.reason, m.detail, m.call_count, m.is_covered) for m in self.missed],
                "in_memory": [(m.op, m.reason, m.gaps, m.call_count) for m in self.in_memory],
                "beyond": [(b.op, b.dim, b.bucket, b.largest_size, b.call_count) for b in self.beyond],
            },
        )

    @classmethod
    def from_value(cls, value: Value) -> MissedSession:
        """Return the session in an envelope's content.

        Raises:
            DamagedError: the content is none of this format.
        """
        if not isinstance(value, Named) or value.kind != _KIND or type(value.content) is not dict:
            raise DamagedError(MissReason.CORRUPT, "no kept misses of this format")
        content: dict[str, Any] = value.content
        try:
            found = cls(
                **{name: _typed(content[name], kind) for name, kind in _PLAIN.items()},
                missed=tuple(Missed(*row) for row in _rows(content["missed"], (bytes, str, str, int, bool))),
                in_memory=tuple(InMemory(*row) for row in _rows(content["in_memory"], (str, str, tuple, int))),
                beyond=tuple(Beyond(*row) for row in _rows(content["beyond"], (str, int, int, int, int))),
            )
            texts = [*found.roots, *(gap for row in found.in_memory for gap in row.gaps)]
            _rows([(text,) for text in texts], (str,))
            _ = [missed.key for missed in found.missed]
        except (KeyError, TypeError, ValueError, NotCanonicalError) as error:
            raise DamagedError(MissReason.CORRUPT, f"no kept misses: {type(error).__name__}: {error}"[:200]) from error
        return found


_PLAIN: Final = {
    "library": str,
    "host": str,
    "pid": int,
    "mode": str,
    "roots": tuple,
    "started_unix_ns": int,
    "ended_unix_ns": int,
    "decided_count": int,
    "dropped_count": int,
}


def _rows(value: Any, kinds: tuple[type, ...]) -> list[tuple[Any, ...]]:
    """Return a list of tuples whose items have the given types, checked."""
    return [tuple(_typed(item, kind) for item, kind in zip(_typed(row, tuple), kinds, strict=True)) for row in _typed(value, list)]


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        message = f"{kind.__name__} expected, {type(value).__name__} found"
        raise TypeError(message)
    return value
