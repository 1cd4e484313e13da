"""Runners outside GEMM, MoE and attention: grouped GEMMs on SM120, the state-space update with checkpoints, the proxy scores of MSA."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from flashinfer.grouped_mm import _sm120_moe_autotune as sm120
from flashinfer.grouped_mm.cute_sm120_fp8_groupwise import core as grouped_fp8
from flashinfer.grouped_mm.cute_sm120_mxfp8_groupwise import core as grouped_mxfp8
from flashinfer.msa_ops import proxy_score

from tests.flashinfer_runners.case import Case, Compiled, bf16, fp8, gpu, recipe

ssu: Any = import_module("flashinfer.mamba.checkpointing_ssu")  # the package has a function of that name

EXPERTS, N, K = 4, 256, 4096
_GROUPED = {
    "is_gated": {"is_gated": True},
    "scale_granularity_mnk": {"granularity": (1, 1, 32)},
    "scale_major_mode": {"major": "K"},
    "out": {"out": torch.float16},
    "rows, which are not bucketed": {"rows": 120},
    "compute capability": {"capability": (12, 1)},
}


def _grouped(
    owner: Any,
    runner_type: Any,
    getter: str,
    op: str,
    config: Any,
    rows: int = 100,
    is_gated: bool = False,
    granularity: tuple[int, int, int] = (1, 128, 128),
    major: str = "MN",
    out: torch.dtype = torch.bfloat16,
    device: int = 0,
    capability: tuple[int, int] = (12, 0),
) -> Iterator[Case]:
    module = Compiled()
    buffer = torch.zeros(rows, N // 2 if is_gated else N, dtype=out)
    with gpu(capability), patch.object(owner, getter, module.compiler), patch.object(torch.cuda, "current_device", lambda: device):
        runner = runner_type(buffer, is_gated, granularity, major)
        scales = torch.zeros(K // 128, rows + 12), torch.zeros(EXPERTS, K // 128, N // 128)
        inputs = [fp8(rows, K), fp8(EXPERTS, N, K), *scales, torch.zeros(EXPERTS + 1, dtype=torch.int32)]
        yield Case(runner, op, config, inputs, module.launches)


_FP8 = "flashinfer.grouped_mm.cute_sm120_fp8_groupwise.core:_CuteSm120Fp8MoeRunner"
_MXFP8 = "flashinfer.grouped_mm.cute_sm120_mxfp8_groupwise.core:_CuteSm120Mxfp8MoeRunner"
_SAME_DEVICE = {"device index": {"device": 3}}


@recipe(_FP8, differs=_GROUPED, same=_SAME_DEVICE)
def grouped_fp8_sm120(**options: Any) -> Iterator[Case]:
    getter, config = "get_gemm_sm120_module_cute_fp8", grouped_fp8._FP8_MOE_TUNING_CONFIG
    yield from _grouped(grouped_fp8, grouped_fp8._CuteSm120Fp8MoeRunner, getter, "cute_sm120_fp8_groupwise_moe", config, **options)


@recipe(_MXFP8, differs=_GROUPED, same=_SAME_DEVICE)
def grouped_mxfp8_sm120(**options: Any) -> Iterator[Case]:
    getter, config = "get_gemm_sm120_module_cute_mxfp8", sm120.SM120_MOE_TUNING_CONFIG
    yield from _grouped(grouped_mxfp8, grouped_mxfp8._CuteSm120Mxfp8MoeRunner, getter, "cute_sm120_mxfp8_groupwise_moe", config, **options)


HEADS, DIM, STATE, GROUPS, PREDICTED, WINDOW = 16, 64, 128, 2, 4, 8


def _ssu_inputs(batch: int, slots: int, dtype: torch.dtype, with_z: bool) -> list[Any]:
    """Return the inputs of ``checkpointing_ssu``: states and rings of all slots, the batch's rows, and the scratch of its two kernels."""
    state, x = torch.zeros(slots, HEADS, DIM, STATE, dtype=dtype), bf16(batch, PREDICTED, HEADS, DIM)
    dt, a = torch.zeros(batch, PREDICTED, HEADS, 1).expand(-1, -1, -1, DIM), torch.zeros(HEADS, 1, 1).expand(-1, DIM, STATE)
    bc = bf16(batch, PREDICTED, GROUPS, STATE)
    caches = bf16(slots, HEADS, WINDOW + PREDICTED, DIM), bf16(slots, GROUPS, WINDOW + PREDICTED, STATE), torch.zeros(slots, HEADS, WINDOW)
    rings = torch.zeros(slots, dtype=torch.int32), torch.zeros(slots, dtype=torch.int32)
    z = torch.zeros_like(x) if with_z else None
    indices = torch.zeros(batch, dtype=torch.int32)
    scratch = ssu.allocate_checkpointing_ssu_scratch(batch, HEADS, PREDICTED, WINDOW, torch.bfloat16, "cpu")
    return [state, x, dt, a, bc, bc, torch.zeros_like(x), *caches, *rings, None, z, None, indices, None, None, None, *scratch]


