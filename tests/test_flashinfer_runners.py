"""The reviewed contracts against FlashInfer's real runner classes, constructed on a CPU with their compiled modules stubbed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
import tvm_ffi
from flashinfer.autotuner import TunableRunner
from flashinfer.fused_moe.shared.inputs import MoeRunnerInputs
from flashinfer.prims_ts.moe.compile_cache import stable_config_hash

from fi_cachestore.adapter.contracts import flashinfer_contracts
from fi_cachestore.adapter.sources import class_functions, type_name
from fi_cachestore.adapter.tactics import own_list
from fi_cachestore.adapter.values import closure_cells, resource_kind
from tests.flashinfer_runners import RECIPES
from tests.flashinfer_runners.case import SM_COUNT, Compiled
from tests.flashinfer_runners.keys import digest, digests, introspector, key, view
from tests.flashinfer_runners.others import HEADS

CONTRACTS = flashinfer_contracts()
RUNNERS = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


# -- every class ------------------------------------------------------------------------------------------------------------------


@RUNNERS
def test_the_contract_applies_and_the_key_is_complete(recipe):
    with recipe.build() as case:
        assert type_name(type(case.runner)) == recipe.type
        assert introspector().contract(case.runner).type == recipe.type
        assert view(case).gaps == ()
        assert key(case).runner.type == recipe.type


@RUNNERS
def test_a_forward_call_does_not_change_the_key(recipe):
    with recipe.build() as case:
        before = key(case)
        assert recipe.fills is None or _is_empty(_state(case.runner, recipe.fills))
        launches = len(case.launches)
        case.run()
        assert len(case.launches) > launches, "the forward call did not reach the stub"
        assert recipe.fills is None or not _is_empty(_state(case.runner, recipe.fills))
        assert key(case).digest == before.digest


@RUNNERS
def test_every_semantic_parameter_is_in_the_key(recipe):
    assert recipe.differs
    assert not recipe.differs.keys() & recipe.same.keys()
    found = {variant: digest(recipe.name, variant) for variant in ("", *recipe.differs)}
    assert len(set(found.values())) == len(found), found


@RUNNERS
def test_placement_and_the_values_of_one_call_are_not_in_the_key(recipe):
    found = {variant: digest(recipe.name, variant) for variant in ("", *recipe.same)}
    assert len(set(found.values())) == 1, found


def test_another_process_has_the_same_keys(tmp_path):
    here = digests()
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "HOME": str(tmp_path), "PYTHONPATH": str(root)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.flashinfer_runners"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here


# -- tactics at other sizes -------------------------------------------------------------------------------------------------------

# Recipes whose lists need nothing compiled, with a bucket where they list something and other sizes of it.
_LISTS = {
    "b12x_fp4": (512, (257, 384)),
    "b12x_mxfp8": (512, (257, 384)),
    "cute_bf16_fp4": (512, (257, 384)),
    "cute_bf16_fp4_sm100": (512, (257, 384)),
    "cute_direct_bf16": (32, (17, 24, 31)),
    "cute_fp8": (512, (257, 384)),
    "cute_low_latency": (8, (5, 7)),
    "cute_moe_sm90": (512, (257, 384)),
    "cute_moe_w4a16": (512, (257, 384)),
    "cute_moe_w4a4": (512, (257, 384)),
    "cute_mxfp8": (512, (257, 384)),
    "cute_mxfp8_sm107": (512, (257, 384)),
    "cute_splitk_bf16": (32, (17, 24, 31)),
    "cute_warp_splitk_bf16": (32, (17, 24, 31)),
    "cute_warp_splitk_mxfp8": (8, (5, 7)),
    "prims_ts": (2048, (1025, 1500)),
    "svdquant_sm120": (512, (257, 384)),
    "svdquant_sm120_unfused": (512, (257, 384)),
    "unified_cute_dsl": (512, (257, 384)),
}
# These list other tactics at other sizes, but themselves take another one there, or are asked by validate_tactic.
_OWN_FALLBACK = {"cute_fp4": (512, (257, 384)), "sm12x_fp4": (512, (257, 300))}


@pytest.mark.parametrize("name", _LISTS)
def test_tactics_of_a_bucket_hold_at_its_other_sizes_where_no_row_says_otherwise(name):
    bucket, sizes = _LISTS[name]
    lost = {rows: _lost(name, bucket, rows) for rows in sizes}
    assert CONTRACTS[RECIPES[name].type].checks_size or not any(lost.values()), lost


@pytest.mark.parametrize("name", _OWN_FALLBACK)
def test_a_class_with_its_own_fallback_needs_no_mark(name):
    bucket, sizes = _OWN_FALLBACK[name]
    assert any(_lost(name, bucket, rows) for rows in sizes)
    assert not CONTRACTS[RECIPES[name].type].checks_size


@pytest.mark.filterwarnings("ignore:.*never routed to a downstream work call:UserWarning")  # Prims-TS about its own kernels
def test_prims_ts_compiles_the_same_kernels_for_a_tactic_at_every_size():
    """Its lists name other tiles at other sizes, but what a tactic stands for does not depend on the size."""
    with RECIPES["unified_prims_ts_fp4"].build(rows=512) as case:
        tactics = [tactic for tactic in case.runner.get_valid_tactics(case.inputs, None) if tactic != -1]
        at_bucket = [_pair(case, tactic) for tactic in tactics]
    assert len(set(at_bucket)) > 1
    with RECIPES["unified_prims_ts_fp4"].build(rows=257) as case:
        assert [tactic for tactic in tactics if tactic not in case.runner.get_valid_tactics(case.inputs, None)]
        assert [_pair(case, tactic) for tactic in tactics] == at_bucket
    assert not CONTRACTS["flashinfer.prims_ts.moe.runner:PrimsTsNvfp4MoERunner"].checks_size


def _pair(case: Any, tactic: Any) -> tuple[str, str]:
    pair = case.runner._inner._map_tactic(tactic, MoeRunnerInputs.from_list(case.inputs))
    return stable_config_hash(pair.fc1.cfg.build()), stable_config_hash(pair.fc2.cfg.build())


def test_the_state_space_update_leaves_out_only_launches_that_are_others_again():
    def listed(batch: int) -> list[Any]:
        with RECIPES["checkpointing_ssu"].build(batch=batch) as case:
            return list(case.runner.get_valid_tactics(case.inputs, None))

    def launches(tactics: list[Any], batch: int) -> set[Any]:
        return {(stages, min(ctas * SM_COUNT, d_split * batch * HEADS), heads, d_split) for stages, ctas, heads, d_split in tactics}

    assert set(listed(16)) - set(listed(9))
    assert launches(listed(16), 9) == launches(listed(9), 9)
    assert not CONTRACTS["flashinfer.mamba.checkpointing_ssu:CheckpointingSSURunner"].checks_size


def _lost(name: str, bucket: int, rows: int) -> list[Any]:
    """Return the tactics of a bucket that are not listed at another size."""
    listed, there = _list(name, bucket), _list(name, rows)
    assert listed
    return [tactic for tactic in listed if tactic not in there]


def _list(name: str, rows: int) -> list[Any]:
    with RECIPES[name].build(rows=rows) as case:
        shapes = [tuple(item.shape) if isinstance(item, torch.Tensor) else (0,) for item in case.inputs]
        found = own_list(case.runner, case.tensors(case.inputs), shapes)
        assert found is not None
        return found


# -- the rest ---------------------------------------------------------------------------------------------------------------------


def test_the_stubs_stand_for_what_counts_as_a_resource():
    assert resource_kind(tvm_ffi.convert(len)) == "tvm_ffi"
    assert (tvm_ffi.Module.__module__.partition(".")[0], tvm_ffi.Module.__qualname__) == ("tvm_ffi", "Module")
    assert resource_kind(Compiled()) is not None
    assert resource_kind(Compiled().function) is not None


def _state(runner: Any, name: str) -> Any:
    """Return an attribute of a runner, or what the cell of that name holds in its methods or in functions that those reach."""
    found = vars(runner).get(name, ...)
    cells = (content for cell, content in _cells(type(runner)) if cell == name)
    return next(cells) if found is ... else found


def _cells(cls: type) -> Iterator[tuple[str, Any]]:
    functions = [function for _, _, function in class_functions(cls, TunableRunner)]
    for function in functions:
        for name, content in closure_cells(function):
            yield name, content
            if isinstance(content, FunctionType) and content not in functions:
                functions.append(content)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict | list) and not value)
