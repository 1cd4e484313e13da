"""A restart beside FlashInfer's v2: from a process with everything imported to the answers of four calls, which are on disk.

Usage: python benchmarks/bench_restart.py [--out FILE]      (about a minute)

Every sample is taken in a process of its own, the sides by turns; figures are medians. Both sides were tuned before; ours was started
twice, since records are served to a process that only attaches when two have agreed on them. Tactics are not executed: a stand-in for
kernel timing says which one wins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from flashinfer.autotune_cache import autotune_v2
from flashinfer.autotuner import AutoTuner, ConstraintSpec, DynamicTensorSpec, TunableRunner, TuningConfig, make_bucket_mapper

import fi_cachestore
from fi_cachestore.testing.cpu_timing import cpu_timing

sys.path.insert(0, str(Path(__file__).parent))
from rows import Row, print_table, save

SIDES = ("ours", "v2")
PROCESSES = 5
SHAPES = ((64, 1024), (64, 2048), (64, 4096), (64, 8192))


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


def runners() -> list[Any]:
    return [kind(tile=128, use_8x4_sf_layout=True) for kind in (Backend0, Backend1)]


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
    tuned, calls, settings = runners(), [inputs(*shape) for shape in SHAPES], config()
    with cpu_timing(lambda _run, _runner, tactic: 1.0 if tactic == 1 else 2.0) as measured:
        started = time.perf_counter_ns()
        with session(which, root, is_tuning=task == "tune"):
            for call in calls:
                if choose(tuned, call, settings)[1] != 1:
                    raise SystemExit(f"{which} was not served")
        return {"ms": (time.perf_counter_ns() - started) / 1e6, "measurement_count": len(measured)}


def spawn(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "worker", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{arguments} failed:\n{result.stderr[-4000:]}")
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def restarts() -> list[Row]:
    with tempfile.TemporaryDirectory() as base:
        for which in (*SIDES, "ours"):  # a second start of ours: evidence of another process
            spawn(which, f"{base}/{which}", "tune")
        samples: dict[str, list[dict[str, float]]] = {which: [] for which in SIDES}
        for _ in range(PROCESSES):
            for which in SIDES:
                samples[which].append(spawn(which, f"{base}/{which}", "serve"))
    medians = {which: statistics.median(run["ms"] for run in runs) for which, runs in samples.items()}
    counts = {which: max(run["measurement_count"] for run in runs) for which, runs in samples.items()}
    return [
        Row("restart: four calls of two runners answered", medians["ours"], medians["v2"], "v2", "ms"),
        Row("restart: measurements", counts["ours"], counts["v2"], "v2", "measurements", "<= 0"),
    ]


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        sys.stdout.write(json.dumps(restart(*sys.argv[2:])) + "\n")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    rows = restarts()
    print_table(rows)
    if arguments.out is not None:
        save(rows, arguments.out)


if __name__ == "__main__":
    main()
