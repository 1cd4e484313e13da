"""All key schemas that a root knows of, by its records and its verdicts: how each stands, and on what grounds. For people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.schema import KeySchema, LeftOut, left_out_digest
from fi_cachestore.records.record import Record
from fi_cachestore.records.verdict import Override, Quarantine, Refusal, Validation
from fi_cachestore.validation.ledger import Ledger, Standing


@dataclass(slots=True)
class LeftOutSeen:
    """One set of left-out values: how many records were measured with it, and whether they may be served to a process that has it."""

    values: LeftOut
    record_count: int = 0
    standing: Standing = Standing.UNPROVEN


@dataclass(slots=True)
class SchemaSurvey:
    """One schema. ``op`` and ``runner`` are empty where nothing tells them, ``schema`` is ``None`` where no verdict holds it."""

    digest: Digest
    op: str = ""
    runner: str = ""
    schema: KeySchema | None = None
    record_count: int = 0
    left_out: dict[Digest, LeftOutSeen] = field(default_factory=dict)
    validations: list[Validation] = field(default_factory=list)
    quarantines: list[Quarantine] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    standing: str = ""
    why: str = ""

    def learn(self, schema: KeySchema | None) -> None:
        """Take over what a verdict tells about the schema."""
        if schema is not None:
            self.schema, self.op, self.runner = schema, schema.op, schema.runner

    def saw(self, values: LeftOut) -> LeftOutSeen:
        """Return the row of a set of left-out values."""
        return self.left_out.setdefault(left_out_digest(values), LeftOutSeen(values))


@dataclass(frozen=True, slots=True)
class Survey:
    """Every schema, by op and runner, and the records that are refused by themselves."""

    schemas: tuple[SchemaSurvey, ...]
    refusals: tuple[Refusal, ...]


def survey(records: Iterable[Record], ledger: Ledger) -> Survey:
    """Look at everything once. Reads only."""
    found: dict[Digest, SchemaSurvey] = {}
    refusals: dict[tuple[Digest, Digest], Refusal] = {}
    for record in records:
        row = found.setdefault(record.evidence.schema, SchemaSurvey(record.evidence.schema))
        row.op, row.runner = row.op or record.key.op, row.runner or record.key.runner.type
        row.record_count += 1
        row.saw(record.evidence.left_out).record_count += 1
    for _, verdict in ledger.entries():
        if isinstance(verdict, Refusal):
            refusals.setdefault((verdict.key, verdict.content), verdict)
            continue
        row = found.setdefault(Digest(verdict.folder), SchemaSurvey(Digest(verdict.folder)))
        match verdict:
            case Validation():
                row.learn(verdict.schema)
                row.saw(verdict.left_out)
                row.validations.append(verdict)
            case Quarantine():
                row.learn(verdict.schema)
                row.quarantines.append(verdict)
            case Override():
                row.overrides.append(verdict)
    for row in found.values():
        _judge(row, ledger)
    return Survey(tuple(sorted(found.values(), key=lambda row: (row.op, row.runner, row.digest))), tuple(refusals.values()))


def _judge(row: SchemaSurvey, ledger: Ledger) -> None:
    for digest, seen in row.left_out.items():
        seen.standing = ledger.standing(row.digest, digest)
    validated = sum(seen.standing is Standing.VALIDATED for seen in row.left_out.values())
    if banned := ledger.banned_because(row.digest):
        row.standing, row.why = Standing.QUARANTINED.value, banned
    elif trusted := ledger.trusted_because(row.digest):
        row.standing, row.why = Standing.VALIDATED.value, trusted
    elif not validated:
        row.standing, row.why = Standing.UNPROVEN.value, "no other process has tried it yet"
    else:
        row.standing = Standing.VALIDATED.value if validated == len(row.left_out) else "partly validated"
        row.why = f"two processes agreed, for {validated} of {len(row.left_out)} sets of left-out values"
