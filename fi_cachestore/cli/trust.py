"""``trust``: how each key schema stands and why, both sides of a contradiction, and an operator's word on it."""

from __future__ import annotations

import os
import pwd
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fi_cachestore import config
from fi_cachestore.cli.opened import json_option, open_for_looking, root_option, root_path
from fi_cachestore.cli.output import note, print_json, print_lines, print_table, to_json, when
from fi_cachestore.cli.records import short_type
from fi_cachestore.errors import NoSuchSchemaError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.render import render
from fi_cachestore.records.observation import Sample, Side
from fi_cachestore.records.record import Record
from fi_cachestore.records.verdict import Override, Quarantine, Refusal, Validation, Word
from fi_cachestore.store.port import Hit, Store
from fi_cachestore.store.roots import check_root, open_root
from fi_cachestore.validation.ledger import Ledger, Standing
from fi_cachestore.validation.survey import SchemaSurvey, Survey, survey

_SHORTEST_PREFIX = 4


@click.group("trust", invoke_without_command=True)
@root_option
@json_option
@click.pass_context
def trust_command(ctx: click.Context, root: Path | None, *, as_json: bool) -> None:
    """List the key schemas of a root: whether their records are served, and why."""
    ctx.obj = root
    if ctx.invoked_subcommand is not None:
        return
    path, found = _survey(root)
    if as_json:
        rows = [_summary(row) for row in found.schemas]
        print_json("trust/1", {"root": str(path), "schemas": rows, "refused": [_refusal(row) for row in found.refusals]})
        return
    print_table(
        ("schema", "op", "runner", "standing", "left-out", "records", "why"),
        (
            (row.digest[:12], row.op, short_type(row.runner), row.standing, str(len(row.left_out)), str(row.record_count), row.why)
            for row in found.schemas
        ),
        right=("left-out", "records"),
    )
    note(f"{len(found.schemas)} schemas under {path}; `fi-cachestore trust show SCHEMA` tells more")
    for refusal in found.refusals:
        note(f"record {refusal.key[:12]} is refused: {refusal.why}")


@trust_command.command("show")
@click.argument("schema")
@root_option
@json_option
@click.pass_obj
def show_schema(outer: Path | None, schema: str, root: Path | None, *, as_json: bool) -> None:
    """Show one schema (digest prefix): its parameters, every verdict, and both sides of a contradiction with what differs."""
    _, found = _survey(root or outer)
    row = _find(found, schema)
    if as_json:
        print_json("trust-show/1", _document(row))
        return
    print_lines(_lines(row))
    if row.schema is not None:
        print_table(("parameter", "type", "role"), row.schema.parameters)
    left_out = ((digest[:12], seen.standing.value, str(seen.record_count)) for digest, seen in sorted(row.left_out.items()))
    print_table(("left-out values", "standing", "records"), left_out, right=("records",))
    for quarantine in row.quarantines:
        _print_quarantine(quarantine)
    if row.validations:
        print_table(("validated", "for", "by", "and", "keys"), map(_validation_cells, row.validations), right=("keys",))
    if row.overrides:
        print_table(("no.", "when", "who", "says", "why"), map(_override_cells, row.overrides))


@trust_command.command("set")
@click.argument("schema", required=False)
@click.option("--all-unproven", is_flag=True, help="Every schema that is not validated and not quarantined: for builders of images.")
@click.option("--as", "word", type=click.Choice([word.value for word in Word]), required=True, help="What holds from now on.")
@click.option("--why", required=True, help="The reason, kept beside the word.")
@click.option("--yes", is_flag=True, help="Do it; without this, only say what would be done.")
@root_option
@json_option
@click.pass_obj
def set_trust(  # noqa: PLR0913 - one parameter per option
    outer: Path | None, schema: str | None, word: str, why: str, root: Path | None, *, all_unproven: bool, yes: bool, as_json: bool
) -> None:
    """Have an operator's word count for SCHEMA (digest prefix), whatever the evidence; ``evidence`` takes it back.

    The word is kept with who, when and why in the writable root; earlier ones stay readable.
    """
    if (schema is None) != all_unproven:
        raise click.UsageError("name one SCHEMA, or pass --all-unproven")
    if not why.strip():
        raise click.BadParameter("say why", param_hint="--why")
    path, found = _survey(root or outer)
    open_ones = [row for row in found.schemas if row.standing not in (Standing.VALIDATED.value, Standing.QUARANTINED.value)]
    rows = open_ones if schema is None else [_find(found, schema)]
    plan = [{"schema": row.digest, "op": row.op, "runner": row.runner, "standing": row.standing, "word": word} for row in rows]
    if not as_json:
        cells = ((row.digest[:12], row.op, short_type(row.runner), row.standing, word) for row in rows)
        print_table(("schema", "op", "runner", "standing", "becomes"), cells)
    kept = _say(path, rows, Word(word), why) if yes and rows else []
    if as_json:
        print_json("trust-set/1", {"root": str(path), "plan": plan, "done": [_override(row) for row in kept]})
    note(f"{len(kept)} words kept under {path}" if yes else "nothing was changed; pass --yes to do it")


def _say(path: Path, rows: list[SchemaSurvey], word: Word, why: str) -> list[Override]:
    settings = config.load(root=path)
    check_root(path, trusted=settings.trusted.value)
    ledger = Ledger(open_root(path, durable=settings.durable.value).verdicts)
    return [ledger.override(row.digest, word, _who(), why, time.time_ns()) for row in rows]


def _who() -> str:
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"user {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def _survey(root: Path | None) -> tuple[Path, Survey]:
    opened = open_for_looking(root)
    return root_path(root), survey(_records(opened.records), Ledger(opened.verdicts))


