"""The unified MoE runners on CUTLASS's fused MoE."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from flashinfer.fused_moe import core, runners
from flashinfer.jit import cpp_ext

from tests.flashinfer_runners.case import Case, Compiled, recipe, uint8
from tests.flashinfer_runners.unified import DIFFERS, HIDDEN, ROWS, RUNNERS, SAME, TOP_K, activations, built, weights

# One tensor that can be read as bytes, int32 or int64, wherever a view of weights is asked for.
_ANY = uint8(16, 16)


def _case(runner_type: Any, capability: tuple[int, int], rows: int, options: dict[str, Any]) -> Iterator[Case]:
    module = Compiled(launches=[])
    loaded = SimpleNamespace(MoERunner=module.instance)
    stubs = [
        patch.object(core, "get_cutlass_fused_moe_module", lambda _: loaded),
        patch.object(core, "cutlass_fused_moe_workspace_size", lambda *_, **__: 64),
        patch.object(core, "cutlass_fused_moe", module.cutlass_fused_moe),
        patch.object(cpp_ext, "is_cuda_version_at_least", lambda _: True),
    ]
    with built(runner_type, runner_type.supported_quant_variants[0], options, capability, *stubs) as runner:
        columns = HIDDEN // runner._act_elems_per_column
        vector = runner._act_sf_vec_size
        scale = uint8(rows, HIDDEN // vector) if vector else None
        if options.get("swizzled_scale_factors"):
            scale = uint8(runners._mxfp8_swizzled_act_sf_numel(rows, HIDDEN))
        hidden = torch.zeros(rows, columns, dtype=runner._x_dtype)
        view = dict.fromkeys(runner._required_weight_keys, _ANY)
        pack = activations(rows, hidden, options.get("top_k", TOP_K), hidden_states_scale=scale)
        with patch.object(runner_type, "_pack_weight_inputs", lambda self, view, _: [view[key] for key in self._required_weight_keys]):
            inputs = runner.pack_inputs(pack, weights(runner, view))
        runner._workspace_cache.clear()
        yield Case(runner, f"moe_{runner.backend_key}", runner.tuning_config, inputs, module.launches)


def _register(name: str, runner_type: str, capability: tuple[int, int], **differs: dict[str, Any]) -> None:
    def build(rows: int = ROWS, **options: Any) -> Iterator[Case]:
        yield from _case(getattr(runners, runner_type), options.pop("capability", capability), rows, options)

    build.__name__ = name
    recipe(RUNNERS + runner_type, differs={**DIFFERS, **differs}, same=SAME, fills="_workspace_cache")(build)


_SWIZZLED = {"swizzled_scale_factors": True}
_register("unified_cutlass_bf16", "CutlassBf16Runner", (9, 0), **{"compute capability": {"capability": (10, 0)}})
_register("unified_cutlass_w4a16", "CutlassW4A16Runner", (9, 0))
_register("unified_cutlass_nvfp4", "CutlassNvfp4Runner", (10, 0), **{"compute capability": {"capability": (12, 0)}})
_register("unified_cutlass_fp8_per_tensor", "CutlassFp8PerTensorRunner", (9, 0))
_register("unified_cutlass_fp8_block", "CutlassFp8BlockRunner", (9, 0))
_register("unified_cutlass_mxfp8_mxfp4", "CutlassMxfp8Mxfp4Runner", (10, 0), swizzled=_SWIZZLED)
_register("unified_cutlass_mxfp8", "CutlassMxfp8Runner", (10, 0), swizzled=_SWIZZLED)
_register("unified_cutlass_w4a8", "CutlassW4A8Runner", (9, 0))
_register("unified_cutlass_humming", "CutlassHummingRunner", (9, 0))
