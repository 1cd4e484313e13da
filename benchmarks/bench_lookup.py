"""What a look-up costs while serving, beside FlashInfer's own with its winners in memory; and what it leaves in memory.

Usage: python benchmarks/bench_lookup.py [--out FILE] [--calls N] [--growth-calls N]      (about a minute)
       python benchmarks/bench_lookup.py --growth-only --growth-calls 1000000             (two minutes; prints memory at every tenth)

Both sides answer the same calls in one process, by turns, a few calls each; figures are medians. FlashInfer's side is a tuner of its own
that has what FlashInfer tuned. Tactics are not executed: a stand-in for kernel timing says which one wins. What calls leave behind is
counted in resident memory, after garbage was collected and the C library's allocator gave back what it does not use, and beside it in
blocks of Python's allocator and in objects that its garbage collector knows.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from flashinfer.autotuner import AutoTuner, ConstraintSpec, DynamicTensorSpec, TunableRunner, TuningConfig, autotune, make_bucket_mapper
from flashinfer.gemm import gemm_base

import fi_cachestore
from fi_cachestore.testing.cpu_timing import cpu_timing

sys.path.insert(0, str(Path(__file__).parent))
from process_memory import memory
from rows import Row, print_table, save

RUNNER_COUNTS, INPUT_COUNTS = (1, 2, 4), (6, 9, 12)
BURST = 5
STRETCHES = 10
TARGET, FIRST_TARGET, MISS_TARGET = "<= 0.75 x", "<= 1 x", "<= 0.5 x"
PEER = "FlashInfer v1 in memory"


class Runner(TunableRunner):
    """A backend with the parameters of a block-scaled GEMM."""

    def __init__(self, *, tile: int, use_8x4_sf_layout: bool) -> None:
        self.tile, self.use_8x4_sf_layout = tile, use_8x4_sf_layout

    def get_valid_tactics(self, inputs: list[Any], profile: Any) -> list[int]:
        return [0, 1, 2]

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


def made_anew(tile: int) -> Any:
    """Return a runner of a class that is made for this call, as most of FlashInfer's are."""

    class Made(TunableRunner):
        def __init__(self) -> None:
            self.use_8x4_sf_layout = True

        def get_valid_tactics(self, inputs: list[Any], profile: Any) -> list[int]:
            return [0, 1, tile]

        def forward(self, inputs: list[Any], tactic: Any = -1, do_preparation: bool = False, **kwargs: Any) -> Any:
            return inputs[0]

    return Made()


def inputs(count: int, depth: int = 1024, rows: int = 64) -> list[Any]:
    """Return activations, weights, their scales, an output and a workspace; then a scalar, nothing, and so on."""
    make = torch.zeros
    found = [make(rows, depth), make(256, depth), make(rows, 8), make(256, 8), make(rows, 256), make(1)]
    return [*found, make(1), None, make(4, 4), True, 3, make(4, 4)][:count]


def config() -> Any:
    buckets = (1, 16, 64, 256)
    rows = tuple(ConstraintSpec(index, 0, lambda shapes: shapes[0][0]) for index in (2, 4))
    return TuningConfig(dynamic_tensor_specs=(DynamicTensorSpec((0,), (0,), buckets, make_bucket_mapper(buckets)),), constraint_specs=rows)


