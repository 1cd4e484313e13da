"""One row per question: what was asked, ours, the peer's, the ratio, the target, met or not. Every benchmark gives such rows.

A target says in words what is to hold, and is checked as it is read:

==================  =================================================
``<= 0.75 x``       ours is at most 0.75 times the peer's
``>= 500 x faster``  the peer's is at least 500 times ours
``<= 60``           ours is at most 60, in the row's unit
``>= 4000``         ours is at least 4000, in the row's unit
==================  =================================================
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

SCHEMA = "fi_cachestore.bench/1"
HERE = f"{Path(__file__).parents[1]}{os.sep}"
"""The repository, which is somewhere else for everybody."""
_TARGET = re.compile(r"(<=|>=) ([0-9.]+)( x| x faster)?")
_COLUMNS = ("what", "ours", "peer", "ratio", "target", "met")


@dataclass(frozen=True)
class Row:
    """One question and its answer. Without a peer, ``peer`` is ``None``; without a target, ``target`` is empty and nothing is to be met."""

    question: str
    ours: float
    peer: float | None
    peer_name: str
    unit: str
    target: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        found = _TARGET.fullmatch(self.target)
        if self.target and (found is None or (found[3] and self.peer is None)):
            message = f"{self.question}: not a target that can be checked: {self.target!r}"
            raise ValueError(message)

    @property
    def ratio(self) -> float | None:
        """Ours over the peer's."""
        return None if not self.peer else self.ours / self.peer

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` without one."""
        if not self.target:
            return None
        sign, limit, kind = _TARGET.fullmatch(self.target).groups()  # type: ignore[union-attr]
        peer = 0.0 if self.peer is None else self.peer
        found = {None: self.ours, " x": self.ours / peer if peer else 0.0, " x faster": peer / self.ours if self.ours else 0.0}[kind]
        return found <= float(limit) if sign == "<=" else found >= float(limit)

    def cells(self) -> tuple[str, ...]:
        """Return the row as a line of the table."""
        verdict = {None: "", True: "met", False: "missed"}[self.met]
        peer = "" if self.peer is None else f"{number(self.peer)} {self.unit} ({self.peer_name})"
        ratio = "" if self.ratio is None else number(self.ratio)
        return (self.question, f"{number(self.ours)} {self.unit}", peer, ratio, self.target, verdict)


@dataclass(frozen=True)
class Series:
    """How an answer grows: ``lines`` has, by side, one value per entry of ``xs``, ``None`` where a side was not asked."""

    question: str
    x_name: str
    unit: str
    xs: Sequence[float]
    lines: Mapping[str, Sequence[float | None]]


def number(value: float) -> str:
    """Return three digits that count."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3 if abs(value) >= 0.1 else 5
    return f"{value:,.{digits}f}"


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table, as it stands in ``docs/benchmarks.md``."""
    lines = [_COLUMNS, tuple("---" for _ in _COLUMNS), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    padded = [[cell.ljust(width, "-" if cell == "---" else " ") for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def print_table(rows: Sequence[Row]) -> None:
    """Print the table, the notes below it, and how many targets are met."""
    print(table(rows))
    for row in rows:
        if row.note:
            print(f"\n{row.question}: {row.note}")
    judged = [row for row in rows if row.met is not None]
    print(f"\n{sum(bool(row.met) for row in judged)} of {len(judged)} targets met")


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: processor, Python, releases."""
    processor = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    releases = {name: metadata.version(name) for name in ("torch", "flashinfer-python", "msgpack")}
    return {"cpu": processor, "cpu_count": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(), **releases}


def save(rows: Sequence[Row], path: Path, series: Sequence[Series] = ()) -> None:
    """Write the rows, and what grows, as one JSON document, with the machine and the command as it is given in the repository."""
    found = [asdict(row) | {"ratio": row.ratio, "met": row.met} for row in rows]
    document = {
        "schema": SCHEMA,
        "command": [argument.removeprefix(HERE) for argument in sys.argv],
        "machine": machine(),
        "rows": found,
        "series": [asdict(one) for one in series],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def load(path: Path) -> tuple[list[Row], list[Series]]:
    """Return the rows and the series that ``save`` wrote."""
    document = json.loads(path.read_text())
    if document["schema"] != SCHEMA:
        message = f"{path}: not rows of a benchmark"
        raise ValueError(message)
    derived = ("ratio", "met")
    rows = [Row(**{name: value for name, value in row.items() if name not in derived}) for row in document["rows"]]
    return rows, [Series(**one) for one in document["series"]]
