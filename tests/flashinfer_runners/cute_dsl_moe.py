"""FlashInfer's CuTe DSL MoE modules. Their package imports Triton, which torch for CPUs does not bring along; nothing of it is used here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import MagicMock

import flashinfer.autotuner  # noqa: F401 - FlashInfer itself looks whether there is a Triton: it must do so before there is a stub


@contextmanager
def _triton() -> Iterator[None]:
    names = ("triton", "triton.language") if importlib.util.find_spec("triton") is None else ()
    sys.modules.update({name: MagicMock() for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


with _triton():
    from flashinfer.fused_moe.cute_dsl import fused_moe, sm90_fused_moe, sm90_tuner, tuner
    from flashinfer.fused_moe.cute_dsl.blackwell_sm12x import (
        moe_fp8_fc1_act,
        moe_fp8_gemm,
        moe_mxfp8_mxfp4_fc1_act,
        moe_mxfp8_mxfp4_fc1_act_q1,
        moe_mxfp8_mxfp4_fc2_finalize,
        moe_mxfp8_mxfp4_gemm,
    )

__all__ = [
    "fused_moe",
    "moe_fp8_fc1_act",
    "moe_fp8_gemm",
    "moe_mxfp8_mxfp4_fc1_act",
    "moe_mxfp8_mxfp4_fc1_act_q1",
    "moe_mxfp8_mxfp4_fc2_finalize",
    "moe_mxfp8_mxfp4_gemm",
    "sm90_fused_moe",
    "sm90_tuner",
    "tuner",
]
