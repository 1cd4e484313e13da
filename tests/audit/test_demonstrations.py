"""What FlashInfer serves after a restart, for calls that its persisted key does not tell apart, or tells apart without need."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from flashinfer.autotuner import AutoTuner
from flashinfer.fused_moe import runners as unified
from flashinfer.fused_moe.api import ExpertConfig, MoEConfig, QuantConfig, RoutingConfig
from flashinfer.msa_ops import proxy_score

from fi_cachestore.audit.classes import runner_classes
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.audit.demonstrations import DEMONSTRATIONS, Effect, process, show
from tests.flashinfer_runners import RECIPES
from tests.flashinfer_runners.case import gpu
from tests.flashinfer_runners.keys import key

NAMES = [demonstration.name for demonstration in DEMONSTRATIONS]
SHARED = [demonstration for demonstration in DEMONSTRATIONS if demonstration.effect is not Effect.LOST]


def test_names_are_unique_and_runners_exist():
    assert len(set(NAMES)) == len(NAMES)
    assert {demonstration.runner for demonstration in DEMONSTRATIONS} <= {found.name for found in runner_classes().values()}
    assert len(SHARED) >= 10


RUNS = [(demonstration, store) for demonstration in DEMONSTRATIONS for store in demonstration.stores]


@pytest.mark.parametrize(("demonstration", "store"), RUNS, ids=[f"{item.name}-{store}" for item, store in RUNS])
def test_demonstration(demonstration, store, tmp_path):
    shown = show(demonstration, store, tmp_path)
    assert shown.fastest in shown.tuned_list
    if demonstration.effect is Effect.LOST:
        assert shown.tuned_key != shown.served_key
        assert shown.tuned_list == shown.served_list
        assert (shown.was_hit, shown.served) == (False, -1)
        return
    assert shown.tuned_key == shown.served_key
    assert (shown.was_hit, shown.served) == (True, shown.fastest)
    if demonstration.effect is Effect.ILLEGAL:
        assert shown.served not in shown.served_list
    elif demonstration.kernel is not None:
        assert shown.tuned_list == shown.served_list
        assert shown.tuned_kernel != shown.served_kernel
    else:
        assert shown.tuned_list != shown.served_list


def test_the_vector_kernel_ends_the_call(tmp_path):
    (demonstration,) = (item for item in DEMONSTRATIONS if item.name == "bf16-fp4-rounding")
    assert show(demonstration, "v1", tmp_path).error == "ValueError: the gemv tactic requires m == 1, got m=5"


@pytest.mark.parametrize("demonstration", SHARED, ids=[item.name for item in SHARED])
def test_our_keys_differ_or_the_size_is_checked(demonstration):
    """The same two calls have two keys here; where they differ by size alone, the contract has the tactic checked at each size."""
    with demonstration.tuned() as case:
        ours = key(case)
    with demonstration.served() as case:
        theirs = key(case)
    if demonstration.name in ("fp8-size", "bf16-fp4-rounding"):
        from fi_cachestore.adapter.contracts import flashinfer_contracts

        assert flashinfer_contracts()[ours.runner.type].checks_size
    else:
        assert ours.digest != theirs.digest


def test_a_second_process_is_served_the_same(tmp_path):
    """The restart of the other tests is a new tuner; here it is a new process."""
    code = (
        "import sys; from pathlib import Path; from flashinfer.autotuner import AutoTuner; from fi_cachestore.testing.cpu_timing import cpu_timing\n"
        "from tests.audit.demonstrations import DEMONSTRATIONS, listed, process\n"
        "item = next(item for item in DEMONSTRATIONS if item.name == 'sm90-moe-experts'); tunes = sys.argv[1] == 'tune'\n"
        "made = item.tuned if tunes else item.served\n"
        "with item.tuned() as a, item.served() as b: fastest = item.prefer(listed(a), listed(b))\n"
        "with process('v1', Path(sys.argv[2]), tunes=tunes), made() as case, cpu_timing(lambda _, __, t: 1.0 if t == fastest else 2.0):\n"
        "    _, tactic = AutoTuner.get().choose_one(case.op, [case.runner], case.config, case.inputs, **case.arguments)\n"
        "    print(tactic, tactic in listed(case))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"}
    said = []
    for step in ("tune", "serve"):
        command = [sys.executable, "-W", "ignore", "-c", code, step, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip().rpartition(" "))
    (tuned, _, was_listed), (served, _, is_listed) = said
    assert tuned == served
    assert (was_listed, is_listed) == ("True", "False")


# -- what has a form of its own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sm12x_moe_fp8_gemm", "sm12x_moe_mxfp4_gemm"])
def test_tactics_with_an_enum_lose_the_file_of_all_ops(name, tmp_path):
    """MoE stages on SM12x: saving ends the ``autotune`` context with an error, and the winners of every other op are not written either."""

    def tune_both():
        with process("v1", tmp_path, tunes=True), cpu_timing(lambda *_: 1.0):
            for recipe in ("prims_ts", name):
                with RECIPES[recipe].build() as case:
                    AutoTuner.get().choose_one(case.op, [case.runner], case.config, case.inputs, **case.arguments)

    with pytest.raises(TypeError, match="EpiMethod is not JSON serializable"):
        tune_both()
    assert not (tmp_path / "v1.json").exists()


def test_tactics_with_an_enum_are_not_in_the_second_store(tmp_path):
    """FlashInfer's second store refuses the one entry; it also times the default, which would be stored."""
    timing = cpu_timing(lambda _, __, tactic: 2.0 if tactic == -1 else 1.0)
    with process("v2", tmp_path, tunes=True), RECIPES["sm12x_moe_fp8_gemm"].build() as case, timing:
        assert AutoTuner.get().choose_one(case.op, [case.runner], case.config, case.inputs)[1] != -1
    assert not list((tmp_path / "v2").rglob("entries/*.json"))


