"""MoE runners: CUTLASS, TensorRT-LLM's cubins, and the CuTe DSL runners for SM90, SM100 and later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from flashinfer.fused_moe import core
from flashinfer.fused_moe.backends.trtllm.sm100_runner import MoERunner as TrtllmMoERunner
from flashinfer.fused_moe.shared.inputs import MoeRunnerInputs
from flashinfer.tllm_enums import ActivationType, DtypeTrtllmGen, Fp8QuantizationType, RoutingInputMode

from tests.flashinfer_runners.case import Case, Compiled, bf16, fresh, gpu, recipe, uint8
from tests.flashinfer_runners.cute_dsl_moe import fused_moe as cute_moe
from tests.flashinfer_runners.cute_dsl_moe import sm90_fused_moe, sm90_tuner, tuner

EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 8, 2, 256, 128
_SM90_KERNELS = ("gather_grouped_gemm_act", "grouped_gemm_finalize")
_SAME = {"rows": {"rows": 120}, "local_expert_offset": {"local_expert_offset": 4}}

_CUTLASS: dict[str, Any] = {
    "x_dtype": torch.bfloat16,
    "weight_dtype": torch.bfloat16,
    "output_dtype": torch.bfloat16,
    "top_k": TOP_K,
    "tp_size": 4,
    "tp_rank": 0,
    "ep_size": 4,
    "ep_rank": 0,
    "cluster_size": 2,
    "cluster_rank": 0,
    "enable_alltoall": False,
    "use_deepseek_fp8_block_scale": False,
    "use_w4_group_scaling": False,
    "use_mxfp8_act_scaling": False,
    "min_latency_mode": False,
    "enable_pdl": True,
    "activation_type": ActivationType.Swiglu,
    "use_packed_weights": False,
    "use_fused_finalize": True,
    "use_wfp4afp8_humming": False,
}


@recipe(
    "flashinfer.fused_moe.core:get_cutlass_fused_moe_module.<locals>.MoERunner",
    differs={
        "top_k": {"top_k": 4},
        "tp_size": {"tp_size": 2},
        "activation_type": {"activation_type": ActivationType.Geglu},
        "use_fused_finalize": {"use_fused_finalize": False},
        "second GEMM": {"gemm_idx": 2},
    },
    same={"rows": {"rows": 120}, "tp_rank": {"tp_rank": 3}, "ep_rank": {"ep_rank": 3}, "cluster_rank": {"cluster_rank": 1}},
)
def cutlass_moe(rows: int = 100, gemm_idx: int = 1, **options: Any) -> Iterator[Case]:
    launches: list[str] = []
    module = Compiled("module", launches, init=Compiled("instance", launches))
    with patch.object(core, "gen_cutlass_fused_moe_sm100_module", module.spec):
        api = fresh(core.get_cutlass_fused_moe_module, "100")
    runner_type = next(cell.cell_contents for cell in api.cutlass_fused_moe.__closure__ if isinstance(cell.cell_contents, type))
    runner = runner_type(**_CUTLASS | options)
    runner.gemm_idx_for_tuning = gemm_idx
    inputs = [bf16(rows, HIDDEN), bf16(2, 2 * INTERMEDIATE, HIDDEN), None, bf16(2, HIDDEN, INTERMEDIATE), None]
    arguments, forward = {"gemm_idx": gemm_idx}, {"tactic": 0}
    yield Case(runner, f"trtllm::fused_moe::gemm{gemm_idx}", runner_type.tuning_config, inputs, launches, arguments, forward)


def trtllm_arguments(rows: int, local_expert_offset: int, **changed: Any) -> dict[str, Any]:
    """Return what ``trtllm_bf16_moe`` passes to ``choose_one`` by keyword."""
    passed: dict[str, Any] = {
        "routing_bias": None,
        "routing_input_mode": RoutingInputMode.FromLogits,
        "gemm1_weights": bf16(EXPERTS, 2 * INTERMEDIATE, HIDDEN),
        "gemm2_weights": bf16(EXPERTS, HIDDEN, INTERMEDIATE),
        "gemm1_alpha": None,
        "gemm1_beta": None,
        "gemm1_clamp_limit": None,
        "num_experts": 2 * EXPERTS,
        "n_group": None,
        "topk_group": None,
        "local_expert_offset": local_expert_offset,
        "local_num_experts": EXPERTS,
        "routed_scaling_factor": None,
        "routing_method_type": 1,
        "use_shuffled_weight": True,
        "weight_layout": 0,
        "do_finalize": True,
        "enable_pdl": True,
        "activation_type": ActivationType.Swiglu.value,
        "norm_topk_prob": True,
        "routing_replay_out": torch.zeros(rows, TOP_K, dtype=torch.int16),
    }
    return passed | changed


@recipe(
    "flashinfer.fused_moe.backends.trtllm.sm100_runner:MoERunner",
    differs={
        "top_k": {"top_k": 4},
        "use_shuffled_weight": {"use_shuffled_weight": False},
        "activation_type": {"activation_type": ActivationType.Geglu.value},
        "num_experts": {"num_experts": 64},
        "argument do_finalize": {"arguments": {"do_finalize": False}},
        "argument routing_replay_out": {"arguments": {"routing_replay_out": None}},
    },
    same=_SAME,
)
def trtllm_moe(rows: int = 100, local_expert_offset: int = 0, arguments: dict[str, Any] | None = None, **options: Any) -> Iterator[Case]:
    module = Compiled(trtllm_get_valid_moe_configs=[[8, 0]], trtllm_bf16_moe=[bf16(rows, HIDDEN)])
    fixed = {"top_k": TOP_K, "num_local_experts": EXPERTS, "num_experts": 2 * EXPERTS, "use_shuffled_weight": True}
    dtypes = {"dtype_act": DtypeTrtllmGen.Bfloat16, "dtype_weights": DtypeTrtllmGen.Bfloat16}
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "fp8_quantization_type": Fp8QuantizationType.NoneFp8}
    runner = TrtllmMoERunner(module, **fixed | dtypes | sizes | options)
    empty = torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.bfloat16)
    inputs = MoeRunnerInputs(bf16(rows, HIDDEN), bf16(rows, 2 * EXPERTS), *empty, bf16(rows, HIDDEN), None, None, None)
    config = runner._make_tuning_config(inputs, use_cuda_graph=True, use_cold_l2_cache=True)
    passed = trtllm_arguments(rows, local_expert_offset, **arguments or {})
    op = "flashinfer::trtllm_bf16_moe"
    yield Case(runner, op, config, inputs.to_list(), module.launches, passed, {"tactic": [8, 0]})


def fp4_moe_inputs(rows: int, per_token: bool) -> list[Any]:
    """Return the inputs of the W4A4 pipeline of ``cute_dsl_fused_moe``."""
    scale = torch.ones(EXPERTS)
    inputs = [uint8(rows, HIDDEN // 2), uint8(rows, HIDDEN // 16), torch.zeros(rows, TOP_K, dtype=torch.int32), torch.zeros(rows, TOP_K)]
    inputs += [uint8(EXPERTS, 2 * INTERMEDIATE, HIDDEN // 2), uint8(EXPERTS, 2 * INTERMEDIATE * HIDDEN // 16), scale, torch.ones(1)]
    inputs += [uint8(EXPERTS, HIDDEN, INTERMEDIATE // 2), uint8(EXPERTS, HIDDEN * INTERMEDIATE // 16), scale]
    return inputs + ([torch.ones(rows)] if per_token else []) + [bf16(rows, HIDDEN)]


_CUTE_DIFFERS = {
    "top_k": {"top_k": 1},
    "enable_pdl": {"enable_pdl": False},
    "activation_type": {"activation_type": ActivationType.Relu2.value},
    "swiglu_limit": {"swiglu_limit": 7.0},
    "num_experts": {"num_experts": 4 * EXPERTS},
}


@recipe(
    "flashinfer.fused_moe.cute_dsl.tuner:CuteDslFusedMoERunner",
    differs={**_CUTE_DIFFERS, "use_per_token_activation": {"use_per_token_activation": True}},
    same=_SAME,
)
def cute_moe_w4a4(rows: int = 100, **options: Any) -> Iterator[Case]:
    module = Compiled()
    fixed = {"num_experts": 2 * EXPERTS, "top_k": TOP_K, "num_local_experts": EXPERTS}
    runner = tuner.CuteDslFusedMoERunner(forward_impl=cute_moe._cute_dsl_fused_moe_impl, **fixed | options)
    inputs = fp4_moe_inputs(rows, runner.use_per_token_activation)
    with gpu(), patch.object(cute_moe, "_moe_core_impl", module):
        op = "CuteDslFusedMoE::run_moe_w4a4::Swiglu"
        yield Case(runner, op, runner.tuning_config, inputs, module.launches, {"aux_stream": None})


@recipe(
    "flashinfer.fused_moe.cute_dsl.tuner:CuteDslFusedMoERunner",
    differs={"top_k": {"top_k": 1}, "quant_mode": {"quant_mode": "w4a8"}},
    same=_SAME,
)
def cute_moe_wrapper(rows: int = 100, **options: Any) -> Iterator[Case]:
    module = Compiled()
    fixed = {"num_experts": 2 * EXPERTS, "top_k": TOP_K, "num_local_experts": EXPERTS, "device": "cpu"}
    with gpu(), patch.object(cute_moe, "_moe_core_impl", module):
        wrapper = cute_moe.CuteDslMoEWrapper(hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, **fixed | options)
        runner = wrapper._runner
        assert runner is not None
        op = "CuteDslMoEWrapper::run::w4a4::Swiglu"
        yield Case(runner, op, runner.tuning_config, fp4_moe_inputs(rows, False), module.launches)


@recipe("flashinfer.fused_moe.cute_dsl.tuner:CuteDslFusedMoEW4A16Runner", differs=_CUTE_DIFFERS, same=_SAME)
def cute_moe_w4a16(rows: int = 100, **options: Any) -> Iterator[Case]:
    module = Compiled()
    fixed = {"num_experts": 2 * EXPERTS, "top_k": TOP_K, "num_local_experts": EXPERTS}
    runner = tuner.CuteDslFusedMoEW4A16Runner(**fixed | options)
    inputs = fp4_moe_inputs(rows, False)
    inputs = [bf16(rows, HIDDEN), *inputs[2:7], *inputs[8:]]
    with gpu(), patch.object(tuner, "launch_w4a16_moe", module):
        op = "CuteDslFusedMoE::run_moe_w4a16::Swiglu"
        yield Case(runner, op, runner.tuning_config, inputs, module.launches, {"aux_stream": None})


@recipe("flashinfer.fused_moe.cute_dsl.sm90_tuner:CuteDslFusedMoESm90Runner", differs=_CUTE_DIFFERS, same=_SAME)
def cute_moe_sm90(rows: int = 100, **options: Any) -> Iterator[Case]:
    module = Compiled()
    fixed = {"num_experts": 2 * EXPERTS, "top_k": TOP_K, "num_local_experts": EXPERTS}
    runner = sm90_tuner.CuteDslFusedMoESm90Runner(forward_impl=sm90_fused_moe._moe_core_impl, **fixed | options)
    experts, scales = torch.zeros(rows, TOP_K, dtype=torch.int32), torch.zeros(rows, TOP_K)
    inputs = [bf16(rows, HIDDEN), experts, scales, bf16(EXPERTS, 2 * INTERMEDIATE, HIDDEN), bf16(EXPERTS, HIDDEN, INTERMEDIATE)]
    tiles = [torch.zeros(4, dtype=torch.int32)] * 6
    with ExitStack() as stack:
        stack.enter_context(gpu((9, 0)))
        for name in ("moe_output_memset_inplace", *(f"sm90_contiguous_{kernel}_fusion" for kernel in _SM90_KERNELS)):
            stack.enter_context(patch.object(sm90_fused_moe, name, module))
        stack.enter_context(patch.object(sm90_fused_moe, "moe_sort", lambda **_: tiles))
        stack.enter_context(patch.object(sm90_fused_moe, "_get_cuda_graph_resources", lambda: [MagicMock() for _ in range(3)]))
        yield Case(runner, "CuteDslFusedMoE::sm90", runner.tuning_config, [*inputs, bf16(rows, HIDDEN)], module.launches)
