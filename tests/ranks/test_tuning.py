"""One measurement for the whole job, and one answer on all ranks."""

import time
from unittest import mock

import pytest
import torch.distributed as dist

import fi_cachestore
from fi_cachestore.config import Mode
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.adapter.believing import believe
from tests.adapter.test_capture import capture
from tests.ranks.job import job
from tests.ranks.runners import MEASURED_PER_PROFILE, PROFILE_COUNT, Backend, Other, Sharp, Short, answer, noisy, tune, tune_in_turn

PER_RUNNER = PROFILE_COUNT * MEASURED_PER_PROFILE


def warm_up(rank, root, ops, share_tuning=True):
    runners = [Backend(), Other()]
    with cpu_timing(noisy(rank)) as measured:
        with fi_cachestore.autotune(root=root, group=dist.group.WORLD, share_tuning=share_tuning) as session:
            for op in ops:
                tune(op, runners)
        return len(measured), [answer(op, runners, rows) for op in ops for rows in (20, 70, 300)], session.report()


def test_each_profile_is_measured_once_and_all_serve_alike(tmp_path):
    ops = [f"op{number}" for number in range(50)]
    results = job(4, warm_up, tmp_path, ops)
    assert sum(count for count, _, _ in results) == len(ops) * 2 * PER_RUNNER
    assert min(count for count, _, _ in results) > 0, "the profiles are spread over the ranks"
    assert all(answers == results[0][1] for _, answers, _ in results)
    assert [count for count, _, _ in job(4, warm_up, tmp_path, ops)] == [0, 0, 0, 0]


def test_the_report_says_who_did_what(tmp_path):
    results = job(2, warm_up, tmp_path, ["op"])
    for _, _, report in results:
        assert (report.shared_call_count, report.settled_call_count, report.local_call_count) == (PROFILE_COUNT, 0, 0)
        assert sum(row["measured_count"] for row in report.ranks.values()) == 2 * PROFILE_COUNT
        assert "2 ranks: 3 calls shared" in str(report)


def test_ranks_that_measure_for_themselves_agree_all_the_same(tmp_path):
    ops = [f"op{number}" for number in range(50)]
    results = job(4, warm_up, tmp_path, ops, share_tuning=False)
    assert [count for count, _, _ in results] == [len(ops) * 2 * PER_RUNNER] * 4
    assert all(answers == results[0][1] for _, answers, _ in results), "3 % noise, and 0 of 150 calls differ"
    assert results[0][2].settled_call_count > 0, "the noise did make them differ at first"


def collectives_counted(rank, root):
    counted = []
    real = dist.all_reduce
    with mock.patch.object(dist, "all_reduce", lambda *args, **kwargs: (counted.append(1), real(*args, **kwargs))[1]):
        answers = warm_up(rank, root, ["op", "op2"])[1]
    return len(counted), answers


def test_local_ops_are_tuned_without_a_collective(tmp_path):
    assert {count for count, _ in job(2, collectives_counted, tmp_path)} == {0}


def slow_and_late(rank, root):
    def timer(run, runner, tactic):
        time.sleep(0.12 if rank else 0.02)
        return runner.time_ms(tactic)

    with cpu_timing(timer), fi_cachestore.autotune(root=root, group=dist.group.WORLD) as session:
        tune("op", [Backend()])
        tune(f"only on {rank}", [Backend(), Other()] if rank else [Backend()])
    return answer("op", [Backend()]), session.report()


def test_the_timeout_of_the_group_decides_nothing(tmp_path):
    results = job(2, slow_and_late, tmp_path, timeout_s=1)
    assert results[0][0] == results[1][0]
    assert {report.shared_call_count for _, report in results} == {PROFILE_COUNT}
    assert results[1][1].ranks[1]["spent_ns"] > 1.5e9, "rank 0 waited longer for rank 1 than the group's timeout"


# -- who makes which calls --------------------------------------------------------------------------------------------------------


