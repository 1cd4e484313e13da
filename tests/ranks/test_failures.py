"""Ranks that raise, run out of memory, leave, are stopped or killed: the others finish, and what is stored is sound."""

import os
import signal
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import fi_cachestore
from fi_cachestore.coordination.board import DeadlineBoard
from fi_cachestore.coordination.ranks import Ranks
from fi_cachestore.store.fsck import verify
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.ranks.job import Job, job
from tests.ranks.runners import PROFILE_COUNT, Backend, Other, answer, noisy, tune

OPS = [f"op{number}" for number in range(4)]
PROFILES = len(OPS) * 2 * PROFILE_COUNT
QUICK = {"FI_CACHESTORE_DEAD_AFTER_S": "3"}  # a live store answers within it on two busy cores


def served(ops=OPS):
    return [answer(op, [Backend(), Other()], rows) for op in ops for rows in (20, 70, 300)]


def check_sound(root, *, is_complete=True):
    found = verify(root)
    assert [finding for finding in found.findings if finding.reason != "leftover"] == []
    if is_complete:
        assert found.record_count == PROFILES


def known_count(report):
    return report.hit_count + report.tuned_count + report.waited_count


def warm_up(rank, root, timer=None):
    with cpu_timing(timer or noisy(rank)), fi_cachestore.autotune(root=root, group=dist.group.WORLD) as session:
        for op in OPS:
            tune(op, [Backend(), Other()])
    return served(), session.report()


# -- a rank that fails and lives on -----------------------------------------------------------------------------------------------


class ModelError(Exception):
    pass


def fail(*, when):
    if when:
        raise ModelError


def leaving(rank, root, who):
    try:
        with cpu_timing(noisy(rank)), fi_cachestore.autotune(root=root, group=dist.group.WORLD) as session:
            for number, op in enumerate(OPS):
                tune(op, [Backend(), Other()])
                fail(when=rank == who and number == 1)
    except ModelError:
        time.sleep(3)  # the engine goes on for a while: rank 0 serves the others' store
        return None
    return served(), session.report()


@pytest.mark.parametrize("who", [0, 2])
def test_a_rank_whose_model_raises_is_not_waited_for(tmp_path, who):
    results = job(3, leaving, tmp_path, who)
    assert results[who] is None
    others = [found for found in results if found is not None]
    assert others[0][0] == others[1][0]
    assert {report.shared_call_count for _, report in others} == {len(OPS) * PROFILE_COUNT}
    check_sound(tmp_path)


def out_of_memory(rank, root):
    def timer(run, runner, tactic):
        if rank == 1:
            raise torch.cuda.OutOfMemoryError
        time.sleep(0.01)
        return noisy(0)(run, runner, tactic)

    return warm_up(rank, root, timer)


def test_what_one_rank_has_no_memory_for_another_measures(tmp_path):
    results = job(2, out_of_memory, tmp_path)
    assert results[0][0] == results[1][0]
    assert results[1][1].out_of_memory_count > 0
    assert results[1][1].tuned_count == 0
    check_sound(tmp_path)


# -- a rank that is killed or stopped ---------------------------------------------------------------------------------------------


MOMENTS = [
    *((method, number, when) for method in ("claim", "offer") for number in (1, 2, 3) for when in ("before", "after")),
    *(("gather", number, when) for number in (1, 2) for when in ("before", "after")),
    ("decide", 1, "before"),
    ("decide", 1, "after"),
    ("timer", 1, "before"),
    ("timer", 6, "before"),
]


def killed_at(rank, root, who, moment):
    """``who`` kills itself before or after it does something for the ``number``-th time, at the latest at its end."""
    method, number, when = moment
    calls = []

    def once_more():
        calls.append(1)
        return rank == who and len(calls) == number

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def timer(run, runner, tactic):
        time.sleep(0.002)
        if method == "timer" and once_more():
            kill()
        return noisy(rank)(run, runner, tactic)

    real = getattr(Ranks, method, Ranks.claim)

    def counted(self, *args, **kwargs):
        is_now = method != "timer" and once_more()
        if is_now and when == "before":
            kill()
        found = real(self, *args, **kwargs)
        if is_now:
            kill()
        return found

    with mock.patch.object(Ranks, real.__name__, counted):
        found = warm_up(rank, root, timer)
    if rank == who:
        kill()  # the others were faster: it never came to its moment
    return found


