"""Where output goes: tables for people, JSON with raw units for programs, one kind per run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fi_cachestore.errors import CacheStoreError
from fi_cachestore.keys.canonical import Named, Value

_MAX_FITTED_ROWS = 500  # fitting costs a millisecond per row


def to_json(value: Value) -> Any:
    """Return a key's or record's value as JSON; what JSON lacks is spelled out: ``{"tuple": [...]}``, ``{"kind": ..., "content": ...}``."""
    match value:
        case Named():
            return {"kind": value.kind, "content": to_json(value.content)}
        case tuple():
            return {"tuple": [to_json(item) for item in value]}
        case list():
            return [to_json(item) for item in value]
        case bytes():
            return {"bytes": value.hex()}
        case float() if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN
            return {"float": value.hex()}
        case dict() if all(type(key) is str for key in value):
            return {key: to_json(item) for key, item in value.items()}
        case dict():
            return {"pairs": [[to_json(key), to_json(item)] for key, item in value.items()]}
    return value


def print_json(schema: str, content: Mapping[str, Any]) -> None:
    """Print one JSON document with its schema's name."""
    sys.stdout.write(json.dumps({"schema": f"fi_cachestore.{schema}", **content}, indent=2) + "\n")


def print_error(error: CacheStoreError, *, as_json: bool) -> None:
    """Print an error for people on stderr; with ``as_json`` also its fields on stdout, so that programs always get a document."""
    if as_json:
        fields = {name: item if isinstance(item, str | int) else str(item) for name, item in vars(error).items()}
        print_json("error/1", {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code, "fields": fields})
    note(f"error: {error}")


def note(text: str) -> None:
    """Say something beside the data."""
    sys.stderr.write(f"{text}\n")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of data."""
    sys.stdout.writelines("\n".join(map(printable, line.split("\n"))) + "\n" for line in lines)


def printable(text: str) -> str:
    """Return ``text`` with control characters spelled out: what a cache directory holds must not steer a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print rows as a table; on a terminal it fits the width, in a pipe nothing is cut, and neither in a table of very many rows."""
    cells = [tuple(map(printable, row)) for row in rows]
    if sys.stdout.isatty() and len(cells) <= _MAX_FITTED_ROWS:
        _print_fitted(columns, cells, right)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    places = [f"{{:{'>' if name in right else '<'}{width}}}" for name, width in zip(columns, widths, strict=True)]
    line = ("  ".join(places)).format
    print_lines([line(*columns).rstrip(), "  ".join("-" * width for width in widths)])
    sys.stdout.writelines(line(*row).rstrip() + "\n" for row in cells)


def _print_fitted(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(soft_wrap=False).print(table)


def time_text(time_ns: int | None) -> str:
    """Return a kernel's time for people."""
    if time_ns is None:
        return "-"
    micro = time_ns / 1e3
    return f"{micro:.2f} us" if micro < 1e3 else f"{micro / 1e3:.2f} ms"  # noqa: PLR2004 - a thousand


def when(unix_ns: int) -> str:
    """Return a wall-clock time for people."""
    try:
        return datetime.fromtimestamp(unix_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{unix_ns} ns"
