"""Where the time goes in what the store's targets miss: attaching, look-ups at random, and listing. By function, under a profiler.

Usage: python benchmarks/profile_store.py      (half a minute; the profiler about doubles what Python functions cost)
"""

from __future__ import annotations

import cProfile
import io
import logging
import pstats
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import fi_cachestore
from fi_cachestore.cli.main import cli
from fi_cachestore.store.open import open_store

sys.path.insert(0, str(Path(__file__).parent))
from store_records import Records, write_packed

COUNT = 10_000
SHOWN = 14


@contextmanager
def profiled(title: str) -> Iterator[None]:
    """Print the functions that take most of a block's time themselves."""
    profiler, text = cProfile.Profile(), io.StringIO()
    profiler.enable()
    yield
    profiler.disable()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(SHOWN)
    lines = [line for line in text.getvalue().splitlines() if line.strip() and "Ordered by" not in line]
    print(f"== {title}", *lines, sep="\n", end="\n\n")


def attach(root: Path) -> Callable[[], Any]:
    with tempfile.TemporaryDirectory() as empty:
        fi_cachestore.attach(root=empty).detach()  # probes and contracts, which both sides of the benchmark have seen to before
    return lambda: fi_cachestore.attach(root=root)


def main() -> None:
    logging.disable(logging.WARNING)
    records = Records()
    with tempfile.TemporaryDirectory() as base:
        root = Path(base)
        write_packed(root, COUNT)
        attaching = attach(root)
        with profiled(f"attach to {COUNT:,} packed records and look one up"):
            handle = attaching()
            handle._attached.session.find(records.digest(1))  # noqa: SLF001 - what a call's look-up does
        handle.detach()
        store, digests = open_store(root, read_only=True), [records.digest(number) for number in range(0, COUNT, 2)]
        with profiled(f"{len(digests):,} look-ups of distinct records"):
            for digest in digests:
                store.get(digest)
        with profiled(f"ls of {COUNT:,} packed records"), redirect_stdout(io.StringIO()):
            cli.main(["ls", "--root", str(root)], standalone_mode=False)


if __name__ == "__main__":
    main()
