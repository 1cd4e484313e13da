"""The CuTe DSL runners of ``mm_bf16`` and of the BF16 x FP4 GEMMs, with the functions stubbed that compile a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from flashinfer.gemm import gemm_base, gemm_bf16_fp4_cute_dsl
from flashinfer.gemm.kernels import dense_bf16_gemm_direct, dense_bf16_gemm_sm100_splitk, dense_bf16_gemm_warp_splitk
from flashinfer.gemm.kernels.native_bf16_fp4 import runner as native_runner

from tests.flashinfer_runners.case import Case, Compiled, bf16, fresh, gpu, one, recipe, uint8
from tests.flashinfer_runners.gemm_compiled import K, N, bf16_inputs, bias_at

_BASE = "flashinfer.gemm.gemm_base:"
_CUBLASLT_MODULE = gemm_base.get_mm_bf16_cublaslt_module
_LOW_M = {
    "compute_capability": {"capability": 103},
    "pdl": {"pdl": True},
    "bias": {"bias": bf16(N)},
}
_SAME = {"rows": {"rows": 20}}


@recipe(_BASE + "_cute_dsl_splitk_bf16_gemm_runner.<locals>.CuteDSLSplitKBf16Runner", differs=_LOW_M, same=_SAME)
def cute_splitk_bf16(rows: int = 30, capability: int = 100, pdl: bool = False, bias: torch.Tensor | None = None) -> Iterator[Case]:
    module = Compiled()
    runner = fresh(gemm_base._cute_dsl_splitk_bf16_gemm_runner, capability)
    config, inputs = gemm_base._BF16_GEMM_SM100_TUNING_CONFIG, bf16_inputs(rows, bias=bias, pdl=pdl)
    with gpu(), patch.object(dense_bf16_gemm_sm100_splitk, "_get_compiled_splitk_kernel", module.compiler):
        yield Case(runner, "bf16_gemm", config, inputs, module.launches, on_gpu=True)


@recipe(_BASE + "_cute_dsl_warp_splitk_bf16_gemm_runner.<locals>.CuteDSLWarpSplitKBf16Runner", differs=_LOW_M, same=_SAME)
def cute_warp_splitk_bf16(rows: int = 30, capability: int = 100, pdl: bool = False, bias: torch.Tensor | None = None) -> Iterator[Case]:
    module = Compiled()
    runner = fresh(gemm_base._cute_dsl_warp_splitk_bf16_gemm_runner, capability)
    config, inputs = gemm_base._BF16_GEMM_SM100_TUNING_CONFIG, bf16_inputs(rows, bias=bias, pdl=pdl)
    with gpu(), patch.object(dense_bf16_gemm_warp_splitk, "_compile", module.compiler):
        yield Case(runner, "bf16_gemm", config, inputs, module.launches, on_gpu=True)


@recipe(_BASE + "_cute_dsl_direct_bf16_gemm_runner.<locals>.CuteDSLDirectBf16Runner", differs=_LOW_M, same=_SAME)
def cute_direct_bf16(rows: int = 30, capability: int = 100, pdl: bool = False, bias: torch.Tensor | None = None) -> Iterator[Case]:
    module = Compiled()
    runner = fresh(gemm_base._cute_dsl_direct_bf16_gemm_runner, capability)
    config, inputs = gemm_base._BF16_GEMM_SM100_TUNING_CONFIG, bf16_inputs(rows, bias=bias, pdl=pdl)
    with gpu(), patch.object(dense_bf16_gemm_direct, "_get_compiled_direct_kernel", module.compiler):
        yield Case(runner, "bf16_gemm", config, inputs, module.launches, on_gpu=True)


@recipe(
    _BASE + "_cute_dsl_cublaslt_fallback_bf16_gemm_runner.<locals>.CuteDSLCublasltFallbackBf16Runner",
    differs={
        "compute_capability": {"capability": 103},
        "bias": {"bias": bias_at(256)},
        "misaligned bias": {"bias": bias_at(2)},
    },
    same={"rows": {"rows": 120}},
)
def cute_cublaslt_fallback(rows: int = 100, capability: int = 100, bias: torch.Tensor | None = None) -> Iterator[Case]:
    module = Compiled(mm_bf16_cublaslt_get_algos=3)
    with (
        patch.object(gemm_base, "gen_mm_bf16_cublaslt_module", module.spec),
        patch.object(gemm_base, "get_mm_bf16_cublaslt_module", lambda: fresh(_CUBLASLT_MODULE)),
    ):
        runner = fresh(gemm_base._cute_dsl_cublaslt_fallback_bf16_gemm_runner, capability)
    config, inputs = gemm_base._BF16_GEMM_SM100_TUNING_CONFIG, bf16_inputs(rows, bias=bias)
    with gpu():
        yield Case(runner, "bf16_gemm", config, inputs, module.launches, forward={"tactic": 1})


@recipe(
    "flashinfer.gemm.gemm_bf16_fp4_cute_dsl:_cute_dsl_sm100_bf16_fp4_runner.<locals>.CuteDslSm100Bf16Fp4Runner",
    differs={"enable_pdl": {"enable_pdl": False}, "columns": {"columns": 2 * N}},
    same={"rows": {"rows": 120}},
)
def cute_bf16_fp4_sm100(rows: int = 100, enable_pdl: bool = True, columns: int = N) -> Iterator[Case]:
    owner, module = gemm_bf16_fp4_cute_dsl, Compiled()
    runner = owner._cute_dsl_sm100_bf16_fp4_runner(enable_pdl=enable_pdl)
    scales = uint8(columns * K // 16)
    inputs: list[Any] = [bf16(rows, K), uint8(columns, K // 2), scales, one(), torch.bfloat16, bf16(rows, columns), 16]
    with gpu(), patch.object(owner, "_get_sm100_bf16_fp4_kernel", module.compiler):
        yield Case(runner, "bf16_fp4_cute_dsl_sm100_gemm", owner._SM100_BF16_FP4_CUTE_DSL_TUNING_CONFIG, inputs, module.launches)


@recipe(
    "flashinfer.gemm.gemm_bf16_fp4_cute_dsl:_cute_dsl_bf16_fp4_runner.<locals>.CuteDslBf16Fp4Runner",
    differs={"enable_pdl": {"enable_pdl": False}, "columns": {"columns": 2 * N}},
    same={"rows": {"rows": 120}},
)
def cute_bf16_fp4(rows: int = 100, enable_pdl: bool = True, columns: int = N) -> Iterator[Case]:
    owner, module = gemm_bf16_fp4_cute_dsl, Compiled()
    runner = owner._cute_dsl_bf16_fp4_runner(enable_pdl=enable_pdl)
    weight, scales = torch.zeros(K // 16, 2 * columns, dtype=torch.int32), uint8(K // 16, columns)
    inputs: list[Any] = [bf16(rows, K), weight, scales, one(), torch.bfloat16, bf16(rows, columns), 16]
    with gpu((12, 0)), patch.object(owner, "_get_cute_dsl_bf16_fp4_gemm", module.compiler):
        yield Case(runner, "bf16_fp4_cute_dsl_gemm", owner._BF16_FP4_CUTE_DSL_TUNING_CONFIG, inputs, module.launches)


@recipe(
    "flashinfer.gemm.kernels.native_bf16_fp4.runner:NativeBf16Fp4Runner",
    differs={
        "enable_pdl": {"enable_pdl": False},
        "rows, which are not bucketed": {"rows": 3},
        "unaligned activation": {"a": bf16(4 * K + 1)[1:].view(4, K)},
        "compute capability": {"capability": (12, 1)},
    },
)
def native_bf16_fp4(
    rows: int = 4, enable_pdl: bool = True, a: torch.Tensor | None = None, capability: tuple[int, int] = (12, 0)
) -> Iterator[Case]:
    module = Compiled()
    runner = fresh(native_runner.get_runner)
    activation = bf16(rows, K) if a is None else a
    inputs = [activation, uint8(N, K // 2), uint8(N * K // 16), one(), bf16(rows, N), enable_pdl]
    compiler, compiled = patch.object(native_runner, "_compile", module.compiler), patch.dict(native_runner._COMPILED, clear=True)
    with gpu(capability), compiler, compiled:
        yield Case(runner, "native_bf16_fp4_sm12x", native_runner._TUNING_CONFIG, inputs, module.launches)
