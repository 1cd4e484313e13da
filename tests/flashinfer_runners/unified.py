"""What the recipes of the unified MoE runners share: a layer's configuration, its activations and its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from flashinfer.fused_moe import runners
from flashinfer.fused_moe.api import (
    BackendOptions,
    ExecutionConfig,
    ExpertConfig,
    MoEActivationPack,
    MoEConfig,
    MoEFinalizeConfig,
    MoEWeightPack,
    QuantConfig,
    ReLU2,
    RoutingConfig,
    SwiGLU,
)
from flashinfer.fused_moe.layer import _BACKEND_RUNNERS
from flashinfer.tllm_enums import RoutingMethodType

from tests.flashinfer_runners.case import gpu

EXPERTS, TOP_K, HIDDEN, INTERMEDIATE, ROWS, SAME_BUCKET = 8, 2, 256, 128, 100, 120
RUNNERS = "flashinfer.fused_moe.runners:"

# What every unified runner keeps in its configuration.
DIFFERS: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 4},
    "num_experts": {"num_experts": 16},
    "intermediate_size": {"intermediate_size": 256},
    "routing method": {"method": RoutingMethodType.TopK},
    "routed_scaling_factor": {"routed_scaling_factor": 2.5},
    "n_group": {"n_group": 4},
    "topk_group": {"topk_group": 2},
    "activation": {"activation": ReLU2()},
    "enable_pdl": {"enable_pdl": True},
    "tune_max_num_tokens": {"tune_max_num_tokens": 4096},
}
SAME = {"rows": {"rows": SAME_BUCKET}}
OFFSET = {"local_expert_offset": {"local_expert_offset": 4}}  # the second half of the experts instead of the first
SHARD = {"local_num_experts": EXPERTS // 2}

_PARTS: Mapping[str, type] = {"routing": RoutingConfig, "quant": QuantConfig, "experts": ExpertConfig, "execution": ExecutionConfig}


def moe_config(runner_type: type, pair: tuple[Any, Any], options: Mapping[str, Any]) -> MoEConfig:
    """Return the configuration that ``MoELayer`` gives a runner: one candidate, and the ``options`` in the part that has such a field."""
    backend = next((candidate for candidate, made in _BACKEND_RUNNERS.items() if made is runner_type), None)
    given = {"num_experts": EXPERTS, "top_k": TOP_K, "intermediate_size": INTERMEDIATE, "weight": pair[0], "activation_format": pair[1]}
    given |= {"enable_pdl": False} | dict(options)
    made = {}
    for name, part in _PARTS.items():
        fields = {field: given[field] for field in part.__dataclass_fields__ if field in given and field != "activation"}
        made[name] = part(**fields | ({"activation": given["activation_format"]} if name == "quant" else {}))
    finalize = MoEFinalizeConfig(**{name: given[name] for name in MoEFinalizeConfig.__dataclass_fields__ if name in given})
    candidates = BackendOptions(candidates=() if backend is None else (backend(),))
    return MoEConfig(**made, activation=given.get("activation", SwiGLU()), backend=candidates, finalize=finalize)


@contextmanager
def built(
    runner_type: type, pair: tuple[Any, Any], options: Mapping[str, Any], capability: tuple[int, int], *patches: Any
) -> Iterator[Any]:
    """Build a runner as ``MoELayer`` does on a GPU of this capability; then let it think that its tensors' device is its own."""
    with ExitStack() as stack:
        stack.enter_context(gpu(capability))
        for item in patches:
            stack.enter_context(item)
        runner = runner_type(moe_config(runner_type, pair, options), torch.device("cuda"))
        runner.check_support()
        runner.build()
        runner.device = torch.device("cpu")
        yield runner


def activations(rows: int, hidden: torch.Tensor, top_k: int, **given: Any) -> MoEActivationPack:
    """Return a pre-routed pack."""
    ids, scores = torch.zeros(rows, top_k, dtype=torch.int32), torch.zeros(rows, top_k)
    return MoEActivationPack(hidden, given.pop("hidden_states_scale", None), ids, scores, **given)


def weights(runner: runners.MoERunner, view: Mapping[str, Any]) -> MoEWeightPack:
    """Return a weight pack with one view, for this runner."""
    return MoEWeightPack({runner.backend_key: dict(view)})
