"""Marks: "this process is running this tactic of this record now". One that stays behind tells how its process ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.canonical import Named, Value
from fi_cachestore.keys.digest import Digest, is_digest
from fi_cachestore.records.envelope import MissReason

_KIND: Final = "fi_cachestore.mark/1"
_FIELDS: Final = frozenset({"key", "content", "op", "tactic", "process", "host", "unix_ns"})


@dataclass(frozen=True, slots=True)
class Mark:
    """What is run, by its key and the record's content, and who runs it since when."""

    key: Digest
    content: Digest
    op: str
    tactic: Value
    process: str
    host: str
    unix_ns: int

    def to_value(self) -> Value:
        """Return the mark as the content of an envelope."""
        return Named(_KIND, {name: getattr(self, name) for name in sorted(_FIELDS)})

    @classmethod
    def from_value(cls, value: Value) -> Mark:
        """Return the mark in an envelope's content.

        Raises:
            DamagedError: the content is not a mark of this format.
        """
        if not isinstance(value, Named) or value.kind != _KIND or type(value.content) is not dict or set(value.content) != _FIELDS:
            raise DamagedError(MissReason.CORRUPT, "not a mark of this format")
        fields: dict[str, Any] = value.content
        right = (
            all(type(fields[name]) is str for name in ("key", "content", "op", "process", "host"))
            and is_digest(fields["key"])
            and is_digest(fields["content"])
            and type(fields["unix_ns"]) is int
            and fields["unix_ns"] >= 0
        )
        if not right:
            raise DamagedError(MissReason.CORRUPT, "a mark with fields of other types")
        return cls(**fields)
