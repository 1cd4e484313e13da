"""What can be compared with FlashInfer without a GPU: a restart, and publishing. Both sides in one run. Look-ups: bench_lookup.py.

Usage: python benchmarks/cpu.py [--out FILE]      (about a minute)

Prints one JSON document. Every sample of a restart is taken in a process of its own, the sides by turns; figures are
medians. Tactics are not executed: a stand-in for kernel timing says which one wins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flashinfer
import torch
from flashinfer.autotune_cache import ManagedAutotuneCache, autotune_v2
from flashinfer.autotuner import AutoTuner, ConstraintSpec, DynamicTensorSpec, TunableRunner, TuningConfig, make_bucket_mapper

import fi_cachestore
from fi_cachestore.records.record import Record
from fi_cachestore.store.loose import LooseStore
from fi_cachestore.testing.cpu_timing import cpu_timing
from fi_cachestore.testing.samples import sample_record

SIDES = ("ours", "v2")
PROCESSES = 5
SHAPES = ((64, 1024), (64, 2048), (64, 4096), (64, 8192))
PUBLISHED_COUNT = 200


class Runner(TunableRunner):
    """A backend with the parameters of a block-scaled GEMM."""

    def __init__(self, *, tile: int, use_8x4_sf_layout: bool) -> None:
        self.tile, self.use_8x4_sf_layout = tile, use_8x4_sf_layout

    def get_valid_tactics(self, inputs: list[Any], profile: Any) -> list[int]:
        return [0, 1, 2]

    def get_cache_key_extras(self, inputs: list[Any]) -> tuple[Any, ...]:
        return (inputs[1].shape[0], self.tile, self.use_8x4_sf_layout)

    def forward(self, inputs: list[Any], tactic: Any = -1, do_preparation: bool = False, **kwargs: Any) -> Any:
        return inputs[0]


class Backend0(Runner):
    pass


class Backend1(Runner):
    pass


class Backend2(Runner):
    pass


class Backend3(Runner):
    pass


def runners(count: int) -> list[Any]:
    return [kind(tile=128, use_8x4_sf_layout=True) for kind in (Backend0, Backend1, Backend2, Backend3)[:count]]


def inputs(rows: int, depth: int) -> list[Any]:
    """Return eight inputs: activations, weights, their scales, an output, two scalars and nothing."""
    make = torch.zeros
    return [make(rows, depth), make(256, depth), make(rows, 8), make(256, 8), make(rows, 256), make(1), make(1), None]


def config() -> Any:
    buckets = (1, 16, 64, 256)
    rows = tuple(ConstraintSpec(index, 0, lambda shapes: shapes[0][0]) for index in (2, 4))
    return TuningConfig(dynamic_tensor_specs=(DynamicTensorSpec((0,), (0,), buckets, make_bucket_mapper(buckets)),), constraint_specs=rows)


@contextlib.contextmanager
def session(which: str, root: str, *, is_tuning: bool) -> Iterator[None]:
    if which == "ours":
        if is_tuning:
            with fi_cachestore.autotune(root=root):
                yield
        else:
            fi_cachestore.attach(root=root)
            yield
    else:
        with autotune_v2(mode="tune" if is_tuning else "replay", cache_root=root):
            yield


def choose(tuned: list[Any], call: list[Any], settings: Any) -> tuple[Any, Any]:
    chosen: tuple[Any, Any] = AutoTuner.get().choose_one("bench_op", tuned, settings, call)
    return chosen


def restart(which: str, root: str, task: str) -> dict[str, float]:
    """Milliseconds from a process with everything imported to the answer of every shape, once."""
    _ = fi_cachestore.attach, fi_cachestore.autotune  # imported on first use: before the clock starts
    tuned, calls, settings = runners(2), [inputs(*shape) for shape in SHAPES], config()
    with cpu_timing(lambda _run, _runner, tactic: 1.0 if tactic == 1 else 2.0) as measured:
        started = time.perf_counter_ns()
        with session(which, root, is_tuning=task == "tune"):
            for call in calls:
                if choose(tuned, call, settings)[1] != 1:
                    raise SystemExit(f"{which} was not served")
        return {"ms": (time.perf_counter_ns() - started) / 1e6, "measurement_count": len(measured)}


def publish() -> dict[str, float]:
    """Microseconds to publish one record, by turns, with two fsyncs in the same directory as the measure of what durable must cost."""
    samples: dict[str, list[int]] = {}

    def took(side: str, started: int) -> None:
        samples.setdefault(side, []).append(time.perf_counter_ns() - started)

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as base:
        stores = {
            side: LooseStore(Path(base) / side, "records", Record, durable=side == "ours_durable") for side in ("ours", "ours_durable")
        }
        v2 = ManagedAutotuneCache({"gpu": "none"}, root=Path(base) / "v2")
        for number in range(PUBLISHED_COUNT):
            record, fields = sample_record(number), ("bench_op", "Runner", ((64, 1024), (256, 1024)), (number, 128, True))
            for side, store in stores.items():
                started = time.perf_counter_ns()
                store.publish(record)
                took(side, started)
            started = time.perf_counter_ns()
            v2.publish(str(fields), "Runner", 1, fields, ("eager", "hot", 1, "events"))
            took("v2", started)
            started = time.perf_counter_ns()
            two_fsyncs(Path(base) / "fsyncs", number)
            took("two_fsyncs", started)
    return {side: round(statistics.median(values) / 1e3, 1) for side, values in samples.items()}


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


def spawn(task: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "worker", task, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{task} {arguments} failed:\n{result.stderr[-4000:]}")
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def restarts() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as base:
        for which in SIDES:
            spawn("restart", which, f"{base}/{which}", "tune")
        samples: dict[str, list[dict[str, float]]] = {which: [] for which in SIDES}
        for _ in range(PROCESSES):
            for which in SIDES:
                samples[which].append(spawn("restart", which, f"{base}/{which}", "serve"))
    medians = {which: statistics.median(run["ms"] for run in runs) for which, runs in samples.items()}
    return {
        **{f"{which}_ms": round(value, 2) for which, value in medians.items()},
        "ratio": round(medians["ours"] / medians["v2"], 2),
        "measurement_count": {which: max(int(run["measurement_count"]) for run in runs) for which, runs in samples.items()},
    }


def machine() -> dict[str, Any]:
    return {
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "flashinfer": flashinfer.__version__,
        "fi_cachestore": fi_cachestore.__version__,
    }


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        task = {"restart": restart}[sys.argv[2]]
        sys.stdout.write(json.dumps(task(*sys.argv[3:])) + "\n")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the document to this file")
    arguments = parser.parse_args()
    found = {"machine": machine(), "restart_4_calls": restarts(), "publish_us": publish()}
    document = json.dumps(found, indent=2)
    sys.stdout.write(document + "\n")
    if arguments.out is not None:
        arguments.out.write_text(document + "\n")


if __name__ == "__main__":
    main()
