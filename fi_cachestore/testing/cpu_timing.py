"""Kernel timing without a GPU: stand-ins for the two places where FlashInfer's tuner needs CUDA.

``torch.cuda.is_current_stream_capturing`` raises on a CPU build of torch, and ``AutoTuner._profile_single_kernel`` times with CUDA
events. Everything else that runs is FlashInfer's own loop.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from flashinfer.autotuner import AutoTuner, TunableRunner, TuningConfig

Timer = Callable[[Callable[[], Any], TunableRunner, Any], float]
"""Takes a function that runs the tactic once, the runner and the tactic; returns milliseconds."""


def wall_clock_ms(run: Callable[[], Any], runner: TunableRunner, tactic: Any, *, repeat: int = 5) -> float:  # noqa: ARG001 - a Timer
    """Return the median of ``repeat`` runs after one warm-up run, in milliseconds."""
    run()
    samples = []
    for _ in range(repeat):
        started = time.perf_counter_ns()
        run()
        samples.append(time.perf_counter_ns() - started)
    return statistics.median(samples) / 1e6


@contextlib.contextmanager
def cpu_timing(timer: Timer = wall_clock_ms) -> Iterator[list[tuple[str, Any]]]:
    """Let FlashInfer tune CPU tensors; yields the list of (runner class name, tactic) measured, in order.

    Patches the class, not the instance, so that tuners others hold are covered. Not for use with a GPU.
    """
    measured: list[tuple[str, Any]] = []

    def profile(
        self: AutoTuner,  # noqa: ARG001 - a method
        runner: TunableRunner,
        inputs: list[Any],
        tactic: Any,
        tuning_config: TuningConfig,  # noqa: ARG001 - the signature of what it stands for
        input_tensor_batches: Any = None,  # noqa: ARG001
        **kwargs: Any,
    ) -> float:
        measured.append((type(runner).__name__, tactic))
        return timer(lambda: runner(inputs, tactic=tactic, **kwargs), runner, tactic)

    with (
        mock.patch.object(AutoTuner, "_profile_single_kernel", profile),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False),
    ):
        yield measured
