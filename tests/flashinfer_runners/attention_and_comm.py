"""The MLA decode runners, which hold the KV cache and the workspace, and the all-reduce over PCIe, which holds its workspace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from flashinfer.comm import pcie_ipc_ar, pcie_ipc_tuning
from flashinfer.mla import _core as mla

from tests.flashinfer_runners.case import Case, Compiled, bf16, gpu, recipe, uint8

HEADS, LATENT, ROPE, PAGE = 128, 512, 64, 32
BUCKETS = (1, 2, 4, 8, 16)
# Decode batches are rounded down: 12 belongs to bucket 8. A page count is what memory allowed, a length what the batch needs.
_SAME = {"batch": {"batch": 14}, "pages": {"pages": 48}, "max_seq_len": {"max_seq_len": 1000}, "scale": {"scale": 0.5}}


def mla_inputs(batch: int, q_len: int) -> list[Any]:
    """Return query, block tables, lengths and output."""
    tables, lengths = torch.zeros(batch, 32, dtype=torch.int32), torch.zeros(batch, dtype=torch.int32)
    return [bf16(batch, q_len, HEADS, LATENT + ROPE), tables, lengths, bf16(batch, q_len, HEADS, LATENT)]


@recipe(
    "flashinfer.mla._core:TrtllmGenMlaDecodeRunner",
    differs={
        "kv_lora_rank": {"kv_lora_rank": 256},
        "sparse_mla_top_k": {"sparse_mla_top_k": 64},
        "enable_pdl": {"enable_pdl": False},
        "sinks": {"sinks": [torch.zeros(HEADS)]},
        "use_fp16_softmax": {"use_fp16_softmax": True},
        "scale as a tensor": {"scale": torch.ones(1)},
        "page size": {"page": 64},
        "max_seq_len of another bucket": {"max_seq_len": 4000},
    },
    same=_SAME,
    fills="_multi_ctas_kv_counter_buffer",
)
def mla_trtllm(
    batch: int = 12, pages: int = 64, page: int = PAGE, scale: float | torch.Tensor = 0.1, q_len: int = 2, **options: Any
) -> Iterator[Case]:
    module = Compiled()
    fixed = {"sm_count": 148, "qk_nope_head_dim": 128, "kv_lora_rank": LATENT, "qk_rope_head_dim": ROPE, "max_seq_len": 1024}
    flags = {"sparse_mla_top_k": 0, "enable_pdl": True, "is_var_seq": True, "uses_shared_paged_kv_idx": True, "sinks": None}
    held = {"kv_cache": bf16(pages, 1, page, LATENT + ROPE), "workspace_buffer": uint8(4096)}
    logsumexp = {"return_lse": True, "lse": torch.zeros(batch * q_len, HEADS), "return_lse_base": "base2"}
    rest = {"bmm1_scale": scale, "bmm2_scale": scale, "skip_softmax_threshold_scale_factor": None}
    with gpu(), patch.object(mla, "get_trtllm_gen_fmha_module", module.compiler):
        runner = mla.TrtllmGenMlaDecodeRunner(**fixed | flags | held | logsumexp | rest | options)
        config = mla._mla_decode_tuning_config(BUCKETS, pages, 1024)
        yield Case(runner, "trtllm_batch_decode_mla", config, mla_inputs(batch, q_len), module.launches)


@recipe(
    "flashinfer.mla._core:CuteDslMlaDecodeRunner",
    differs={
        "kv_lora_rank": {"kv_lora_rank": 256},
        "enable_pdl": {"enable_pdl": False},
        "cp_world": {"enable_dcp": True, "cp_world": 4},
        "implementation": {"cute_dsl_impl": "modular"},
        "workspace": {"workspace_buffer": uint8(8192)},
        "page size": {"page": 64},
    },
    same=_SAME,
    fills="_profile_lse",
)
def mla_cute(batch: int = 12, pages: int = 64, page: int = PAGE, scale: float = 0.1, q_len: int = 2, **options: Any) -> Iterator[Case]:
    module = Compiled()
    fixed = {"qk_nope_head_dim": 128, "kv_lora_rank": LATENT, "qk_rope_head_dim": ROPE, "max_seq_len": 1024}
    flags = {"enable_pdl": True, "is_var_seq": True, "uses_shared_paged_kv_idx": True, "sinks": None, "cute_dsl_impl": "auto"}
    held = {"kv_cache": bf16(pages, 1, page, LATENT + ROPE), "workspace_buffer": uint8(4096), "out_dtype": torch.bfloat16}
    logsumexp = {"return_lse": True, "lse": torch.zeros(batch * q_len, HEADS), "return_lse_base": "base2"}
    scales = {"softmax_scale": scale, "output_scale": scale}
    runner = mla.CuteDslMlaDecodeRunner(**fixed | flags | held | logsumexp | scales | options)
    config = mla._mla_decode_tuning_config(BUCKETS, pages, 1024)
    with gpu(), patch("flashinfer.cute_dsl.attention.monolithic.mla_decode.cute_dsl_mla_decode", module):
        other = mla_inputs(2 * batch, q_len)
        yield Case(runner, "trtllm_batch_decode_mla", config, mla_inputs(batch, q_len), module.launches, other_inputs=other)


@recipe(
    "flashinfer.mla._core:CuteDslMlaDecodeRunner",
    differs={"cp_world": {"cp_world": 8}},
    same={"cp_rank": {"cp_rank": 3}},
)
def mla_cute_context_parallel(cp_world: int = 4, cp_rank: int = 0) -> Iterator[Case]:
    with mla_cute(enable_dcp=True, cp_world=cp_world, cp_rank=cp_rank) as case:
        case.inputs.append(torch.zeros(12, dtype=torch.int32))
        case.other_inputs = None
        case.config = mla._mla_decode_tuning_config(BUCKETS, 64, 1024, False, 32, True, cp_world, cp_rank)
        yield case


@recipe(
    "flashinfer.comm.pcie_ipc_tuning:PcieIpcAllReduceRunner",
    differs={
        "world_size": {"world_size": 8},
        "max_blocks": {"max_blocks": 16},
        "max_numel": {"max_numel": 1 << 22},
        "profile": {"profile": "another fabric"},
        "dtype": {"dtype": torch.float16},
    },
    same={"rank": {"rank": 3}, "batch": {"batch": 7}},
    fills="_buf_cache",
)
def pcie_all_reduce(batch: int = 6, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Iterator[Case]:
    launches: list[str] = []
    workspace = pcie_ipc_ar.PcieIpcAllReduceWorkspace.__new__(pcie_ipc_ar.PcieIpcAllReduceWorkspace)
    state = {"world_size": 4, "rank": 0, "profile": "a fabric", "max_blocks": 36, "max_numel": 1 << 20, "memop_supported": False}
    vars(workspace).update(state | options)
    workspace.launch_config = lambda _: pcie_ipc_ar.IpcLaunchConfig  # type: ignore[method-assign]
    workspace._launch = Compiled("launch", launches)  # type: ignore[method-assign]
    runner = pcie_ipc_tuning.PcieIpcAllReduceRunner(workspace)
    config = pcie_ipc_tuning.pcie_ipc_tuning_config((1, 2, 4, 8))
    inputs = [torch.zeros(batch, 1024, dtype=dtype)]
    yield Case(runner, pcie_ipc_tuning.PCIE_IPC_CUSTOM_OP, config, inputs, launches)
