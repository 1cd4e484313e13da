"""The stage runners of the SM12x MoE pipelines. They fill ``_out`` in their first forward call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from flashinfer.autotuner import TunableRunner, TuningConfig
from flashinfer.tllm_enums import ActivationType

from tests.flashinfer_runners import cute_dsl_moe
from tests.flashinfer_runners.case import Case, Compiled, fp8, gpu, recipe, uint8

ROWS, EXPERTS, N, K = 64, 4, 1024, 1024
_BASE = "flashinfer.fused_moe.cute_dsl.blackwell_sm12x."
_GEMM = {"out_dtype": {"out_dtype": torch.float16}, "enable_pdl": {"enable_pdl": True}, "rows, which are not bucketed": {"rows": 48}}
_ACTIVATED = {
    "enable_pdl": {"enable_pdl": True},
    "activation": {"activation": ActivationType.Relu2},
    "situ_beta": {"situ_beta": 0.5},
    "rows, which are not bucketed": {"rows": 48},
}


def fp8_inputs(rows: int) -> list[Any]:
    """Return the inputs of the FP8 stages: one scale per 128 of K."""
    scales = torch.zeros(K // 128, rows), torch.zeros(EXPERTS, K // 128, N // 128)
    return [fp8(rows, K), scales[0], fp8(EXPERTS, N, K), scales[1], torch.zeros(EXPERTS + 1, dtype=torch.int32)]


def mxfp4_inputs(rows: int) -> list[Any]:
    """Return the inputs of the MXFP8 x MXFP4 stages: packed weights, packed scales."""
    scales = torch.zeros(K // 128, rows, dtype=torch.int32), torch.zeros(EXPERTS, K // 128, N, dtype=torch.int32)
    return [fp8(rows, K), scales[0], uint8(EXPERTS, N, K // 2), scales[1], torch.zeros(EXPERTS + 1, dtype=torch.int32)]


@contextmanager
def _case(owner: ModuleType, make: Callable[[], TunableRunner], op: str, inputs: list[Any]) -> Iterator[Case]:
    module = Compiled()
    kernel, arguments = patch.object(owner, "compiled_kernel", module.compiler), patch.object(owner, "make_args", lambda *_: ())
    with gpu((12, 0)), kernel, arguments:
        yield Case(make(), op, TuningConfig(), inputs, module.launches)


@recipe(_BASE + "moe_fp8_gemm:_Fp8Runner", differs=_GEMM, fills="_out")
def sm12x_moe_fp8_gemm(rows: int = ROWS, out_dtype: torch.dtype = torch.bfloat16, enable_pdl: bool = False) -> Iterator[Case]:
    owner = cute_dsl_moe.moe_fp8_gemm
    with _case(owner, lambda: owner._Fp8Runner(out_dtype, enable_pdl), "cute_dsl_sm12x_moe_gemm_fp8", fp8_inputs(rows)) as case:
        yield case


@recipe(_BASE + "moe_mxfp8_mxfp4_gemm:_Mxfp8Mxfp4Runner", differs=_GEMM, fills="_out")
def sm12x_moe_mxfp4_gemm(rows: int = ROWS, out_dtype: torch.dtype = torch.bfloat16, enable_pdl: bool = False) -> Iterator[Case]:
    owner, op = cute_dsl_moe.moe_mxfp8_mxfp4_gemm, "cute_dsl_sm12x_moe_gemm_mxfp8_mxfp4"
    with _case(owner, lambda: owner._Mxfp8Mxfp4Runner(out_dtype, enable_pdl), op, mxfp4_inputs(rows)) as case:
        yield case


@recipe(_BASE + "moe_fp8_fc1_act:_Fc1ActRunner", differs=_ACTIVATED, fills="_out")
def sm12x_moe_fp8_fc1(rows: int = ROWS, activation: ActivationType = ActivationType.Swiglu, **options: Any) -> Iterator[Case]:
    owner, op = cute_dsl_moe.moe_fp8_fc1_act, "cute_dsl_sm12x_fc1_act_fp8"
    with _case(owner, lambda: owner._Fc1ActRunner(torch.bfloat16, activation, **options), op, fp8_inputs(rows)) as case:
        yield case


@recipe(_BASE + "moe_mxfp8_mxfp4_fc1_act:_Fc1ActRunner", differs=_ACTIVATED, fills="_out")
def sm12x_moe_mxfp4_fc1(rows: int = ROWS, activation: ActivationType = ActivationType.Swiglu, **options: Any) -> Iterator[Case]:
    owner, op = cute_dsl_moe.moe_mxfp8_mxfp4_fc1_act, "cute_dsl_sm12x_fc1_act_mxfp8_mxfp4"
    with _case(owner, lambda: owner._Fc1ActRunner(torch.bfloat16, activation, **options), op, mxfp4_inputs(rows)) as case:
        yield case


@recipe(_BASE + "moe_mxfp8_mxfp4_fc1_act_q1:_Fc1ActQ1Runner", differs={**_ACTIVATED, "swiglu_limit": {"swiglu_limit": 7.0}}, fills="_out")
def sm12x_moe_mxfp4_fc1_q1(rows: int = ROWS, activation: ActivationType = ActivationType.Swiglu, **options: Any) -> Iterator[Case]:
    owner, op = cute_dsl_moe.moe_mxfp8_mxfp4_fc1_act_q1, "cute_dsl_sm12x_fc1_act_q1_mxfp8_mxfp4"
    with _case(owner, lambda: owner._Fc1ActQ1Runner(torch.float8_e4m3fn, activation, **options), op, mxfp4_inputs(rows)) as case:
        yield case


@recipe(
    _BASE + "moe_mxfp8_mxfp4_fc2_finalize:_Fc2FinalizeRunner",
    differs={"enable_pdl": {"enable_pdl": True}, "num_tokens, an input": {"tokens": 16}},
    fills="_out",
)
def sm12x_moe_mxfp4_fc2(rows: int = ROWS, tokens: int = 32, enable_pdl: bool = False) -> Iterator[Case]:
    owner, op = cute_dsl_moe.moe_mxfp8_mxfp4_fc2_finalize, "cute_dsl_sm12x_fc2_finalize_mxfp8_mxfp4"
    inputs = [*mxfp4_inputs(rows), torch.zeros(rows, dtype=torch.int32), torch.zeros(rows), tokens]
    with _case(owner, lambda: owner._Fc2FinalizeRunner(enable_pdl), op, inputs) as case:
        yield case
