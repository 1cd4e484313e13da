"""All benchmarks that need no GPU, one after the other: one table of every question, and one plot per question that has more than a number.

Usage: python benchmarks/run.py [--only NAME] [--docs]      (``make bench``; under ten minutes on two cores without other work)

Prints the table. With ``--docs`` the rows also go to ``benchmarks/results/NAME.json``, the table into ``docs/benchmarks.md`` between its
two marks, and the plots to ``docs/plots``. Exit code 1 where a benchmark failed; a target that is missed is said in the table and
fails nothing.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rows import Row, Series, load, print_table, table

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SCRIPTS = ("bench_trust", "bench_lookup", "bench_restart", "bench_store")  # what a busy disk disturbs before what keeps one busy
_MARKED = re.compile(r"(<!-- table begins -->\n).*?(<!-- table ends -->\n)", re.DOTALL)
_GROUP = re.compile(r"[:,(]")


def measure(name: str, out: Path) -> bool:
    """Run one benchmark with its own output on stderr; return whether it ended well."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), "--out", str(out)], stdout=sys.stderr, check=False)
    sys.stderr.write(f"{name}: {time.monotonic() - started:.0f} s\n")
    return done.returncode == 0 and out.exists()


def file_name(question: str) -> str:
    """Return a question as the name of its plot."""
    return re.sub(r"[^a-z0-9]+", "-", question.lower()).strip("-") + ".svg"


def draw_bars(title: str, rows: Sequence[Row], path: Path) -> None:
    """Draw ours beside the peer's, shorter is better; only for rows in one unit that have a peer."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.42 * len(rows)))
    places = range(len(rows))
    axes.barh([place + 0.2 for place in places], [row.ours for row in rows], height=0.38, label="fi_cachestore", color="#1b7837")
    axes.barh([place - 0.2 for place in places], [row.peer or 0.0 for row in rows], height=0.38, label="peer", color="#bdbdbd")
    axes.set_yticks(list(places), [f"{row.question.removeprefix(title).lstrip(' :,')} ({row.peer_name})" for row in rows], fontsize=8)
    axes.invert_yaxis()
    values = [value for row in rows for value in (row.ours, row.peer) if value]
    if values and max(values) > 30 * min(values):
        axes.set_xscale("log")
    axes.set_xlabel(rows[0].unit)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def draw_growth(series: Series, path: Path) -> None:
    """Draw one line per side over what grows, both axes logarithmic."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    for name, values in series.lines.items():
        points = [(x, y) for x, y in zip(series.xs, values, strict=True) if y]
        axes.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=2 if name.startswith("ours") else 1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(series.x_name)
    axes.set_ylabel(series.unit)
    axes.set_title(series.question, fontsize=10)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def save_figure(figure: object, path: Path) -> None:
    from matplotlib import pyplot as plt

    plt.tight_layout()
    figure.savefig(path, metadata={"Date": None})  # type: ignore[attr-defined]
    plt.close(figure)  # type: ignore[arg-type]


def grouped(rows: Sequence[Row]) -> Mapping[tuple[str, str], list[Row]]:
    """Return the rows that have a peer, by what their questions begin with and their unit."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.peer is not None and math.isfinite(row.peer):
            found.setdefault((_GROUP.split(row.question)[0].strip(), row.unit), []).append(row)
    return found


def draw(rows: Sequence[Row], series: Sequence[Series], folder: Path) -> list[str]:
    """Draw every question; return the names of the files."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "fi_cachestore"  # the same numbers give the same file
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    names = []
    for (title, _), of_title in grouped(rows).items():
        names.append(file_name(of_title[0].question if len(of_title) == 1 else title))
        draw_bars(title, of_title, folder / names[-1])
    for one in series:
        names.append(file_name(one.question))
        draw_growth(one, folder / names[-1])
    return names


def write_docs(rows: Sequence[Row], names: Sequence[str]) -> None:
    """Put table, notes and plots between the marks of ``docs/benchmarks.md``."""
    notes = [f"- {row.question}: {row.note}" for row in rows if row.note]
    judged = [row for row in rows if row.met is not None]
    met = f"{sum(bool(row.met) for row in judged)} of {len(judged)} targets met."
    plots = [f"![{name.removesuffix('.svg')}](plots/{name})" for name in names]
    body = "\n\n".join(part for part in (table(rows), met, "\n".join(notes), "\n\n".join(plots)) if part)
    page = DOCS / "benchmarks.md"
    text, count = _MARKED.subn(lambda marks: f"{marks[1]}\n{body}\n\n{marks[2]}", page.read_text())
    if count != 1:
        raise SystemExit(f"{page}: the marks of the table are not there once")
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SCRIPTS, action="append", help="run these only")
    parser.add_argument("--docs", action="store_true", help="also write results, table and plots into the repository")
    arguments = parser.parse_args()
    failed: list[str] = []
    rows: list[Row] = []
    series: list[Series] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only or SCRIPTS:
            out = (HERE / "results" if arguments.docs else Path(scratch)) / f"{name}.json"
            if not measure(name, out):
                failed.append(name)
                continue
            of_script = load(out)
            rows += of_script[0]
            series += of_script[1]
    print_table(rows)
    if arguments.docs:
        write_docs(rows, draw(rows, series, DOCS / "plots"))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
