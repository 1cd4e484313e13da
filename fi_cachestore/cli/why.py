"""``why``: why a call was not served from a record, and what to do about it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import click

from fi_cachestore import config
from fi_cachestore.cli.opened import directories, json_option, open_for_looking, root_option
from fi_cachestore.cli.output import note, print_json, print_lines, print_table, printable, to_json, when
from fi_cachestore.cli.records import short_type, side_json
from fi_cachestore.cli.why_advice import next_size, next_steps
from fi_cachestore.cli.why_facts import MAX_COMPARED, Asked, Explained, asked_by, explain, find_asked
from fi_cachestore.errors import ConfigError, NoSuchSessionError
from fi_cachestore.keys.diff import Difference, show
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.nearest import Near
from fi_cachestore.keys.render import render
from fi_cachestore.records.missed import MissedSession
from fi_cachestore.store.missed_log import MissedLog
from fi_cachestore.store.port import Hit

_MAX_EXPLAINED: Final = 32
_LABEL: Final = "{:<12} {}"


@click.command("why")
@click.argument("digest", required=False)
@click.option("--last", is_flag=True, help="What the last session missed, also after its process has gone.")
@click.option("--back", type=click.IntRange(min=1), default=1, show_default=True, help="With --last: which session, 1 is the newest.")
@click.option("--call", "call", help="module:function, which returns a key (fi_cachestore.tune_key) to be explained.")
@click.option("--limit", type=click.IntRange(min=1), default=3, show_default=True, help="How many of the nearest stored keys to show.")
@root_option
@json_option
def why_command(digest: str | None, last: bool, back: int, call: str | None, limit: int, root: Path | None, *, as_json: bool) -> int:  # noqa: FBT001 - click's signature
    """Say why a key is not served: the reason, its verdict, the nearest stored keys and how they differ, and what to do next.

    DIGEST is a prefix of at least four digits: of a miss that one of the last sessions kept, or of a record. Without --root, the root is
    that of the session. Exit code 0 if nothing speaks against serving (with --last: nothing was missed), else 1.
    """
    if sum((digest is not None, last, call is not None)) != 1:
        message = "one of DIGEST, --last and --call is needed"
        raise click.UsageError(message)
    state = config.load(root=root).state.value
    log = None if state is None else MissedLog(state)
    if last:
        return _explain_session(_session(log, back), root, limit, as_json=as_json)
    return _explain_one(digest, call, log, root, limit, as_json=as_json)


def _session(log: MissedLog | None, back: int) -> MissedSession:
    kept = [] if log is None else list(log.latest())
    if len(kept) < back:
        raise NoSuchSessionError(back, "" if log is None else str(log.folder), len(kept))
    return kept[back - 1]


# -- one key ----------------------------------------------------------------------------------------------------------------------


def _explain_one(digest: str | None, call: str | None, log: MissedLog | None, root: Path | None, limit: int, *, as_json: bool) -> int:
    if call is not None:
        key = _called(call)
        asked = Asked(key.digest, key)
    else:
        asked = find_asked(log, open_for_looking(root).records, digest or "")
    root = _root(root, asked.session)
    opened = open_for_looking(root)
    [found], compared_count = explain([asked], opened, directories(root), limit)
    if as_json:
        session = None if asked.session is None else _session_json(asked.session)
        content = {"root": str(opened.path), "compared_count": compared_count, "session": session, "explained": [_json(found)]}
        print_json("why/1", {**content, "in_memory": [], "beyond": []})
    else:
        print_lines(_lines(found))
        for near in found.nearest:
            print_lines(["", _LABEL.format("nearest", f"{near.key.digest[:12]}, differs in {_count(len(near.differences), 'field')}")])
            print_table(("field", "asked for", "stored"), ((row.path, show(row.left), show(row.right)) for row in near.differences))
        print_lines(_LABEL.format("next", step) for step in next_steps(found))
        note(_compared(compared_count, str(opened.path)))
    return 0 if found.reason is None else 1


def _called(text: str) -> TuneKey:
    module, colon, name = text.partition(":")
    try:
        key = getattr(importlib.import_module(module), name)() if colon else None
    except (ImportError, AttributeError) as error:
        raise ConfigError("--call", text, "argument", f"module:function ({error})") from error
    if not isinstance(key, TuneKey):
        raise ConfigError("--call", text, "argument", "module:function that returns a fi_cachestore.TuneKey")
    return key


def _root(root: Path | None, session: MissedSession | None) -> Path | None:
    """Return the root to look at: as named, else the session's own."""
    return Path(session.roots[0]) if root is None and session is not None and session.roots else root


def _lines(found: Explained) -> list[str]:
    key, missed, session = found.key, found.asked.missed, found.asked.session
    lines = [str(key.explain())] if key is not None else [_LABEL.format("key", found.asked.digest)]
    if missed is not None and session is not None:
        covered = ", another record or tactic served them" if missed.is_covered else ""
        said = missed.reason + (f" ({missed.detail})" if missed.detail else "")
        lines.append(_LABEL.format("missed", f"{said}, {_count(missed.call_count, 'different call')}{covered}; {_who(session)}"))
    detail = f" ({found.detail})" if found.detail else ""
    state = "stored" if isinstance(found.now, Hit) else "not served"
    lines.append(_LABEL.format("now", f"{state}, nothing speaks against it" if found.reason is None else f"{found.reason}{detail}"))
    if isinstance(found.now, Hit):
        lines.append(_LABEL.format("file", found.now.source))
    if (verdict := found.verdict) is not None:
        lines.append(_LABEL.format("verdict", f"{verdict.standing} for its writer's values, schema {verdict.schema[:16]}"))
    return lines


