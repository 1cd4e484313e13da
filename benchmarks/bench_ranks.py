"""Several ranks on one cold store, and on a warm one: ours, FlashInfer's v1 files and its v2 store. All in one run, without a GPU.

Usage: python benchmarks/bench_ranks.py [--out FILE]      (about five minutes on two cores)

Prints one JSON document and a table. Ranks are processes of a real gloo group over loopback; kernels are a sleep, so that two cores can
play eight GPUs. Wall time runs from the start of the first rank to the end of the last, with joining and the agreement at the end in
it, and without starting processes and importing. Figures are medians; the sides take turns.

Ours has the group given to the session, and one rank alone has none. v1 keeps one file per rank (``autotune(cache=...)``), v2 one store for
all ranks, both with FlashInfer's process group set (``set_autotune_process_group``). The stand-in for kernel timing takes the place
of FlashInfer's own method, in which the ranks' times are averaged; ``averaged`` stands in for that, and does what the method does.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flashinfer
import torch
import torch.distributed as dist
from flashinfer.autotune_cache import autotune_v2
from flashinfer.autotuner import (
    AutoTuner,
    DynamicTensorSpec,
    TunableRunner,
    TuningConfig,
    autotune,
    get_autotune_process_group,
    make_bucket_mapper,
    set_autotune_process_group,
)

import fi_cachestore
from fi_cachestore.testing.cpu_timing import cpu_timing

SIDES = ("ours", "v1", "v2")
RANK_COUNTS = (1, 2, 4, 8)
REPEATS = 3
STAGGER_S = 0.3
GROUP_TIMEOUT_S = 60
JOB_TIMEOUT_S = 120
BUDGET = 1.2
"""Times 1 / N of the time of one process, up to ``BUDGET_RANKS`` ranks, on equal profiles."""
BUDGET_RANKS = 4
WARM_BUDGET_S = 1.0

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "flashinfer.autotune_cache", "fi_cachestore.adapter.attach"])


@dataclass(frozen=True)
class Workload:
    """Ops that each have one profile per bucket; measuring one tactic of a profile sleeps as long as its bucket says."""

    op_count: int
    sleep_ms: Mapping[int, float]


EQUAL = Workload(2, {2**power: 55.0 for power in range(8)})
"""As long as ``bmm_fp8`` on an H200 takes per measurement (``gpu_restart.py``: 223 in 12.3 s)."""
UNEQUAL = Workload(1, {1: 20.0, 2: 30.0, 4: 40.0, 8: 50.0, 16: 60.0})
MANY = Workload(125, {2**power: 0.0 for power in range(8)})
"""1,000 keys."""


class Kernel(TunableRunner):
    """Three tactics, each of which takes as long as its bucket says."""

    def __init__(self, sleep_ms: Mapping[int, float]) -> None:
        self._sleep_ms_cache = dict(sleep_ms)  # not a parameter of the kernel

    def get_valid_tactics(self, inputs: list[Any], profile: Any) -> list[int]:
        return [0, 1, 2]

    def forward(self, inputs: list[Any], tactic: Any = -1, do_preparation: bool = False, **kwargs: Any) -> Any:
        if not do_preparation:
            time.sleep(self._sleep_ms_cache[inputs[0].shape[0]] / 1e3)
        return inputs[0]


def once(run: Callable[[], Any], _runner: TunableRunner, tactic: Any) -> float:
    """Run the kernel once; the time that counts is made up, and has no noise: what wins is not what is measured here."""
    run()
    return 2.0 if tactic == -1 else 1.0 + 0.1 * tactic


def averaged(run: Callable[[], Any], runner: TunableRunner, tactic: Any) -> float:
    """Stand-in for what FlashInfer does at the end of ``_profile_single_kernel``: the mean of the group's times, in one all-reduce."""
    time_ms, group = once(run, runner, tactic), get_autotune_process_group()
    if group is None:
        return time_ms
    tensor = torch.tensor([time_ms], dtype=torch.float64, device="cpu")
    dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor.item() / dist.get_world_size(group)


@contextlib.contextmanager
def session(side: str, root: str, rank: int, group: Any) -> Iterator[None]:
    if side == "ours":
        with fi_cachestore.autotune(root=root, group=group):
            yield
        return
    set_autotune_process_group(group)
    try:
        with autotune(True, cache=f"{root}/{rank}.json") if side == "v1" else autotune_v2(cache_root=root):
            yield
    finally:
        set_autotune_process_group(None)