def survivors(running, who):
    found = []
    for rank, process in enumerate(running.ranks):
        if rank == who:
            with pytest.raises(ChildProcessError, match="-9"):
                process.result()
        else:
            found.append(process.result())
    return found


@pytest.mark.parametrize("who", [0, 1], ids=["the rank that serves the store", "another rank"])
def test_a_rank_killed_at_any_moment_does_not_stop_the_others(tmp_path, who):
    assert len(MOMENTS) == 20
    for at in range(0, len(MOMENTS), 2):
        batch = MOMENTS[at : at + 2]  # more at a time, and ranks of one job do not reach each other on a busy machine
        jobs = [Job(3, killed_at, tmp_path / "-".join(map(str, moment)), who, moment, env=QUICK) for moment in batch]
        for moment, running in zip(batch, jobs, strict=True):
            (first, report), (second, _) = survivors(running, who)
            assert first == second, moment
            assert known_count(report) == PROFILES, "everything is tuned"
            check_sound(tmp_path / "-".join(map(str, moment)))


def stopping(rank, root, stop_after):
    """Rank 0 stops itself in the middle of a measurement; a child process continues it later."""
    measured = []

    def timer(run, runner, tactic):
        measured.append(1)
        if rank == 0 and len(measured) == stop_after:
            pid = os.getpid()
            if os.fork() == 0:
                time.sleep(3)
                os.kill(pid, signal.SIGCONT)
                os._exit(0)
            os.kill(pid, signal.SIGSTOP)
        return noisy(rank)(run, runner, tactic)

    return warm_up(rank, root, timer)


@pytest.mark.parametrize("stop_after", [1, 9])
def test_a_rank_that_is_stopped_and_continued_does_not_stop_the_others(tmp_path, stop_after):
    results = job(3, stopping, tmp_path, stop_after, env=QUICK)
    assert results[1][0] == results[2][0] == results[0][0]
    check_sound(tmp_path)


def cut_off(rank, roots):
    """Hosts without a common disk; the one that serves the store is killed while all still measure."""
    measured = []

    def timer(run, runner, tactic):
        measured.append(1)
        if rank == 0 and len(measured) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return noisy(rank)(run, runner, tactic)

    found, report = warm_up(rank, roots[rank], timer)
    return found, report


def test_hosts_that_lose_each_other_finish_each_for_itself(tmp_path):
    roots = [tmp_path / f"host{rank}" for rank in range(3)]
    running = Job(3, cut_off, roots, env=QUICK)
    for _, report in survivors(running, 0):
        assert known_count(report) == PROFILES, "everything is tuned"
        assert report.unshared_count > 0
        assert report.shared_call_count == 0, "nothing is agreed"
    for root in roots:
        check_sound(root, is_complete=False)


# -- waiting ----------------------------------------------------------------------------------------------------------------------


def stuck(rank, root, release):
    """Rank 0 stays at one tactic for as long as rank 1 needs to lose patience."""

    def timer(run, runner, tactic):
        if rank == 0:
            until = time.monotonic() + 30
            while not release.exists() and time.monotonic() < until:
                time.sleep(0.01)
        return noisy(0)(run, runner, tactic)

    with cpu_timing(timer), fi_cachestore.autotune(root=root, group=dist.group.WORLD) as session:
        if rank == 1:
            time.sleep(0.5)  # rank 0 comes first to the only profile
        AskOne.tune()
        Path(release).touch()
    return AskOne.answer(), session.report()


class AskOne:
    """One op with a single profile."""

    @staticmethod
    def tune():
        from flashinfer.autotuner import AutoTuner, TuningConfig

        return AutoTuner.get().choose_one("one", [Backend()], TuningConfig(), [torch.zeros(16, 64)])

    @staticmethod
    def answer():
        return AskOne.tune()[1]


def test_a_rank_that_makes_no_progress_is_waited_for_only_so_long(tmp_path):
    results = job(2, stuck, tmp_path, tmp_path / "release", env={"FI_CACHESTORE_STALL_S": "1"})
    assert results[0][0] == results[1][0]
    assert results[1][1].unshared_count == 1, "what it measured meanwhile stayed in memory"
    check_sound(tmp_path, is_complete=False)


def test_requests_that_never_return_end_in_time():
    class Silent:
        def fetch(self, names):
            threading.Event().wait()

    board = DeadlineBoard(Silent(), 0.2)
    for _ in range(2):
        with pytest.raises(fi_cachestore.errors.BoardLostError, match=r"no answer in 0.2 s"):
            board.fetch(["name"])