def _records(store: Store[Record]) -> Iterator[Record]:
    for digest in store:
        if isinstance(hit := store.get(digest), Hit):
            yield hit.entry


def _find(found: Survey, prefix: str) -> SchemaSurvey:
    matches = [row for row in found.schemas if row.digest.startswith(prefix.lower())] if len(prefix) >= _SHORTEST_PREFIX else []
    if len(matches) != 1:
        raise NoSuchSchemaError(prefix, tuple(row.digest for row in matches))
    return matches[0]


# -- for people -------------------------------------------------------------------------------------------------------------------


def _lines(row: SchemaSurvey) -> Iterator[str]:
    yield f"schema       {row.digest}"
    yield f"op           {row.op or 'unknown'}"
    yield f"runner       {row.runner or 'unknown'}"
    if row.schema is not None:
        yield f"contract     {row.schema.contract[:12]}"
        yield f"environment  {render(row.schema.environment)}"
    yield f"records      {row.record_count}"
    yield f"standing     {row.standing}: {row.why}"


def _print_quarantine(quarantine: Quarantine) -> None:
    print_lines([f"contradiction, {when(quarantine.unix_ns)}: {quarantine.reason} ({quarantine.detail})"])
    rows = list(_sides(quarantine))
    print_table(("", "writer", "reader", ""), ((name, left, right, "differs" if left != right else "") for name, left, right in rows))
    if quarantine.sample is None:
        note("the grounds were too large to be kept")


def _sides(quarantine: Quarantine) -> Iterator[tuple[str, str, str]]:
    """Yield what is known of the two sides, row by row."""
    writer, reader, sample = quarantine.writer, quarantine.reader, quarantine.sample
    yield "host", writer.host, reader.host
    yield "process", writer.process, reader.process
    for path in sorted({**writer.left_out, **reader.left_out}):
        yield f"left out: {path}", _short(writer.left_out.get(path)), _short(reader.left_out.get(path))
    if sample is not None:
        seen = sample.seen
        yield "tactics", str(sample.recorded.count), "not readable" if seen.space is None else str(seen.space.count)
        yield "tactic list", sample.recorded.digest[:12], "not readable" if seen.space is None else seen.space.digest[:12]
        yield f"tactic {render(seen.tactic)} of {seen.key[:12]}", "measured", _outcome(sample)


def _outcome(sample: Sample) -> str:
    seen = sample.seen
    if seen.validates is False:
        return "validate_tactic refuses it"
    return f"raises {seen.failure}" if seen.failure is not None else f"runs, result {seen.output.value}"


def _short(digest: Digest | None) -> str:
    return "-" if digest is None else digest[:12]


def _validation_cells(row: Validation) -> tuple[str, ...]:
    writer, reader = (f"{side.host} ({_pid(side)})" for side in (row.writer, row.reader))
    return (when(row.unix_ns), row.stem.removeprefix("validation-")[:12], writer, reader, str(len(row.samples)))


def _pid(side: Side) -> str:
    parts = side.process.split()
    return f"process {parts[-2]}" if len(parts) > 1 else "process unknown"


def _override_cells(row: Override) -> tuple[str, ...]:
    return (str(row.number), when(row.unix_ns), row.who, row.word.value, row.why)


# -- for programs -----------------------------------------------------------------------------------------------------------------


def _summary(row: SchemaSurvey) -> dict[str, Any]:
    return {
        "schema": row.digest,
        "op": row.op,
        "runner": row.runner,
        "standing": row.standing,
        "why": row.why,
        "record_count": row.record_count,
        "left_out": {digest: {"standing": seen.standing.value, "record_count": seen.record_count} for digest, seen in row.left_out.items()},
    }


def _document(row: SchemaSurvey) -> dict[str, Any]:
    schema = row.schema
    return {
        **_summary(row),
        "left_out_values": {digest: dict(seen.values) for digest, seen in row.left_out.items()},
        "contract": None if schema is None else schema.contract,
        "environment": None if schema is None else to_json(schema.environment),
        "parameters": None if schema is None else [{"path": path, "type": kind, "role": role} for path, kind, role in schema.parameters],
        "quarantines": [
            {
                "reason": found.reason,
                "detail": found.detail,
                "unix_ns": found.unix_ns,
                "writer": _side(found.writer),
                "reader": _side(found.reader),
                "sample": None if found.sample is None else _sample(found.sample),
            }
            for found in row.quarantines
        ],
        "validations": [
            {
                "left_out": found.stem.removeprefix("validation-"),
                "unix_ns": found.unix_ns,
                "writer": _side(found.writer),
                "reader": _side(found.reader),
                "samples": list(map(_sample, found.samples)),
            }
            for found in row.validations
        ],
        "overrides": list(map(_override, row.overrides)),
    }


def _side(side: Side) -> dict[str, Any]:
    return {"host": side.host, "process": side.process, "left_out": dict(side.left_out)}


def _sample(sample: Sample) -> dict[str, Any]:
    seen, recorded = sample.seen, sample.recorded
    return {
        "key": seen.key,
        "kind": seen.kind.value,
        "recorded_space": {"count": recorded.count, "digest": recorded.digest},
        "seen_space": None if seen.space is None else {"count": seen.space.count, "digest": seen.space.digest},
        "tactic": to_json(seen.tactic),
        "validates": seen.validates,
        "failure": seen.failure,
        "output": seen.output.value,
    }


def _override(row: Override) -> dict[str, Any]:
    return {
        "schema": row.schema_digest,
        "number": row.number,
        "word": row.word.value,
        "who": row.who,
        "why": row.why,
        "unix_ns": row.unix_ns,
    }


def _refusal(row: Refusal) -> dict[str, Any]:
    return {"key": row.key, "content": row.content, "why": row.why, "unix_ns": row.unix_ns}
