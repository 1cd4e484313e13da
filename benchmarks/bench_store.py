"""The store beside FlashInfer's v1 file, its v2 store, SQLite, LMDB and diskcache: attach, look up, publish, pack, memory, command line.

Usage: python benchmarks/bench_store.py [--out FILE] [--scale 0.01]      (under five minutes on two cores without other work)

Everything lies in one temporary directory on a disk, so that ``fsync`` means something. Every sample of attaching
and of look-ups is taken in a process of its own; figures are medians. The files are in the page cache: they have just been written.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flashinfer.autotune_cache import ManagedAutotuneCache
from rows import Row, Series, print_table, save
from store_peers import MANIFEST, POLICY, WRITERS, fields, write_v1, write_v2
from store_records import Records, write_loose, write_packed
from store_tasks import fresh_record, run_task

from fi_cachestore.store.roots import open_root, packer_of

GROWTH = (100, 1_000, 10_000, 100_000, 1_000_000)
LIMITS = {"v1": 100_000, "v2": 10_000, "sqlite": 100_000, "lmdb": 100_000, "diskcache": 10_000}
"""How far each peer is taken: beyond, writing or reading it takes longer than all the rest."""
SAMPLES = 3
PUBLISHED = 400
RANKS = 8
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["torch", "flashinfer.autotuner", "flashinfer.autotune_cache", "fi_cachestore.adapter.attach", "store_tasks"])


class Bench:
    """The stores of all sizes, and what was asked of them."""

    def __init__(self, base: Path, scale: float) -> None:
        self.base, self.scale = base, scale
        self.sizes = sorted({self.scaled(size) for size in GROWTH})
        self.rows: list[Row] = []
        self.series: list[Series] = []
        self.times: dict[str, dict[int, float]] = {}

    def scaled(self, size: int) -> int:
        return max(30, int(size * self.scale))

    def place(self, side: str, size: int) -> Path:
        return self.base / f"{side}-{size}"

    def sides(self, size: int) -> list[str]:
        return ["ours", *(side for side, limit in LIMITS.items() if size <= self.scaled(limit))]

    def note(self, question: str, ours: float, peer: float | None, peer_name: str, unit: str, target: str = "", note: str = "") -> None:
        """Keep a row and say it, so that a run that is cut short has shown what it found."""
        self.rows.append(Row(question, ours, peer, peer_name, unit, target, note))
        sys.stderr.write("  ".join(self.rows[-1].cells()) + "\n")

    # -- making the stores --------------------------------------------------------------------------------------------------------

    def write(self) -> None:
        for size in self.sizes:
            for side in self.sides(size):
                self.write_one(side, size)

    def write_one(self, side: str, size: int) -> None:
        started = time.perf_counter()
        match side:
            case "ours":
                write_packed(self.place(side, size), size)
            case "v1":
                write_v1(self.place(side, size), size)
            case "v2":
                write_v2(self.place(side, size), size)
            case _:
                WRITERS[side](self.place(side, size), size)
        sys.stderr.write(f"{side} with {size} records written in {time.perf_counter() - started:.1f} s\n")

    # -- questions ----------------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        mib = 0.0
        for size in self.sizes:
            samples: dict[str, list[dict[str, float]]] = {side: [] for side in self.sides(size)}
            for _ in range(SAMPLES):
                for side, found in samples.items():
                    found.append(task("attach", side, self.place(side, size), size))
            for side, found in samples.items():
                self.times.setdefault(side, {})[size] = statistics.median(sample["ms"] for sample in found)
            mib = statistics.median(sample["mib"] for sample in samples["ours"])
        self.series.append(self.growth("attach and first look-up", "ms", self.times))
        middle, largest, ours = self.scaled(10_000), self.sizes[-1], self.times["ours"]
        for side, target in (("v2", ">= 500 x faster"), ("v1", ">= 20 x faster"), ("sqlite", ""), ("lmdb", ""), ("diskcache", "")):
            self.note(f"attach and first look-up, {middle:,} records: {side}", ours[middle], self.times[side][middle], side, "ms", target)
        self.note(f"attach and first look-up, {largest:,} records", ours[largest], None, "", "ms", "<= 25")
        small = self.scaled(1_000)
        self.note(f"attach and first look-up, {largest:,} records: growth", ours[largest], ours[small], f"ours, {small:,}", "ms", "<= 3 x")
        self.note(f"memory of attaching, {largest:,} records", mib, None, "", "MiB", "<= 64")

    def growth(self, question: str, unit: str, times: dict[str, dict[int, float]]) -> Series:
        lines = {side: [by_size.get(size) for size in self.sizes] for side, by_size in times.items()}
        return Series(question, "records", unit, self.sizes, lines)

    def lookups(self) -> None:
        largest = self.sizes[-1]
        found = median(task("lookups", "ours", self.place("ours", largest), largest)["us"] for _ in range(SAMPLES))
        note = "distinct records at random, decoded and checked, in a new process"
        self.note(f"look-up at random, {largest:,} records", found, None, "", "us", "<= 60", note)
        for size, sides in ((self.scaled(100_000), ("sqlite", "lmdb")), (self.scaled(10_000), ("v2", "diskcache"))):
            for side in sides:
                times = {one: [] for one in ("ours", side)}
                for _ in range(SAMPLES):
                    for one, samples in times.items():
                        samples.append(task("lookups", one, self.place(one, size), size)["us"])
                ours, theirs = (statistics.median(samples) for samples in times.values())
                self.note(f"look-up at random, {size:,} records: {side}", ours, theirs, side, "us")

    def publish(self) -> None:
        count = self.scaled(PUBLISHED) if self.scale < 1 else PUBLISHED
        records = [fresh_record(number) for number in range(count)]
        stores = {name: open_root(self.base / f"publish-{name}", durable=name == "durable").records for name in ("plain", "durable")}
        for name in stores:
            for fan_out in range(256):  # as in a root that is in use: the first record in each folder costs one more fsync
                (self.base / f"publish-{name}" / "objects" / f"{fan_out:02x}").mkdir(parents=True)
        v2 = ManagedAutotuneCache(MANIFEST, root=self.base / "publish-v2")
        sides: dict[str, Callable[[int], object]] = {
            "plain": lambda number: stores["plain"].publish(records[number]),
            "durable": lambda number: stores["durable"].publish(records[number]),
            "v2": lambda number: v2.publish(str(fields(number)), "Runner", 1, fields(number), POLICY),
            "two fsyncs": lambda number: two_fsyncs(self.base / "fsyncs", number),
        }
        samples: dict[str, list[int]] = {side: [] for side in sides}
        for number in range(count):
            for side, publish in sides.items():
                started = time.perf_counter_ns()
                publish(number)
                samples[side].append(time.perf_counter_ns() - started)
        us = {side: statistics.median(values) / 1e3 for side, values in samples.items()}
        self.note(
            "publish, not durable", us["plain"], us["v2"], "v2", "us", "<= 1.0 x", "the key is known; the record is encoded and sealed"
        )
        allowed = us["v2"] + us["two fsyncs"]
        self.note(
            "publish, durable", us["durable"], allowed, "v2 + two fsyncs", "us", "<= 1.0 x", f"two fsyncs take {us['two fsyncs']:.0f} us"
        )
        each = self.scaled(1_000)
        ours, theirs = (task("publish_many", side, self.base / f"many-{side}", RANKS, each)["per_s"] for side in ("ours", "v2"))
        question = f"publish, {RANKS} processes with {each:,} each, not durable"
        self.note(question, ours, theirs, "v2", "records/s", ">= 4000", "nothing is lost, on either side")

    def pack(self) -> None:
        count = self.scaled(100_000)
        root = self.base / "packing"
        loose_bytes = write_loose(root, count)
        packer = packer_of(root)
        started = time.perf_counter()
        done = packer.pack(packer.plan())
        took = time.perf_counter() - started
        if done.record_count != count or done.removed_count != count:
            raise SystemExit(f"{done.record_count} of {count} records were packed, {done.removed_count} files removed")
        note = "every record is checked, every file is compared with the pack before it is removed"
        self.note(f"pack {count:,} records", took, None, "", "s", "<= 20", note)
        self.note(
            f"size of a pack of {count:,}, per record", done.size_bytes / count, loose_bytes / count, "sealed record", "B", "<= 1.1 x"
        )

    def memory(self) -> None:
        largest, middle = self.sizes[-1], self.scaled(10_000)
        ours = task("rank_memory", "ours", self.place("ours", largest), largest, RANKS)["mib"]
        theirs = task("rank_memory", "v2", self.place("v2", middle), middle, RANKS)["mib"]
        note = f"ours with {largest:,} records and 100 look-ups per rank, v2 with {middle:,} entries"
        self.note(f"memory of {RANKS} ranks on one host (PSS)", ours, theirs, "v2", "MiB", "", note)

    def command_line(self) -> None:
        middle, largest = self.scaled(10_000), self.sizes[-1]
        self.note("fi-cachestore --help", seconds("--help"), seconds(None), "python -c pass", "s", "<= 0.25")
        self.note(f"ls, {middle:,} packed records", seconds("ls", "--root", self.place("ours", middle)), None, "", "s", "<= 1")
        root = self.place("ours", largest)
        self.note(f"ls --limit 20, {largest:,} packed records", seconds("ls", "--limit", 20, "--root", root), None, "", "s", "<= 1")
        prefix = Records().digest(largest // 2)[:20]
        self.note(f"show, {largest:,} packed records", seconds("show", prefix, "--root", root), None, "", "s")

    def run(self) -> None:
        for part in (self.write, self.attach, self.lookups, self.publish, self.pack, self.memory, self.command_line):
            part()


def median(values: Iterator[float]) -> float:
    return statistics.median(list(values))


def task(name: str, *arguments: object) -> dict[str, float]:
    """Run one task of ``store_tasks.py`` in a fresh process, forked from one that has imported everything and run nothing."""
    ours, theirs = FRESH.Pipe(duplex=False)
    process = FRESH.Process(target=run_task, args=(theirs, name, tuple(map(str, arguments))))
    process.start()
    theirs.close()
    try:
        found: dict[str, float] = ours.recv()
    except EOFError:
        raise SystemExit(f"{name} {arguments} failed") from None
    process.join()
    return found


def seconds(*arguments: object) -> float:
    """Return how long a command takes from start to end, the shortest of a few: what the machine does besides is not the question."""
    program = ["-c", "pass"] if arguments == (None,) else ["-m", "fi_cachestore.cli.main", *map(str, arguments)]
    times = []
    for _ in range(SAMPLES):
        started = time.perf_counter()
        subprocess.run([sys.executable, *program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - started)
    return min(times)


def two_fsyncs(directory: Path, number: int) -> None:
    """Write a file and sync it, then its directory: what a durable write costs on this disk."""
    directory.mkdir(exist_ok=True)
    descriptor = os.open(directory / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(descriptor, b"x" * 2048)
    os.fsync(descriptor)
    os.close(descriptor)
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    parser.add_argument("--scale", type=float, default=1.0, help="all sizes times this; numbers of less than 1 mean nothing")
    parser.add_argument("--dir", default="/var/tmp", help="where to work: on a disk, with three gigabytes free (default: /var/tmp)")  # noqa: S108
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.dir) as base:
        bench = Bench(Path(base), given.scale)
        bench.run()
    print_table(bench.rows)
    if given.out is not None:
        save(bench.rows, given.out, bench.series)


if __name__ == "__main__":
    main()
