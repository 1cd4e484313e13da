"""The rows of the contracts against FlashInfer's source and against its runner classes as the walker sees them."""

import ast
import importlib
from unittest.mock import patch

import pytest
import torch
from flashinfer.autotuner import TunableRunner
from flashinfer.fused_moe import core

from fi_cachestore.adapter.contracts import flashinfer_contracts
from fi_cachestore.adapter.introspect import Call, RunnerView
from fi_cachestore.adapter.policy import resolved
from fi_cachestore.adapter.roles import Role
from fi_cachestore.adapter.sources import implementation_digest
from fi_cachestore.audit.classes import runner_classes
from fi_cachestore.environment.probes import CUDA_PROBES
from tests.flashinfer_runners import RECIPES
from tests.flashinfer_runners.case import Compiled, fresh
from tests.flashinfer_runners.keys import introspector, view
from tests.flashinfer_runners.mutation import UNCHANGED, elsewhere, is_top, other, parameters, roles

CONTRACTS = flashinfer_contracts()
EVERY = runner_classes()
BUILT = {recipe.type for recipe in RECIPES.values()}
RUNNERS = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
ROWS = pytest.mark.parametrize("contract", CONTRACTS.values(), ids=[name.rpartition(":")[2] for name in CONTRACTS])

_BASE = "a base that names no backend of its own: "
NEVER_BUILT = {
    "flashinfer.gemm.gemm_base:_CuteDSLBf16Runner": "abstract: the base of the four runners of mm_bf16's backend cute-dsl",
    "flashinfer.fused_moe.core:_get_trtllm_moe_sm100_module_impl.<locals>.DAProfileRunner": (
        "passed to profile_tactic only, never to choose_one; holds its runner through an object that has no canonical form"
    ),
    "flashinfer.fused_moe.runners:MoERunner": "abstract: the base of all unified runners",
    "flashinfer.fused_moe.runners:_CutlassRunnerBase": _BASE + "it declares neither architectures nor weights, so check_support fails",
    "flashinfer.fused_moe.runners:_TrtllmRunnerBase": "abstract: the base of the unified runners on cubins",
    "flashinfer.fused_moe.runners:_CuTileFp8Runner": _BASE + "its name and formats are those of BF16, whose weights it refuses",
    "flashinfer.fused_moe.runners:_CuTileFp4Runner": _BASE + "it declares neither precision nor scales",
    "flashinfer.fused_moe.runners:_B12xRunner": _BASE + "it declares no formats, so check_support fails",
    "flashinfer.grouped_mm._sm120_moe_autotune:Sm120MoeTunableRunner": _BASE + "its launch is not implemented",
}


# -- every class has a row, and every row holds -----------------------------------------------------------------------------------


def test_every_runner_class_has_a_row_and_every_row_a_class():
    assert set(CONTRACTS) == set(EVERY)


def test_every_row_is_tried_or_says_why_not():
    assert BUILT | set(NEVER_BUILT) == set(CONTRACTS)
    assert not BUILT & set(NEVER_BUILT)


@ROWS
def test_a_row_names_facets_that_there_are_and_gives_a_reason_for_every_term(contract):
    assert set(contract.backends or ()) <= {probe.name for probe in CUDA_PROBES}
    terms = {*contract.roles, *(f"arguments.{name}" for name in contract.arguments)}
    terms |= {"extras." + ".".join(map(str, position)) for position in contract.extras}
    assert set(contract.reasons) == terms
    assert contract.varies <= terms


@pytest.mark.parametrize("name", [name for name in NEVER_BUILT if "<locals>" not in name], ids=lambda name: name.rpartition(":")[2])
def test_the_row_of_a_class_that_is_never_built_is_current(name):
    module, _, cls = name.partition(":")
    found = getattr(importlib.import_module(module), cls)
    assert str(implementation_digest(found, TunableRunner)).startswith(CONTRACTS[name].fingerprint)


@pytest.mark.parametrize("name", [name for name, why in NEVER_BUILT.items() if why.startswith("abstract")])
def test_an_abstract_class_cannot_be_built(name):
    module, _, cls = name.partition(":")
    with pytest.raises(TypeError, match="abstract"):
        getattr(importlib.import_module(module), cls)()


