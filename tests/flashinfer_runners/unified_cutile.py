"""The unified MoE runners on cuTile, and the runners that rank one GEMM of theirs at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from flashinfer import cutile
from flashinfer.autotuner import TuningConfig
from flashinfer.fused_moe import runners

from tests.flashinfer_runners.case import Case, Compiled, bf16, recipe
from tests.flashinfer_runners.unified import DIFFERS, EXPERTS, HIDDEN, INTERMEDIATE, ROWS, RUNNERS, SAME, TOP_K, activations, built, weights

_NO_PDL = {name: change for name, change in DIFFERS.items() if name != "enable_pdl"}  # cuTile launches none


def _view(runner: Any, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return prepared weights in the layout of the runner's precision."""
    experts, inner = options.get("num_experts", EXPERTS), options.get("intermediate_size", INTERMEDIATE)
    rows = inner * (2 if runner.config.activation.is_gated else 1)
    if isinstance(runner, runners._CuTileFp4Runner):
        return _fp4_view(experts, rows, inner, runner._scale_block_size, runner._scale_dtype)
    if isinstance(runner, runners._CuTileFp8Runner):
        return _fp8_view(experts, rows, inner, runner)
    return {"w1": bf16(experts, HIDDEN, rows), "w2": bf16(experts, inner, HIDDEN)}


def _fp8_view(experts: int, rows: int, inner: int, runner: Any) -> dict[str, torch.Tensor]:
    packed, dtype = (2, torch.uint8) if runner._weight_fp4 else (1, torch.float8_e4m3fn)
    made = {}
    for name, n, k in (("w1", rows, HIDDEN), ("w2", HIDDEN, inner)):
        swizzled = (experts, -(-n // 128), -(-(k // 32) // 4), 32, 16)
        scale = swizzled if runner._weight_fp4 else (experts, n, k // 32) if runner._block_scaled else (experts,)
        made[name] = torch.zeros(experts, n, k // packed, dtype=dtype)
        made[f"{name}_scale"] = torch.zeros(scale, dtype=torch.float8_e8m0fnu if runner._block_scaled else torch.float32)
    return made


def _fp4_view(experts: int, rows: int, inner: int, block: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    made = {}
    for name, n, k in (("w1", rows, HIDDEN), ("w2", HIDDEN, inner)):
        made[name] = torch.zeros(experts, n, k // 2, dtype=torch.uint8)
        made[f"{name}_scale"] = torch.zeros(experts, -(-n // 128), -(-(k // block) // 4), 32, 16, dtype=dtype)
        made[f"{name}_global_scale"] = torch.ones(experts)
    return made


@contextmanager
def _built(runner_type: Any, capability: tuple[int, int], rows: int, options: dict[str, Any]) -> Iterator[tuple[Any, list[Any], list[str]]]:
    available = patch.object(cutile, "is_cuda_tile_available", lambda: True)
    with built(runner_type, runner_type.supported_quant_variants[0], options, capability, available) as runner:
        module = Compiled()
        runner._kernel_module = module
        pack = activations(rows, bf16(rows, HIDDEN), options.get("top_k", TOP_K))
        inputs = runner.pack_inputs(pack, weights(runner, _view(runner, options)))
        runner._workspace_cache.clear()
        module.launches.clear()
        yield runner, inputs, module.launches


def _register(name: str, runner_type: str) -> None:
    def build(rows: int = ROWS, **options: Any) -> Iterator[Case]:
        capability = options.pop("capability", (12, 0))
        with _built(getattr(runners, runner_type), capability, rows, options) as (runner, inputs, launches):
            yield Case(runner, f"moe_{runner.backend_key}", runner.tuning_config, inputs, launches)

    build.__name__ = name
    differs = {**_NO_PDL, "compute capability": {"capability": (12, 1)}}
    recipe(RUNNERS + runner_type, differs=differs, same=SAME, fills="_workspace_cache")(build)


_register("unified_cutile_bf16", "CuTileBf16Runner")
_register("unified_cutile_fp8_per_tensor", "CuTileFp8PerTensorRunner")
_register("unified_cutile_fp8_per_tensor_bf16", "CuTileFp8PerTensorBf16Runner")
_register("unified_cutile_mxfp8", "CuTileMxfp8Runner")
_register("unified_cutile_mxfp8_bf16", "CuTileMxfp8Bf16Runner")
_register("unified_cutile_mxfp4_mxfp8", "CuTileMxfp4Mxfp8Runner")
_register("unified_cutile_nvfp4", "CuTileNvfp4Runner")
_register("unified_cutile_nvfp4_bf16", "CuTileNvfp4Bf16Runner")
_register("unified_cutile_mxfp4", "CuTileMxfp4Runner")
_register("unified_cutile_mxfp4_bf16", "CuTileMxfp4Bf16Runner")


@recipe(
    RUNNERS + "_CuTileStageRunner",
    differs={
        "stage": {"stage": 2},
        "block_size": {"block_size": 64},
        "fallback": {"fallback": (32, 128, 64, 1, 128, 32, 4)},
        "rows, which are not bucketed": {"rows": 120},
        "the layer's top_k": {"top_k": 4},
        "the layer's tune_max_num_tokens": {"tune_max_num_tokens": 4096},
    },
)
def cutile_stage(
    rows: int = ROWS, stage: int = 1, block_size: int = 32, fallback: tuple[int, ...] = (32, 128, 32, 4, 128, 32, 4), **options: Any
) -> Iterator[Case]:
    with _built(runners.CuTileBf16Runner, (12, 0), rows, options) as (parent, inputs, launches):
        runner = runners._CuTileStageRunner(parent, stage, block_size, fallback)
        config = TuningConfig(use_cuda_graph=True, inputs_pre_hook=parent._prepare_tuning_inputs)
        yield Case(runner, f"moe_cutile_bf16_sm120_b32_gemm{stage}", config, inputs, launches)


@recipe(
    RUNNERS + "_CuTileFp8StageRunner",
    differs={
        "stage": {"stage": 2},
        "fallback": {"fallback": (2, 32, 64, 128, 2, 64, 128, 2)},
        "rows, which are not bucketed": {"rows": 120},
        "the layer's top_k": {"top_k": 4},
        "the layer's tune_max_num_tokens": {"tune_max_num_tokens": 4096},
    },
)
def cutile_fp8_stage(
    rows: int = ROWS, stage: int = 1, fallback: tuple[int, ...] = (1, 32, 64, 128, 2, 64, 128, 2), **options: Any
) -> Iterator[Case]:
    with _built(runners.CuTileMxfp8Runner, (12, 0), rows, options) as (parent, inputs, launches):
        runner = runners._CuTileFp8StageRunner(parent, stage, fallback)
        config = TuningConfig(use_cuda_graph=True, inputs_pre_hook=parent._prepare_tuning_inputs)
        yield Case(runner, f"moe_cutile_mxfp8_sorted_v1_sm120_b32_m1_gemm{stage}", config, inputs, launches)
