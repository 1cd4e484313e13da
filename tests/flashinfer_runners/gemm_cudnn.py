"""GEMM runners on cuDNN graphs. The functions that build and execute a graph are stubbed: there is no cuDNN where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from flashinfer.gemm import gemm_base, gemm_bf16_fp4_cudnn

from tests.flashinfer_runners.case import Case, Compiled, bf16, one, recipe, uint8
from tests.flashinfer_runners.gemm_compiled import K, N, bf16_inputs, fp4_inputs, fp8_inputs, mxfp8_inputs

_BASE = "flashinfer.gemm.gemm_base:"
_DIFFERS = {"override shape": {"override": True}, "out_dtype": {"out_dtype": torch.float16}}
_SAME = {"rows": {"rows": 120}}
_TACTIC = {"tactic": (7, ((1, 2),))}


@contextmanager
def _graphs(owner: ModuleType, executed: str, override: bool) -> Iterator[Compiled]:
    """Stub what runs a graph, and say whether cuDNN takes other shapes than it built the graph for."""
    module = Compiled()
    plain = patch.object(owner, executed, module.compiler()._cudnn)
    capable = patch.object(owner, "_is_cudnn_override_shape_available", lambda: override)
    with plain, capable:
        yield module


@recipe(_BASE + "_cudnn_gemm_fp8_runner.<locals>.CudnnFp8GemmRunner", differs=_DIFFERS, same=_SAME)
def cudnn_fp8(rows: int = 100, override: bool = False, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    with _graphs(gemm_base, "_cudnn_gemm_fp8", override) as module:
        runner = gemm_base._cudnn_gemm_fp8_runner()
        config = gemm_base._FP8_GEMM_SM100_TUNING_CONFIG
        yield Case(runner, "fp8_gemm", config, fp8_inputs(rows, out_dtype), module.launches, forward=_TACTIC)


@recipe(
    _BASE + "_cudnn_gemm_bf16_runner.<locals>.CudnnBf16GemmRunner",
    differs={**_DIFFERS, "is_a_k_major": {"is_a_k_major": False}, "bias": {"bias": bf16(N)}},
    same=_SAME,
)
def cudnn_bf16(
    rows: int = 100,
    override: bool = False,
    out_dtype: torch.dtype = torch.bfloat16,
    is_a_k_major: bool = True,
    bias: torch.Tensor | None = None,
) -> Iterator[Case]:
    with _graphs(gemm_base, "_cudnn_gemm_bf16", override) as module:
        runner = gemm_base._cudnn_gemm_bf16_runner(is_a_k_major=is_a_k_major, is_b_k_major=True)
        config, inputs = gemm_base._BF16_GEMM_SM100_TUNING_CONFIG, bf16_inputs(rows, out_dtype, bias=bias)
        yield Case(runner, "bf16_gemm", config, inputs, module.launches, forward=_TACTIC)


@recipe(_BASE + "_cudnn_gemm_fp4_runner.<locals>.CudnnFp4GemmRunner", differs=_DIFFERS, same=_SAME)
def cudnn_fp4(rows: int = 100, override: bool = False, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    config = gemm_base._MM_FP4_TUNING_CONFIG_128x4
    with _graphs(gemm_base, "_cudnn_gemm_fp4", override) as module:
        runner = gemm_base._cudnn_gemm_fp4_runner(config)
        yield Case(runner, "fp4_gemm", config, fp4_inputs(rows, out_dtype=out_dtype), module.launches, forward=_TACTIC)


@recipe(_BASE + "_cudnn_mm_mxfp8_runner.<locals>.CudnnMmMxfp8GemmRunner", differs=_DIFFERS, same=_SAME)
def cudnn_mm_mxfp8(rows: int = 100, override: bool = False, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    with _graphs(gemm_base, "_cudnn_gemm_mxfp8", override) as module:
        runner = gemm_base._cudnn_mm_mxfp8_runner()
        config = gemm_base._MM_MXFP8_TUNING_CONFIG
        yield Case(runner, "mxfp8_gemm", config, mxfp8_inputs(rows, out_dtype), module.launches, forward=_TACTIC)


@recipe(_BASE + "_cudnn_gemm_mxfp8_runner.<locals>.CudnnMxfp8GemmRunner", differs=_DIFFERS, same=_SAME)
def cudnn_bmm_mxfp8(rows: int = 100, override: bool = False, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    inputs = fp8_inputs(rows, out_dtype)
    inputs[2:4] = uint8(128 * K // 32), uint8(N * K // 32)
    with _graphs(gemm_base, "_cudnn_gemm_mxfp8", override) as module:
        runner = gemm_base._cudnn_gemm_mxfp8_runner()
        config = gemm_base._FP8_GEMM_SM100_TUNING_CONFIG
        yield Case(runner, "mxfp8_gemm", config, inputs, module.launches, forward=_TACTIC)


def bf16_fp4_inputs(rows: int, out_dtype: torch.dtype) -> list[Any]:
    """Return the inputs of ``_compute_cudnn``: scales that are not swizzled."""
    scales = torch.zeros(N, K // 16, dtype=torch.float8_e4m3fn)
    out = torch.zeros(rows, N, dtype=out_dtype)
    return [bf16(rows, K), uint8(N, K // 2), scales, one(), out_dtype, out, 16, True, uint8(1024)]


@recipe("flashinfer.gemm.gemm_bf16_fp4_cudnn:_cudnn_bf16_fp4_runner.<locals>.CudnnBf16Fp4Runner", differs=_DIFFERS, same=_SAME)
def cudnn_bf16_fp4(rows: int = 100, override: bool = False, out_dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    owner, config = gemm_bf16_fp4_cudnn, gemm_bf16_fp4_cudnn._BF16_FP4_TUNING_CONFIG
    with _graphs(owner, "execute_cudnn_bf16_fp4_graph", override) as module:
        builder = patch.object(owner, "build_cudnn_bf16_fp4_graph", module.compiler)
        with builder, patch.object(owner, "_torch_data_type_to_cudnn_data_type", str):
            runner = owner._cudnn_bf16_fp4_runner(config)
            inputs = bf16_fp4_inputs(rows, out_dtype)
            yield Case(runner, "bf16_fp4_gemm", config, inputs, module.launches, forward=_TACTIC)
