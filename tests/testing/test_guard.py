"""A guard sees every call of FlashInfer's tuner, finds two tactic spaces under one key, and leaves no trace."""

import itertools
import threading

import pytest
import torch
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from fi_cachestore.adapter.tuner import CacheStoreTuner
from fi_cachestore.testing import KeyGuard
from fi_cachestore.testing.calls import legacy_key
from tests.adapter.runners import LayoutRunner, PlainRunner, choose, config, matrix, timed


class HiddenRunner(LayoutRunner):
    """What decides is kept under the name of a memo, which no key looks at."""

    def __init__(self, hidden):
        self.hidden_cache = [hidden]

    def which(self, inputs):
        return self.hidden_cache[0]


LAYOUT_NOW = [1]


class GlobalRunner(LayoutRunner):
    """What decides is a global of its module: every new object looks like the one before."""

    def which(self, inputs):
        return LAYOUT_NOW[0]


def shown(guard):
    return [(conflict.first.tactics, conflict.second.tactics) for conflict in guard.conflicts]


BOTH = [((10, 11), (20, 21))]


def test_two_spaces_under_one_key_are_found_without_tuning():
    with KeyGuard() as guard:
        for hidden in (1, 1, 2, 2):
            choose("guarded", [HiddenRunner(hidden)], [matrix(50)])
    assert guard.call_count == 4
    assert shown(guard)[:1] == BOTH
    text = str(guard.conflicts[0])
    assert "guarded of HiddenRunner, called at" in text
    assert "runners.py" in text
    assert "left out of the key: hidden_cache (resource)" in text
    assert "the one is served what was measured for the other" in text
    assert "'guarded'" in text


def test_one_space_or_two_keys_are_no_conflict():
    with KeyGuard() as guard:
        for op, hidden, rows in (("a", 1, 50), ("b", 2, 50), ("a", 1, 60), ("c", 2, 20), ("c", 2, 20)):
            choose(op, [HiddenRunner(hidden)], [matrix(rows)])
        choose("d", [LayoutRunner(), PlainRunner()], [matrix(50)])
    assert guard.conflicts == ()
    assert guard.call_count == 6


def test_calls_that_tune_and_calls_that_are_served_are_seen(tmp_path):
    session = None
    try:
        with KeyGuard() as guard, timed():
            with fi_cachestore.autotune(root=tmp_path) as session:
                tuned = choose("guarded", [HiddenRunner(1)], [matrix(50)])
            assert guard.conflicts == ()
            served = choose("guarded", [HiddenRunner(2)], [matrix(50)])
        assert served == tuned == (0, 11)
        assert shown(guard) == BOTH
    finally:
        session.detach()


def test_rankings_are_seen():
    with KeyGuard() as guard:
        for hidden in (1, 2):
            AutoTuner.get().rank_tactics("ranked", [HiddenRunner(hidden)], config(), [matrix(50)], k=2)
    assert guard.call_count == 2
    assert shown(guard) == BOTH


def test_calls_that_a_runner_makes_itself_are_seen():
    class Outer(PlainRunner):
        def __init__(self, inner):
            self.inner_cache = [inner]

        def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
            return inputs[0]

        def get_valid_tactics(self, inputs, profile):
            choose("inner", [HiddenRunner(self.inner_cache[0])], inputs)
            return [0]

    with KeyGuard() as guard, timed():
        for inner in (1, 2):
            AutoTuner.get().clear_cache()
            with fi_cachestore.autotune(mode="ephemeral") as session:
                choose("outer", [Outer(inner)], [matrix(50)])
            session.detach()
    assert {(conflict.first.op, conflict.second.op) for conflict in guard.conflicts} == {("inner", "inner")}
    with KeyGuard() as guard:
        choose("outer", [Outer(1)], [matrix(50)])  # not tuned: only the guard itself has the runner list anything
    assert guard.call_count == 1


