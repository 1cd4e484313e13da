"""The unified MoE runners on the CuTe DSL (any architecture, SM12x, B12x) and Cake, most of which have one tactic."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from flashinfer import cute_dsl
from flashinfer.fused_moe import runners
from flashinfer.fused_moe.api import QuantFormat, SiLU, SwiGLU
from flashinfer.jit import cake_fused_moe_warp_decode, cpp_ext

from tests.flashinfer_runners.case import Case, Compiled, bf16, fp8, recipe, uint8
from tests.flashinfer_runners.cute_dsl_moe import fused_moe as cute_moe
from tests.flashinfer_runners.moe import fp4_moe_inputs
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
    built,
    weights,
)
from tests.flashinfer_runners.unified import activations as packed

_EXACT = {"rows, which are not bucketed": {"rows": 120}}
_GATED_ONLY = {name: change for name, change in DIFFERS.items() if name != "activation"}
_SM12X = "flashinfer.fused_moe.cute_dsl.blackwell_sm12x."


@recipe(
    RUNNERS + "CuteDslRunner",
    differs={**DIFFERS, "local_num_experts": {"local_num_experts": 2}, "per_token_scale": {"per_token_scale": True}},
    same={**SAME, **OFFSET},
)
def unified_cute_dsl(rows: int = ROWS, **options: Any) -> Iterator[Case]:
    module = Compiled()
    pair = (QuantFormat.NVFP4, QuantFormat.NVFP4)
    with built(runners.CuteDslRunner, pair, {**SHARD, **options}, (10, 0), patch.object(cute_moe, "_moe_core_impl", module)) as runner:
        inputs = fp4_moe_inputs(rows, bool(options.get("per_token_scale")))
        yield Case(runner, "moe_cute_dsl", runner.tuning_config, inputs, module.launches)


@contextmanager
def _sm12x(runner_type: Any, options: dict[str, Any], **modules: Any) -> Iterator[Any]:
    """Build one of the runners for SM12x, with the modules stubbed that hold its kernels."""
    toolkit = patch.object(cpp_ext, "get_cuda_version", lambda: SimpleNamespace(major=13))
    available = patch.object(cute_dsl, "is_cute_dsl_available", lambda: True)
    imports = patch.dict(sys.modules, {name if "." in name else _SM12X + name: module for name, module in modules.items()})
    pair = runner_type.supported_quant_variants[0]
    with built(runner_type, pair, options, options.pop("capability", (12, 0)), toolkit, available, imports) as runner:
        yield runner


def _routed_inputs(rows: int, view: list[torch.Tensor]) -> list[Any]:
    """Return what ``pack_inputs`` of the FP8 and MXFP8 runners makes: the call's tensors, the weights, and ten buffers."""
    routing = torch.zeros(rows, TOP_K, dtype=torch.int32), torch.zeros(rows, TOP_K)
    q1, sf1 = fp8(rows * TOP_K, INTERMEDIATE), torch.zeros(4, rows)
    return [bf16(rows, HIDDEN), *routing, *view, q1, sf1, bf16(rows, HIDDEN), *[torch.zeros(EXPERTS + 1, dtype=torch.int32)] * 9]


@recipe(RUNNERS + "SM12xFp8Runner", differs={**_GATED_ONLY, **_EXACT, "swiglu_limit": {"activation": SwiGLU(limit=7.0)}})
def unified_sm12x_fp8(rows: int = ROWS, **options: Any) -> Iterator[Case]:
    module = Compiled(route=[uint8(1)] * 5)
    modules = {"moe_fp8_fc1_act_q1": module, "moe_fp8_fc2_finalize": module, "moe_fp8_q0_route_triton": module}
    with _sm12x(runners.SM12xFp8Runner, options, **modules) as runner:
        runner._route = module.route
        view = [
            fp8(EXPERTS, 2 * INTERMEDIATE, HIDDEN),
            torch.zeros(EXPERTS, 2, 2),
            fp8(EXPERTS, HIDDEN, INTERMEDIATE),
            torch.zeros(EXPERTS, 1, 2),
        ]
        yield Case(runner, "moe_sm12x_fp8", runner.tuning_config, _routed_inputs(rows, view), module.launches)


