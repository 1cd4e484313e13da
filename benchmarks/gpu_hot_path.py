"""One eager call on a GPU with our tuner attached beside the same call with FlashInfer's own: mm_bf16 and bmm_fp8, both tuned before.

Usage: python benchmarks/gpu_hot_path.py [FILE]      (three to six minutes on an H100; compiles FlashInfer's cuBLAS kernels first)

Prints one JSON document, and writes it to FILE. Both sides are timed by turns in one process, whose speed differs from that of the
next one by more than they do: a sample is the time of a run of calls on the host, with one synchronisation at its end. Each of
five processes is a pair: the medians of its samples of either side, and of the ratios of samples made one after the other; and
medians of the look-up alone. Ours come from records that another process measured (under the eager policy) and this one verified;
FlashInfer has the same choices in memory, as its ``autotune`` leaves them, since what a kernel costs on the host differs by more than a
look-up. The matrices are small, so that the host is what takes the time.
"""

from __future__ import annotations

import gc
import json
import operator
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

PAIRS = 5
SAMPLES, CALLS, WARM_CALLS = 24, 100, 20
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


def measure(root: str) -> dict[str, Any]:
    """Return the microseconds per call of every call that works here, by side, and what both sides choose."""
    from flashinfer.autotune_cache import MeasurementPolicy
    from flashinfer.autotuner import AutoTuner, autotune

    import fi_cachestore

    found: dict[str, Any] = {}
    made, policy = calls(), MeasurementPolicy(execution_mode="eager")
    with fi_cachestore.autotune(root=root, policy=policy) as session:
        for name, call in list(made.items()):
            try:
                call()
            except Exception as error:  # noqa: BLE001 - a backend that this machine lacks is said, not measured
                found[name] = {"skipped": f"{type(error).__name__}: {error}"[:200]}
                del made[name]
    report = session.report()
    found["records"] = {name: getattr(report, name) for name in ("tuned_count", "hit_count", "verified_count", "unmeasured_count")}
    ours = {name: chosen(call) for name, call in made.items()}
    fi_cachestore.detach()
    AutoTuner.get().clear_cache()
    with autotune(tune_mode=True):
        for name, call in made.items():
            with told(ours[name]):
                call()
    theirs = {name: chosen(call) for name, call in made.items()}
    if theirs != ours:
        raise SystemExit(f"the sides run other kernels: {theirs}, {ours}")
    for name, us in timed(made, root).items():
        found[name] = us | {"chosen": ours[name]}
    return found


def timed(made: dict[str, Callable[[], Any]], root: str) -> dict[str, dict[str, Any]]:
    """Return, by call, the median microseconds of either side, timed by turns, and the median of the ratios of neighbours.

    Of look-ups too, asked with one list of runners again and again.
    """
    import fi_cachestore

    samples: dict[str, dict[str, list[float]]] = {name: {side: [] for side in SIDES} for name in made}
    look_ups: dict[str, dict[str, list[float]]] = {name: {side: [] for side in SIDES} for name in made}
    for number in range(2 * SAMPLES):
        side = SIDES[(number + number // 2) % 2]  # theirs, ours, ours, theirs: what changes with time does so for both
        if side == "ours":
            fi_cachestore.attach(root=root)
        for name, call in made.items():
            samples[name][side].append(sample(call))
            look_ups[name][side].append(sample(look_up(call)))
        if side == "ours":
            fi_cachestore.detach()
    return {
        name: {f"{side}_us": round(statistics.median(us), 3) for side, us in sides.items()}
        | {f"{side}_look_up_us": round(statistics.median(us), 3) for side, us in look_ups[name].items()}
        | {"ratio": round(statistics.median(map(operator.truediv, sides["ours"], sides["theirs"])), 3)}
        for name, sides in samples.items()
    }


@contextmanager
def told(choice: str) -> Iterator[None]:
    """Have FlashInfer find one choice the fastest. The default is none that it tries: where that is the choice, it is entered after."""
    from flashinfer.autotuner import AutoTuner

    def profile(_self: Any, runner: Any, _inputs: Any, tactic: Any, *_: Any, **__: Any) -> float:
        return 1.0 if choice in (f"{type(runner).__name__} {tactic}", f"{type(runner).__name__} -1") else 2.0

    memory = AutoTuner.get().profiling_cache
    before = set(memory)
    with mock.patch.object(AutoTuner, "_profile_single_kernel", profile):
        yield
    for key in set(memory) - before:
        if choice.endswith(" -1"):
            memory[key] = (-1, *memory[key][1:])


def asked(call: Callable[[], Any]) -> list[tuple[tuple[Any, ...], dict[str, Any], tuple[Any, Any]]]:
    """Return what a call asks the tuner for, and the answers."""
    from flashinfer.autotuner import AutoTuner

    tuner_class, found = type(AutoTuner.get()), []
    plain = tuner_class.choose_one

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append((args, kwargs, plain(self, *args, **kwargs)))
        return found[-1][-1]

    with mock.patch.object(tuner_class, "choose_one", noting):
        call()
    return found


def chosen(call: Callable[[], Any]) -> str:
    """Return which runner and tactic a call gets."""
    return ", ".join(f"{type(runner).__name__} {tactic}" for _, _, (runner, tactic) in asked(call))


def look_up(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the look-up that a call makes, alone."""
    from flashinfer.autotuner import AutoTuner

    [(args, kwargs, _)] = asked(call)
    tuner = AutoTuner.get()
    return lambda: tuner.choose_one(*args, **kwargs)


def sample(call: Callable[[], Any]) -> float:
    """Return the microseconds per call of a run of calls, after some that are not counted."""
    import torch

    for _ in range(WARM_CALLS):
        call()
    torch.cuda.synchronize()
    gc.collect()  # what attaching and detaching leave behind is no part of a call
    started = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - started) / CALLS / 1e3


def spawn(root: str) -> dict[str, Any]:
    result = subprocess.run([sys.executable, __file__, "worker", root], capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    if result.returncode != 0 or not lines:
        raise SystemExit(f"a worker failed:\n{result.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    sys.stderr.write(f"{json.dumps(found)}\n")
    return found


def summary(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return, by call, the medians over processes of either side and of the ratio, and the ratio in each process."""
    found: dict[str, Any] = {}
    for name in [name for name, row in pairs[0].items() if "ours_us" in row]:
        ratios = [pair[name]["ratio"] for pair in pairs]
        found[name] = {
            f"{side}{what}_us": statistics.median(pair[name][f"{side}{what}_us"] for pair in pairs)
            for what in ("", "_look_up")
            for side in SIDES
        }
        found[name] |= {
            "ratio": statistics.median(ratios),
            "ratio_of_pairs": ratios,
            "chosen": sorted({pair[name]["chosen"] for pair in pairs}),
        }
    return found


def machine() -> dict[str, str]:
    import flashinfer
    import torch

    return {"gpu": torch.cuda.get_device_name(), "flashinfer": flashinfer.__version__, "torch": torch.__version__}


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        sys.stdout.write("RESULT " + json.dumps(measure(sys.argv[2])) + "\n")
        return
    with tempfile.TemporaryDirectory() as root:
        for _ in range(2):
            spawn(root)  # compiles and loads everything, and measures; the second one verifies what was measured
        pairs = [spawn(root) for _ in range(PAIRS)]
    document = json.dumps({"machine": machine(), "summary": summary(pairs), "pairs": pairs}, indent=2)
    sys.stdout.write(document + "\n")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(document + "\n")


if __name__ == "__main__":
    main()
