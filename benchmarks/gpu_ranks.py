"""bmm_fp8 on two GPUs: one rank and two on an empty root, two on a full one, and one of each. Ours and FlashInfer's v2 in one run.

Usage: python benchmarks/gpu_ranks.py [--one-gpu] [--out FILE]      (about ten minutes on H200s; compiles FlashInfer's cuBLAS kernel first)

Prints one JSON document. Ranks are processes with a gloo group, each with a GPU of its own; with ``--one-gpu`` they share one, which shows
that it works and says nothing about time. Every start tunes cudnn and then cublas, as in ``gpu_restart.py``. v2 has FlashInfer's
process group set (``set_autotune_process_group``) and one store for both ranks. In the mixed start each rank has a root of its own,
of which the first is full: v2's ranks wait for each other until the group's timeout, which counts as ``died``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu_restart

SIDES = ("ours", "v2")
BACKENDS = ("cudnn", "cublas")
STARTS = {"cold, 1 rank": 3, "cold, 2 ranks": 3, "warm, 2 ranks": 5, "one warm, one cold": 1}
"""How many of each."""
GROUP_TIMEOUT_S = 60
START_TIMEOUT_S = 300


@contextlib.contextmanager
def session(side: str, root: str, group: Any) -> Iterator[None]:
    from flashinfer.autotune_cache import MeasurementPolicy, autotune_v2
    from flashinfer.autotuner import set_autotune_process_group

    import fi_cachestore

    policy = MeasurementPolicy(execution_mode="eager")
    if side == "ours":
        with fi_cachestore.autotune(root=root, group=group, policy=policy):
            yield
        return
    set_autotune_process_group(group)
    try:
        with autotune_v2(cache_root=root, measurement_policy=policy):
            yield
    finally:
        set_autotune_process_group(None)


def rank_of(side: str, rank: int, size: int, gpu: int, meeting: str, root: str) -> dict[str, Any]:
    """Be one rank of a start; returns when it started and ended, on the clock of the host, and how many measurements it made."""
    import flashinfer.autotune_cache
    import torch
    import torch.distributed as dist

    import fi_cachestore

    _ = fi_cachestore.autotune, flashinfer.autotune_cache.autotune_v2  # imported before the clock starts
    torch.cuda.set_device(gpu)
    timeout = dt.timedelta(seconds=GROUP_TIMEOUT_S)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timeout)
    group = dist.group.WORLD if size > 1 else None
    measured = gpu_restart.count_measurements()
    torch.zeros(1, device="cuda")
    dist.barrier()
    started = time.monotonic()
    with session(side, root, group):
        for backend in BACKENDS:
            gpu_restart.call(gpu_restart.MAX_ROWS, backend)
    torch.cuda.synchronize()
    ended = time.monotonic()
    dist.barrier()  # as engines do: what follows warm-up needs all ranks
    return {"started_s": started, "ended_s": ended, "measurement_count": len(measured), "served": served()}


def served() -> dict[str, list[float]]:
    """Return kernel times of what is served, after checking results; by backend, in the order of ``gpu_restart.ROWS``."""
    return {backend: [gpu_restart.kernel_us(rows, backend) for rows in gpu_restart.ROWS] for backend in BACKENDS}


def start(side: str, roots: Sequence[Path], *, gpu_count: int) -> dict[str, Any]:
    """Run one rank per root to its end; returns wall seconds and measurements, or that a rank died, and of what."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        logs = [stack.enter_context((folder / f"log-{rank}").open("w+")) for rank in range(len(roots))]
        ranks = []
        for rank, root in enumerate(roots):
            given = (side, rank, len(roots), rank % gpu_count, folder / "meeting", root)
            command = [sys.executable, __file__, "rank", *map(str, given)]
            ranks.append(subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=logs[rank]))
            stack.callback(ranks[-1].kill)
        deadline = began + START_TIMEOUT_S
        said = [output(process, deadline) for process in ranks]
        if None in said:
            lines = [last_line(log) for log, one in zip(logs, said, strict=True) if one is None]
            return {"died": lines, "seconds": round(time.monotonic() - began, 1)}
    rows = [row for row in said if row is not None]
    return {
        "wall_s": max(row["ended_s"] for row in rows) - min(row["started_s"] for row in rows),
        "measurement_count": [row["measurement_count"] for row in rows],
        "served_us": [row["served"] for row in rows],
    }


def output(process: subprocess.Popen[str], deadline: float) -> dict[str, Any] | None:
    """Return what a rank had to say, ``None`` where it died or had to be killed."""
    try:
        text, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    lines = [line for line in text.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1].removeprefix("RESULT ")) if process.returncode == 0 and lines else None


def last_line(log: Any) -> str:
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return lines[-1][:300] if lines else "killed after the benchmark's own limit"


def roots_for(kind: str, base: Path, side: str, number: int) -> list[Path]:
    """Return the root of each rank; the full one is that of the first cold start of two ranks."""
    full, fresh = base / f"{side}-full", base / f"{side}-{number}-{kind.replace(' ', '-')}"
    match kind:
        case "cold, 1 rank":
            return [fresh]
        case "cold, 2 ranks":
            return [full if number == 0 else fresh] * 2
        case "warm, 2 ranks":
            return [full] * 2
    return [shutil.copytree(full, fresh / "warm"), fresh / "cold"]


def measured(base: Path, gpu_count: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return every start, by its kind and side; the sides take turns."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {kind: {side: [] for side in SIDES} for kind in STARTS}
    for kind, count in STARTS.items():
        for number in range(count):
            for side in SIDES:
                one = start(side, roots_for(kind, base, side, number), gpu_count=gpu_count)
                found[kind][side].append(one)
                sys.stderr.write(f"{kind}, {side}: {json.dumps({name: one[name] for name in one if name != 'served_us'})}\n")
    return found


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return medians over starts; a start that died makes the whole kind ``died``."""
    if died := [run for run in runs if "died" in run]:
        return {"died_after_s": died[0]["seconds"], "died_of": died[0]["died"]}
    return {
        "wall_s": round(statistics.median(run["wall_s"] for run in runs), 3),
        "measurement_count": max(sum(run["measurement_count"]) for run in runs),
    }


def machine(gpu_count: int) -> dict[str, Any]:
    return {**gpu_restart.machine(), "gpu_count": gpu_count, "cpu_count": os.cpu_count()}


def main() -> None:
    if sys.argv[1:2] == ["rank"]:
        side, rank, size, gpu, meeting, root = sys.argv[2:8]
        found = rank_of(side, int(rank), int(size), int(gpu), meeting, root)
        sys.stdout.write("RESULT " + json.dumps(found) + "\n")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one-gpu", action="store_true", help="let both ranks share one GPU")
    parser.add_argument("--out", type=Path, help="also write the document to this file")
    arguments = parser.parse_args()
    gpu_count = 1 if arguments.one_gpu else 2
    gpu_restart.spawn("build")
    with tempfile.TemporaryDirectory() as base:
        runs = measured(Path(base), gpu_count)
    summaries = {kind: {side: summary(of_side) for side, of_side in sides.items()} for kind, sides in runs.items()}
    document = json.dumps({"machine": machine(gpu_count), "summary": summaries, "runs": runs}, indent=2)
    sys.stdout.write(document + "\n")
    if arguments.out is not None:
        arguments.out.write_text(document + "\n")


if __name__ == "__main__":
    main()
