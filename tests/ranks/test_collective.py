"""Ops whose runners communicate; the process group of FlashInfer; several groups in one process."""

import threading
import time

import flashinfer.autotuner
import pytest
import torch
import torch.distributed as dist
from flashinfer.autotuner import AutoTuner, TuningConfig, get_autotune_process_group, set_autotune_process_group

import fi_cachestore
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.ranks.job import job
from tests.ranks.runners import MEASURED_PER_PROFILE, PROFILE_COUNT, Backend, answer, noisy, tune


class Reducing(Backend):
    """Communicates while it runs: every rank must run it, and the same tactic."""

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        tactics = torch.full((2,), float(tactic))
        tactics[1] *= -1
        dist.all_reduce(tactics, op=dist.ReduceOp.MAX)
        assert tactics[0] == -tactics[1], "the ranks run different tactics"
        return inputs[0]


def averaged(seed):
    """Return a noisy timer that does what FlashInfer's own does, and its stand-in does not: average over its process group."""
    timer = noisy(seed)

    def average(run, runner, tactic):
        time_ms = torch.tensor([timer(run, runner, tactic)])
        group = get_autotune_process_group()
        if group is not None:
            dist.all_reduce(time_ms, group=group)
            time_ms /= dist.get_world_size(group)
        return time_ms.item()

    return average


def together(rank, roots, is_held=False):
    if is_held and rank == 0:
        with cpu_timing(noisy(9)), fi_cachestore.autotune(root=roots[0]):
            tune("unlike", [Backend()])
    with cpu_timing(averaged(rank)) as measured:
        with fi_cachestore.autotune(root=roots[rank % len(roots)], group=dist.group.WORLD, collective_ops="reduce") as session:
            tune("reduce", [Reducing()])
            tune("local", [Backend()])
        reduced = sum(name == "Reducing" for name, _ in measured)
        return (
            reduced,
            len(measured) - reduced,
            [answer(op, [kind()]) for op, kind in (("reduce", Reducing), ("local", Backend))],
            session.report(),
        )


def test_ranks_measure_a_communicating_op_together_and_serve_it_alike(tmp_path):
    each = PROFILE_COUNT * MEASURED_PER_PROFILE
    results = job(2, together, [tmp_path])
    assert [reduced for reduced, *_ in results] == [each, each]
    assert sum(local for _, local, *_ in results) == each
    assert results[0][2] == results[1][2]
    again = job(2, together, [tmp_path])
    assert [(reduced, local, answers) for reduced, local, answers, _ in again] == [(0, 0, results[0][2])] * 2


def test_a_communicating_op_that_one_host_has_is_given_to_the_other_before_they_vote(tmp_path):
    roots = [tmp_path / "host0", tmp_path / "host1"]
    first = job(2, together, roots)
    for path in (roots[1] / "objects").rglob("*.rec"):
        path.unlink()
    again = job(2, together, roots)
    assert [(reduced, local, answers) for reduced, local, answers, _ in again] == [(0, 0, first[0][2])] * 2


def missing_rank(rank, root):
    with cpu_timing(averaged(rank)), fi_cachestore.autotune(root=root, group=dist.group.WORLD, collective_ops="reduce") as session:
        if rank == 0:
            return tune("reduce", [Reducing()])[1], session.report().ephemeral
    return None


def test_a_communicating_op_that_not_all_ranks_ask_for_is_not_tuned(tmp_path):
    result = job(2, missing_rank, tmp_path)[0]
    assert result == (-1, {"collective op that not all ranks of a group ask for": 1})


def giving_up(rank, root):
    """Rank 0 does not wait for rank 1, which comes late and finds every vote."""
    if rank == 1:
        time.sleep(2)
    root = root / str(rank)
    with cpu_timing(averaged(rank)) as measured, fi_cachestore.autotune(root=root, group=dist.group.WORLD, collective_ops="reduce"):
        if rank == 1:
            time.sleep(2.5)
        chosen = tune("reduce", [Reducing()])[1]
    return len(measured), chosen


def test_a_rank_that_was_given_up_is_not_left_alone_in_a_collective(tmp_path):
    results = job(2, giving_up, tmp_path, env={"FI_CACHESTORE_MAX_WAIT_S": "1"})
    assert results == [(0, -1), (0, -1)]


class InMemory(Reducing):
    """Has no complete key."""

    def __init__(self):
        self.unknown = object()


