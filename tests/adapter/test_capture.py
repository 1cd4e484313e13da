"""Calls inside a graph capture: nothing is measured, tried out, listed or waited for, and what that leaves open is not remembered.

Captures are a stand-in here; ``benchmarks/gpu_capture.py`` makes real ones.
"""

import contextlib

import pytest
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from fi_cachestore.adapter import attach as attach_module
from fi_cachestore.adapter import cuda
from tests.adapter.believing import believe
from tests.adapter.doubtful import COUNTS, CountingRunner
from tests.adapter.processes import fresh
from tests.adapter.runners import Kind, TacticRunner, choose, config, matrix, timed
from tests.adapter.test_sizes import with_contract

has_ranking = pytest.mark.skipif(not hasattr(AutoTuner, "rank_tactics"), reason="FlashInfer 0.6.14 and later")


@contextlib.contextmanager
def capture():
    """What a capture forbids: waiting for the device ends it, and so does measuring, which FlashInfer refuses."""

    def forbidden(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    plain = cuda.is_capturing, cuda.synchronize, AutoTuner._profile_single_kernel
    cuda.is_capturing, cuda.synchronize, AutoTuner._profile_single_kernel = lambda: True, forbidden, forbidden
    try:
        yield
    finally:
        cuda.is_capturing, cuda.synchronize, AutoTuner._profile_single_kernel = plain


def capture_and_tune(root, ask):
    """Ask inside a capture for what nobody has measured, and again after it, in one session."""
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        with capture():
            inside = ask()
        asked = dict(COUNTS), len(measured)
        after = ask()
    return inside, asked, after, len(measured) > 0, dict(session.report().ephemeral)


def chosen():
    return choose("op", [CountingRunner()], [matrix(64)])[1]


def ranked():
    return AutoTuner.get().rank_tactics("op", [CountingRunner()], config((64,)), [matrix(64)], k=2)


@pytest.mark.parametrize(
    ("ask", "default", "best"), [(chosen, -1, 3), pytest.param(ranked, [-1], [3, 2], marks=has_ranking)], ids=["choose", "rank"]
)
def test_a_call_that_nobody_has_measured_gets_the_default_inside_a_capture_and_is_tuned_after_it(tmp_path, ask, default, best):
    inside, asked, after, is_measured, ephemeral = fresh(capture_and_tune, tmp_path, ask)
    assert (inside, asked) == (default, ({"listings": 0, "runs": 0}, 0))
    assert (after, is_measured) == (best, True)
    assert ephemeral == {cuda.CAPTURED: 1}


def tuned_before(root):
    with timed(), fi_cachestore.autotune(root=root):
        before = chosen()
        with capture():
            return before, chosen(), choose("op", [CountingRunner()], [matrix(100)])[1]


def test_what_is_measured_is_served_inside_a_capture_while_tuning(tmp_path):
    assert fresh(tuned_before, tmp_path) == (3, 3, 3)


def tune_kinds(root):
    with timed(), fi_cachestore.autotune(root=root):
        return choose("op", [TacticRunner("enum")], [matrix(64)])[1] is Kind.FAST


def serve_kinds(root):
    """The first look-up of a process, inside a capture, of a tactic that must be found in the runner's own list."""
    fi_cachestore.attach(root=root)
    with capture():
        inside = [choose("op", [TacticRunner("enum")], [matrix(64)])[1] for _ in range(2)]
    after = [choose("op", [TacticRunner("enum")], [matrix(64)])[1] is Kind.FAST for _ in range(2)]
    with capture():
        return inside, after, choose("op", [TacticRunner("enum")], [matrix(64)])[1] is Kind.FAST


def test_a_tactic_that_is_found_by_listing_is_not_looked_for_inside_a_capture_but_after_it(tmp_path):
    assert fresh(tune_kinds, tmp_path)
    believe(tmp_path)
    assert fresh(serve_kinds, tmp_path) == ([-1, -1], [True, True], True)


def rank_kinds(root, *, is_captured):
    with timed() as measured, fi_cachestore.autotune(root=root):
        with capture() if is_captured else contextlib.nullcontext():
            inside = AutoTuner.get().rank_tactics("op", [TacticRunner("enum")], config((64,)), [matrix(64)], k=2)
        after = AutoTuner.get().rank_tactics("op", [TacticRunner("enum")], config((64,)), [matrix(64)], k=2)
    return inside, after == [Kind.FAST, 0], len(measured)


@has_ranking
def test_a_ranking_that_needs_the_runners_list_is_the_default_inside_a_capture(tmp_path):
    fresh(rank_kinds, tmp_path, is_captured=False)
    believe(tmp_path)
    assert fresh(rank_kinds, tmp_path, is_captured=True) == ([-1], True, 0)


def tune_sizes(root):
    with_contract(attach_module, CountingRunner, checks_size=True)
    with timed(), fi_cachestore.autotune(root=root):
        return chosen()


def serve_sizes(root):
    with_contract(attach_module, CountingRunner, checks_size=True)
    fi_cachestore.attach(root=root)
    with capture():
        inside = chosen(), COUNTS["listings"]
    return inside, chosen()


def test_a_size_is_not_checked_inside_a_capture_but_after_it(tmp_path):
    assert fresh(tune_sizes, tmp_path) == 3
    believe(tmp_path)
    assert fresh(serve_sizes, tmp_path) == ((-1, 0), 3)