def stages(rank, root):
    """Two pipeline stages of two ranks, each with a group, disjoint ops and one op that both have."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    stage = rank // 2
    runners = [Backend(), Other()]
    with cpu_timing(noisy(rank)) as measured:
        with fi_cachestore.autotune(root=root, group=groups[stage]) as session:
            for op in (f"stage {stage}", "both"):
                tune(op, runners)
        return len(measured), [answer(op, runners) for op in (f"stage {stage}", "both")], session.report().shared_call_count


def test_pipeline_stages_agree_each_for_itself(tmp_path):
    results = job(4, stages, tmp_path)
    assert results[0][1] == results[1][1]
    assert results[2][1] == results[3][1]
    assert {shared for _, _, shared in results} == {2 * PROFILE_COUNT}
    assert sum(count for count, _, _ in results) == 3 * 2 * PER_RUNNER, "the op of both stages is measured once: they share a root"


def experts(rank, root):
    runners = [Backend()]
    with cpu_timing(noisy(rank)) as measured:
        with fi_cachestore.autotune(root=root, group=dist.group.WORLD):
            tune(f"expert {rank}", runners)
        return len(measured), answer(f"expert {rank}", runners)


def test_ranks_with_ops_of_their_own_cover_them_all(tmp_path):
    assert [count for count, _ in job(4, experts, tmp_path)] == [PER_RUNNER] * 4
    assert [count for count, _ in job(4, experts, tmp_path)] == [0] * 4


def unlike_memory(rank, root):
    runners = [Sharp(), Short(rank)]
    with cpu_timing(noisy(0)):
        with fi_cachestore.autotune(root=root, group=dist.group.WORLD) as session:
            tune_in_turn(rank, "op", runners)
        return [answer("op", runners, rows) for rows in (20, 70, 300)], session.report().settled_call_count


def later(rank, root):
    fi_cachestore.attach(root=root)
    return [answer("op", [Sharp(), Short(rank)], rows) for rows in (20, 70, 300)]


def test_a_record_that_one_rank_cannot_verify_is_served_on_none(tmp_path):
    results = job(2, unlike_memory, tmp_path)
    assert results[0][0] == results[1][0]
    assert set(results[0][0]) == {(0, 2)}
    assert results[0][1] > 0
    believe(tmp_path)
    assert job(2, later, tmp_path) == [results[0][0]] * 2, "a later start honours what was settled"


def twice(rank, root):
    runners = [Sharp(), Short(rank)]
    with cpu_timing(noisy(0)):
        for op in ("op", "next"):
            with fi_cachestore.autotune(root=root, group=dist.group.WORLD):
                tune_in_turn(rank, op, runners)
            for folder in root.glob("settled"):
                folder.rename(root / f"gone {rank} {op}")
            dist.barrier()
        return [answer("op", runners, rows) for rows in (20, 70, 300)]


def test_what_was_settled_holds_for_the_process_whatever_becomes_of_the_directory(tmp_path):
    results = job(2, twice, tmp_path)
    assert results[0] == results[1]
    assert set(results[0]) == {(0, 2)}


# -- opting out -------------------------------------------------------------------------------------------------------------------


def each_for_itself(rank, root):
    with cpu_timing(noisy(rank)) as measured, fi_cachestore.autotune(root=root, mode="ephemeral", group=dist.group.WORLD) as session:
        tune("op", [Backend()])
        if rank:
            time.sleep(0.5)
    return session.mode, len(measured), sorted(session.report().ranks)


def test_ephemeral_ranks_tune_for_themselves_and_end_together(tmp_path):
    assert job(2, each_for_itself, tmp_path) == [(Mode.EPHEMERAL, PROFILE_COUNT * 3, [0, 1])] * 2
    assert not list(tmp_path.rglob("*.rec"))


def unlike_modes(rank, root, modes):
    with cpu_timing(noisy(rank)), fi_cachestore.autotune(root=root, mode=modes[rank], group=dist.group.WORLD) as session:
        tune("op", [Backend()])
    return session.mode


@pytest.mark.parametrize("modes", [("auto", "off"), ("replay", "auto")], ids="/".join)
def test_where_one_rank_cannot_take_part_none_does(tmp_path, modes):
    assert job(2, unlike_modes, tmp_path, modes)[0 if modes[1] == "off" else 1] is Mode.EPHEMERAL
    assert not list(tmp_path.rglob("*.rec"))


def unusable_root(rank, root):
    with cpu_timing(noisy(rank)), fi_cachestore.autotune(root=root / ("file" if rank else "root"), group=dist.group.WORLD) as session:
        tune("op", [Backend()])
    return session.mode


def test_a_rank_without_a_root_makes_all_ephemeral(tmp_path):
    (tmp_path / "file").write_text("no directory")
    assert job(2, unusable_root, tmp_path) == [Mode.EPHEMERAL] * 2


def tuned_alone(rank, root):
    with cpu_timing(noisy(rank)), fi_cachestore.autotune(root=root):
        tune("op", [Sharp()])


def captured(rank, roots):
    with cpu_timing(noisy(rank)), fi_cachestore.autotune(root=roots[rank], group=dist.group.WORLD):
        with capture():
            inside = tune("op", [Sharp()])[1]
        return inside, tune("op", [Sharp()])[1]


def test_inside_a_capture_ranks_that_have_agreed_on_nothing_get_the_default_though_one_has_a_record(tmp_path):
    job(1, tuned_alone, tmp_path / "0")
    believe(tmp_path / "0")
    assert job(2, captured, [tmp_path / "0", tmp_path / "1"]) == [(-1, 2)] * 2
