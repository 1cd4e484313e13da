"""One eager call on a GPU with our tuner attached beside the same call with FlashInfer's own: mm_bf16 and bmm_fp8, both tuned before.

Usage: python benchmarks/gpu_hot_path.py [FILE]      (under three minutes on an H200; compiles FlashInfer's cuBLAS kernels first)

Prints one JSON document, and writes it to FILE. Each side is timed in a process of its own,
five pairs of processes by turns; a sample is the time of a run of calls on the host, with one synchronisation at its end, and a process
gives the median of its samples. The matrices are small, so that the host is what takes the time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAIRS = 5
SAMPLES, CALLS = 15, 200
SIDES = ("theirs", "ours")
ROWS, DEPTH, COLUMNS = 16, 1024, 1024


def calls() -> dict[str, Callable[[], Any]]:
    """Return the calls by name. Nothing is allocated in them but what FlashInfer allocates."""
    import flashinfer
    import torch

    generator = torch.Generator("cuda").manual_seed(1)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, device="cuda", generator=generator)

    a, b = normal(ROWS, DEPTH).bfloat16(), normal(COLUMNS, DEPTH).bfloat16().T
    a8 = normal(1, ROWS, DEPTH).to(torch.float8_e4m3fn)
    b8 = normal(1, COLUMNS, DEPTH).to(torch.float8_e4m3fn).transpose(-2, -1)
    scale, other_scale = torch.ones(1, device="cuda"), torch.ones(1, device="cuda")
    out, out8 = (
        torch.empty(ROWS, COLUMNS, device="cuda", dtype=torch.bfloat16),
        torch.empty(1, ROWS, COLUMNS, device="cuda", dtype=torch.bfloat16),
    )
    return {
        "mm_bf16 cublaslt": lambda: flashinfer.mm_bf16(a, b, out=out, backend="cublaslt"),
        "bmm_fp8 cublas": lambda: flashinfer.bmm_fp8(a8, b8, scale, other_scale, torch.bfloat16, out=out8, backend="cublas"),
        "bmm_fp8 auto": lambda: flashinfer.bmm_fp8(a8, b8, scale, other_scale, torch.bfloat16, out=out8, backend="auto"),
    }


def measure(which: str, root: str) -> dict[str, Any]:
    """Tune, then return the microseconds per call of every call that works here, and whether our memory answered it."""
    import torch
    from flashinfer.autotuner import AutoTuner, autotune

    import fi_cachestore

    tuning = fi_cachestore.autotune(root=root) if which == "ours" else autotune(tune_mode=True)
    found: dict[str, Any] = {}
    made = calls()
    with tuning:
        for name, call in list(made.items()):
            try:
                call()
            except Exception as error:  # noqa: BLE001 - a backend that this machine lacks is said, not measured
                found[name] = {"skipped": f"{type(error).__name__}: {error}"[:200]}
                del made[name]
    torch.cuda.synchronize()
    for name, call in made.items():
        for _ in range(CALLS):
            call()
        samples = []
        for _ in range(SAMPLES):
            torch.cuda.synchronize()
            started = time.perf_counter_ns()
            for _ in range(CALLS):
                call()
            torch.cuda.synchronize()
            samples.append((time.perf_counter_ns() - started) / CALLS / 1e3)
        found[name] = {"us": round(statistics.median(samples), 3)}
    if which == "ours":
        found["remembered_count"] = len(AutoTuner.get().state.memo)
    return found


def spawn(which: str, root: str) -> dict[str, Any]:
    result = subprocess.run([sys.executable, __file__, "worker", which, root], capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    if result.returncode != 0 or not lines:
        raise SystemExit(f"{which} failed:\n{result.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    sys.stderr.write(f"{which}: {json.dumps(found)}\n")
    return found


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return, by call, the medians over processes, and ours over theirs: of the medians, and pair by pair."""
    found: dict[str, Any] = {}
    for name in [name for name, row in runs["theirs"][0].items() if "us" in row]:
        us = {which: [run[name]["us"] for run in runs[which]] for which in SIDES}
        medians = {which: statistics.median(values) for which, values in us.items()}
        pairs = [round(ours / theirs, 3) for ours, theirs in zip(us["ours"], us["theirs"], strict=True)]
        found[name] = {f"{which}_us": value for which, value in medians.items()}
        found[name] |= {"ratio": round(medians["ours"] / medians["theirs"], 3), "ratio_of_pairs": pairs}
    return found


def machine() -> dict[str, str]:
    import flashinfer
    import torch

    return {"gpu": torch.cuda.get_device_name(), "flashinfer": flashinfer.__version__, "torch": torch.__version__}


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        sys.stdout.write("RESULT " + json.dumps(measure(*sys.argv[2:4])) + "\n")
        return
    runs: dict[str, list[dict[str, Any]]] = {which: [] for which in SIDES}
    with tempfile.TemporaryDirectory() as root:
        spawn("ours", root)  # compiles and loads everything, and measures what is published for the others
        for _ in range(PAIRS):
            for which in SIDES:
                runs[which].append(spawn(which, root))
    document = json.dumps({"machine": machine(), "summary": summary(runs), "runs": runs}, indent=2)
    sys.stdout.write(document + "\n")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(document + "\n")


if __name__ == "__main__":
    main()
