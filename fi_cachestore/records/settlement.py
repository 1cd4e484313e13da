"""What ranks settled where their records did not give all of them the same answer: kept, so that later starts honour it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.canonical import Named, Value
from fi_cachestore.keys.digest import Digest, is_digest
from fi_cachestore.records.envelope import MissReason, decoded

_KIND: Final = "fi_cachestore.settlement/1"
_FIELDS: Final = frozenset({"call", "pair", "rank_count", "settled_unix_ns"})
_PAIR_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Settlement:
    """One call (a digest of its candidate runners' keys) and the pair of runner and tactic to serve; zeros for the call's default."""

    call: Digest
    pair: bytes
    rank_count: int
    settled_unix_ns: int

    @property
    def digest(self) -> Digest:
        """The name under which it is kept: the call's."""
        return self.call

    def to_value(self) -> Value:
        """Return the settlement as the content of an envelope."""
        return Named(_KIND, {name: getattr(self, name) for name in sorted(_FIELDS)})

    @classmethod
    def from_body(cls, body: bytes) -> Settlement:
        """Return the settlement in an envelope's body.

        Raises:
            DamagedError: the content is not a settlement of this format.
        """
        value = decoded(body)
        if not isinstance(value, Named) or value.kind != _KIND or type(value.content) is not dict or set(value.content) != _FIELDS:
            raise DamagedError(MissReason.CORRUPT, "not a settlement of this format")
        fields: dict[str, Any] = value.content
        right = (
            type(fields["call"]) is str
            and is_digest(fields["call"])
            and type(fields["pair"]) is bytes
            and len(fields["pair"]) == _PAIR_BYTES
            and all(type(fields[name]) is int and fields[name] >= 0 for name in ("rank_count", "settled_unix_ns"))
        )
        if not right:
            raise DamagedError(MissReason.CORRUPT, "a settlement with fields of other types")
        return cls(**fields)
