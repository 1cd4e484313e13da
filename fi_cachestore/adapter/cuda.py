"""The few things that code around a runner's kernels does to the device. Without CUDA all of them do nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import torch

CAPTURED: Final = "asked for inside a graph capture before it was tuned"
OUT_OF_MEMORY: Final = (torch.cuda.OutOfMemoryError, MemoryError)


def clear_error() -> None:
    """Keep a failed kernel's error from surfacing in the next one, as FlashInfer's loop does."""
    if torch.cuda.is_initialized():
        with contextlib.suppress(Exception):
            torch.cuda.synchronize()
        with contextlib.suppress(Exception):
            torch.cuda.cudart().cudaGetLastError()


def synchronize(items: Sequence[Any]) -> None:
    """Wait for the current stream of the device that holds the tensors among ``items``."""
    device = next((item.device for item in items if isinstance(item, torch.Tensor) and item.is_cuda), None)
    if device is not None:
        torch.cuda.current_stream(device).synchronize()


def is_sound(items: Sequence[Any]) -> bool:
    """Whether the device of the tensors among ``items`` still works: after some errors nothing does until the process ends."""
    try:
        synchronize(items)
    except Exception:  # noqa: BLE001 - whatever it says, it says no
        return False
    return True


def is_capturing() -> bool:
    """Whether this thread's stream is being captured into a graph: nothing may be tried out then."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