def call_of(workload: Workload) -> tuple[Kernel, TuningConfig, list[Any]]:
    buckets = tuple(workload.sleep_ms)
    config = TuningConfig(dynamic_tensor_specs=(DynamicTensorSpec((0,), (0,), buckets, make_bucket_mapper(buckets)),))
    return Kernel(workload.sleep_ms), config, [torch.zeros(max(buckets), 16)]


def tune(workload: Workload) -> None:
    runner, config, inputs = call_of(workload)
    for number in range(workload.op_count):
        AutoTuner.get().choose_one(f"op{number}", [runner], config, inputs)


def get_ready(workload: Workload) -> None:
    """Import what is imported on first use, and read the source of this script's runner, as every process does once, of any side."""
    runner, config, inputs = call_of(workload)
    fi_cachestore.tune_key("op", runner, inputs, tuning_config=config)
    _ = fi_cachestore.autotune, AutoTuner.get()


@dataclass(frozen=True)
class Job:
    """What the ranks of one job do."""

    side: str
    size: int
    root: str
    workload: Workload
    stagger_s: float = 0.0
    is_group: bool = True
    """Whether the sessions hear of the group."""


def rank_of(job: Job, rank: int, meeting: str, pipe: Any) -> None:
    """Be one rank of a job; sends when it started and ended, how many measurements it made, and its CPU seconds."""
    gc.freeze()  # else a full collection of all that torch and FlashInfer hold, half a second, falls into some of the runs
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # noqa: TID251 - for gloo to read
    torch.set_num_threads(1)
    timeout = dt.timedelta(seconds=GROUP_TIMEOUT_S)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=job.size, timeout=timeout)
    group = dist.group.WORLD if job.is_group and job.size > 1 else None
    get_ready(job.workload)
    with cpu_timing(once if job.side == "ours" else averaged) as measured:
        dist.barrier()
        started = time.monotonic()
        time.sleep(rank * job.stagger_s)
        cpu_started = time.process_time()
        with session(job.side, job.root, rank, group):
            tune(job.workload)
        ended, cpu_s = time.monotonic(), time.process_time() - cpu_started
        dist.barrier()
    pipe.send({"started_s": started, "ended_s": ended, "measurement_count": len(measured), "cpu_s": cpu_s})


def run(job: Job) -> dict[str, float]:
    """Run a job; returns wall seconds, measurements and CPU seconds of all ranks together."""
    Path(job.root).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(job.size):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=rank_of, args=(job, rank, f"{folder}/meeting", theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            rows = [received(pipe, job) for pipe in pipes]
        finally:
            for process in processes:
                process.kill()  # what they had to say has been received
                process.join()
    return {
        "wall_s": max(row["ended_s"] for row in rows) - min(row["started_s"] for row in rows),
        "measurement_count": sum(row["measurement_count"] for row in rows),
        "cpu_s": sum(row["cpu_s"] for row in rows),
    }


def received(pipe: Any, job: Job) -> dict[str, float]:
    with contextlib.suppress(EOFError):
        if pipe.poll(JOB_TIMEOUT_S):
            row: dict[str, float] = pipe.recv()
            return row
    raise SystemExit(f"a rank of {job} did not end well")


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        "wall_s": round(statistics.median(run["wall_s"] for run in runs), 3),
        "measurement_count": int(max(run["measurement_count"] for run in runs)),
        "cpu_s": round(statistics.median(run["cpu_s"] for run in runs), 3),
    }