def test_ranks_of_the_unified_moe_have_a_key_each():
    """Expert-parallel ranks differ in ``local_expert_offset`` alone, which the extras hold; tactic validity does not depend on it."""

    def extras(offset):
        experts = ExpertConfig(intermediate_size=128, local_expert_offset=offset, local_num_experts=4)
        config = MoEConfig(routing=RoutingConfig(num_experts=8, top_k=2), quant=QuantConfig(), experts=experts)
        runner = object.__new__(unified.TrtllmBf16RoutedRunner)
        runner.config = config
        return unified.MoERunner._cache_key_extras(runner)

    first, second = extras(0), extras(4)
    assert [a for a, b in zip(first, second, strict=True) if a != b] == [0]


def test_what_the_proxy_tuned_is_not_looked_up_after_a_restart(tmp_path):
    """The proxy score asks the tuner only for shapes that this process has tuned itself: what was saved is loaded and never used."""
    asked, ran = [], []
    real = AutoTuner.choose_one

    def choose_one(self, *arguments, **named):
        asked.append(arguments[0])
        return real(self, *arguments, **named)

    def run():
        settings = {"max_seqlen_q": 64, "max_k_tiles": 64, "base_ctas": 2, "causal": True, "paged": False, "reduce_heads": False}
        tensors = [torch.zeros(4, 8)]
        call = lambda _, splits: ran.append(splits)
        proxy_score._run_proxy_autotuned("msa_proxy_score", call, tensors, device="cuda", heuristic=lambda *_: 3, **settings)

    count = patch.object(proxy_score, "get_device_sm_count", lambda _: 148)
    with patch.object(AutoTuner, "choose_one", choose_one), gpu(), count:
        timing = cpu_timing(lambda _, __, tactic: 1.0 if tactic == 16 else 2.0)
        with patch.object(proxy_score, "_PROXY_TUNED", set()), process("v1", tmp_path, tunes=True), timing:
            run()
        assert (asked, ran[-1]) == (["msa_proxy_score"], 16)
        with patch.object(proxy_score, "_PROXY_TUNED", set()), process("v1", tmp_path, tunes=False):
            run()
    assert (asked, ran[-1]) == (["msa_proxy_score"], 3)
    assert any("_ProxySplitKRunner" in name for name in json.loads((tmp_path / "v1.json").read_text()))
