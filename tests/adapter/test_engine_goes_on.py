"""A fault of ours, or a session that another thread takes off in the middle of a call, costs speed and never an engine."""

import pytest
import torch
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from fi_cachestore.adapter import drive, ranking, serve
from fi_cachestore.adapter.state import AdapterState
from fi_cachestore.adapter.tuner import CacheStoreTuner
from tests.adapter.runners import PlainRunner, choose, config, matrix, timed


@pytest.fixture(autouse=True)
def nothing_stays_attached():
    yield
    fi_cachestore.detach()


class Detaching(PlainRunner):
    """Takes every session off in the middle of the call that it is asked in, as another thread may."""

    def __init__(self, where):
        self.where_cache = [where]

    def reach(self, place):
        if place in self.where_cache:
            self.where_cache.clear()
            fi_cachestore.detach()

    def get_cache_key_extras(self, inputs):
        self.reach("extras")
        return ()

    def get_valid_tactics(self, inputs, profile):
        self.reach("list")
        return super().get_valid_tactics(inputs, profile)

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        self.reach("run")
        return super().forward(inputs, tactic, do_preparation, **kwargs)


@pytest.mark.parametrize("where", ["extras", "list", "run"])
def test_a_session_that_is_taken_off_in_the_middle_of_tuning_is_no_error(tmp_path, where):
    with timed(), fi_cachestore.autotune(root=tmp_path):
        index, tactic = choose("op", [Detaching(where)], [matrix(50)])
    assert index == 0
    assert tactic in (-1, 0, 1, 2)
    assert type(AutoTuner.get()) is AutoTuner


def test_a_session_that_is_taken_off_in_the_middle_of_a_look_up_is_no_error(tmp_path):
    with timed():
        with fi_cachestore.autotune(root=tmp_path):
            choose("op", [Detaching("never")], [matrix(50)])
        assert choose("op", [Detaching("extras")], [matrix(50)])[0] == 0
    assert type(AutoTuner.get()) is AutoTuner


class BugError(Exception):
    """A fault of this library."""


@pytest.fixture
def tuned(tmp_path):
    with timed():
        with fi_cachestore.autotune(root=tmp_path) as session:
            choose("op", [PlainRunner()], [matrix(50)])
        yield session


def raising(error):
    def function(*args, **kwargs):
        raise error

    return function


def test_a_fault_of_ours_while_serving_is_answered_by_flashinfer_and_said_once(tuned, monkeypatch, caplog):
    monkeypatch.setattr(serve, "decide", raising(BugError("it broke")))
    for rows in (60, 70):
        assert choose("op", [PlainRunner()], [matrix(rows, 64)]) == (0, -1)
    assert [record.getMessage() for record in caplog.records if "it broke" in record.getMessage()] == [
        "op stays ephemeral (tuned per process, in memory): answering it failed (BugError: it broke)"
    ]
    assert tuned.report().ephemeral == {"answering it failed (BugError: it broke)": 2}


@pytest.mark.parametrize(
    "where", [(CacheStoreTuner, "memory_only"), (AutoTuner, "choose_one"), (AutoTuner, "search_cache")], ids=lambda where: where[1]
)
def test_a_session_that_is_taken_off_while_flashinfer_answers_for_us_is_no_error(tuned, monkeypatch, where):
    real = getattr(*where)

    def detaching(*args, **kwargs):
        fi_cachestore.detach()
        return real(*args, **kwargs)

    monkeypatch.setattr(serve, "decide", raising(BugError("it broke")))
    monkeypatch.setattr(*where, detaching)
    assert choose("op", [PlainRunner()], [matrix(60, 64)]) == (0, -1)
    assert type(AutoTuner.get()) is AutoTuner
    assert "_fi_cachestore" not in vars(AutoTuner.get())


def test_a_runners_own_fault_is_raised_after_ours(tuned, monkeypatch):
    class Failing(PlainRunner):
        def get_cache_key_extras(self, inputs):
            raise BugError("the runner's")

    with pytest.raises(BugError, match="the runner's"):
        choose("op", [Failing()], [matrix(60, 64)])


@pytest.mark.parametrize("where", [(CacheStoreTuner, "has_context"), (AdapterState, "ambient")], ids=lambda where: where[1])
def test_a_mapper_may_be_asked_for_while_a_session_is_taken_off(tuned, monkeypatch, where):
    """Runners ask while they are made, outside every call and without FlashInfer's lock."""
    real = getattr(*where)

    def detaching(*args):
        fi_cachestore.detach()
        return real(*args)

    monkeypatch.setattr(*where, detaching)
    settings = config()
    found = AutoTuner.get().get_effective_map_to_tuning_buckets(settings)
    assert found is settings.dynamic_tensor_specs[0].map_to_tuning_buckets
    assert type(AutoTuner.get()) is AutoTuner


def test_memory_may_be_cleared_while_a_session_is_taken_off(tuned, monkeypatch):
    real = AutoTuner.clear_cache
    monkeypatch.setattr(AutoTuner, "clear_cache", lambda self: (real(self), fi_cachestore.detach()))
    AutoTuner.get().clear_cache()
    assert type(AutoTuner.get()) is AutoTuner


def test_a_fault_of_ours_while_tuning_is_tuned_by_flashinfer_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(drive, "harvest", raising(BugError("it broke")))
    with timed(), fi_cachestore.autotune(root=tmp_path) as session:
        assert choose("op", [PlainRunner()], [matrix(50)]) == (0, 2)
    assert list(session.report().ephemeral) == ["answering it failed (BugError: it broke)"]


def test_an_op_whose_ranks_communicate_is_not_measured_by_the_one_that_is_at_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(drive, "choose", raising(BugError("it broke")))
    monkeypatch.setattr(ranking, "rank", raising(BugError("it broke")))
    with timed() as measured, fi_cachestore.autotune(root=tmp_path, collective_ops="op"):
        assert choose("op", [PlainRunner()], [matrix(50)]) == (0, -1)
        if hasattr(AutoTuner, "rank_tactics"):
            assert AutoTuner.get().rank_tactics("op", [PlainRunner()], config(), [matrix(64)], k=2) == [-1]
    assert measured == []


@pytest.mark.skipif(not hasattr(AutoTuner, "rank_tactics"), reason="FlashInfer 0.6.14 and later")
def test_a_fault_of_ours_while_ranking_is_ranked_by_flashinfer(tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "rank", raising(BugError("it broke")))
    with timed(), fi_cachestore.autotune(root=tmp_path):
        assert AutoTuner.get().rank_tactics("op", [PlainRunner()], config(), [matrix(64)], k=2) == [2, 1]


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("full"), MemoryError()])
def test_that_memory_ran_out_is_for_the_caller_to_see(tuned, monkeypatch, error):
    monkeypatch.setattr(serve, "decide", raising(error))
    with pytest.raises(type(error)):
        choose("op", [PlainRunner()], [matrix(60, 64)])
