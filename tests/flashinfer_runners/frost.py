"""The unified MoE runners on cuDNN Frost's generated kernels. Their engine reads a GPU; a prepared state stands for what it makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from flashinfer.autotuner import TuningConfig
from flashinfer.fused_moe.backends.cudnn_frost import tuning
from flashinfer.fused_moe.backends.cudnn_frost.bf16 import moe as bf16_moe
from flashinfer.fused_moe.backends.cudnn_frost.bf16 import runtime as bf16_runtime
from flashinfer.fused_moe.backends.cudnn_frost.engine import FrostEngine, PackedInputs
from flashinfer.fused_moe.backends.cudnn_frost.mxfp8 import moe as mxfp8_moe
from flashinfer.fused_moe.backends.cudnn_frost.mxfp8_mxfp4 import moe as mxfp4_moe
from flashinfer.fused_moe.backends.cudnn_frost.nvfp4 import moe as nvfp4_moe
from flashinfer.fused_moe.utils import map_to_hybrid_bucket

from tests.flashinfer_runners.case import Case, Compiled, bf16, gpu, recipe, uint8
from tests.flashinfer_runners.unified import DIFFERS, EXPERTS, HIDDEN, INTERMEDIATE, ROWS, TOP_K, moe_config

_BASE = "flashinfer.fused_moe.backends.cudnn_frost."
_TACTICS = ("first", "second")


class _State:
    """What the engine prepares for one bucket: workspace, compiled plans by tactic, and the identity of what they were made from."""

    def __init__(self, key: tuple[Any, ...], tactics: tuple[str, ...], module: Compiled) -> None:
        self.preparation_key, self.workspace = key, uint8(64)
        self.launches = {(tactic, tactic): module.run for tactic in tactics}
        self.plans = {("tag", a, b): {"run_fc1": module.fc1, "run_fc2": module.fc2} for a in tactics for b in tactics}
        self.first = self.second = [SimpleNamespace(tactic=tactic, source_sha256=f"{tactic} source") for tactic in tactics]


def _snapshot(generation: int, root: str, sm_count: int, digest: str) -> tuple[Any, ...]:
    """Return what an engine remembers of its start: ``FrostEngine._snapshot_key``."""
    return (generation, (PurePosixPath(root),), generation, "sm_107a", sm_count, digest, ())


def _register(name: str, module_name: str, owner: Any, runner_type: str, packing: int) -> None:
    def build(
        rows: int = ROWS,
        root: str = "/opt/a",
        generation: int = 1,
        sm_count: int = 148,
        digest: str = "compiler",
        tactics: tuple[str, ...] = _TACTICS,
        **options: Any,
    ) -> Iterator[Case]:
        module = Compiled()
        made = getattr(owner, runner_type)
        with gpu((10, 7)):
            runner = made(moe_config(made, made.supported_quant_variants[0], options), torch.device("cuda"))
            runner._built = runner._support_checked = True
            experts, top_k = options.get("num_experts", EXPERTS), options.get("top_k", TOP_K)
            bucket = map_to_hybrid_bucket(rows, runner.config.execution.tune_max_num_tokens)
            shape = (bucket, HIDDEN, options.get("intermediate_size", INTERMEDIATE), experts, top_k)
            state = _State((*shape, _snapshot(generation, root, sm_count, digest), tactics, tactics, None), tactics, module)
            runner._engine = object.__new__(FrostEngine)
            runner._plans[shape] = state
            routing = torch.zeros(rows, top_k, dtype=torch.int32), torch.zeros(rows, top_k)
            inputs = [bf16(rows, HIDDEN), torch.zeros(rows, HIDDEN // packing, dtype=torch.uint8), *routing, uint8(experts, 16)]
            pack = PackedInputs(inputs, state)
            arguments = runner.launch_kwargs_for(pack)
            yield Case(runner, f"moe_{runner.backend_key}", pack.tuning_config, inputs, module.launches, arguments)

    build.__name__ = name
    engine = {
        "the kernels' compiler": {"digest": "another compiler"},
        "SM count": {"sm_count": 132},
        "tactics": {"tactics": ("first", "third")},
        "rows, which are not bucketed": {"rows": 120},
    }
    same = {"where the kernels lie": {"root": "/opt/b"}, "how often they were read": {"generation": 2}}
    recipe(f"{_BASE}{module_name}.moe:{runner_type}", differs={**DIFFERS, **engine}, same=same)(build)


_register("frost_bf16", "bf16", bf16_moe, "CudnnFrostBf16MoeRunner", 1)
_register("frost_mxfp8", "mxfp8", mxfp8_moe, "CudnnFrostMxfp8MoeRunner", 1)
_register("frost_mxfp8_mxfp4", "mxfp8_mxfp4", mxfp4_moe, "CudnnFrostMxfp8Mxfp4MoeRunner", 1)
_register("frost_nvfp4", "nvfp4", nvfp4_moe, "CudnnFrostNvfp4MoeRunner", 2)


@recipe(
    _BASE + "tuning:_StageRunner",
    differs={"stage": {"stage": 2}, "tactics": {"tactics": ("first", "third")}, "rows, which are not bucketed": {"rows": 120}},
    same={"workspace": {"key": (1, 2)}},
)
def frost_stage(rows: int = ROWS, stage: int = 1, tactics: tuple[str, ...] = _TACTICS, key: tuple[Any, ...] = ()) -> Iterator[Case]:
    module = Compiled()
    state = _State(key, tactics, module)
    runner = tuning._StageRunner(state, "tag", stage, state.first, state.second)
    inputs = [bf16(rows, HIDDEN), bf16(rows, HIDDEN), torch.zeros(rows, TOP_K, dtype=torch.int32), torch.zeros(rows, TOP_K), uint8(16)]
    config = TuningConfig(use_cuda_graph=True, cuda_graph_profile_replays=3, inputs_pre_hook=list)
    with gpu((10, 7)):
        yield Case(runner, f"tag-fc{stage}-1", config, inputs, module.launches)


@recipe(
    _BASE + "bf16.runtime:CudnnFrostGroupedGemm1SwiGLURunner",
    differs={"rows, which are not bucketed": {"rows": 120}, "hidden size": {"hidden": 512}},
)
def frost_grouped_gemm(rows: int = ROWS, hidden: int = HIDDEN) -> Iterator[Case]:
    module = Compiled()
    inputs = [bf16(rows, hidden), bf16(EXPERTS, INTERMEDIATE, hidden), bf16(EXPERTS, INTERMEDIATE, hidden), torch.ones(1)]
    inputs += [torch.zeros(EXPERTS + 1, dtype=torch.int32), bf16(rows, INTERMEDIATE), uint8(64)]
    runner = bf16_runtime.CudnnFrostGroupedGemm1SwiGLURunner()
    kernel = SimpleNamespace(tactic=("v2", "id", "digest"))
    with patch.object(bf16_runtime, "matching_kernels", lambda *_: [kernel]), patch.object(bf16_runtime, "_launch", module.launch):
        yield Case(runner, "cudnn_frost_grouped_gemm1_swiglu", TuningConfig(), inputs, module.launches)
