"""Runners of the rank tests. Their times are made up and lie within the noise of the timers."""

import random

import torch.distributed as dist
from flashinfer.autotuner import AutoTuner, TunableRunner

from tests.adapter.runners import config, matrix


class Backend(TunableRunner):
    """Three tactics."""

    speed = 1.0

    def get_valid_tactics(self, inputs, profile):
        return [0, 1, 2]

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        return inputs[0]

    def time_ms(self, tactic):
        return self.speed + 0.01 * (tactic % 3)


class Other(Backend):
    """Another backend, as fast."""

    speed = 1.005


class Sharp(Backend):
    """One tactic is far better than the others and the default."""

    def time_ms(self, tactic):
        return 0.5 if tactic == 2 else 5.0


class Short(Backend):
    """The fastest, and on all ranks but the first there is no memory to try it out; its rank is a place, and no part of the key."""

    speed = 0.1

    def __init__(self, ep_rank):
        self.ep_rank = ep_rank

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        if self.ep_rank != 0 and not do_preparation:
            raise MemoryError
        return inputs[0]


def tune(op, runners, rows=50, **kwargs):
    """Ask for one op."""
    return AutoTuner.get().choose_one(op, runners, config(), [matrix(rows)], **kwargs)


def tune_in_turn(rank, op, runners):
    """Rank 0 measures, the others come when it is done."""
    if rank == 0:
        tune(op, runners)
    dist.barrier()
    if rank != 0:
        tune(op, runners)


def answer(op, runners, rows=50):
    """Return position and tactic of what is served."""
    runner, tactic = tune(op, runners, rows)
    return runners.index(runner), tactic


def noisy(seed):
    """Return a timer with 3 % noise."""
    dice = random.Random(seed)

    def timer(run, runner, tactic):
        run()
        return runner.time_ms(tactic) * (1 + dice.uniform(-0.03, 0.03))

    return timer


PROFILE_COUNT = 3
"""Profiles of one op: tests.adapter.runners.BUCKETS."""
MEASURED_PER_PROFILE = 4
"""Measurements of one profile of ``Backend``: three tactics and the default."""
