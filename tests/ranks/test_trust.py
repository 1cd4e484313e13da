"""Trust among ranks: each verifies what others measured, at the first cold start; what one may not serve, nobody serves."""

import functools

import pytest
import torch
import torch.distributed as dist

import fi_cachestore
from fi_cachestore.records.verdict import Word
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.adapter.believing import say, verdicts
from tests.adapter.doubtful import COUNTS, SPOILT, WRONG, ChangingRunner, Killing, SeedRunner, ask, layout_called, tune
from tests.adapter.processes import fresh
from tests.adapter.runners import BUCKETS, made_up_times
from tests.ranks.job import Job, job

COLD = 4 * len(BUCKETS)
"""Measurements of all profiles: three tactics and the default."""


def start(rank, roots, make, prepare=None, in_turn=True, **place):
    """Tune one op on every rank; with ``in_turn`` the first rank measures before the others ask. Returns what the rank saw."""
    if prepare is not None:
        prepare()
    runner = make(rank)
    COUNTS.update(listings=0, runs=0)
    with cpu_timing(made_up_times) as measured, fi_cachestore.autotune(root=roots[rank % len(roots)], group=dist.group.WORLD) as session:
        if in_turn and rank != 0:
            dist.barrier()
        inside = ask(runner, **place)
        if in_turn and rank == 0:
            dist.barrier()
    return inside, ask(runner, **place), len(measured), session.report(), dict(COUNTS)


def layouts(rank):
    return SeedRunner(rank == 0)


def unlike(how, rank):
    return SPOILT[how]("" if rank == 0 else "spoilt")


def placed(rank):
    return ChangingRunner(f"rank {rank}")


@pytest.mark.parametrize("in_turn", [True, False])
def test_two_layouts_on_two_ranks_at_once_are_caught_at_the_first_cold_start(tmp_path, in_turn):
    wrong = functools.partial(layout_called, WRONG)
    for _ in range(2):
        for rank, (inside, after, _, report, _) in enumerate(job(2, start, [tmp_path], layouts, wrong, in_turn)):
            own = {13, -1} if rank == 0 else {3, -1}
            assert {inside, after} <= own, "never a tactic of the other layout"
            assert report.quarantined, "both ranks know"
        assert verdicts(tmp_path)["quarantine"] == 1
    results = job(2, start, [tmp_path], layouts, wrong, in_turn)
    assert [(inside, after) for inside, after, *_ in results] == [(13, 13), (3, 3)], "each by itself, in memory"
    assert [report.tuned_count for _, _, _, report, _ in results] == [0, 0]


@pytest.mark.parametrize("host_count", [1, 2])
def test_what_one_rank_may_not_serve_holds_on_all_of_them_on_several_hosts_too(tmp_path, host_count):
    roots = [tmp_path / f"host{number}" for number in range(host_count)]
    results = job(3, start, roots, functools.partial(unlike, "removed"))
    assert [after for _, after, *_ in results] == [-1, 2, 2]
    assert all(report.quarantined for _, _, _, report, _ in results)
    assert verdicts(roots[-1])["quarantine"] == 1


@pytest.mark.parametrize("how", SPOILT)
def test_a_tactic_that_is_spoilt_on_one_rank_is_served_by_none(tmp_path, how):
    first, second = job(2, start, [tmp_path], functools.partial(unlike, how))
    assert first[1] == -1, "its own record, which others contradict"
    assert second[3].quarantined
    assert second[3].tuned_count == 0
    assert verdicts(tmp_path)["quarantine"] == 1
    again = job(2, start, [tmp_path], functools.partial(unlike, how))
    assert [report.hit_count for _, _, _, report, _ in again] == [0, 0]


def test_places_are_proved_harmless_by_ranks_with_different_values_and_later_starts_verify_nothing(tmp_path):
    first = job(3, start, [tmp_path], placed)
    assert {(inside, after) for inside, after, *_ in first} == {(3, 3)}
    assert [measured for _, _, measured, _, _ in first] == [COLD, 0, 0]
    assert [report.verified_count for _, _, _, report, _ in first] == [0, 2, 2]
    assert verdicts(tmp_path)["quarantine"] == 0
    assert verdicts(tmp_path)["validation"] >= 3
    for _ in range(2):
        again = job(3, start, [tmp_path], placed)
        assert {(inside, after) for inside, after, *_ in again} == {(3, 3)}
        others = again[1:]
        assert all(counts == {"listings": 0, "runs": 0} for *_, counts in others)
    assert again[0][4] == {"listings": 0, "runs": 0}


def test_places_whose_lists_differ_are_quarantined(tmp_path):
    results = job(2, start, [tmp_path], functools.partial(unlike, "permuted"))
    assert all("another tactic list" in str(report.quarantined) for _, _, _, report, _ in results)
    assert verdicts(tmp_path)["quarantine"] == 1


def killing(how, rank):
    return Killing("" if rank == 0 else how)


def test_a_tactic_that_kills_one_rank_twice_is_refused_and_the_third_start_serves_the_default_on_all(tmp_path):
    as_ranks_are = functools.partial(torch.set_num_threads, 1)  # a facet of the key
    assert fresh(tune, tmp_path, Killing(), as_ranks_are, buckets=(64,)).tactic == 3
    make, settings = functools.partial(killing, "SIGSEGV"), {"FI_CACHESTORE_DEAD_AFTER_S": "2"}
    for _ in range(2):
        first, second = Job(2, start, [tmp_path], make, in_turn=False, buckets=(64,), env=settings).ranks
        with pytest.raises(ChildProcessError):
            second.result()
        assert first.result()[1] == 3
    first, second = job(2, start, [tmp_path], make, in_turn=False, buckets=(64,))  # nobody dies: nobody is to be given up
    assert (second[0], second[1], first[1]) == (-1, -1, -1)
    assert verdicts(tmp_path)["quarantine"] == 0


def test_a_collective_op_is_served_by_vote_and_never_verified(tmp_path):
    results = [job(2, collective, tmp_path) for _ in range(2)]
    for ranks in results:
        assert {(inside, after) for inside, after, _ in ranks} == {(3, 3)}
        assert all(report.verified_count == report.run_count == 0 for *_, report in ranks)
    assert verdicts(tmp_path) == {}


@pytest.mark.parametrize("host_count", [1, 2])
def test_a_collective_op_that_an_operator_distrusts_on_one_host_is_served_on_none(tmp_path, host_count):
    roots = [tmp_path / f"host{number}" for number in range(host_count)]
    assert {(inside, after) for inside, after, _ in job(2, collective, *roots)} == {(3, 3)}
    say(Word.DISTRUSTED, roots[-1])
    for inside, after, report in job(2, collective, *roots):
        assert (inside, after) == (-1, -1)
        assert "distrusted" in str(report.quarantined)
    say(Word.EVIDENCE, roots[-1])
    assert {(inside, after) for inside, after, _ in job(2, collective, *roots)} == {(3, 3)}


def collective(rank, *roots):
    root = roots[rank % len(roots)]
    runner = ChangingRunner(f"rank {rank}")
    with cpu_timing(made_up_times), fi_cachestore.autotune(root=root, group=dist.group.WORLD, collective_ops="op") as session:
        inside = ask(runner)
    return inside, ask(runner), session.report()