def cold(base: str, workload: Workload, stagger_s: float, rank_counts: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Tune on empty roots, for every number of ranks and every side, by turns."""
    found: dict[str, dict[str, Any]] = {}
    for size in rank_counts:
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for number in range(REPEATS):
            for side in SIDES:
                root = tempfile.mkdtemp(prefix=f"{side}-{size}-{number}-", dir=base)
                runs[side].append(run(Job(side, size, root, workload, stagger_s)))
        found[str(size)] = {side: medians(of_side) for side, of_side in runs.items()}
        sys.stderr.write(f"{size} ranks, stagger {stagger_s} s: {json.dumps(found[str(size)])}\n")
    return found


def with_ratios(found: dict[str, dict[str, Any]], alone: Mapping[str, Mapping[str, float]], stagger_s: float) -> dict[str, dict[str, Any]]:
    """Add, per side, N times the time of N ranks over the time of one, and how many times the measurements of one were made.

    Of staggered ranks the time counts from the start of the last one.
    """
    for size, sides in found.items():
        for side, row in sides.items():
            late_s = (int(size) - 1) * stagger_s
            row["time_ratio"] = round(int(size) * (row["wall_s"] - late_s) / alone[side]["wall_s"], 2)
            row["measurement_ratio"] = round(row["measurement_count"] / alone[side]["measurement_count"], 2)
    return found


def warm(base: str) -> dict[str, Any]:
    """Start 8 ranks on a full root: as a group, and as processes that know nothing of each other; the difference is coordination."""
    root = f"{base}/warm"
    filled = run(Job("ours", 1, root, MANY))
    runs: dict[str, list[dict[str, float]]] = {"group": [], "alone": []}
    for _ in range(REPEATS):
        for how, of_kind in runs.items():
            of_kind.append(run(Job("ours", max(RANK_COUNTS), root, MANY, is_group=how == "group")))
    found: dict[str, Any] = {how: medians(of_kind) for how, of_kind in runs.items()}
    found["key_count"] = len(MANY.sleep_ms) * MANY.op_count
    found["filled"] = filled["measurement_count"]
    for what in ("wall_s", "cpu_s"):
        found[f"overhead_{what}"] = round(found["group"][what] - found["alone"][what], 3)
    return found


def check(found: dict[str, Any]) -> list[str]:
    """Return what is not as it must be."""
    wrong = []
    for name in ("equal", "staggered", "unequal"):
        for size, sides in found[name].items():
            if sides["ours"]["measurement_ratio"] != 1:
                wrong.append(f"{name}, {size} ranks: {sides['ours']['measurement_count']} measurements")
    for size, sides in found["equal"].items():
        if int(size) <= BUDGET_RANKS and sides["ours"]["time_ratio"] > BUDGET:
            wrong.append(f"equal, {size} ranks: N * t_N / t_1 = {sides['ours']['time_ratio']}")
    if found["warm"]["overhead_wall_s"] > WARM_BUDGET_S:
        wrong.append(f"warm: {found['warm']['overhead_wall_s']} s of coordination")
    return wrong


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown: wall seconds, N times that over one process's, and measurements; ours, v1, v2."""
    lines = ["| ranks | " + " | ".join(f"{side}: s, N t_N / t_1, measurements" for side in SIDES) + " |", "|---|---|---|---|"]
    for name in ("equal", "staggered", "unequal"):
        for size, sides in found[name].items():
            cells = [f"{sides[s]['wall_s']:.2f}, {sides[s]['time_ratio']:.2f}, {sides[s]['measurement_count']}" for s in SIDES]
            lines.append(f"| {size}, {name} | " + " | ".join(cells) + " |")
    row = found["warm"]
    coordination = (
        f"warm start of {row['key_count']} keys, {max(RANK_COUNTS)} ranks: {row['group']['wall_s']:.2f} s as a group, "
        f"{row['alone']['wall_s']:.2f} s each for itself: {row['overhead_wall_s']:.2f} s of coordination "
        f"({row['overhead_cpu_s']:.2f} s of CPU), {row['group']['measurement_count']} measurements"
    )
    return "\n".join([*lines, "", coordination])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the document to this file")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as base:
        equal = cold(base, EQUAL, 0.0, RANK_COUNTS)
        staggered = cold(base, EQUAL, STAGGER_S, RANK_COUNTS[1:])
        unequal = cold(base, UNEQUAL, 0.0, RANK_COUNTS)
        found: dict[str, Any] = {
            "machine": {
                "cpu_count": os.cpu_count(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "flashinfer": flashinfer.__version__,
                "fi_cachestore": fi_cachestore.__version__,
            },
            "repeats": REPEATS,
            "equal": with_ratios(equal, equal["1"], 0.0),
            "staggered": with_ratios(staggered, equal["1"], STAGGER_S),
            "unequal": with_ratios(unequal, unequal["1"], 0.0),
            "warm": warm(base),
        }
    found["seconds"] = round(time.monotonic() - started)
    found["not_as_it_must_be"] = check(found)
    document = json.dumps(found, indent=2)
    sys.stdout.write(f"{document}\n\n{table(found)}\n")
    if arguments.out is not None:
        arguments.out.write_text(document + "\n")


if __name__ == "__main__":
    main()
