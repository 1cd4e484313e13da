"""Pairs of calls with one key and different tactics are found, and shrunk to what matters."""

import itertools
import re

import pytest
import torch
from flashinfer.autotuner import AutoTuner

from fi_cachestore.adapter import api
from fi_cachestore.adapter.contracts import load_contracts
from fi_cachestore.adapter.introspect import Introspector
from fi_cachestore.environment.identity import Environments
from fi_cachestore.testing import (
    Shared,
    TunedCall,
    assert_keys_distinct,
    assert_legacy_keys_distinct,
    find_collisions,
    listed_tactics,
    reference_gemm,
    working_tactics,
)
from tests.adapter.cases import CASES
from tests.adapter.runners import LayoutRunner, PlainRunner, config, matrix


def call(runner, inputs=None, **arguments):
    return TunedCall(runner, [matrix(50)] if inputs is None else inputs, config(), arguments)


class HiddenRunner(LayoutRunner):
    """What decides is kept under the name of a memo, which no key looks at."""

    def __init__(self, hidden, **seen):
        self.hidden_cache = [hidden]
        vars(self).update(seen)

    def which(self, inputs):
        return self.hidden_cache[0]


def keys_of(found, shared=Shared.KEY):
    return [collision for collision in found if collision.shared is shared]


@pytest.mark.parametrize("name", CASES)
def test_none_of_the_known_pairs_share_a_key(name):
    def factory(side):
        case = CASES[name](side)
        return TunedCall(case.runner, case.inputs, case.config, case.arguments, case.op)

    assert keys_of(find_collisions(factory, {"side": [0, 1]}, behaviour=working_tactics)) == []
    assert_keys_distinct(factory, {"side": [0, 1]})
    assert_keys_distinct(factory, {"side": [0, 1]}, behaviour=working_tactics)


def test_a_collision_names_what_is_enough_and_what_is_the_same():
    def factory(hidden, seen, dtype):
        return call(HiddenRunner(hidden, seen=seen), [matrix(50, dtype=dtype)])

    grid = {"dtype": [torch.float32, torch.bfloat16], "hidden": [1, 2, 3], "seen": ["a", "b"]}
    (found,) = keys_of(find_collisions(factory, grid))
    assert found.differing == ("hidden",)
    assert dict(found.left.parameters) == {"dtype": torch.float32, "hidden": 1, "seen": "a"}
    assert dict(found.right.parameters) == {"dtype": torch.float32, "hidden": 2, "seen": "a"}
    assert found.left.key == found.right.key
    with pytest.raises(AssertionError) as error:
        assert_keys_distinct(factory, grid)
    lines = str(error.value).splitlines()
    assert lines[:4] == [
        "two calls share the key and have different tactics; they differ in hidden",
        "  hidden=1: (10, 11)",
        "  hidden=2: (20, 21)",
        "  with dtype=torch.float32, seen='a'",
    ]
    assert re.search(r"params +\w+ +\{.*seen: 'a'", str(error.value))
    assert "left out of it: hidden_cache (resource)" in str(error.value)


def test_a_collision_says_whether_evidence_would_tell_the_calls_apart():
    class Placed(LayoutRunner):
        def __init__(self, tp_rank):
            self.tp_rank = tp_rank

        def which(self, inputs):
            return 1 + self.tp_rank

    (verified,) = keys_of(find_collisions(lambda tp_rank: call(Placed(tp_rank)), {"tp_rank": [0, 1]}))
    assert verified.told_apart_by == ("tp_rank",)
    assert "only what is left out tells them apart: tp_rank;" in str(verified)
    (served,) = keys_of(find_collisions(lambda hidden: call(HiddenRunner(hidden)), {"hidden": [1, 2]}))
    assert served.told_apart_by == ()
    assert "the one is served what was measured for the other" in str(served)


def test_two_parameters_are_named_where_one_is_not_enough():
    def factory(a, b, c):
        return call(HiddenRunner(a, total=a + b, c=c))

    (found,) = keys_of(find_collisions(factory, {"a": [1, 2], "b": [1, 2], "c": [0, 1]}))
    assert found.differing == ("a", "b")
    assert [dict(side.parameters) for side in (found.left, found.right)] == [{"a": 1, "b": 2, "c": 0}, {"a": 2, "b": 1, "c": 0}]


def test_parameters_that_collide_for_themselves_are_two_findings():
    def factory(a, b):
        return call(HiddenRunner(10 * a + b))

    assert [found.differing for found in keys_of(find_collisions(factory, {"a": [1, 2], "b": [1, 2]}))] == [("a",), ("b",)]
    with pytest.raises(AssertionError, match="2 minimal pairs"):
        assert_keys_distinct(factory, {"a": [1, 2], "b": [1, 2]})


def test_values_that_python_takes_for_equal_are_two_points():
    class Runner(LayoutRunner):
        def __init__(self, flag):
            self.flag_cache = [flag]

        def which(self, inputs):
            return 2 if self.flag_cache[0] is True else 1

    (found,) = keys_of(find_collisions(lambda flag: call(Runner(flag)), {"flag": [1, True]}))
    assert found.differing == ("flag",)


