"""Ranks whose environments differ, and engines that have no group in common."""

import logging
import os

import torch.distributed as dist

import fi_cachestore
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.adapter.processes import Fresh
from tests.ranks.job import job
from tests.ranks.runners import MEASURED_PER_PROFILE, PROFILE_COUNT, Backend, Other, answer, noisy, tune

PER_RUNNER = PROFILE_COUNT * MEASURED_PER_PROFILE


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def unlike(rank, root):
    if rank == 2:
        os.environ["FLASHINFER_NVFP4_SOMETHING"] = "1"
    heard = Lines()
    logging.getLogger("fi_cachestore").addHandler(heard)
    with cpu_timing(noisy(rank)) as measured, fi_cachestore.autotune(root=root, group=dist.group.WORLD) as session:
        tune("op", [Backend()])
    report = session.report()
    return len(measured), (report.shared_call_count, report.local_call_count), [line for line in heard.lines if "shares no records" in line]


def test_a_rank_with_another_environment_has_records_of_its_own_and_is_named(tmp_path):
    first, second, third = job(3, unlike, tmp_path)
    assert first[0] + second[0] == PER_RUNNER
    assert third[0] == PER_RUNNER
    assert (first[1], third[1]) == ((PROFILE_COUNT, 0), (PROFILE_COUNT, PROFILE_COUNT))
    assert len(first[2]) == len(second[2]) == 1
    assert "rank 2 on" in first[2][0]
    assert "variables" in first[2][0]
    assert len(third[2]) == 2


def engine(number, root):
    runners = [Backend(), Other()]
    with cpu_timing(noisy(number)) as measured:
        with fi_cachestore.autotune(root=root):
            for op in ("op0", "op1", "op2"):
                tune(op, runners)
        return len(measured), [answer(op, runners, rows) for op in ("op0", "op1", "op2") for rows in (20, 70, 300)]


def test_engines_that_only_share_a_directory_measure_once_in_total(tmp_path):
    running = [Fresh(engine, number, tmp_path) for number in range(4)]
    results = [one.result() for one in running]
    assert sum(count for count, _ in results) == 3 * 2 * PER_RUNNER
    assert all(answers == results[0][1] for _, answers in results)


def two_jobs(rank, root):
    """Two jobs of two ranks each, without a group in common, on one directory."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    runners = [Backend(), Other()]
    with cpu_timing(noisy(rank)) as measured:
        with fi_cachestore.autotune(root=root, group=groups[rank // 2]):
            for op in ("op0", "op1"):
                tune(op, runners)
        return len(measured), [answer(op, runners, rows) for op in ("op0", "op1") for rows in (20, 70, 300)]


def test_replicas_of_several_ranks_each_measure_once_in_total(tmp_path):
    results = job(4, two_jobs, tmp_path)
    assert sum(count for count, _ in results) == 2 * 2 * PER_RUNNER
    assert all(answers == results[0][1] for _, answers in results)
