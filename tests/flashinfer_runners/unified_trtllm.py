"""The unified MoE runners on TensorRT-LLM's cubins and on Prims-TS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from flashinfer import utils
from flashinfer.fused_moe import core, runners
from flashinfer.fused_moe.api import QuantFormat, RoutingInputMode
from flashinfer.fused_moe.backends.trtllm.sm100_runner import MoERunner as InnerRunner
from flashinfer.prims_ts import utils as prims_utils
from flashinfer.prims_ts.moe import support

from tests.flashinfer_runners.case import Case, Compiled, bf16, fp8, recipe, uint8
from tests.flashinfer_runners.unified import (
    DIFFERS,
    EXPERTS,
    HIDDEN,
    INTERMEDIATE,
    OFFSET,
    ROWS,
    RUNNERS,
    SAME,
    SHARD,
    TOP_K,
    activations,
    built,
)

GROUP = 256


def _sizes(options: Mapping[str, Any]) -> tuple[int, int]:
    experts = options.get("local_num_experts") or options.get("num_experts", EXPERTS)
    return experts, options.get("intermediate_size", INTERMEDIATE)


def _fp4(rows: int, experts: int, inner: int, factor: int) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
    ones = torch.ones(experts)
    view = {"gemm1_weights": uint8(experts, factor * inner, HIDDEN // 2), "gemm1_weights_scale": fp8(experts, factor * inner, HIDDEN // 16)}
    view |= {"gemm2_weights": uint8(experts, HIDDEN, inner // 2), "gemm2_weights_scale": fp8(experts, HIDDEN, inner // 16)}
    scales = dict.fromkeys(("output1_scale_scalar", "output1_scale_gate_scalar", "output2_scale_scalar"), ones)
    return uint8(rows, HIDDEN // 2), fp8(rows, HIDDEN // 16), view | scales


def _fp8_block(rows: int, experts: int, inner: int, factor: int) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
    view = {"gemm1_weights": fp8(experts, factor * inner, HIDDEN), "gemm2_weights": fp8(experts, HIDDEN, inner)}
    view |= {
        "gemm1_weights_scale": uint8(experts, factor * inner, HIDDEN // 32),
        "gemm2_weights_scale": uint8(experts, HIDDEN, inner // 32),
    }
    return fp8(rows, HIDDEN), uint8(rows, HIDDEN // 32), view


def _fp8_per_tensor(rows: int, experts: int, inner: int, factor: int) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
    view = {"gemm1_weights": fp8(experts, factor * inner, HIDDEN), "gemm2_weights": fp8(experts, HIDDEN, inner)}
    scales = dict.fromkeys(("output1_scales_scalar", "output1_scales_gate_scalar", "output2_scales_scalar"), torch.ones(experts))
    return fp8(rows, HIDDEN), None, view | scales


def _bf16(rows: int, experts: int, inner: int, factor: int) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
    view = {"gemm1_weights": bf16(experts, HIDDEN // 64, factor * inner, 64), "gemm2_weights": bf16(experts, inner // 64, HIDDEN, 64)}
    return bf16(rows, HIDDEN), None, view


def _int4(rows: int, experts: int, inner: int, factor: int) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
    gemm1 = {
        "gemm1_weights": uint8(experts, HIDDEN // GROUP, factor * inner, 128),
        "gemm2_weights": uint8(experts, inner // GROUP, HIDDEN, 128),
    }
    gemm2 = {
        "gemm1_weights_scale": bf16(experts, factor * inner * HIDDEN // 32),
        "gemm2_weights_scale": bf16(experts, HIDDEN * inner // 32),
    }
    return bf16(rows, HIDDEN), None, gemm1 | gemm2


def _case(runner_type: Any, pair: tuple[Any, Any], made: Any, rows: int, options: dict[str, Any]) -> Iterator[Case]:
    module = Compiled(**{f"trtllm_{name}_moe": [bf16(rows, HIDDEN)] for name in ("bf16", "fp4_block_scale", "mxint4_block_scale")})
    loaded = SimpleNamespace(MoERunner=InnerRunner, moe_op=module)
    mode = options.pop("mode", RoutingInputMode.PackedPrecomputed)
    beta = options.pop("gemm1_beta", None)
    capability = options.pop("capability", (10, 0))
    stubs = [patch.object(core, "get_trtllm_moe_sm100_module", lambda: loaded), patch.object(utils, "device_support_pdl", lambda _: True)]
    stubs.append(patch.object(prims_utils, "is_prims_ts_available", lambda: True))
    stubs += [patch.object(support, f"is_prims_ts_{name}_supported", lambda *_, **__: (True, "")) for name in ("bf16", "nvfp4")]
    with built(runner_type, pair, options, capability, *stubs) as runner:
        experts, inner = _sizes(options)
        hidden, scale, view = made(rows, experts, inner, 2 if runner.config.activation.is_gated else 1)
        view |= {} if beta is None else {"gemm1_alpha": beta, "gemm1_beta": beta, "gemm1_clamp_limit": beta}
        pack = activations(rows, hidden, options.get("top_k", TOP_K), hidden_states_scale=scale, routing_input_mode=mode)
        inputs = runner.pack_inputs(pack, runners.MoEWeightPack({runner.backend_key: view}))
        arguments = runner.launch_kwargs_for(inputs)
        with patch.object(type(runner._inner), "forward", lambda *_, **__: module.launch()):
            yield Case(runner, f"moe_{runner.backend_key}", runner.tuning_config_for(inputs), list(inputs), module.launches, arguments)


def _register(name: str, runner_type: str, pair: tuple[Any, Any], made: Any, differs: dict[str, Any], **fixed: Any) -> None:
    def build(rows: int = ROWS, **options: Any) -> Iterator[Case]:
        yield from _case(getattr(runners, runner_type), pair, made, rows, {**SHARD, **fixed, **options})

    build.__name__ = name
    recipe(RUNNERS + runner_type, differs=differs, same={**SAME, **OFFSET})(build)


_DIFFERS = {**DIFFERS, "local_num_experts": {"local_num_experts": EXPERTS // 4}}
_UNPACKED = {**_DIFFERS, "routing input mode": {"mode": RoutingInputMode.UnpackedPrecomputed}}
_BETA = {"gemm1_beta in the weights": {"gemm1_beta": torch.ones(EXPERTS // 2)}}
_INT4 = {name: change for name, change in _DIFFERS.items() if name != "activation"}  # it has one activation
_INT4 |= {"intermediate_size": {"intermediate_size": 512}, **_BETA}
_BF16 = (QuantFormat.BF16, QuantFormat.BF16)
_NVFP4 = (QuantFormat.NVFP4, QuantFormat.NVFP4)
_FP8 = (QuantFormat.FP8PerTensor, QuantFormat.FP8PerTensor)
_register("unified_trtllm_fp4", "TrtllmFp4RoutedRunner", _NVFP4, _fp4, {**_UNPACKED, **_BETA})
_register("unified_trtllm_fp8_block", "TrtllmFp8BlockRunner", (QuantFormat.MXFP8, QuantFormat.MXFP8), _fp8_block, {**_UNPACKED, **_BETA})
_register("unified_trtllm_fp8_per_tensor", "TrtllmFp8PerTensorRunner", _FP8, _fp8_per_tensor, _UNPACKED)
_register("unified_trtllm_bf16", "TrtllmBf16RoutedRunner", _BF16, _bf16, {**_UNPACKED, **_BETA})
_register("unified_trtllm_int4", "TrtllmMxInt4RoutedRunner", (QuantFormat.MXINT4, QuantFormat.BF16), _int4, _INT4, intermediate_size=256)
_register("unified_prims_ts_bf16", "PrimsTsRunner", _BF16, _bf16, {**_UNPACKED, **_BETA})
_register("unified_prims_ts_fp4", "PrimsTsRunner", _NVFP4, _fp4, {**_UNPACKED, **_BETA})