def test_the_profile_runner_that_never_reaches_the_tuner_would_have_no_key():
    module = Compiled()
    spec = patch.object(core, "gen_trtllm_gen_fused_moe_sm100_module", module.spec)
    with spec, patch.object(core, "setup_cubin_loader", module.compiler):
        api = fresh(core._get_trtllm_moe_sm100_module_impl, False)
    with RECIPES["trtllm_moe"].build() as case:
        case.runner = api.DAProfileRunner(api.DABodyRunner(case.runner), torch.zeros(4), torch.zeros(4))
        described = view(case)
    assert described.contract.type in NEVER_BUILT
    assert [gap.field for gap in described.gaps] == ["_body_runner"]


def test_a_class_that_changed_falls_back_to_the_rules():
    with RECIPES["frost_nvfp4"].build() as case:
        assert view(case).gaps == ()
        with patch.object(type(case.runner), "refresh", lambda self: None):
            changed = view(case)
    assert changed.contract.type == ""
    assert {gap.field for gap in changed.gaps} >= {"_validated_scales", "arguments.launch_state"}


# -- kinds of lists ---------------------------------------------------------------------------------------------------------------


def test_only_the_all_reduce_is_collective():
    assert {name for name, contract in CONTRACTS.items() if contract.collective} == {
        "flashinfer.comm.pcie_ipc_tuning:PcieIpcAllReduceRunner"
    }


def _calls(node):
    return {call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id for call in _named_calls(node)}


def _named_calls(node):
    return [call for call in ast.walk(node) if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute | ast.Name)]


def _ranks_by_time(found):
    """Whether ``get_valid_tactics`` reaches ``rank_tactics`` through methods of the class or functions of its files."""
    functions = {item.name: item.node for owner in reversed(found.lineage) for item in owner.inner if not item.is_class}
    for owner in found.lineage:
        functions = {node.name: node for node in owner.file.tree.body if isinstance(node, ast.FunctionDef)} | functions
    functions |= _IMPORTED
    reached, ahead = set(), {"get_valid_tactics"}
    while ahead:
        name = ahead.pop()
        reached.add(name)
        ahead |= (_calls(functions[name]) if name in functions else set()) - reached
    return "rank_tactics" in reached


def _functions_of(module):
    tree = ast.parse(importlib.import_module(module).__loader__.get_source(module))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


_IMPORTED = _functions_of("flashinfer.fused_moe.backends.cudnn_frost.tuning")


def test_lists_are_measured_where_listing_ranks_by_time_and_nowhere_else():
    measured = {name for name, contract in CONTRACTS.items() if contract.space == "measured"}
    assert measured == {name for name, found in EVERY.items() if _ranks_by_time(found)} | {
        "flashinfer.comm.pcie_ipc_tuning:PcieIpcAllReduceRunner"  # screens its candidates by running them
    }
    assert not any(contract.checks_size for contract in CONTRACTS.values() if contract.space == "measured")


_POSITIONS_ALL_THE_SAME = {
    "flashinfer.gemm.gemm_base:_cute_dsl_fp8_gemm_runner.<locals>.CuteDslFp8GemmRunner": "those of its table that the shapes allow",
    "flashinfer.gemm.gemm_bf16_fp4_cute_dsl:_cute_dsl_bf16_fp4_runner.<locals>.CuteDslBf16Fp4Runner": "those of its table that the shapes allow",
    "flashinfer.gemm.gemm_base:_cute_dsl_cublaslt_fallback_bf16_gemm_runner.<locals>.CuteDSLCublasltFallbackBf16Runner": "cuBLASLt's runner lists",
}


def test_lists_are_indexed_where_they_are_a_range_or_positions_all_the_same():
    indexed = {name for name, contract in CONTRACTS.items() if contract.space == "indexed"}
    ranges = {name for name, found in EVERY.items() if (method := found.method("get_valid_tactics")) and "range" in _calls(method.node)}
    assert indexed == {name for name in ranges if not CONTRACTS[name].collective} | set(_POSITIONS_ALL_THE_SAME)


# -- every parameter has a role ---------------------------------------------------------------------------------------------------


def _listed(contract):
    return {**contract.roles, **{f"arguments.{name}": role for name, role in contract.arguments.items()}}


