"""FlashInfer's runner classes, constructed on a CPU with their compiled modules stubbed."""

from tests.flashinfer_runners import (
    attention_and_comm,
    frost,
    gemm_compiled,
    gemm_cudnn,
    gemm_cute_bf16,
    gemm_cute_scaled,
    moe,
    moe_sm12x,
    others,
    prims_ts_moe,
    unified_cutile,
    unified_cutlass,
    unified_others,
    unified_trtllm,
)
from tests.flashinfer_runners.case import RECIPES

__all__ = [
    "RECIPES",
    "attention_and_comm",
    "frost",
    "gemm_compiled",
    "gemm_cudnn",
    "gemm_cute_bf16",
    "gemm_cute_scaled",
    "moe",
    "moe_sm12x",
    "others",
    "prims_ts_moe",
    "unified_cutile",
    "unified_cutlass",
    "unified_others",
    "unified_trtllm",
]