@recipe(RUNNERS + "SM12xMxfp8Mxfp4Runner", differs={**_GATED_ONLY, **_EXACT, "swiglu_limit": {"activation": SwiGLU(limit=7.0)}})
def unified_sm12x_mxfp8(rows: int = ROWS, **options: Any) -> Iterator[Case]:
    module = Compiled(route=[uint8(1)] * 5)
    modules = {"moe_mxfp8_mxfp4_fc1_act_q1": module, "moe_mxfp8_mxfp4_fc2_finalize": module, "moe_mxfp8_q0_route_triton": module}
    with _sm12x(runners.SM12xMxfp8Mxfp4Runner, options, **modules) as runner:
        runner._route = module.route
        view = [uint8(EXPERTS, 2 * INTERMEDIATE, HIDDEN // 2), uint8(EXPERTS, 2, 8 * INTERMEDIATE)]
        view += [uint8(EXPERTS, HIDDEN, INTERMEDIATE // 2), uint8(EXPERTS, 1, 4 * HIDDEN)]
        yield Case(runner, "moe_sm12x_mxfp8_mxfp4", runner.tuning_config, _routed_inputs(rows, view), module.launches)


def _nvfp4_view(options: dict[str, Any]) -> dict[str, torch.Tensor]:
    experts, inner = options.get("num_experts", EXPERTS), options.get("intermediate_size", INTERMEDIATE)
    rows = inner * (2 if options.get("activation", SwiGLU()).is_gated else 1)
    made = {}
    for name, n, k in (("w1", rows, HIDDEN), ("w2", HIDDEN, inner)):
        made[name] = uint8(experts, n, k // 2)
        made[f"{name}_scale"] = fp8(experts, -(-n // 128) * 128, -(-(k // 16) // 4) * 4)
        made[f"{name}_global_scale"] = torch.ones(experts)
    return made


def _bucketed(runner_type: Any, kernels: str, rows: int, options: dict[str, Any]) -> Iterator[Case]:
    module = Compiled(allocate_workspace=[uint8(16)])
    with _sm12x(runner_type, options, **{kernels: module}) as runner:
        pack = packed(rows, bf16(rows, HIDDEN), options.get("top_k", TOP_K))
        inputs = list(runner.pack_inputs(pack, weights(runner, _nvfp4_view(options))))
        yield Case(runner, f"moe_{runner.backend_key}", runner.tuning_config, inputs, module.launches)


# These pad the call to its bucket themselves.
@recipe(RUNNERS + "SM12xNvfp4Bf16Runner", differs=DIFFERS, same=SAME, fills="_workspaces")
def unified_sm12x_nvfp4_bf16(rows: int = ROWS, **options: Any) -> Iterator[Case]:
    yield from _bucketed(runners.SM12xNvfp4Bf16Runner, "moe_nvfp4_w4a16", rows, options)


@recipe(RUNNERS + "SM12xNvfp4Runner", differs=DIFFERS, same=SAME, fills="_workspaces")
def unified_sm12x_nvfp4(rows: int = ROWS, **options: Any) -> Iterator[Case]:
    yield from _bucketed(runners.SM12xNvfp4Runner, "moe_nvfp4_w4a4", rows, options)


def _b12x(runner_type: Any, rows: int, options: dict[str, Any]) -> Iterator[Case]:
    launches: list[str] = []
    wrapper = SimpleNamespace(run=Compiled("run", launches), hidden_size=HIDDEN, max_num_tokens=1024)
    module = Compiled("module", launches, wrapper=wrapper)
    package = SimpleNamespace(B12xMoEWrapper=module.wrapper)
    with _sm12x(runner_type, options, **{"flashinfer.fused_moe.cute_dsl": package}) as runner:
        experts = options.get("local_num_experts", options.get("num_experts", EXPERTS))
        inner = options.get("intermediate_size", INTERMEDIATE)
        rows_of = inner * (2 if runner.config.activation.is_gated else 1)
        view = dict.fromkeys(runner.required_weight_keys, uint8(1))
        view |= {"w1_weight": uint8(experts, rows_of, HIDDEN // 2), "w2_weight": uint8(experts, HIDDEN, inner // 2)}
        inputs = runner.pack_inputs(packed(rows, bf16(rows, HIDDEN), options.get("top_k", TOP_K)), weights(runner, view))
        module.launches.clear()
        yield Case(runner, f"moe_{runner.backend_key}", runner.tuning_config, inputs, module.launches)


@recipe(RUNNERS + "B12xNvfp4Runner", differs={**DIFFERS, **_EXACT})
def unified_b12x_nvfp4(rows: int = ROWS, **options: Any) -> Iterator[Case]:
    yield from _b12x(runners.B12xNvfp4Runner, rows, options)


@recipe(RUNNERS + "B12xW4A16Runner", differs={**DIFFERS, **_EXACT, "local_num_experts": {"local_num_experts": 2}}, same=OFFSET)
def unified_b12x_w4a16(rows: int = ROWS, **options: Any) -> Iterator[Case]:
    yield from _b12x(runners.B12xW4A16Runner, rows, {**SHARD, **options})


_CAKE = {"top_k": 10, "num_experts": 512, "intermediate_size": 512, "enable_pdl": True}
_CAKE_OTHER = {"num_experts": 256, "top_k": 8}
_CAKE_SILU = {"activation": SiLU(), "top_k": 4, "num_experts": 192, "intermediate_size": 1536, "hidden": 6144}


@recipe(
    RUNNERS + "CakeWarpDecodeRunner",
    differs={
        "another calibrated geometry": _CAKE_OTHER,
        "activation": _CAKE_SILU,
        "routed_scaling_factor": {"routed_scaling_factor": 2.5},
        "compute capability": {"capability": (10, 3)},
        "rows, which are not bucketed": {"rows": 8},
    },
    fills="_workspace_stream_claims",
)
def unified_cake(rows: int = 4, hidden: int = 2048, capability: tuple[int, int] = (10, 0), **options: Any) -> Iterator[Case]:
    module = Compiled(cake_fused_moe_warp_decode_prepare_workspace=1, cake_fused_moe_warp_decode_workspace_size=64)
    loaded = patch.object(cake_fused_moe_warp_decode, "get_cake_fused_moe_warp_decode_module", module.compiler)
    options = _CAKE | options
    with built(runners.CakeWarpDecodeRunner, (QuantFormat.NVFP4, QuantFormat.NVFP4), options, capability, loaded) as runner:
        geometry = (rows, hidden, options["intermediate_size"], options["num_experts"], options["top_k"])
        workspace = runner._allocate_workspace_for_stream(None, geometry)
        module.launches.clear()
        routing = torch.zeros(rows, options["top_k"], dtype=torch.int32), bf16(rows, options["top_k"])
        call = [bf16(rows, hidden), workspace, uint8(rows, hidden // 2), fp8(rows, hidden // 16), *routing]
        inner, experts = options["intermediate_size"], options["num_experts"]
        shapes = [(experts, rows_of, k // by) for rows_of, k in ((2 * inner, hidden), (hidden, inner)) for by in (2, 16)]
        view = [torch.empty(shape, dtype=torch.uint8) for shape in shapes]  # never touched, so no memory
        inputs = [*call, *view, *[torch.ones(experts)] * 3]
        yield Case(runner, "moe_cake", runner.tuning_config, inputs, module.launches)