def test_the_parameters_in_a_row_are_those_that_the_walker_finds():
    found = {name: {} for name in BUILT}
    for recipe in RECIPES.values():
        with recipe.build() as case:
            found[recipe.type] |= roles(case)
            case.run()
            case.runner.get_cache_key_extras(case.inputs)  # some are computed on first use
            found[recipe.type] |= roles(case)
    wrong = {}
    for name, seen in found.items():
        counted = {path: role for path, role in seen.items() if is_top(path) or role is not Role.SEMANTIC}
        listed = {path: role for path, role in _listed(CONTRACTS[name]).items() if is_top(path) or role is not Role.SEMANTIC}
        if counted != listed:
            wrong[name] = set(counted.items()) ^ set(listed.items())
        assert set(_listed(CONTRACTS[name])) <= set(seen), name
    assert wrong == {}


def test_a_semantic_parameter_without_a_word_is_semantic_by_the_rules():
    """A table says so where a contract makes something semantic that the rules would leave out."""
    overruled = set()
    for recipe in RECIPES.values():
        with recipe.build() as case:
            ruled = roles(case, by_contract=False)
        overruled |= {
            path
            for path, role in CONTRACTS[recipe.type].roles.items()
            if role is Role.SEMANTIC and ruled.get(path, role) is not Role.SEMANTIC
        }
    assert overruled == {"_cache_key_static_extras"}


@pytest.mark.parametrize("name", NEVER_BUILT, ids=lambda name: name.rpartition(":")[2])
def test_the_parameters_of_a_class_that_is_never_built_are_those_of_its_source(name):
    lineage = EVERY[name].lineage
    assigned = {
        node.attr
        for owner in lineage
        for node in ast.walk(owner.node)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and getattr(node.value, "id", "") == "self"
    }
    cached = {item.name for owner in lineage for item in owner.inner if "cached_property" in ast.unparse(item.node).partition("def ")[0]}
    constants = {
        target.id
        for owner in lineage
        for node in owner.node.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    listed = {path for path in CONTRACTS[name].roles if is_top(path)}
    assert {path for path in listed if not path.startswith(("class.", "closure."))} >= assigned & _set_by_constructors(lineage)
    missing = {path for path in listed if path.removeprefix("class.") not in assigned | cached | constants | _given_by_subclasses(name)}
    assert missing == set()


def _set_by_constructors(lineage):
    inits = [item.node for owner in lineage for item in owner.inner if item.name == "__init__"]
    return {node.attr for init in inits for node in ast.walk(init) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}


def _given_by_subclasses(name):
    """What the classes below a base add to the table that they share with it."""
    below = [found for found in EVERY.values() if name.rpartition(":")[2] in {owner.name for owner in found.lineage[1:]}]
    stored = (node for found in below for node in ast.walk(found.scope.node) if isinstance(node, ast.Name | ast.Attribute))
    return {node.id if isinstance(node, ast.Name) else node.attr for node in stored if isinstance(node.ctx, ast.Store)}


def test_every_position_of_the_extras_in_a_row_is_one_that_they_have():
    for recipe in RECIPES.values():
        with recipe.build() as case:
            found = case.runner.get_cache_key_extras(case.inputs)
        for position in CONTRACTS[recipe.type].extras:
            inner = found
            for index in position:
                assert isinstance(inner, tuple), recipe.name
                inner = inner[index]


# -- mutation ---------------------------------------------------------------------------------------------------------------------


def _identity(case):
    """Return the digest of a case's key; where another value makes it incomplete, the part that the runner's parameters are."""
    call = Call(introspector(), case.op, case.config, case.inputs, case.arguments, resolved(case.config, None))
    described = RunnerView(call, case.runner)
    if described.gaps:
        return sorted(map(str, described.gaps))
    keys = described.keys(call.bucket(), serving=True)
    return keys[0].digest if hasattr(keys[0], "digest") else str(keys)


# Parameters whose type has no other value here: their content is tried through the recipes' own variants.
_ONLY_BY_RECIPE = {"_workspace_sizer", "closure.cublaslt_runner", "closure.fp4_runner", "arguments.launch_state"}


@RUNNERS
def test_another_value_of_a_parameter_is_another_key_just_where_it_counts(recipe):
    with recipe.build() as case:
        known, before = roles(case), _identity(case)
        for parameter in list(parameters(case)):
            role = known.get(parameter.path)
            if role in (None, Role.ROUNDING):
                continue
            changed = (other if role is Role.SEMANTIC else elsewhere)(parameter.value)
            if changed is UNCHANGED:
                assert parameter.path in _ONLY_BY_RECIPE
                continue
            with parameter.replaced(changed):
                assert (_identity(case) == before) == (role is not Role.SEMANTIC), parameter.path
        assert _identity(case) == before
