"""GEMM runners whose kernels are compiled from C++: CUTLASS, cuBLAS, cuBLASLt, TGV and TensorRT-LLM's cubins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from flashinfer import trtllm_low_latency_gemm as low_latency
from flashinfer.autotuner import ConstraintSpec, DynamicTensorSpec, TuningConfig
from flashinfer.fused_moe.utils import get_hybrid_num_tokens_buckets, map_to_hybrid_bucket_uncapped
from flashinfer.gemm import gemm_base, gemm_svdquant
from flashinfer.gemm.kernels import tgv_gemm_cute_ext

from tests.flashinfer_runners.case import Case, Compiled, bf16, fp8, fresh, gpu, one, recipe, uint8

N, K = 256, 512
_BASE = "flashinfer.gemm.gemm_base:"
_TGV_MODULE = gemm_base.get_tgv_gemm_sm10x_module
_OTHER_SIZE = {"rows": {"rows": 120}}  # of the same bucket

# tgv_gemm_sm100 builds this inside the function.
_TGV_CONFIG = TuningConfig(
    dynamic_tensor_specs=(DynamicTensorSpec((0,), (-2,), get_hybrid_num_tokens_buckets, map_to_hybrid_bucket_uncapped),),
    constraint_specs=(ConstraintSpec(4, -2, lambda shapes: shapes[0][-2]),),
)


def fp8_inputs(rows: int, out_dtype: torch.dtype) -> list[Any]:
    """Return the inputs of ``fp8_gemm_sm100``: a batch of one, B column-major."""
    out = torch.zeros(1, rows, N, dtype=out_dtype)
    return [fp8(1, rows, K), fp8(1, N, K).transpose(-2, -1), one(), one(), out, uint8(1024)]


def bf16_inputs(rows: int, out_dtype: torch.dtype = torch.bfloat16, *, bias: torch.Tensor | None = None, pdl: bool = False) -> list[Any]:
    """Return the inputs of ``bf16_gemm_sm100``."""
    return [bf16(rows, K), bf16(N, K).t(), bias, pdl, torch.zeros(rows, N, dtype=out_dtype), uint8(1024)]


def fp4_inputs(rows: int, block_size: int = 16, *, tile_rows: int = 128, out_dtype: torch.dtype = torch.bfloat16) -> list[Any]:
    """Return the inputs of ``mm_fp4``: packed operands, two-dimensional swizzled scales."""
    padded = -(-rows // tile_rows) * tile_rows
    out = torch.zeros(rows, N, dtype=out_dtype)
    scales = uint8(padded, K // block_size), uint8(N, K // block_size).t()
    return [uint8(rows, K // 2), uint8(N, K // 2).t(), *scales, one(), out_dtype, out, block_size, block_size == 16, uint8(1024)]


def mxfp8_inputs(rows: int, out_dtype: torch.dtype = torch.bfloat16) -> list[Any]:
    """Return the inputs of ``mm_mxfp8``: flat swizzled scales."""
    scales = uint8(-(-rows // 128) * 128 * K // 32), uint8(N * K // 32)
    return [fp8(rows, K), fp8(N, K).t(), *scales, out_dtype, torch.zeros(rows, N, dtype=out_dtype), uint8(1024)]


OUT_DTYPE = {"out_dtype": {"out_dtype": torch.float16}}


@recipe(
    _BASE + "get_gemm_module.<locals>.cublas_fp8_gemm_runner.<locals>.CublasFp8GemmRunner",
    differs=OUT_DTYPE,
    same=_OTHER_SIZE,
    fills="_algo_cache",
)
def cublas_fp8(rows: int = 100, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    module = Compiled(bmm_fp8_get_algos=3)
    with patch.object(gemm_base, "gen_gemm_module", module.spec):
        runner = fresh(gemm_base.get_gemm_module).cublas_fp8_gemm_runner()
    config = gemm_base._FP8_GEMM_SM100_TUNING_CONFIG
    yield Case(runner, "fp8_gemm", config, fp8_inputs(rows, out_dtype), module.launches, forward={"tactic": 1})


@recipe(
    _BASE + "get_gemm_sm120_module_cutlass_fp8.<locals>.cutlass_fp8_gemm_runner.<locals>.CutlassFp8GemmRunner",
    differs=OUT_DTYPE,
    same=_OTHER_SIZE,
)
def cutlass_fp8_sm120(rows: int = 100, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    module = Compiled()
    with patch.object(gemm_base, "get_gemm_sm120_module", module.compiler):
        runner = fresh(gemm_base.get_gemm_sm120_module_cutlass_fp8).cutlass_fp8_gemm_runner()
    yield Case(runner, "fp8_gemm", gemm_base._FP8_GEMM_SM100_TUNING_CONFIG, fp8_inputs(rows, out_dtype), module.launches)


@recipe(
    _BASE + "get_gemm_sm100_module_cutlass_fp8.<locals>.cutlass_fp8_gemm_runner.<locals>.CutlassFp8GemmRunner",
    differs=OUT_DTYPE,
    same=_OTHER_SIZE,
)
def cutlass_fp8_sm100(rows: int = 100, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    module = Compiled()
    with patch.object(gemm_base, "gen_gemm_sm100_module_cutlass_fp8", module.spec):
        runner = fresh(gemm_base.get_gemm_sm100_module_cutlass_fp8).cutlass_fp8_gemm_runner()
    config = gemm_base._FP8_GEMM_SM100_TUNING_CONFIG
    yield Case(runner, "fp8_gemm", config, fp8_inputs(rows, out_dtype), module.launches, forward={"tactic": 0})


@recipe(
    _BASE + "get_gemm_sm100_module_cutlass_bf16.<locals>.cutlass_bf16_gemm_runner.<locals>.CutlassBf16GemmRunner",
    differs=OUT_DTYPE,
    same=_OTHER_SIZE,
)
def cutlass_bf16(rows: int = 100, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    module = Compiled()
    with patch.object(gemm_base, "gen_gemm_sm100_module_cutlass_bf16", module.spec):
        runner = fresh(gemm_base.get_gemm_sm100_module_cutlass_bf16).cutlass_bf16_gemm_runner()
    config = gemm_base._BF16_GEMM_SM100_TUNING_CONFIG
    yield Case(runner, "bf16_gemm", config, bf16_inputs(rows, out_dtype), module.launches, forward={"tactic": 0})


def bias_at(alignment: int) -> torch.Tensor:
    """Return a bias whose address is a multiple of ``alignment`` bytes and of nothing larger."""
    buffer = bf16(N + alignment)
    start = next(at for at in range(alignment) if (buffer.data_ptr() + 2 * at) % (2 * alignment) == alignment)
    return buffer[start : start + N]


@recipe(
    _BASE + "get_mm_bf16_cublaslt_module.<locals>.cublaslt_bf16_gemm_runner.<locals>.CublasltBf16GemmRunner",
    differs={**OUT_DTYPE, "bias": {"bias": bias_at(256)}, "misaligned bias": {"bias": bias_at(2)}},
    same=_OTHER_SIZE,
    fills="_algo_cache",
)
def cublaslt_bf16(rows: int = 100, out_dtype: torch.dtype = torch.bfloat16, bias: torch.Tensor | None = None) -> Iterator[Case]:
    module = Compiled(mm_bf16_cublaslt_get_algos=3)
    with patch.object(gemm_base, "gen_mm_bf16_cublaslt_module", module.spec):
        runner = fresh(gemm_base.get_mm_bf16_cublaslt_module).cublaslt_bf16_gemm_runner()
    config, inputs = gemm_base._BF16_GEMM_SM100_TUNING_CONFIG, bf16_inputs(rows, out_dtype, bias=bias)
    with gpu():
        yield Case(runner, "bf16_gemm", config, inputs, module.launches, forward={"tactic": 1})


@recipe(
    _BASE + "_tinygemm_bf16_gemm_runner.<locals>.TinyGemmBf16GemmRunner",
    differs={"pdl": {"pdl": True}, "bias": {"bias": bf16(N)}},
    same={"rows": {"rows": 5}},
)
def tinygemm_bf16(rows: int = 7, bias: torch.Tensor | None = None, pdl: bool = False) -> Iterator[Case]:
    module = Compiled()
    with patch.object(gemm_base, "get_tinygemm2_module", module.compiler):
        runner = gemm_base._tinygemm_bf16_gemm_runner()
    config, inputs = gemm_base._BF16_GEMM_SM100_TUNING_CONFIG, bf16_inputs(rows, bias=bias, pdl=pdl)
    yield Case(runner, "bf16_gemm", config, inputs, module.launches, forward={"tactic": 0})


@recipe(
    _BASE + "_tgv_gemm_runner.<locals>.TGVRunner",
    differs={"use_sm_100f": {"use_sm_100f": False}, "pdl": {"pdl": True}},
    same=_OTHER_SIZE,
)
def tgv(rows: int = 100, use_sm_100f: bool = True, pdl: bool = False) -> Iterator[Case]:
    with _tgv(rows, use_sm_100f, pdl, cpp=False) as case:
        yield case


@recipe(
    _BASE + "_tgv_gemm_runner.<locals>.TGVRunner",
    differs={"use_sm_100f": {"use_sm_100f": False}, "pdl": {"pdl": True}},
    same=_OTHER_SIZE,
    fills="cpp_runner",
)
def tgv_with_debug_switch(rows: int = 100, use_sm_100f: bool = True, pdl: bool = False) -> Iterator[Case]:
    with _tgv(rows, use_sm_100f, pdl, cpp=True) as case:
        yield case


@contextmanager
def _tgv(rows: int, use_sm_100f: bool, pdl: bool, *, cpp: bool) -> Iterator[Case]:
    module = Compiled()
    runner = fresh(gemm_base._tgv_gemm_runner, torch.bfloat16, use_sm_100f)
    config, inputs = gemm_base._BF16_GEMM_SM100_TUNING_CONFIG, bf16_inputs(rows, pdl=pdl)
    kernel = patch.object(tgv_gemm_cute_ext, "_get_compiled_cute_ext_kernel", module.compiler)
    legacy = patch.object(gemm_base, "gen_tgv_gemm_sm10x_module", module.spec)
    uncached = patch.object(gemm_base, "get_tgv_gemm_sm10x_module", lambda *arguments: fresh(_TGV_MODULE, *arguments))
    with gpu(), kernel, legacy, uncached, patch.object(gemm_base, "_TGV_DEBUG_USE_CPP", cpp):
        yield Case(runner, "bf16_gemm", config, inputs, module.launches, forward={"tactic": 0})


@recipe(
    _BASE + "get_tgv_gemm_sm10x_module.<locals>.tgv_gemm_runner.<locals>.TGVGemmRunner",
    differs={"dtype": {"dtype": torch.float16}, "pdl": {"pdl": True}},
    same=_OTHER_SIZE,
)
def tgv_cpp(rows: int = 100, dtype: torch.dtype = torch.bfloat16, pdl: bool = False) -> Iterator[Case]:
    module = Compiled()
    with patch.object(gemm_base, "gen_tgv_gemm_sm10x_module", module.spec):
        runner = fresh(gemm_base.get_tgv_gemm_sm10x_module, dtype, False).tgv_gemm_runner()
    inputs = [torch.zeros(rows, K, dtype=dtype), torch.zeros(N, K, dtype=dtype).t(), torch.zeros(N, dtype=dtype), pdl]
    inputs.append(torch.zeros(rows, N, dtype=dtype))
    yield Case(runner, "bf16_tgv_gemm", _TGV_CONFIG, inputs, module.launches, forward={"tactic": 0})


@recipe(
    _BASE + "_create_cutlass_fp4_gemm_module.<locals>.cutlass_fp4_gemm_runner.<locals>.CutlassFp4GemmRunner",
    differs={**OUT_DTYPE, "block_size": {"block_size": 32}},
    same=_OTHER_SIZE,
)
def cutlass_fp4(rows: int = 100, block_size: int = 16, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    module = Compiled()
    with patch.object(gemm_base, "gen_gemm_sm100_module_cutlass_fp4", module.spec):
        runner = fresh(gemm_base.get_gemm_sm100_module_cutlass_fp4).cutlass_fp4_gemm_runner()
    config, inputs = gemm_base._MM_FP4_TUNING_CONFIG_128x4, fp4_inputs(rows, block_size, out_dtype=out_dtype)
    yield Case(runner, "fp4_gemm", config, inputs, module.launches, forward={"tactic": 0})


@recipe(
    _BASE + "_create_cutlass_mxfp8_gemm_module.<locals>.cutlass_mxfp8_gemm_runner.<locals>.CutlassMxfp8GemmRunner",
    differs=OUT_DTYPE,
    same=_OTHER_SIZE,
)
def cutlass_mxfp8(rows: int = 100, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    module = Compiled()
    with patch.object(gemm_base, "gen_gemm_sm100_module_cutlass_mxfp8", module.spec):
        runner = fresh(gemm_base.get_gemm_sm100_module_cutlass_mxfp8).cutlass_mxfp8_gemm_runner()
    config = gemm_base._MM_MXFP8_TUNING_CONFIG
    yield Case(runner, "mxfp8_gemm", config, mxfp8_inputs(rows, out_dtype), module.launches, forward={"tactic": 0})


def _trtllm(module: Compiled) -> Any:
    with (
        patch.object(gemm_base, "gen_trtllm_gen_gemm_module", module.spec),
        patch.object(gemm_base, "setup_cubin_loader", module.compiler),
    ):
        return fresh(gemm_base._get_trtllm_gemm_module_impl, False)


@recipe(
    _BASE + "_get_trtllm_gemm_module_impl.<locals>.TrtllmGemmRunner",
    differs={"use_8x4_sf_layout": {"use_8x4_sf_layout": True}},
    same=_OTHER_SIZE,
)
def trtllm_fp4(rows: int = 100, use_8x4_sf_layout: bool = False) -> Iterator[Case]:
    module = Compiled()
    runner = _trtllm(module).trtllm_fp4_gemm_runner(use_8x4_sf_layout)
    config = gemm_base._MM_FP4_TUNING_CONFIG_8x4 if use_8x4_sf_layout else gemm_base._MM_FP4_TUNING_CONFIG_128x4
    inputs = fp4_inputs(rows, tile_rows=8 if use_8x4_sf_layout else 128)
    yield Case(runner, "fp4_gemm", config, inputs, module.launches, forward={"tactic": 0})


@recipe(
    _BASE + "_get_trtllm_gemm_module_impl.<locals>.trtllm_mxfp8_gemm_runner.<locals>.TrtllmMxFp8GemmRunner",
    differs={"use_8x4_sf_layout": {"use_8x4_sf_layout": True}},
    same=_OTHER_SIZE,
)
def trtllm_mxfp8(rows: int = 100, use_8x4_sf_layout: bool = False) -> Iterator[Case]:
    module = Compiled()
    runner = _trtllm(module).trtllm_mxfp8_gemm_runner(use_8x4_sf_layout)
    inputs = mxfp8_inputs(rows)
    yield Case(runner, "mxfp8_gemm", gemm_base._MM_MXFP8_TUNING_CONFIG, inputs, module.launches, forward={"tactic": 0})


@recipe(
    "flashinfer.trtllm_low_latency_gemm:_get_trtllm_low_latency_gemm_module_impl.<locals>.TrtllmLowLatencyGemmRunner",
    differs={"columns": {"columns": 2 * N}},
    same={"rows": {"rows": 5}},
)
def trtllm_low_latency(rows: int = 7, columns: int = N) -> Iterator[Case]:
    module = Compiled(get_workspace_size_in_bytes=16)
    with (
        patch.object(low_latency, "gen_trtllm_low_latency_gemm_module", module.spec),
        patch.object(low_latency, "setup_cubin_loader", module.compiler),
    ):
        runner = fresh(low_latency._get_trtllm_low_latency_gemm_module_impl, False).gemm_runner()
    inputs = [fp8(rows, K), fp8(K // 128, columns, 128), one(), bf16(rows, columns)]
    config = low_latency._LLGEMM_TUNING_CONFIG
    yield Case(runner, "trtllm_low_latency_gemm", config, inputs, module.launches, forward={"tactic": 0})


def svdquant_inputs(rows: int, bias: torch.Tensor | None) -> list[Any]:
    """Return the inputs of ``mm_nvfp4_svdquant`` before the workspace; the correction has rank 32."""
    scales = uint8(-(-rows // 128) * 128 * K // 16), uint8(N * K // 16)
    return [uint8(rows, K // 2), uint8(N, K // 2), *scales, one(), bf16(rows, 32), bf16(N, 32), bias, bf16(rows, N)]


@recipe(
    "flashinfer.gemm.gemm_svdquant:_nvfp4_svdquant_gemm_runner.<locals>.Nvfp4SvdquantGemmRunner",
    differs={"enable_pdl": {"enable_pdl": False}, "bias": {"bias": bf16(N)}},
    same=_OTHER_SIZE,
)
def svdquant_cutlass(rows: int = 100, enable_pdl: bool = True, bias: torch.Tensor | None = None) -> Iterator[Case]:
    module = Compiled()
    with patch.object(gemm_svdquant, "get_nvfp4_svdquant_module", module.compiler):
        runner = gemm_svdquant._nvfp4_svdquant_gemm_runner(enable_pdl)
    inputs = [*svdquant_inputs(rows, bias), uint8(1024)]
    config = gemm_svdquant._NVFP4_SVDQUANT_GEMM_TUNING_CONFIG
    yield Case(runner, "nvfp4_svdquant_gemm", config, inputs, module.launches, forward={"tactic": 0})