_MODULE = (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32, torch.float32, torch.int32, None)


@recipe(
    "flashinfer.mamba.checkpointing_ssu:CheckpointingSSURunner",
    differs={
        "state_dtype": {"state_dtype": torch.float32},
        "philox_rounds": {"philox_rounds": 10},
        "enable_pdl": {"enable_pdl": True},
        "dt_softplus": {"dt_softplus": False},
        "pad_slot_id": {"pad_slot_id": 0},
        "requested_algorithm": {"requested_algorithm": 1},
        "requested_d_split": {"requested_d_split": 1},
        "precompute_heads_per_cta": {"precompute_heads_per_cta": 2},
        "heads_per_group": {"heads_per_group": 4},
        "optional z": {"with_z": True},
    },
    same={"batch": {"batch": 14}, "slots, which memory decides": {"slots": 40}},
)
def checkpointing_ssu(
    batch: int = 12,
    slots: int = 33,
    state_dtype: torch.dtype = torch.bfloat16,
    philox_rounds: int = 0,
    enable_pdl: bool = False,
    with_z: bool = False,
    **options: Any,
) -> Iterator[Case]:
    module = Compiled()
    built = (state_dtype, *_MODULE[1:], DIM, STATE, PREDICTED, WINDOW, HEADS // GROUPS, GROUPS, philox_rounds, enable_pdl)
    flags = {"dt_softplus": True, "pad_slot_id": -1, "requested_algorithm": 0, "requested_d_split": 0, "precompute_heads_per_cta": 0}
    inputs = _ssu_inputs(batch, slots, state_dtype, with_z)
    presence = tuple(inputs[index] is not None for index in (12, 13, 14, 15, 16, 17, 18))
    fixed = {"heads_per_group": HEADS // GROUPS, "optional_tensor_presence": presence}
    runner = ssu.CheckpointingSSURunner(built, **flags | fixed | options)
    with gpu(), patch.object(ssu, "_get_module", module.compiler), patch.object(ssu, "_sm_count", lambda _: 148):
        yield Case(runner, "checkpointing_ssu", runner.get_tuning_config(inputs), inputs, module.launches)


@recipe(
    "flashinfer.msa_ops.proxy_score:_ProxySplitKRunner",
    differs={
        "max_seqlen_q": {"max_seqlen_q": 2},
        "max_k_tiles": {"max_k_tiles": 128},
        "base_ctas": {"base_ctas": 32},
        "heuristic": {"heuristic": proxy_score._proxy_split_k_fp4},
        "causal": {"causal": False},
        "paged": {"paged": False},
        "reduce_heads": {"reduce_heads": True},
        "what the call closes over": {"heads": 32},
    },
)
def msa_proxy_score(heads: int = 16, **options: Any) -> Iterator[Case]:
    module = Compiled()
    compiled, num_qo_heads = module.kernel, heads

    def call(tensors: list[Any], splits: int) -> Any:
        compiled(*tensors, num_qo_heads, splits)
        return tensors[3]

    fixed = {"max_seqlen_q": 4, "max_k_tiles": 64, "base_ctas": 16, "device": torch.device("cuda", 0)}
    flags = {"heuristic": proxy_score._proxy_split_k_bf16, "causal": True, "paged": True, "reduce_heads": False}
    inputs = [bf16(8, 16, 128), bf16(64, 2, 128, 128), torch.zeros(2, 64, dtype=torch.int32), torch.zeros(16, 64, 8)]
    inputs += [torch.zeros(3, dtype=torch.int32), torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)]
    with gpu((12, 0)):
        runner = proxy_score._ProxySplitKRunner(call, **fixed | flags | options)
        yield Case(runner, "msa_proxy_score", proxy_score.TuningConfig(), inputs, module.launches)
