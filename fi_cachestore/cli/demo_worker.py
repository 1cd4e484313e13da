"""One process of the demo: tunes or serves the reference GEMM through FlashInfer's real tuner, and prints one line of JSON."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.distributed as dist
from flashinfer.autotuner import AutoTuner, TunableRunner

import fi_cachestore
from fi_cachestore.adapter import attach
from fi_cachestore.adapter.contracts import flashinfer_contracts
from fi_cachestore.testing import reference_gemm as gemm
from fi_cachestore.testing.cpu_timing import cpu_timing, wall_clock_ms

RANK_COUNT: Final = 4
_TIMINGS_OF_THE_KILLED: Final = 2
SHAPES = ((128, 256, 512), (100, 128, 1024))
"""M, N and K of the calls; each is tuned for every bucket of M up to its own."""


def tune(root: str) -> dict[str, Any]:
    """Call the op in both layouts and all shapes inside a session."""
    with cpu_timing() as measured:
        started = time.perf_counter()
        with fi_cachestore.autotune(root=root) as session:
            for rows, columns, depth in SHAPES:
                for use_8x4_sf_layout in (True, False):
                    _checked_run(rows, columns, depth, use_8x4_sf_layout=use_8x4_sf_layout)
        report = session.report()
    return {
        "measurement_count": len(measured),
        "profile_count": report.tuned_count,
        "hit_count": report.hit_count,
        "waited_count": report.waited_count,
        "seconds": time.perf_counter() - started,
    }


def serve(root: str) -> dict[str, Any]:
    """Attach only, and say what each call is served with."""
    session = fi_cachestore.attach(root=root)
    served = _served()
    session.detach()
    return {"served": served}


def _served() -> dict[str, Any]:
    served = {}
    for rows, columns, depth in SHAPES:
        for use_8x4_sf_layout in (True, False):
            runner = gemm.ReferenceGemmRunner(use_8x4_sf_layout=use_8x4_sf_layout)
            inputs = gemm.make_inputs(rows, columns, depth, use_8x4_sf_layout=use_8x4_sf_layout)
            config = gemm.tuning_config(use_8x4_sf_layout=use_8x4_sf_layout)
            _, tactic = AutoTuner.get().choose_one(gemm.OP, [runner], config, inputs)
            served[f"{rows}x{columns}x{depth} {'8x4' if use_8x4_sf_layout else '128x4'}"] = tactic
    return served


def rank_of_job(root: str, rank: int, *, is_killed: bool) -> dict[str, Any]:
    """Be one of four ranks: tune on an empty root, then on another, where one of the ranks is killed in the middle of a profile."""
    meeting = f"file://{root}.meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANK_COUNT)
    whole = _tune_among_ranks(f"{root}/whole", wall_clock_ms)
    _print(whole)  # the last word of the one that is killed
    if not is_killed:
        return {**whole, "without_one": _tune_among_ranks(f"{root}/without-one", wall_clock_ms)}
    timings = iter(range(_TIMINGS_OF_THE_KILLED))

    def timer(run: Callable[[], Any], runner: TunableRunner, tactic: Any) -> float:
        if next(timings, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return wall_clock_ms(run, runner, tactic)

    _tune_among_ranks(f"{root}/without-one", timer, at_end=lambda: os.kill(os.getpid(), signal.SIGKILL))
    return {}


def _tune_among_ranks(
    root: str, timer: Callable[[Callable[[], Any], TunableRunner, Any], float], at_end: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    with cpu_timing(timer):
        started = time.perf_counter()
        with fi_cachestore.autotune(root=root, group=dist.group.WORLD) as session:
            for rows, columns, depth in SHAPES:
                for use_8x4_sf_layout in (True, False):
                    _checked_run(rows, columns, depth, use_8x4_sf_layout=use_8x4_sf_layout)
            at_end()
    report = session.report()
    return {
        "profile_count": report.tuned_count,
        "shared_call_count": report.shared_call_count,
        "served": _served(),
        "seconds": time.perf_counter() - started,
    }


def old_key(root: str, *, use_8x4_sf_layout: bool, is_tuning: bool) -> dict[str, Any]:
    """Tune or replay one call with FlashInfer's own persistent cache, whose key for this runner does not hold the layout."""
    from flashinfer.autotune_cache import autotune_v2

    rows, columns, depth = SHAPES[0]
    with cpu_timing(), autotune_v2(mode="tune" if is_tuning else "replay", cache_root=root):
        try:
            _checked_run(rows, columns, depth, use_8x4_sf_layout=use_8x4_sf_layout)
        except RuntimeError as error:
            return {"error": str(error)}
    return {"error": None}


