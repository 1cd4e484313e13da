"""The CuTe DSL runners of block-scaled GEMMs (FP8, MXFP8, FP4), with the functions stubbed that compile a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import torch
from flashinfer.gemm import gemm_base, gemm_mm_mxfp8_cute_dsl, gemm_svdquant
from flashinfer.gemm.kernels import bmm_fp8_wrapper, dense_mxfp8_gemm_warp_splitk
from flashinfer.gemm.kernels.sm12x_cute import runner as sm12x_runner
from flashinfer.prims_ts.gemm import api as prims_api
from flashinfer.prims_ts.gemm import runner as prims_runner

from tests.flashinfer_runners.case import Case, Compiled, bf16, fp8, fresh, gpu, one, recipe, uint8
from tests.flashinfer_runners.gemm_compiled import OUT_DTYPE, K, N, fp4_inputs, fp8_inputs, mxfp8_inputs, svdquant_inputs

_BASE = "flashinfer.gemm.gemm_base:"
_SAME = {"rows": {"rows": 120}}


@contextmanager
def _kernels(owner: ModuleType, compiler: str, capability: tuple[int, int] = (10, 0)) -> Iterator[Compiled]:
    """Stub the function that compiles a kernel and returns it with something else."""
    module = Compiled()
    with gpu(capability), patch.object(owner, compiler, lambda *_, **__: (module, None)):
        yield module


@recipe(_BASE + "_cute_dsl_fp8_gemm_runner.<locals>.CuteDslFp8GemmRunner", differs=OUT_DTYPE, same={"rows": {"rows": 500}})
def cute_fp8(rows: int = 512, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    module = Compiled()
    config, inputs = gemm_base._FP8_GEMM_SM100_TUNING_CONFIG, fp8_inputs(rows, out_dtype)
    runner = gemm_base._cute_dsl_fp8_gemm_runner()
    with gpu((10, 7)), patch.object(bmm_fp8_wrapper, "_compile_and_run_bmm_sm107", module):
        yield Case(runner, "fp8_gemm", config, inputs, module.launches, forward={"tactic": 0})


@recipe(
    _BASE + "_cute_dsl_gemm_mxfp8_runner.<locals>.CuteDSLMxfp8GemmRunner",
    differs={
        **OUT_DTYPE,
        "enable_pdl": {"enable_pdl": False},
        "low_m_only": {"low_m_only": True},
        "warp_splitk_supports": {"beside_warp": True},
    },
    same=_SAME,
)
def cute_mxfp8(
    rows: int = 100,
    enable_pdl: bool = True,
    out_dtype: torch.dtype = torch.bfloat16,
    low_m_only: bool = False,
    beside_warp: bool = False,
) -> Iterator[Case]:
    supports = fresh(gemm_base._cute_dsl_warp_splitk_mxfp8_gemm_runner, enable_pdl).supports_inputs if beside_warp else None
    runner = gemm_base._cute_dsl_gemm_mxfp8_runner(10, 0, enable_pdl, out_dtype, supports, low_m_only)
    config, inputs = gemm_base._MM_MXFP8_CUTE_DSL_TUNING_CONFIG, mxfp8_inputs(rows, out_dtype)
    with _kernels(gemm_base, "_compile_block_scaled_gemm") as module:
        yield Case(runner, "mxfp8_gemm", config, inputs, module.launches)


@recipe(_BASE + "_cute_dsl_gemm_mxfp8_sm107_runner.<locals>.CuteDSLMxfp8Sm107GemmRunner", differs=OUT_DTYPE, same=_SAME)
def cute_mxfp8_sm107(rows: int = 100, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    runner = gemm_base._cute_dsl_gemm_mxfp8_sm107_runner(out_dtype)
    config, inputs = gemm_base._MM_MXFP8_CUTE_DSL_TUNING_CONFIG, mxfp8_inputs(rows, out_dtype)
    with _kernels(gemm_base, "_compile_block_scaled_gemm", (10, 7)) as module:
        yield Case(runner, "mxfp8_gemm", config, inputs, module.launches)


@recipe(
    _BASE + "_cute_dsl_warp_splitk_mxfp8_gemm_runner.<locals>.CuteDSLMxfp8WarpSplitKRunner",
    differs={**OUT_DTYPE, "enable_pdl": {"enable_pdl": False}},
    same={"rows": {"rows": 5}},
)
def cute_warp_splitk_mxfp8(rows: int = 7, enable_pdl: bool = True, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    module = Compiled()
    runner = fresh(gemm_base._cute_dsl_warp_splitk_mxfp8_gemm_runner, enable_pdl)
    config, inputs = gemm_base._MM_MXFP8_CUTE_DSL_TUNING_CONFIG, mxfp8_inputs(rows, out_dtype)
    with gpu(), patch.object(dense_mxfp8_gemm_warp_splitk, "_compile", module.compiler):
        yield Case(runner, "mxfp8_gemm", config, inputs, module.launches, on_gpu=True)


@recipe(
    _BASE + "_cutedsl_low_latency_blockscaled_gemm_runner.<locals>.CutedslLowLatencyBlockscaledGemmRunner",
    differs={**OUT_DTYPE, "enable_pdl": {"enable_pdl": False}, "sm_version": {"sm_version": 103}},
    same={"rows": {"rows": 5}},
)
def cute_low_latency(
    rows: int = 7, enable_pdl: bool = True, sm_version: int = 100, out_dtype: torch.dtype = torch.bfloat16
) -> Iterator[Case]:
    from cutlass import cute

    module = Compiled()
    runner = gemm_base._cutedsl_low_latency_blockscaled_gemm_runner(sm_version, enable_pdl)
    config, inputs = gemm_base._MM_MXFP8_CUTE_DSL_TUNING_CONFIG, mxfp8_inputs(rows, out_dtype)
    cache = patch.dict(gemm_base._CUTEDSL_LOW_LATENCY_BLOCK_SCALED_KERNEL_CACHE, clear=True)
    with gpu(), cache, patch.object(cute, "compile", module.compiler):
        yield Case(runner, "mxfp8_gemm", config, inputs, module.launches)


@recipe(
    _BASE + "_cute_dsl_gemm_fp4_runner.<locals>.CuteDSLFp4GemmRunner",
    differs={**OUT_DTYPE, "enable_pdl": {"enable_pdl": False}, "use_nvfp4": {"use_nvfp4": False}, "sm_minor": {"sm_minor": 3}},
    same=_SAME,
)
def cute_fp4(
    rows: int = 100, enable_pdl: bool = True, out_dtype: torch.dtype = torch.bfloat16, use_nvfp4: bool = True, sm_minor: int = 0
) -> Iterator[Case]:
    runner = gemm_base._cute_dsl_gemm_fp4_runner(10, sm_minor, enable_pdl, out_dtype, use_nvfp4)
    config, inputs = gemm_base._MM_FP4_TUNING_CONFIG_128x4, fp4_inputs(rows, out_dtype=out_dtype)
    with _kernels(gemm_base, "_compile_block_scaled_gemm") as module:
        yield Case(runner, "fp4_gemm", config, inputs, module.launches)


@recipe(
    _BASE + "_b12x_gemm_fp4_runner.<locals>.B12xFp4GemmRunner",
    differs={**OUT_DTYPE, "enable_pdl": {"enable_pdl": False}, "use_nvfp4": {"use_nvfp4": False}},
    same=_SAME,
)
def b12x_fp4(rows: int = 100, enable_pdl: bool = True, out_dtype: torch.dtype = torch.bfloat16, use_nvfp4: bool = True) -> Iterator[Case]:
    runner = gemm_base._b12x_gemm_fp4_runner(12, 0, enable_pdl, out_dtype, use_nvfp4)
    config, inputs = gemm_base._MM_FP4_TUNING_CONFIG_128x4, fp4_inputs(rows, out_dtype=out_dtype)
    with _kernels(gemm_base, "_compile_block_scaled_gemm", (12, 0)) as module:
        yield Case(runner, "fp4_gemm", config, inputs, module.launches)


@recipe(
    "flashinfer.gemm.gemm_mm_mxfp8_cute_dsl:_b12x_gemm_mxfp8_runner.<locals>.B12xMxfp8GemmRunner",
    differs={**OUT_DTYPE, "enable_pdl": {"enable_pdl": False}},
    same=_SAME,
)
def b12x_mxfp8(rows: int = 100, enable_pdl: bool = True, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    runner = gemm_mm_mxfp8_cute_dsl._b12x_gemm_mxfp8_runner(12, 0, enable_pdl, out_dtype)
    config, inputs = gemm_base._MM_MXFP8_TUNING_CONFIG, mxfp8_inputs(rows, out_dtype)
    with _kernels(gemm_mm_mxfp8_cute_dsl, "_compile_block_scaled_gemm", (12, 0)) as module:
        yield Case(runner, "mxfp8_gemm", config, inputs, module.launches)


@recipe(
    "flashinfer.gemm.kernels.sm12x_cute.runner:Sm12xCuTeFp4GemmRunner",
    differs={"columns' scales in another dtype": {"scales": torch.float8_e4m3fn}, "compute capability": {"capability": (12, 1)}},
    same=_SAME,
)
def sm12x_fp4(rows: int = 100, scales: torch.dtype = torch.uint8, capability: tuple[int, int] = (12, 0)) -> Iterator[Case]:
    module = Compiled()
    runner = fresh(sm12x_runner.get_runner)
    inputs = fp4_inputs(rows)
    inputs[2:4] = inputs[2].view(scales), inputs[3].view(scales)
    with ExitStack() as stack:
        stack.enter_context(gpu(capability))
        stack.enter_context(patch.object(sm12x_runner, "_compile", module.compiler))
        stack.enter_context(patch.dict(sm12x_runner._COMPILED, clear=True))
        yield Case(runner, "fp4_gemm", gemm_base._MM_FP4_TUNING_CONFIG_128x4, inputs, module.launches, on_gpu=True)


@recipe(
    "flashinfer.gemm.gemm_svdquant:_sm120_nvfp4_svdquant_runner.<locals>.Sm120Nvfp4SvdquantRunner",
    differs={"enable_pdl": {"enable_pdl": False}, "bias": {"bias": bf16(N)}},
    same=_SAME,
)
def svdquant_sm120(rows: int = 100, enable_pdl: bool = True, bias: torch.Tensor | None = None) -> Iterator[Case]:
    module = Compiled()
    runner = gemm_svdquant._sm120_nvfp4_svdquant_runner(enable_pdl)
    config, inputs = gemm_svdquant._SM120_NVFP4_SVDQUANT_TUNING_CONFIG, svdquant_inputs(rows, bias)
    with gpu((12, 0)), patch.object(gemm_svdquant, "_compile_sm120_nvfp4_svdquant", module.compiler):
        yield Case(runner, "nvfp4_svdquant_gemm_sm120", config, inputs, module.launches)


@recipe(
    "flashinfer.gemm.gemm_svdquant:_sm120_nvfp4_svdquant_unfused_runner.<locals>.Sm120Nvfp4SvdquantUnfusedRunner",
    differs={"enable_pdl": {"enable_pdl": False}, "bias": {"bias": bf16(N)}},
    same=_SAME,
    fills="workspace_buffers",
)
def svdquant_sm120_unfused(rows: int = 100, enable_pdl: bool = True, bias: torch.Tensor | None = None) -> Iterator[Case]:
    runner = gemm_svdquant._sm120_nvfp4_svdquant_unfused_runner(enable_pdl)
    config, inputs = gemm_svdquant._SM120_NVFP4_SVDQUANT_IMPLEMENTATION_TUNING_CONFIG, svdquant_inputs(rows, bias)
    buffer = patch.object(gemm_svdquant, "_get_cache_buf", lambda *_: uint8(1024))
    with _kernels(gemm_base, "_compile_block_scaled_gemm", (12, 0)) as module, buffer:
        yield Case(runner, "nvfp4_svdquant_gemm_sm120_auto", config, inputs, module.launches)


@recipe(
    "flashinfer.prims_ts.gemm.runner:PrimsTsGemmRunner",
    differs={"is_neox": {"is_neox": True}, "has_bias": {"has_bias": True}, "arch": {"arch": 103}},
    same={"rows": {"rows": 1500}, "scale": {"scale": 0.25}},
)
def prims_ts(rows: int = 2000, arch: int = 100, has_bias: bool = False, is_neox: bool | None = None, scale: float = 1.0) -> Iterator[Case]:
    module = Compiled()
    op = prims_runner.dense_gemm_op_name("fp8_e4m3", "linear")
    identity = prims_runner.GemmIdentity(arch, "fp8_e4m3", "bf16", "linear", has_bias, None, is_neox, False)
    runner = prims_runner.PrimsTsGemmRunner(op, identity)
    inputs = [fp8(rows, K), fp8(N, K), bf16(rows, N), bf16(N) if has_bias else None, torch.ones(rows), one(), *[None] * 10]
    clusters = SimpleNamespace(cluster_shape_mnk=(1, 1, 1))
    with ExitStack() as stack:
        stack.enter_context(gpu())
        stack.enter_context(patch.object(prims_api, "_load_kernel", lambda _: clusters))
        stack.enter_context(patch.object(prims_api, "_max_active_clusters", lambda *_: 1))
        stack.enter_context(patch.object(prims_api, "_compile", module.compiler))
        yield Case(runner, op, prims_runner.tuning_config_for("linear"), inputs, module.launches, {"scale": scale})
