"""An overview of verdicts: what the folder of each schema had, and when that had last changed. It saves reading, and decides nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.canonical import Named, Value
from fi_cachestore.keys.digest import Digest, is_digest
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.verdict import SCHEMA_STEM, VALIDATION

_KIND: Final = "fi_cachestore.overview/1"
_SOUND: Final = re.compile(rf"{VALIDATION}[0-9a-f]{{64}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Glance:
    """What a schema's folder had when it was last known to have changed: files by stem, and the stems of validations that are sound."""

    changed_unix_ns: int
    stems: frozenset[str]
    validated: frozenset[str]


def overview_value(glances: Mapping[Digest, Glance]) -> Value:
    """Return the content of an envelope."""
    rows: dict[str, Value] = {}
    for schema, glance in glances.items():
        sound: list[Value] = [*sorted(glance.validated)]
        others: list[Value] = [*sorted(glance.stems - glance.validated)]
        rows[schema] = (glance.changed_unix_ns, sound, others)
    return Named(_KIND, rows)


def overview_from(value: Value) -> dict[Digest, Glance]:
    """Return the glances in an envelope's content.

    Raises:
        DamagedError: the content is not an overview of this format.
    """
    if not isinstance(value, Named) or value.kind != _KIND or type(value.content) is not dict:
        raise DamagedError(MissReason.CORRUPT, "not an overview of this format")
    rows: dict[str, Any] = value.content
    try:
        return {_schema(name): _glance(*row) for name, row in rows.items()}
    except (TypeError, ValueError) as error:
        raise DamagedError(MissReason.CORRUPT, "an overview with rows of another form") from error


def _schema(name: str) -> Digest:
    if not is_digest(name):
        raise ValueError(name)
    return Digest(name)


def _glance(changed_unix_ns: Any, sound: Any, others: Any) -> Glance:
    right = type(changed_unix_ns) is int and changed_unix_ns >= 0 and type(sound) is list and type(others) is list
    if not right or None in map(_SOUND.fullmatch, sound) or None in map(SCHEMA_STEM.fullmatch, others):
        raise ValueError
    validated = frozenset(sound)
    return Glance(changed_unix_ns, validated.union(others) if others else validated, validated)