def one_layout(root: str, *, use_8x4_sf_layout: bool, is_tuning: bool) -> dict[str, Any]:
    """The same with this library: tune one layout, or serve a call; returns its key's digest and the tactic it gets."""
    rows, columns, depth = SHAPES[0]
    runner = gemm.ReferenceGemmRunner(use_8x4_sf_layout=use_8x4_sf_layout)
    inputs = gemm.make_inputs(rows, columns, depth, use_8x4_sf_layout=use_8x4_sf_layout)
    config = gemm.tuning_config(use_8x4_sf_layout=use_8x4_sf_layout)
    key = fi_cachestore.tune_key(gemm.OP, runner, inputs, tuning_config=config)
    if is_tuning:
        with cpu_timing(), fi_cachestore.autotune(root=root):
            _, tactic = AutoTuner.get().choose_one(gemm.OP, [runner], config, inputs)
    else:
        fi_cachestore.attach(root=root)
        _, tactic = AutoTuner.get().choose_one(gemm.OP, [runner], config, inputs)
    error = None
    try:
        runner(inputs, tactic=tactic)
    except RuntimeError as failure:
        error = str(failure)
    return {"digest": key.digest, "key": key.canonical.hex(), "tactic": tactic, "error": error}


def mistaken(root: str, *, use_8x4_sf_layout: bool) -> dict[str, Any]:
    """Tune one layout under a contract that leaves the layout out of the key, and run what comes of it."""
    rows, columns, depth = SHAPES[0]
    runner = gemm.ReferenceGemmRunner(use_8x4_sf_layout=use_8x4_sf_layout)
    inputs = gemm.make_inputs(rows, columns, depth, use_8x4_sf_layout=use_8x4_sf_layout)
    config = gemm.tuning_config(use_8x4_sf_layout=use_8x4_sf_layout)
    contract = gemm.mistaken_contract()
    attach.flashinfer_contracts = lambda: {**flashinfer_contracts(), contract.type: contract}  # type: ignore[assignment, attr-defined]
    with cpu_timing() as measured, fi_cachestore.autotune(root=root) as session:
        _, tactic = AutoTuner.get().choose_one(gemm.OP, [runner], config, inputs)
        result = runner(inputs, tactic=tactic)
    torch.testing.assert_close(result.double(), gemm.plain_result(inputs, use_8x4_sf_layout=use_8x4_sf_layout), rtol=1e-4, atol=1e-4)
    report = session.report()
    return {
        "tactic": tactic,
        "measurement_count": len(measured),
        "profile_count": report.tuned_count,
        "verified_count": report.verified_count,
        "quarantined": report.quarantined,
    }


def gpu(root: str) -> dict[str, Any]:
    """Tune ``flashinfer.bmm_fp8`` with each backend on the GPU."""
    import flashinfer

    policy = None
    try:
        from flashinfer.autotune_cache import MeasurementPolicy

        policy = MeasurementPolicy(execution_mode="eager")
    except ImportError:
        pass
    a = torch.randn(1, 256, 2048, device="cuda").to(torch.float8_e4m3fn)
    b = torch.randn(1, 2048, 2048, device="cuda").to(torch.float8_e4m3fn).transpose(-2, -1)
    scale = torch.ones(1, device="cuda")
    started = time.perf_counter()
    counts = {}
    for backend in ("cudnn", "cublas", "auto"):
        with fi_cachestore.autotune(root=root, policy=policy) as session:
            flashinfer.bmm_fp8(a, b, scale, scale, torch.bfloat16, backend=backend)
        counts[backend] = session.report().tuned_count
    return {"profile_counts": counts, "seconds": time.perf_counter() - started}


def _checked_run(rows: int, columns: int, depth: int, *, use_8x4_sf_layout: bool) -> None:
    result = gemm.run(rows, columns, depth, use_8x4_sf_layout=use_8x4_sf_layout)
    inputs = gemm.make_inputs(rows, columns, depth, use_8x4_sf_layout=use_8x4_sf_layout)
    expected = gemm.plain_result(inputs, use_8x4_sf_layout=use_8x4_sf_layout)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


def main(arguments: list[str]) -> None:
    """Run one task: its name, a directory, and for some the layout and ``tune`` or ``serve``, or the rank and whether it is killed."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    task, root, *rest = arguments
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()  # the parent says when
    two = {"use_8x4_sf_layout": rest[:1] == ["8x4"], "is_tuning": rest[1:] == ["tune"]}
    results = {
        "tune": lambda: tune(root),
        "serve": lambda: serve(root),
        "gpu": lambda: gpu(root),
        "old-key": lambda: old_key(root, **two),
        "mistaken": lambda: mistaken(root, use_8x4_sf_layout=two["use_8x4_sf_layout"]),
        "one-layout": lambda: one_layout(root, **two),
        "rank": lambda: rank_of_job(root, int(rest[0]), is_killed=rest[1:] == ["killed"]),
    }
    _print(results[task]())


def _print(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