class Sides:
    """Our tuner, serving from a root, and one of FlashInfer's with the same winners in memory."""

    def __init__(self, root: str) -> None:
        self.ours, self.theirs = AutoTuner.get(), AutoTuner()
        self.root = root

    def tune(self, op: str, tuned: Sequence[Any], best: Any, settings: Any, call: list[Any]) -> None:
        with cpu_timing(lambda _run, runner, tactic: 1.0 if runner is best and tactic == 1 else 2.0):
            with autotune(tune_mode=True):
                self.ours.choose_one(op, list(tuned), settings, call)
            self.theirs.profiling_cache.update(self.ours.profiling_cache)
            with fi_cachestore.autotune(root=self.root):
                self.ours.choose_one(op, list(tuned), settings, call)

    def times(
        self, op: str, tuned: Callable[[], list[Any]], settings: Any, call: list[Any], answer: tuple[int, Any], calls: int
    ) -> tuple[float, float]:
        """Return the medians of both sides, in microseconds."""
        fi_cachestore.attach(root=self.root)
        samples: tuple[list[int], list[int]] = ([], [])
        for side, tuner in enumerate((self.ours, self.theirs)):
            for _ in range(4):
                given = tuned()
                chosen, tactic = tuner.choose_one(op, given, settings, call)
                if (given.index(chosen), tactic) != answer:
                    raise SystemExit(f"{op}: side {side} served runner {given.index(chosen)} tactic {tactic}")
        for _ in range(calls // BURST):
            for side, tuner in enumerate((self.ours, self.theirs)):
                for _ in range(BURST):
                    given = tuned()
                    started = time.perf_counter_ns()
                    tuner.choose_one(op, given, settings, call)
                    samples[side].append(time.perf_counter_ns() - started)
        fi_cachestore.detach()
        return statistics.median(samples[0]) / 1e3, statistics.median(samples[1]) / 1e3


def hits(sides: Sides, calls: int) -> list[Row]:
    found: list[Row] = []
    settings = config()
    for count in RUNNER_COUNTS:
        for width in INPUT_COUNTS:
            call, ours, theirs = inputs(width), [], []
            for winner in sorted({0, count - 1}):
                tuned, op = runners(count), f"hit {count} {width} {winner}"
                sides.tune(op, tuned, tuned[winner], settings, call)
                both = sides.times(op, lambda tuned=tuned: tuned, settings, call, (winner, 1), calls)
                ours.append(both[0])
                theirs.append(both[1])
            name = f"look-up that hits: {count} runner{'s' if count > 1 else ''}, {width} inputs"
            mean = ", mean of first and last winning" if count > 1 else ""
            found.append(Row(name + mean, statistics.mean(ours), statistics.mean(theirs), PEER, "us", TARGET))
            if count == max(RUNNER_COUNTS):
                found.append(Row(name + ", first wins", ours[0], theirs[0], PEER, "us", FIRST_TARGET))
    return found


def misses(sides: Sides, calls: int) -> list[Row]:
    """Calls of an op that was tuned, for another depth: both sides answer with the default."""
    found: list[Row] = []
    settings = config()
    for count in RUNNER_COUNTS:
        tuned, op, call = runners(count), f"miss {count}", inputs(9, depth=512)
        sides.tune(op, tuned, tuned[0], settings, inputs(9))
        ours, theirs = sides.times(op, lambda tuned=tuned: tuned, settings, call, (0, -1), calls)
        found.append(Row(f"look-up that misses: {count} runner{'s' if count > 1 else ''}, 9 inputs", ours, theirs, PEER, "us", MISS_TARGET))
    return found


def classes_made_anew(sides: Sides, calls: int) -> Row:
    """A class for every call, with a closure; making it is not counted."""
    settings, call, op = config(), inputs(6), "anew"
    tuned = [made_anew(2)]
    sides.tune(op, tuned, tuned[0], settings, call)
    ours, theirs = sides.times(op, lambda: [made_anew(2)], settings, call, (0, 1), calls)
    note = "FlashInfer's key has neither the class's code nor its closure: two runners that differ in these share an answer there"
    return Row("look-up that hits: a class made for the call, 6 inputs", ours, theirs, PEER, "us", FIRST_TARGET, note=note)


@contextmanager
def compiled() -> Iterator[ModuleType]:
    """Stand in for FlashInfer's compiled GEMMs and for the device, so that its own factories make runners without a GPU."""
    module = ModuleType("compiled")
    spec = SimpleNamespace(build_and_load=lambda: module)
    for name, result in (("bmm_fp8_get_algos", 3), ("mm_bf16_cublaslt_get_algos", 3), ("bmm_fp8", None)):
        setattr(module, name, lambda *_, result=result: result)
    module.bmm_fp8_run_with_algo = module.mm_bf16_cublaslt_run_with_algo = lambda *_: None  # type: ignore[attr-defined]
    stubs = [
        (gemm_base, "gen_gemm_module", lambda: spec),
        (gemm_base, "gen_mm_bf16_cublaslt_module", lambda: spec),
        (gemm_base, "_is_cudnn_override_shape_available", lambda: False),
        (gemm_base, "build_cudnn_gemm_fp8_graph", lambda **_: None),
        (gemm_base, "_torch_data_type_to_cudnn_data_type", str),
        (gemm_base, "_cudnn_graph_engine_knob_tactics", lambda _: [0, 1, 2]),
        (gemm_base, "_cudnn_gemm_fp8", lambda *_, **__: None),
        (torch.cuda, "device", lambda _: nullcontext()),
        (torch.cuda, "current_blas_handle", lambda: 1),
        (AutoTuner, "_get_l2_cache_size_in_bytes", lambda *_: 1),
    ]
    with ExitStack() as stack:
        for owner, name, stub in stubs:
            stack.enter_context(patch.object(owner, name, stub))
        yield module


def made_by(factories: Sequence[Callable[[], Any]]) -> list[Any]:
    return [make() for make in factories]


def factories_of_flashinfer(sides: Sides, calls: int) -> list[Row]:
    """FlashInfer's own classes, made for the call by its own factories, on the inputs of its ops; making them is not counted."""
    eights = torch.zeros(1, 16, 512).to(torch.float8_e4m3fn), torch.zeros(1, 256, 512).to(torch.float8_e4m3fn).transpose(-2, -1)
    fp8 = [*eights, torch.ones(1), torch.ones(1), torch.zeros(1, 16, 256).bfloat16(), torch.zeros(1024).byte()]
    bf16 = [torch.zeros(16, 512).bfloat16(), torch.zeros(256, 512).bfloat16().t(), None, False, fp8[4][0], fp8[5]]
    found = []
    base = vars(gemm_base)
    for_fp8, for_bf16 = base["_FP8_GEMM_SM100_TUNING_CONFIG"], base["_BF16_GEMM_SM100_TUNING_CONFIG"]
    with compiled():
        cublas = base["get_gemm_module"].__wrapped__().cublas_fp8_gemm_runner
        cublaslt = base["get_mm_bf16_cublaslt_module"].__wrapped__().cublaslt_bf16_gemm_runner
        both = [base["_cudnn_gemm_fp8_runner"], cublas]
        for name, op, factories, settings, call in (
            ("bmm_fp8 cublas", "fp8_gemm", [cublas], for_fp8, fp8),
            ("mm_bf16 cublaslt", "bf16_gemm", [cublaslt], for_bf16, bf16),
            ("bmm_fp8 cudnn and cublas", "fp8_gemm {}", both, for_fp8, fp8),
        ):
            times = []
            for winner in sorted({0, len(factories) - 1}):
                tuned = made_by(factories)
                sides.tune(op.format(winner), tuned, tuned[winner], settings, call)
                made = partial(made_by, factories)
                times.append(sides.times(op.format(winner), made, settings, call, (winner, 1), calls))
            ours, theirs = (statistics.mean(column) for column in zip(*times, strict=True))
            mean = ", mean of first and last winning" if len(times) > 1 else ""
            found.append(Row(f"look-up that hits: FlashInfer's classes of {name}{mean}", ours, theirs, PEER, "us", FIRST_TARGET))
    return found


@dataclass(frozen=True)
class InUse:
    """What the process has in use, once garbage is collected and free memory is given back."""

    resident_kib: int
    block_count: int
    object_count: int

    @staticmethod
    def now() -> InUse:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return InUse(memory("Rss"), sys.getallocatedblocks(), len(gc.get_objects()))

    def __str__(self) -> str:
        return f"{self.resident_kib:,} KiB resident, {self.block_count:,} blocks, {self.object_count:,} objects"


def growth(sides: Sides, calls: int) -> tuple[Row, list[InUse]]:
    """Measure what calls with new classes, closures, runners and configs leave in memory, at every tenth of them."""
    call, op = inputs(6), "growth"
    tuned = [made_anew(2)]
    sides.tune(op, tuned, tuned[0], config(), call)
    fi_cachestore.attach(root=sides.root)

    def run(count: int) -> InUse:
        for _ in range(count):
            sides.ours.choose_one(op, [made_anew(2)], config(), call)
        return InUse.now()

    found = [run(4000), *(run(calls // STRETCHES) for _ in range(STRETCHES))]
    fi_cachestore.detach()
    before, after = found[0], found[-1]
    blocks, objects = after.block_count - before.block_count, after.object_count - before.object_count
    note = f"resident memory; {blocks:+,} blocks of Python's allocator, {objects:+,} objects"
    question = f"memory after {calls // STRETCHES * STRETCHES:,} calls with new classes, closures and configs"
    return Row(question, after.resident_kib - before.resident_kib, None, "", "KiB", "<= 1024", note=note), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    parser.add_argument("--calls", type=int, default=4000, help="timed calls per side and row")
    parser.add_argument("--growth-calls", type=int, default=100_000, help="calls after which memory is compared")
    parser.add_argument("--growth-only", action="store_true", help="nothing but the row about memory, and what every tenth of it found")
    arguments = parser.parse_args()
    logging.getLogger("flashinfer.jit").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as root:
        sides = Sides(root)
        found = []
        if not arguments.growth_only:
            found += hits(sides, arguments.calls)
            found += misses(sides, arguments.calls)
            found.append(classes_made_anew(sides, arguments.calls // 4))
            found += factories_of_flashinfer(sides, arguments.calls // 4)
        grown, samples = growth(sides, arguments.growth_calls)
        found.append(grown)
    if arguments.growth_only:
        for number, sample in enumerate(samples):
            print(f"{arguments.growth_calls // STRETCHES * number:>9,} calls: {sample}")
    print_table(found)
    if arguments.out is not None:
        save(found, arguments.out)


if __name__ == "__main__":
    main()
