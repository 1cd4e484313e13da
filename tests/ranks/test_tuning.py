"""One measurement for the whole job, and one answer."""

import random

import torch.distributed as dist
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.adapter.runners import config, matrix
from tests.ranks.job import job
from tests.ranks.runners import Backend, Other


def tune(op, runners=None, **kwargs):
    return AutoTuner.get().choose_one(op, runners or [Backend(), Other()], config(), [matrix(50)], **kwargs)


def answer(op, runners):
    runner, tactic = tune(op, runners)
    return runners.index(runner), tactic


def noisy(rank):
    """Return a timer with 3 % noise, another on every rank."""
    dice = random.Random(rank)
    return lambda run, runner, tactic: (run(), runner.time_ms(tactic) * (1 + dice.uniform(-0.03, 0.03)))[1]


def warm_up(rank, roots, ops):
    with cpu_timing(noisy(rank)) as measured:
        runners = [Backend(), Other()]
        with fi_cachestore.autotune(root=roots[rank % len(roots)], group=dist.group.WORLD) as session:
            for op in ops:
                tune(op, runners)
        return len(measured), [answer(op, runners) for op in ops], session.report().to_json()


def test_each_profile_is_measured_once_and_all_serve_alike(tmp_path):
    ops = [f"op{number}" for number in range(50)]
    results = job(4, warm_up, [tmp_path], ops)
    alone = job(1, warm_up, [tmp_path / "alone"], ops)
    assert sum(count for count, _, _ in results) == alone[0][0]
    assert all(answers == results[0][1] for _, answers, _ in results)
    assert min(count for count, _, _ in results) > 0
    assert [count for count, _, _ in job(4, warm_up, [tmp_path], ops)] == [0, 0, 0, 0]