def _who(session: MissedSession) -> str:
    return f"process {session.pid} on {session.host}, mode {session.mode}, until {when(session.ended_unix_ns)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# -- a session --------------------------------------------------------------------------------------------------------------------


def _explain_session(session: MissedSession, root: Path | None, limit: int, *, as_json: bool) -> int:
    root = _root(root, session)
    opened = open_for_looking(root)
    asked = asked_by(session)
    found, compared_count = explain(asked[:_MAX_EXPLAINED], opened, directories(root), limit)
    found += [Explained(one, opened.records.get(one.digest), None, ()) for one in asked[_MAX_EXPLAINED:]]
    if as_json:
        content = {"root": str(opened.path), "compared_count": compared_count}
        print_json("why/1", {**content, **_session_content(session, found)})
    else:
        _print_session(session, found)
        note(_compared(compared_count, str(opened.path)) + ("; fi-cachestore why DIGEST shows all fields" if found else ""))
    return 1 if session.missed or session.in_memory or session.beyond else 0


def _compared(count: int, root: str) -> str:
    limit = "the first " if count >= MAX_COMPARED else ""
    return f"compared with {limit}{_count(count, 'record')} under {root}"


def _print_session(session: MissedSession, found: list[Explained]) -> None:
    columns = ("digest", "op", "runner", "bucket", "calls", "reason", "now", "next")
    if found:
        print_table(columns, map(_row, found), right=("calls",))
    if session.in_memory:
        rows = [(row.op, str(row.call_count), row.reason, "; ".join(row.gaps)) for row in session.in_memory]
        print_table(("op in memory", "calls", "reason", "what is missing"), rows, right=("calls",))
    if session.beyond:
        sizes = [(row.op, str(row.bucket), str(row.largest_size), str(row.call_count), next_size(row)) for row in session.beyond]
        print_table(("op beyond its buckets", "largest bucket", "largest size", "calls", "next"), sizes, right=("calls",))
    dropped = f", {session.dropped_count} more over the limit" if session.dropped_count else ""
    counts = f"{_count(session.decided_count, 'different call')}, {_count(len(found), 'key')} missed{dropped}"
    note(printable(f"{_who(session)}: {counts}"))


def _row(found: Explained) -> tuple[str, ...]:
    key, missed = found.key, found.asked.missed
    profile: tuple[Any, ...] = () if key is None else key.profile
    buckets = ", ".join(render(dim["bucket"]) for dim in profile if isinstance(dim, dict) and "bucket" in dim)
    return (
        found.asked.digest[:12],
        "" if key is None else key.op,
        "" if key is None else short_type(key.runner.type),
        buckets or "-",
        "" if missed is None else str(missed.call_count),
        "" if missed is None else missed.reason + (" (covered)" if missed.is_covered else ""),
        found.reason or "stored",
        "; ".join(next_steps(found)),
    )


# -- JSON -------------------------------------------------------------------------------------------------------------------------


def _session_content(session: MissedSession, found: list[Explained]) -> dict[str, Any]:
    in_memory = [{"op": m.op, "reason": m.reason, "gaps": list(m.gaps), "call_count": m.call_count} for m in session.in_memory]
    beyond = [
        {"op": b.op, "dim": b.dim, "bucket": b.bucket, "largest_size": b.largest_size, "call_count": b.call_count, "next": next_size(b)}
        for b in session.beyond
    ]
    rows = [_json(one) for one in found]
    return {"session": _session_json(session), "explained": rows, "in_memory": in_memory, "beyond": beyond}


def _session_json(session: MissedSession) -> dict[str, Any]:
    names = ("library", "host", "pid", "mode", "started_unix_ns", "ended_unix_ns", "decided_count", "dropped_count")
    return {**{name: getattr(session, name) for name in names}, "roots": list(session.roots), "missed_count": len(session.missed)}


def _json(found: Explained) -> dict[str, Any]:
    key, missed, verdict = found.key, found.asked.missed, found.verdict
    return {
        "digest": found.asked.digest,
        "op": None if key is None else key.op,
        "runner": None if key is None else key.runner.type,
        "key": None if key is None else _key_json(key),
        "missed": None
        if missed is None
        else {"reason": missed.reason, "detail": missed.detail, "call_count": missed.call_count, "is_covered": missed.is_covered},
        "is_stored": isinstance(found.now, Hit),
        "reason": found.reason,
        "detail": found.detail,
        "source": found.now.source if isinstance(found.now, Hit) else None,
        "verdict": None
        if verdict is None
        else {"schema": verdict.schema, "standing": verdict.standing, "why": verdict.why, "is_refused": verdict.is_refused},
        "nearest": [_near_json(near) for near in found.nearest],
        "next": next_steps(found),
    }


def _key_json(key: TuneKey) -> dict[str, Any]:
    return {part.name: {"value": to_json(part.value), "text": render(part.value)} for part in key.explain().parts}


def _near_json(near: Near) -> dict[str, Any]:
    return {"digest": near.key.digest, "differences": [_difference_json(row) for row in near.differences]}


def _difference_json(row: Difference) -> dict[str, Any]:
    return {"field": row.path, "asked": side_json(row.left), "stored": side_json(row.right)}
