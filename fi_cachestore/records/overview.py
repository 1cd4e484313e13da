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

_KIND: Final = "fi_cachestore.overview/2"
_ROW: Final = re.compile(rf"[0-9]{{1,19}}(?: {VALIDATION}[0-9a-f]{{64}})*(?: \?(?:{SCHEMA_STEM.pattern}))*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Glance:
    """What a schema's folder had when it was last known to have changed: files by stem, and the stems of validations that are sound."""

    changed_unix_ns: int
    stems: frozenset[str]
    validated: frozenset[str]


def overview_value(glances: Mapping[Digest, Glance]) -> Value:
    """Return the content of an envelope: one line of text per schema, where lists would be more to decode."""
    return Named(_KIND, {schema: _row(glance) for schema, glance in glances.items()})


def overview_from(value: Value) -> dict[Digest, Glance]:
    """Return the glances in an envelope's content.

    Raises:
        DamagedError: the content is not an overview of this format.
    """
    if not isinstance(value, Named) or value.kind != _KIND or type(value.content) is not dict:
        raise DamagedError(MissReason.CORRUPT, "not an overview of this format")
    rows: dict[Digest, Any] = value.content
    try:
        if all(map(is_digest, rows)):
            return {schema: _glance(row) for schema, row in rows.items()}
    except (TypeError, ValueError) as error:
        raise DamagedError(MissReason.CORRUPT, "an overview with rows of another form") from error
    raise DamagedError(MissReason.CORRUPT, "an overview of something else than schemas")


def _row(glance: Glance) -> str:
    """Return when the folder changed, its sound validations and, each behind a question mark, its other files."""
    others = (f"?{stem}" for stem in sorted(glance.stems - glance.validated))
    return " ".join([str(glance.changed_unix_ns), *sorted(glance.validated), *others])


def _glance(row: Any) -> Glance:
    if _ROW.fullmatch(row) is None:
        raise ValueError(row)
    sound, *others = row.split(" ?")
    changed_unix_ns, *names = sound.split(" ")
    validated = frozenset(names)
    return Glance(int(changed_unix_ns), validated.union(others) if others else validated, validated)
