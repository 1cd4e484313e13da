"""Calls that can differ in valid tactics never share a key: through the real AutoTuner, and a restart in a fresh process."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from tests.adapter.believing import believe
from tests.adapter.cases import CASES, Case
from tests.adapter.processes import fresh
from tests.adapter.runners import BUCKETS, PlainRunner, config, matrix, timed


def tune(root, name, side):
    case = CASES[name](side)
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        _, tactic = AutoTuner.get().choose_one(case.op, [case.runner], case.config, case.inputs, **case.arguments)
        case.runner(case.inputs, tactic=tactic, **case.arguments)
    assert session.report().gaps == ()
    return {"tactic": tactic, "measured": len(measured), "tuned": session.report().tuned_count}


def serve(root, name, side):
    case = CASES[name](side)
    fi_cachestore.attach(root=root)
    _, tactic = AutoTuner.get().choose_one(case.op, [case.runner], case.config, case.inputs, **case.arguments)
    case.runner(case.inputs, tactic=tactic, **case.arguments)
    return tactic


def digest(name, side):
    case = CASES[name](side)
    return fi_cachestore.tune_key(case.op, case.runner, case.inputs, tuning_config=case.config, arguments=case.arguments).digest


@pytest.mark.parametrize("name", CASES)
def test_the_pair_has_two_digests(name):
    assert digest(name, 0) != digest(name, 1)
    assert digest(name, 0) == digest(name, 0)


@pytest.mark.parametrize("name", CASES)
def test_neither_is_served_the_others_tactic_after_a_restart(tmp_path, name):
    first = fresh(tune, tmp_path, name, 0)
    believe(tmp_path)
    assert first["tactic"] != -1
    assert fresh(serve, tmp_path, name, 1) == -1
    assert fresh(serve, tmp_path, name, 0) == first["tactic"]
    second = fresh(tune, tmp_path, name, 1)
    believe(tmp_path)
    assert second["tuned"] == 3
    assert second["tactic"] != first["tactic"]
    assert fresh(serve, tmp_path, name, 0) == first["tactic"]
    assert fresh(serve, tmp_path, name, 1) == second["tactic"]
    assert fresh(tune, tmp_path, name, 0)["measured"] == 0


class OtherRunner(PlainRunner):
    """The same parameters, none; other code."""

    def time_ms(self, tactic):
        return 1.0


REMEMBERED = {
    **CASES,
    "op": lambda side: Case(PlainRunner(), [matrix(50)], op=f"op {side}"),
    "class": lambda side: Case((PlainRunner, OtherRunner)[side](), [matrix(50)]),
    "bucket": lambda side: Case(PlainRunner(), [matrix(50)], config=config((50,) if side else BUCKETS)),
    "rounding to one bucket": lambda side: Case(PlainRunner(), [matrix(64)], config=config(round_up=bool(side))),
    "execution": lambda side: Case(PlainRunner(), [matrix(50)], config=config(use_cuda_graph=bool(side))),
    "L2 cache": lambda side: Case(PlainRunner(), [matrix(50)], config=config(use_cold_l2_cache=bool(side))),
    "presence of an output": lambda side: Case(PlainRunner(), [matrix(50)], {"out": matrix(50)} if side else {}),
}


def tune_one_and_serve_both(root):
    found = {}
    for name, make in REMEMBERED.items():
        served = []
        for side in (None, 0, 1, 0):
            case = make(side or 0)
            with contextlib.ExitStack() as contexts:
                if side is None:
                    contexts.enter_context(timed())
                    contexts.enter_context(fi_cachestore.autotune(root=root))
                served.append(AutoTuner.get().choose_one(case.op, [case.runner], case.config, case.inputs, **case.arguments)[1])
        found[name] = served
    return found


def test_an_answer_remembered_for_one_is_not_given_to_the_other(tmp_path):
    for name, (tuned, *served) in fresh(tune_one_and_serve_both, tmp_path).items():
        assert tuned != -1, name
        assert served == [tuned, -1, tuned], name


PRINT_DIGESTS = """
import json
from tests.adapter.cases import CASES
from tests.adapter.test_collisions import digest
print(json.dumps({f"{name}/{side}": digest(name, side) for name in CASES for side in (0, 1)}))
"""


def test_the_same_call_has_one_digest_in_processes_that_differ_in_anything_else(tmp_path):
    here = {f"{name}/{side}": digest(name, side) for name in CASES for side in (0, 1)}
    for number in range(2):
        home = tmp_path / f"home{number}"
        home.mkdir()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(Path(__file__).parents[2])]),
            "PYTHONHASHSEED": str(number + 1),
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "MASTER_PORT": str(29500 + number),
            "FLASHINFER_WORKSPACE_BASE": str(home),
        }
        result = subprocess.run(
            [sys.executable, "-c", PRINT_DIGESTS], env=environment, cwd=home, capture_output=True, text=True, check=True
        )
        assert json.loads(result.stdout.splitlines()[-1]) == here
