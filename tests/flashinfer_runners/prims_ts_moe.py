"""The MoE runners of Prims-TS, whole and partitioned over two groups of SMs, stopped where they launch the routing kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from flashinfer.fused_moe.shared.inputs import MoeRunnerInputs
from flashinfer.prims_ts.moe import partition
from flashinfer.prims_ts.moe import runner as prims
from flashinfer.tllm_enums import ActivationType, Fp8QuantizationType, RoutingInputMode

from tests.flashinfer_runners.case import Case, Compiled, LaunchedError, bf16, fp8, recipe, uint8
from tests.flashinfer_runners.moe import EXPERTS, HIDDEN, INTERMEDIATE, TOP_K

_STAGED = ("", "_fp4_nvfp4", "_fp4_mxfp4_mxfp8", "_fp4_mxfp4_bf16", "_fp8_per_tensor", "_fp8_block_scale")
_KINDS = ("bf16", "nvfp4", "mxfp4_mxfp8", "mxfp4_bf16", "fp8_per_tensor", "mxfp8_mxfp8", "deepseek_fp8")
_SCALARS = ("output1_scale_scalar", "output1_scale_gate_scalar", "output2_scale_scalar")
_RUNNER = {
    "top_k": TOP_K,
    "num_local_experts": EXPERTS,
    "num_experts": 2 * EXPERTS,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
}
_LAYOUT = partition.PreparedWeightLayout("major_k", 16, weight_dtype=torch.bfloat16)

_DIFFERS: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 4},
    "num_local_experts": {"num_local_experts": 4},
    "num_experts": {"num_experts": 64},
    "hidden_size": {"hidden_size": 512},
    "intermediate_size": {"intermediate_size": 256},
    "activation_type": {"activation_type": ActivationType.Geglu.value},
    "use_shuffled_weight": {"use_shuffled_weight": False},
    "weight_layout": {"weight_layout": 2},
    "argument enable_pdl": {"arguments": {"enable_pdl": False}},
    "argument do_finalize": {"arguments": {"do_finalize": False}},
    "argument gemm1_bias": {"arguments": {"gemm1_bias": torch.zeros(EXPERTS, 2 * INTERMEDIATE)}},
    "argument gemm1_alpha": {"arguments": {"gemm1_alpha": torch.ones(EXPERTS)}},
    "argument n_group": {"arguments": {"n_group": 4}},
    "static extras that the call does not show": {"static": {"num_fused_shared_experts": 1}},
}
_SAME = {"rows": {"rows": 120}, "local_expert_offset": {"arguments": {"local_expert_offset": 4}}}
_PARTITIONED = {
    "partition_strategy": {"partition_strategy": "tp_n_tp_k"},
    "partition_fc1_layout": {"partition_fc1_layout": partition.PreparedWeightLayout("major_k", 8)},
    "partition_fc2_layout": {"partition_fc2_layout": partition.PreparedWeightLayout("major_k", 8)},
    "how the SMs are divided": {"sm_counts": (100, 48)},
}


def _inputs(rows: int, hidden_size: int, kind: str) -> MoeRunnerInputs:
    hidden = {"bf16": bf16(rows, hidden_size), "nvfp4": uint8(rows, hidden_size // 2)}.get(kind, fp8(rows, hidden_size))
    scale = None if kind in ("bf16", "fp8_per_tensor", "mxfp4_bf16") else uint8(rows, hidden_size // 16)
    empty = torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.bfloat16)
    return MoeRunnerInputs(bf16(rows, hidden_size), bf16(rows, 2 * EXPERTS), *empty, hidden, scale, None, None)


def _arguments(rows: int) -> dict[str, Any]:
    """Return what the ops of Prims-TS pass to ``choose_one`` by keyword."""
    weights = {"gemm1_weights": bf16(EXPERTS, 2 * INTERMEDIATE, HIDDEN), "gemm2_weights": bf16(EXPERTS, HIDDEN, INTERMEDIATE)}
    scales = dict.fromkeys(("gemm1_weights_scale", "gemm2_weights_scale", *_SCALARS), uint8(EXPERTS, 16))
    optional = dict.fromkeys(("routing_bias", "gemm1_bias", "gemm2_bias", "gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit"))
    routing = {"num_experts": 2 * EXPERTS, "n_group": None, "topk_group": None, "local_expert_offset": 0, "local_num_experts": EXPERTS}
    routing |= {"routed_scaling_factor": None, "routing_method_type": 1, "norm_topk_prob": True}
    rest = {"use_shuffled_weight": True, "weight_layout": 0, "do_finalize": True, "enable_pdl": True, "activation_type": 3}
    rest |= {"routing_replay_out": torch.zeros(rows, TOP_K, dtype=torch.int16), "routing_input_mode": RoutingInputMode.FromLogits}
    return weights | scales | optional | routing | rest


def _resources(sm_counts: tuple[int, int]) -> partition.MoePartitionResources:
    """Return streams on two groups of SMs, which only a GPU of the right kind has."""
    made = partition.MoePartitionResources.__new__(partition.MoePartitionResources)
    topology = tuple(("green", count, place, place, 0) for place, count in enumerate(sm_counts))
    vars(made).update(streams=(object(), object()), fork_join=object(), _stream_topology=topology, _launch_lock=None)
    return made


def _stubs(stack: ExitStack) -> None:
    pair = SimpleNamespace(tile_n=8, moe_config_index=0)
    for kind in _KINDS:
        stack.enter_context(patch.object(prims, f"map_trtllm_{kind}_moe_tactic", lambda *_, **__: pair))
    for kind in ("bf16", "nvfp4", "mxfp4_mxfp8", "mxfp4_bf16", "fp8_per_tensor", "fp8_block_scale"):
        stack.enter_context(patch.object(prims, f"is_prims_ts_{kind}_supported", lambda *_, **__: (True, "")))
    stack.enter_context(patch.object(torch.cuda, "current_stream", lambda **_: SimpleNamespace(cuda_stream=0)))


def _register(name: str, runner_type: str, kind: str, is_partitioned: bool, differs: dict[str, Any], **fixed: Any) -> None:
    def build(
        rows: int = 100,
        arguments: dict[str, Any] | None = None,
        static: dict[str, Any] | None = None,
        sm_counts: tuple[int, int] = (74, 74),
        **options: Any,
    ) -> Iterator[Case]:
        module = Compiled(**{f"trtllm_moe_run_routing{stage}": LaunchedError() for stage in _STAGED})
        passed = _arguments(rows) | (arguments or {})
        if is_partitioned:
            resources = _resources(sm_counts)
            options = {"partition_strategy": "tp_n_tp_n", "partition_fc1_layout": _LAYOUT, "partition_fc2_layout": _LAYOUT} | options
            options["partition_resources"] = passed["partition_resources"] = resources
        runner = getattr(prims, runner_type)(module, **_RUNNER | fixed | options)
        runner.set_cache_key_static_extras(**passed | (static or {}))
        inputs = _inputs(rows, runner.hidden_size, kind)
        if runner.fp8_quantization_type == Fp8QuantizationType.DeepSeekFp8:
            inputs.hidden_states_scale = torch.zeros(runner.hidden_size // 128, rows)
        config = runner._make_tuning_config(inputs, use_cuda_graph=True, use_cold_l2_cache=True)
        with ExitStack() as stack:
            _stubs(stack)
            op = f"flashinfer::prims_ts_{kind}_moe"
            yield Case(runner, op, config, inputs.to_list(), module.launches, passed, {"tactic": [8, 0]})

    build.__name__ = name
    recipe(f"flashinfer.prims_ts.moe.runner:{runner_type}", differs=differs, same=_SAME)(build)


_PER_TOKEN = {"use_per_token_scaling": {"use_per_token_scaling": True}}
_MXFP8 = {"fp8_quantization_type": {"fp8_quantization_type": Fp8QuantizationType.DeepSeekFp8}}
for _name, _kind, _own in (
    ("Bf16", "bf16", _PER_TOKEN),
    ("Nvfp4", "nvfp4", _PER_TOKEN),
    ("Mxfp4Mxfp8", "mxfp4_mxfp8", _PER_TOKEN),
    ("Mxfp4Bf16", "mxfp4_bf16", _PER_TOKEN),
    ("Fp8PerTensor", "fp8_per_tensor", {}),
    ("Fp8BlockScale", "fp8_block_scale", _MXFP8),
):
    _fixed: dict[str, Any] = {"fp8_quantization_type": Fp8QuantizationType.MxFp8} if _kind == "fp8_block_scale" else {}
    _register(f"prims_ts_moe_{_kind}", f"PrimsTs{_name}MoERunner", _kind, False, {**_DIFFERS, **_own}, **_fixed)
    _differs = {**_DIFFERS, **_own, **_PARTITIONED}
    _register(f"prims_ts_moe_{_kind}_partitioned", f"PrimsTsPartitioned{_name}MoERunner", _kind, True, _differs, **_fixed)