def without_a_key(rank, root, mode):
    group = dist.group.WORLD
    with cpu_timing(averaged(rank)) as measured, fi_cachestore.autotune(root=root, mode=mode, group=group, collective_ops="reduce"):
        chosen = [tune("reduce", [InMemory() if mode == "auto" else Reducing()], rows)[1] for rows in (20, 70, 300)]
    return len(measured), chosen


@pytest.mark.parametrize("mode", ["auto", "ephemeral"])
def test_a_communicating_op_without_a_key_is_measured_in_step(tmp_path, mode):
    results = job(2, without_a_key, tmp_path, mode)
    assert results[0] == results[1]
    assert results[0][0] >= PROFILE_COUNT * 3


class OnceReducing(Reducing):
    def get_valid_tactics(self, inputs, profile):
        return [0, 1]


def unnamed(rank, root):
    runner = OnceReducing()

    def ask():
        return AutoTuner.get().choose_one("unnamed", [runner], TuningConfig(), [torch.zeros(16, 64)])[1]

    counts = []
    with cpu_timing(averaged(rank)) as measured:
        for attempt in range(2):
            with fi_cachestore.autotune(root=root / str(attempt), group=dist.group.WORLD) as session:
                ask()
            counts.append((len(measured), session.report().waited_ns > 0))
        return counts, ask()


def test_an_op_that_turns_out_to_communicate_is_finished_by_all_and_remembered(tmp_path):
    results = job(2, unnamed, tmp_path, env={"FI_CACHESTORE_STALL_S": "1"})
    assert results[0][1] == results[1][1]
    assert [[count for count, _ in counts] for counts, _ in results] == [[3, 6]] * 2, "both times every rank ran it"
    assert any(counts[0][1] for counts, _ in results), "at first one waited for the other"
    assert not any(counts[1][1] for counts, _ in results), "then they ran it together"


# -- FlashInfer's process group ---------------------------------------------------------------------------------------------------


def looking(rank, root):
    seen = []

    def timer(run, runner, tactic):
        seen.append(get_autotune_process_group() is None)
        return noisy(rank)(run, runner, tactic)

    theirs, is_locked = dist.new_group([0, 1]), []
    set_autotune_process_group(theirs)

    def setting(group):
        is_locked.append(AutoTuner.get()._lock._is_owned())  # a thread that measures holds it, and must not be disturbed
        set_autotune_process_group(group)

    flashinfer.autotuner.set_autotune_process_group = setting
    with cpu_timing(timer), fi_cachestore.autotune(root=root, group=dist.group.WORLD):
        inside = get_autotune_process_group() is dist.group.WORLD
        tune("op", [Backend()])
        inside &= get_autotune_process_group() is dist.group.WORLD
    return inside, all(seen), get_autotune_process_group() is theirs, len(is_locked) > 1 and all(is_locked)


def test_the_group_is_set_for_callers_hidden_from_local_measurements_and_given_back(tmp_path):
    assert job(2, looking, tmp_path) == [(True, True, True, True)] * 2


def two_groups(rank, roots):
    groups = [dist.new_group([0, 1]), dist.new_group([0, 1])]
    found = {}

    def run(number):
        with fi_cachestore.autotune(root=roots[number], group=groups[number]) as session:
            tune(f"op {number}", [Backend()])
        found[number] = session.report().shared_call_count

    with cpu_timing(noisy(rank)):
        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found, [answer(f"op {number}", [Backend()]) for number in range(2)]


def test_two_groups_in_two_threads_do_not_disturb_each_other(tmp_path):
    results = job(2, two_groups, [tmp_path / "a", tmp_path / "b"])
    assert results[0] == results[1]
    assert results[0][0] == {0: PROFILE_COUNT, 1: PROFILE_COUNT}


def queued(rank, root):
    with cpu_timing(noisy(rank)), fi_cachestore.autotune(root=root, group=dist.group.WORLD):
        total = torch.ones(1)
        if rank == 0:
            tune("layer", [Backend()])
        work = dist.all_reduce(total, async_op=True)
        if rank == 1:
            time.sleep(0.05)
            tune("layer", [Backend()])
        tune("layer", [Backend()])
        work.wait()
    return total.item(), answer("layer", [Backend()])


def test_a_collective_that_is_under_way_and_a_claimed_key_close_no_circle(tmp_path):
    results = job(2, queued, tmp_path)
    assert results[0] == results[1]
    assert results[0][0] == 2