def test_what_is_listed_is_not_all_that_can_be_compared():
    class Runner(PlainRunner):
        def __init__(self, broken):
            self.broken_cache = [broken]

        def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
            if tactic == self.broken_cache[0]:
                raise RuntimeError
            return inputs[0]

    def factory(broken):
        return call(Runner(broken))

    assert keys_of(find_collisions(factory, {"broken": [1, 2]})) == []
    (found,) = keys_of(find_collisions(factory, {"broken": [1, 2]}, behaviour=working_tactics))
    assert found.left.behaviour == ((-1, None), (0, None), (1, "RuntimeError"), (2, None))


def test_a_list_that_comes_from_timing_proves_nothing():
    class Runner(PlainRunner):
        counter_cache = itertools.count()

        def get_valid_tactics(self, inputs, profile):
            return [[0, 1], [1, 0]][next(self.counter_cache) % 2]

    assert listed_tactics(call(Runner())) is None
    assert find_collisions(lambda side: call(Runner()), {"side": [0, 1, 2]}) == ()
    lasting = Runner()
    lasting.counter_cache = iter([0] * 4)
    assert find_collisions(lambda side: call([Runner(), lasting][side]), {"side": [0, 1]}) == ()


def test_a_list_that_a_contract_says_is_measured_proves_nothing(monkeypatch):
    name = f"{HiddenRunner.__module__}:{HiddenRunner.__qualname__}"
    contract = load_contracts(f'[[runner]]\ntype = "{name}"\nfingerprint = ""\nspace = "measured"', "test")
    monkeypatch.setattr(api, "introspector", lambda: Introspector(contract, Environments()))
    assert find_collisions(lambda hidden: call(HiddenRunner(hidden)), {"hidden": [1, 2]}) == ()


def test_a_runner_that_offers_nothing_differs_from_one_that_does():
    class Runner(HiddenRunner):
        def get_valid_tactics(self, inputs, profile):
            if self.which(inputs) == 1:
                raise NotImplementedError
            return []

    (found,) = keys_of(find_collisions(lambda side: call(Runner(side)), {"side": [1, 2]}))
    assert "raises('NotImplementedError')" in str(found)


def test_tactics_are_those_of_the_bucket_and_not_of_the_size():
    class Runner(PlainRunner):
        def get_valid_tactics(self, inputs, profile):
            assert profile.get_opt_shapes() == ((16, 32),)
            return [inputs[0].shape[0]]

    assert listed_tactics(call(Runner(), [matrix(20)])) == (16,)
    assert_keys_distinct(lambda rows: call(Runner(), [matrix(rows)]), {"rows": [16, 17, 63]})


def test_a_call_without_a_key_is_no_success():
    def factory(side):
        return call(HiddenRunner(side, handle=object() if side == 2 else None))

    with pytest.raises(AssertionError, match="1 of 2 calls have no key") as error:
        assert_keys_distinct(factory, {"side": [1, 2]})
    assert "side=2" in str(error.value)
    assert "handle" in str(error.value)
    assert keys_of(find_collisions(factory, {"side": [1, 2]})) == []
    assert keys_of(find_collisions(lambda side: call(HiddenRunner(side, handle=object())), {"side": [1, 2]})) == []


def test_combinations_that_do_not_exist_are_left_out():
    built = []

    def factory(a, b):
        if a == b:
            return None
        built.append((a, b))
        return call(PlainRunner())

    assert_keys_distinct(factory, {"a": [1, 2], "b": [1, 2]})
    assert built == [(1, 2), (2, 1)]


def test_flashinfers_own_key_misses_what_its_extras_do_not_say():
    def factory(use_8x4_sf_layout, rows):
        sides = {"use_8x4_sf_layout": use_8x4_sf_layout}
        runner, inputs = reference_gemm.ReferenceGemmRunner(**sides), reference_gemm.make_inputs(rows, 32, 64, **sides)
        return TunedCall(runner, inputs, reference_gemm.tuning_config(**sides), op=reference_gemm.OP)

    grid = {"use_8x4_sf_layout": [False, True], "rows": [8, 20, 200]}
    assert_keys_distinct(factory, grid)
    (found,) = find_collisions(factory, grid)
    assert found.shared is Shared.LEGACY_KEY
    assert found.differing == ("use_8x4_sf_layout",)
    tuner_key = AutoTuner._get_cache_key(
        reference_gemm.OP, found.left.call.runner, found.left.view.call.shapes, found.left.call.config, ()
    ).file_key
    assert found.left.legacy_key == tuner_key
    with pytest.raises(AssertionError, match=r"tells them apart by params\._use_8x4_sf_layout: False \| True"):
        assert_legacy_keys_distinct(factory, grid)


def test_a_test_keeps_its_random_numbers():
    def factory(side):
        return call(LayoutRunner(), [matrix(50)])

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert_keys_distinct(factory, {"side": [0, 1]}, behaviour=working_tactics)
    assert_keys_distinct(factory, {"side": [0, 1]})
    assert torch.equal(torch.rand(3), expected)