def test_an_object_is_asked_again_only_when_it_has_changed():
    class Counting(HiddenRunner):
        count_cache = itertools.count()

        def get_valid_tactics(self, inputs, profile):
            next(self.count_cache)
            return super().get_valid_tactics(inputs, profile)

    runner = Counting(1)
    with KeyGuard() as guard:
        choose("guarded", [runner], [matrix(50)])
        asked = next(runner.count_cache)
        choose("guarded", [runner], [matrix(50)])
        assert next(runner.count_cache) == asked + 1
        runner.hidden_cache = [2]
        choose("guarded", [runner], [matrix(50)])
    assert shown(guard) == BOTH


def test_a_new_object_in_the_place_of_an_old_one_is_asked():
    with KeyGuard() as guard:
        for LAYOUT_NOW[0] in (1, 2):
            choose("guarded", [GlobalRunner()], [matrix(50)])
    assert shown(guard) == BOTH


def test_a_list_that_varies_is_no_conflict():
    class Varying(PlainRunner):
        count_cache = itertools.count()

        def get_valid_tactics(self, inputs, profile):
            return [[0, 1], [1, 0]][next(self.count_cache) % 2]

    with KeyGuard() as guard:
        for _ in range(3):
            choose("guarded", [Varying()], [matrix(50)])
    assert guard.conflicts == ()


def test_a_call_without_a_key_is_shared_with_nobody_and_said():
    with KeyGuard() as guard:
        for hidden in (1, 2):
            runner = HiddenRunner(hidden)
            runner.handle = object()
            choose("guarded", [runner], [matrix(50)])
    assert guard.conflicts == ()
    assert [gap.field for gap in guard.gaps] == ["handle"]


def test_what_a_call_raises_is_what_it_raises_without_a_guard():
    def broken(shapes):
        message = "no such bucket"
        raise ZeroDivisionError(message)

    spec = config().dynamic_tensor_specs[0]
    wrong = config()
    wrong.dynamic_tensor_specs = (type(spec)(spec.input_idx, spec.dim_idx, (16,), broken),)
    with KeyGuard() as guard:
        with pytest.raises(ZeroDivisionError):
            choose("guarded", [PlainRunner()], [matrix(50)], wrong)
        assert [gap.field for gap in guard.gaps] == ["call"]
        choose("guarded", [HiddenRunner(1)], [matrix(50)])
        choose("guarded", [HiddenRunner(2)], [matrix(50)])
    assert shown(guard) == BOTH


def test_flashinfers_own_keys_can_be_guarded():
    class Seen(LayoutRunner):
        def __init__(self, layout):
            self.layout = layout

        def which(self, inputs):
            return self.layout

    with KeyGuard() as ours, KeyGuard(legacy_key) as theirs:
        for layout in (1, 2):
            choose("guarded", [Seen(layout)], [matrix(50)])
    assert ours.conflicts == ()
    assert shown(theirs) == BOTH
    assert "('guarded', 'test_flashinfers_own_keys" not in str(theirs.conflicts[0])
    assert "('guarded', 'Seen', ((16, 32),), ())" in str(theirs.conflicts[0])


def test_threads_are_watched_too():
    with KeyGuard() as guard:
        for hidden in (1, 2):
            thread = threading.Thread(target=choose, args=("guarded", [HiddenRunner(hidden)], [matrix(50)]))
            thread.start()
            thread.join()
    assert shown(guard) == BOTH


def methods():
    return {
        (owner, name): vars(owner).get(name) for owner in (AutoTuner, CacheStoreTuner) for name in dir(owner) if not name.startswith("__")
    }


def test_flashinfer_is_left_exactly_as_it_was():
    tuner = AutoTuner.get()
    before, state = methods(), (type(tuner), dict(vars(tuner)))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    answers = []

    def guarded():
        with KeyGuard(), KeyGuard():
            assert methods() != before
            answers.append(choose("guarded", [HiddenRunner(1)], [matrix(50)]))
            raise KeyError

    with pytest.raises(KeyError):
        guarded()
    assert methods() == before
    assert (type(tuner), dict(vars(tuner))) == state
    assert answers == [choose("guarded", [HiddenRunner(1)], [matrix(50)])]
    assert torch.equal(torch.rand(3), expected)
