"""bmm_fp8 on one GPU: tune cudnn, then cublas, then auto; restart; and time what is served. Ours and FlashInfer's v2 in one run.

Usage: python benchmarks/gpu_restart.py [--out FILE]      (about five minutes on an H200; compiles FlashInfer's cuBLAS kernel first)

Prints one JSON document. Each start is a process of its own; cold starts (on empty roots) and warm ones alternate and are reported by
their medians. Bytecode is compiled first, as installing does. Kernel times are medians of CUDA graph replays.

Tuning uses the eager measurement policy: timing cuDNN tactics under graph capture has left torch's random generator unusable on this
kind of machine.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEPTH = COLUMNS = 4096
MAX_ROWS = 512
ROWS = (1, 16, 64, 128, 256, 512)
BACKENDS = ("cudnn", "cublas", "auto")
SIDES = ("v2", "ours")
COLD_STARTS = ("v2", "ours", "ours", "v2")
WARM_STARTS = 7
CALLS_PER_GRAPH, REPLAYS = 20, 50


def inputs(rows: int) -> tuple[Any, ...]:
    import torch

    generator = torch.Generator("cuda").manual_seed(rows)
    a = torch.randn(1, rows, DEPTH, device="cuda", generator=generator).to(torch.float8_e4m3fn)
    b = torch.randn(1, COLUMNS, DEPTH, device="cuda", generator=generator).to(torch.float8_e4m3fn).transpose(-2, -1)
    scale = torch.ones(1, device="cuda")
    return a, b, scale, scale, torch.bfloat16


def call(rows: int, backend: str) -> Any:
    import flashinfer

    return flashinfer.bmm_fp8(*inputs(rows), backend=backend)


@contextlib.contextmanager
def session(which: str, root: str) -> Iterator[None]:
    from flashinfer.autotune_cache import MeasurementPolicy, autotune_v2

    policy = MeasurementPolicy(execution_mode="eager")
    if which != "v2":
        import fi_cachestore

        with fi_cachestore.autotune(root=root, policy=policy):
            yield
    else:
        with autotune_v2(cache_root=root, measurement_policy=policy):
            yield


def count_measurements() -> list[Any]:
    from flashinfer.autotuner import AutoTuner

    measured: list[Any] = []
    real = AutoTuner._profile_single_kernel  # noqa: SLF001 - counted on the class, so that both tuners are

    def counted(self: Any, runner: Any, inputs: Any, tactic: Any, tuning_config: Any, *args: Any, **kwargs: Any) -> float:
        measured.append((type(runner).__name__, str(tactic)))
        return real(self, runner, inputs, tactic, tuning_config, *args, **kwargs)

    AutoTuner._profile_single_kernel = counted  # type: ignore[method-assign]  # noqa: SLF001
    return measured


def start(which: str, root: str) -> dict[str, Any]:
    """Tune what is missing, as an engine does at its start; returns seconds and measurements per backend."""
    import torch

    measured = count_measurements()
    torch.zeros(1, device="cuda")
    rows: dict[str, Any] = {}
    for backend in BACKENDS:
        before, started = len(measured), time.perf_counter()
        with session(which, root):
            call(MAX_ROWS, backend)
        torch.cuda.synchronize()
        rows[backend] = {"seconds": time.perf_counter() - started, "measurement_count": len(measured) - before}
    return {"tuning": rows, "kernel_us": kernel_times()}


def kernel_times() -> dict[str, dict[str, float]]:
    return {str(rows): {backend: kernel_us(rows, backend) for backend in BACKENDS} for rows in ROWS}


def kernel_us(rows: int, backend: str) -> float:
    """Return the median time of one call inside a replayed CUDA graph, and check the result."""
    import flashinfer
    import torch

    a, b, scale, _, dtype = given = inputs(rows)
    out = torch.empty(1, rows, COLUMNS, device="cuda", dtype=dtype)
    for _ in range(3):
        flashinfer.bmm_fp8(*given, out=out, backend=backend)
    torch.cuda.synchronize()
    exact = (a.double() @ b.double()) * scale.double() ** 2
    error = ((out.double() - exact).norm() / exact.norm()).item()
    if not error < 1e-2:
        message = f"wrong result: {backend}, M={rows}, relative error {error}"
        raise SystemExit(message)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS_PER_GRAPH):
            flashinfer.bmm_fp8(*given, out=out, backend=backend)
    samples = []
    for _ in range(REPLAYS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        samples.append(first.elapsed_time(last) * 1e3 / CALLS_PER_GRAPH)
    return round(statistics.median(samples), 3)


def build() -> dict[str, Any]:
    """Compile and load what the calls need, so that no start pays for it."""
    started = time.perf_counter()
    for name in ("cudnn", "flashinfer", "fi_cachestore"):
        compileall.compile_dir(str(Path(str(importlib.import_module(name).__file__)).parent), quiet=2)
    for backend in ("cublas", "cudnn"):
        call(16, backend)
    return {"seconds": time.perf_counter() - started}


def worker(task: str, which: str, root: str) -> None:
    sys.stdout.write("RESULT " + json.dumps(build() if task == "build" else start(which, root)) + "\n")


def spawn(task: str, which: str = "-", root: str = "-") -> dict[str, Any]:
    command = [sys.executable, __file__, "worker", task, which, root]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    if result.returncode != 0 or not lines:
        raise SystemExit(f"{task} {which} failed:\n{result.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    sys.stderr.write(f"{task} {which}: {json.dumps(found.get('tuning', found))}\n")
    return found


def machine() -> dict[str, str]:
    import flashinfer
    import torch

    import fi_cachestore

    return {
        "gpu": torch.cuda.get_device_name(),
        "flashinfer": flashinfer.__version__,
        "fi_cachestore": fi_cachestore.__version__,
        "torch": torch.__version__,
        "cudnn": str(torch.backends.cudnn.version()),
    }


def total(run: dict[str, Any], what: str) -> float:
    return sum(float(row[what]) for row in run["tuning"].values())


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Return medians over starts, and how far ``auto`` is from the better backend, at the worst number of rows."""
    found: dict[str, Any] = {}
    for which in SIDES:
        cold, warm = runs[which]["cold"], runs[which]["warm"]
        us = {
            rows: {backend: statistics.median(run["kernel_us"][rows][backend] for run in warm) for backend in BACKENDS}
            for rows in warm[0]["kernel_us"]
        }
        found[which] = {
            "cold_s": round(statistics.median(total(run, "seconds") for run in cold), 3),
            "cold_measurement_count": max(int(total(run, "measurement_count")) for run in cold),
            "warm_s": round(statistics.median(total(run, "seconds") for run in warm), 3),
            "warm_measurement_count": max(int(total(run, "measurement_count")) for run in warm),
            "kernel_us": us,
            "auto_over_better_backend": round(max(t["auto"] / min(t["cudnn"], t["cublas"]) for t in us.values()), 3),
        }
    return {**found, "warm_ratio": round(found["ours"]["warm_s"] / found["v2"]["warm_s"], 3)}


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the document to this file")
    arguments = parser.parse_args()
    runs: dict[str, Any] = {"build": spawn("build")} | {which: {"cold": [], "warm": []} for which in SIDES}
    with tempfile.TemporaryDirectory() as base:
        for number, which in enumerate(COLD_STARTS):
            runs[which]["cold"].append(spawn("start", which, f"{base}/{which}" if not runs[which]["cold"] else f"{base}/{number}"))
        for _ in range(WARM_STARTS):
            for which in SIDES:
                runs[which]["warm"].append(spawn("start", which, f"{base}/{which}"))
    document = json.dumps({"machine": machine(), "summary": summary(runs), "runs": runs}, indent=2)
    sys.stdout.write(document + "\n")
    if arguments.out is not None:
        arguments.out.write_text(document + "\n")


if __name__ == "__main__":
    main()
