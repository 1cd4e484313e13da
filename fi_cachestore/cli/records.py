"""``ls``, ``show`` and ``diff``: records in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

import click

from fi_cachestore.cli.opened import find_record, json_option, open_records, root_option
from fi_cachestore.cli.output import note, print_json, print_lines, print_table, time_text, to_json, when
from fi_cachestore.keys.canonical import encode
from fi_cachestore.keys.diff import ABSENT, Difference, diff, show
from fi_cachestore.keys.digest import part_digest
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.render import render
from fi_cachestore.records.choosing import Candidate, preference
from fi_cachestore.records.record import Record
from fi_cachestore.store.port import Hit, Miss, Store


@click.command("ls")
@root_option
@click.option("--op", help="Only ops that match this pattern (* and ?).")
@click.option("--runner", help="Only runner types that contain this text.")
@click.option("--environment", help="Only records with this facet (name=value) or this environment digest (prefix).")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many.")
@json_option
def ls_command(root: Path | None, op: str | None, runner: str | None, environment: str | None, limit: int | None, *, as_json: bool) -> None:
    """List records: op, runner, buckets, the chosen tactic and its time."""
    path, records = open_records(root)
    misses: list[dict[str, str]] = []
    found = islice(_matching(records, misses, op, runner, environment), limit)
    if as_json:
        documents = [_row(record, source) for record, source in found]
        print_json("ls/1", {"root": str(path), "records": documents, "unreadable": misses})
        return
    rows = [_cells(record) for record, _ in found]
    columns = ("digest", "op", "runner", "bucket", "tactic", "time", "to default", "measured")
    print_table(columns, rows, right=("time", "to default"))
    note(f"{len(rows)} records under {path}" + (f", {len(misses)} files cannot be read (fi-cachestore verify)" if misses else ""))


def _matching(
    records: Store[Record], misses: list[dict[str, str]], op: str | None, runner: str | None, environment: str | None
) -> Iterator[tuple[Record, str]]:
    for digest in records:
        match records.get(digest):
            case Hit(record, source) if matches(record.key, op, runner, environment):
                yield record, source
            case Miss(reason, detail):
                misses.append({"digest": digest, "reason": reason, "detail": detail})


def matches(key: TuneKey, op: str | None, runner: str | None, environment: str | None) -> bool:
    """Whether a key fits all filters that are given."""
    if op is not None and not fnmatchcase(key.op, op):
        return False
    if runner is not None and runner not in key.runner.type:
        return False
    if environment is None:
        return True
    name, equals, value = environment.partition("=")
    return key.environment.get(name) == value if equals else environment_digest(key).startswith(environment)


def environment_digest(key: TuneKey) -> str:
    """Return a digest of the facets that a key holds."""
    return part_digest(encode(key.environment))


def _row(record: Record, source: str) -> dict[str, Any]:
    best = next(preference([Candidate(0, record)]), None)
    key = record.key
    return {
        "digest": record.digest,
        "op": key.op,
        "runner": key.runner.type,
        "profile": to_json(key.profile),
        "best": None if best is None else {"tactic": to_json(best.tactic), "text": render(best.tactic), "time_ns": best.time_ns},
        "default_time_ns": record.default_time_ns,
        "tactic_count": len(record.measurements),
        "measured_unix_ns": record.provenance.measured_unix_ns,
        "host": record.provenance.host,
        "environment": environment_digest(key),
        "source": source,
    }


def _cells(record: Record) -> tuple[str, ...]:
    best = next(preference([Candidate(0, record)]), None)
    key = record.key
    buckets = ", ".join(str(dim.get("bucket")) for dim in key.profile if isinstance(dim, dict))
    return (
        record.digest[:12],
        key.op,
        short_type(key.runner.type),
        buckets or "-",
        "none works" if best is None else render(best.tactic),
        time_text(None if best is None else best.time_ns),
        _ratio(None if best is None else best.time_ns, record.default_time_ns),
        when(record.provenance.measured_unix_ns),
    )


def short_type(runner_type: str) -> str:
    """Return the class name of a runner type."""
    return runner_type.partition(" ")[0].rpartition(":")[2].rpartition(".")[2]


def _ratio(time_ns: int | None, default_ns: int | None) -> str:
    return f"{time_ns / default_ns:.2f}" if time_ns is not None and default_ns else "-"


@click.command("show")
@click.argument("digest")
@root_option
@json_option
def show_command(digest: str, root: Path | None, *, as_json: bool) -> None:
    """Show the record whose digest starts with DIGEST: its key in words, every tactic with its time, who measured it."""
    _, records = open_records(root)
    hit = find_record(records, digest)
    record = hit.entry
    if as_json:
        print_json("show/1", _document(record, hit.source))
        return
    print_lines([str(record.key.explain()), ""])
    default = record.default_time_ns
    chosen = [choice.tactic for choice in preference([Candidate(0, record)])]
    timed = {id(m): (m.time_ns if m.time_ns is not None else sys.maxsize) for m in record.measurements}
    rows = [
        (
            render(m.tactic),
            time_text(m.time_ns),
            _ratio(m.time_ns, default),
            m.failure or ("chosen" if chosen and encode(m.tactic) == encode(chosen[0]) else ""),
        )
        for m in sorted(record.measurements, key=lambda m: timed[id(m)])
    ]
    print_table(("tactic", "time", "to default", ""), rows, right=("time", "to default"))
    p = record.provenance
    print_lines(
        [
            f"tactic list  {record.space.count} tactics, digest {record.space.digest[:12]}"
            + (", default raced beside them" if record.default_raced else ""),
            f"measured     {when(p.measured_unix_ns)} on {p.host}, process {p.pid}, in {p.tuning_ns / 1e9:.3f} s, by {p.library}",
            f"on           {p.inputs}; " + ", ".join(f"{name}: {render(value)}" for name, value in p.performance.items()),
            f"file         {hit.source}",
        ]
    )


def _document(record: Record, source: str) -> dict[str, Any]:
    p = record.provenance
    explained = record.key.explain()
    return {
        "digest": record.digest,
        "key": {part.name: {"digest": part.digest, "value": to_json(part.value), "text": render(part.value)} for part in explained.parts},
        "measurements": [
            {"tactic": to_json(m.tactic), "text": render(m.tactic), "time_ns": m.time_ns, "failure": m.failure} for m in record.measurements
        ],
        "default_time_ns": record.default_time_ns,
        "default_raced": record.default_raced,
        "tactic_space": {"count": record.space.count, "digest": record.space.digest},
        "provenance": {
            "measured_unix_ns": p.measured_unix_ns,
            "tuning_ns": p.tuning_ns,
            "host": p.host,
            "pid": p.pid,
            "library": p.library,
            "inputs": p.inputs,
            "performance": to_json(p.performance),
        },
        "source": source,
    }


@click.command("diff")
@click.argument("a")
@click.argument("b")
@root_option
@json_option
def diff_command(a: str, b: str, root: Path | None, *, as_json: bool) -> int:
    """Compare the keys of two records (digest prefixes A and B), field by field. Exit code 1 if they differ."""
    _, records = open_records(root)
    left, right = (find_record(records, prefix).entry for prefix in (a, b))
    found = diff(left.key, right.key)
    if as_json:
        print_json("diff/1", {"a": left.digest, "b": right.digest, "differences": [_difference(row) for row in found]})
    else:
        print_table(("field", left.digest[:12], right.digest[:12]), ((row.path, show(row.left), show(row.right)) for row in found))
        note(f"{len(found)} differences")
    return 1 if found else 0


def _difference(row: Difference) -> dict[str, Any]:
    return {"field": row.path, "a": side_json(row.left), "b": side_json(row.right)}


def side_json(side: Any) -> dict[str, Any]:
    """Return one side as JSON; an absent one is empty."""
    return {} if side is ABSENT else {"value": to_json(side), "text": show(side)}
