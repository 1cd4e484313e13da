"""Runners whose records must not be believed on their word, or must be in spite of appearances, and processes that meet them."""

import collections
import os
import random
import signal

import torch
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from fi_cachestore.adapter import attach as attach_module
from fi_cachestore.adapter.roles import Role
from tests.adapter.runners import BUCKETS, PlainRunner, choose, config, matrix, timed
from tests.adapter.test_sizes import with_contract

COUNTS = {"listings": 0, "runs": 0}
"""What this process asked of runners of this module."""


class CountingRunner(PlainRunner):
    """Counts what is asked of it; its result depends on the input alone."""

    def get_valid_tactics(self, inputs, profile):
        COUNTS["listings"] += 1
        return self.listed(inputs)

    def listed(self, inputs):
        return [1, 2, 3]

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        if do_preparation:
            return None
        COUNTS["runs"] += 1
        return self.result(inputs[0], tactic)

    def result(self, rows, tactic):
        return rows * 2 + 1

    def time_ms(self, tactic):
        return 10.0 if tactic == -1 else 5.0 - tactic % 10


class SeedRunner(CountingRunner):
    """The bug this library exists for: tactics belong to a layout, and those of the other one raise."""

    def __init__(self, use_8x4_sf_layout):
        self.use_8x4_sf_layout = use_8x4_sf_layout

    def listed(self, inputs):
        return [10 * self.use_8x4_sf_layout + tactic for tactic in (1, 2, 3)]

    def result(self, rows, tactic):
        if tactic != -1 and tactic not in self.listed([rows]):
            message = "Invalid sf layout in run"
            raise RuntimeError(message)
        return rows * 2 + 1


def layout_called(role):
    """Give the seed runner a contract: ``DYNAMIC`` is wrong, ``SEMANTIC`` is right."""
    with_contract(attach_module, SeedRunner, roles={"use_8x4_sf_layout": role})


def ranking_called(space):
    """Give the runner that ranks by timing a contract."""
    with_contract(attach_module, Ranked, space=space)


class ChangingRunner(CountingRunner):
    """Another process may find it changed, by something that no key has: ``how_rank`` is called a place."""

    def __init__(self, how_rank=""):
        self.how_rank = how_rank


class Removed(ChangingRunner):
    """The fastest tactic is gone."""

    def listed(self, inputs):
        return [1, 2] if self.how_rank else [1, 2, 3]


class Permuted(ChangingRunner):
    """The list has another order (K4)."""

    def listed(self, inputs):
        return [3, 1, 2] if self.how_rank else [1, 2, 3]


class Renumbered(ChangingRunner):
    """Positions in a library's list: what stands in them has changed places, and the fastest now computes something else."""

    def listed(self, inputs):
        return [0, 1, 2]

    def result(self, rows, tactic):
        return rows * 2 + (5 if self.how_rank and tactic == 2 else 1)


class NotANumber(ChangingRunner):
    """The fastest tactic's result is not finite."""

    def result(self, rows, tactic):
        return rows * 2 + (float("nan") if self.how_rank and tactic == 3 else 1)


class Raising(ChangingRunner):
    """The fastest tactic raises."""

    def result(self, rows, tactic):
        if self.how_rank and tactic == 3:
            message = "misaligned address"
            raise RuntimeError(message)
        return rows * 2 + 1


class Refusing(ChangingRunner):
    """``validate_tactic`` no longer accepts the fastest tactic."""

    def validate_tactic(self, inputs, tactic):
        return not (self.how_rank and tactic == 3)


class WritingNothing(ChangingRunner):
    """The fastest tactic leaves its output as it is."""

    def result(self, rows, tactic):
        if not (self.how_rank and tactic == 3):
            rows.copy_(rows.new_full(rows.shape, 7.0))


class Hungry(ChangingRunner):
    """There is no memory for it."""

    def result(self, rows, tactic):
        if self.how_rank:
            raise MemoryError
        return rows * 2 + 1


class Unrepeatable(ChangingRunner):
    """Positions in a library's list, and a default whose result is another one each time: nothing can be compared."""

    def listed(self, inputs):
        return [0, 1, 2]

    def result(self, rows, tactic):
        return torch.rand_like(rows)


SPOILT = {
    "removed": Removed,
    "permuted": Permuted,
    "renumbered": Renumbered,
    "not a number": NotANumber,
    "raising": Raising,
    "refusing": Refusing,
    "writing nothing": WritingNothing,
}
"""Runner classes by what becomes of their fastest tactic."""


class Killing(ChangingRunner):
    """The fastest tactic ends the process, as a fault of the device does."""

    def result(self, rows, tactic):
        if self.how_rank and tactic == 3:
            os.kill(os.getpid(), getattr(signal, self.how_rank))
        return rows * 2 + 1


NOISE = random.SystemRandom()
"""Forks have one state of the other generator."""


class Ranked(CountingRunner):
    """Ranks its list by a hasty timing, so that no two are alike, and is timed with 3 % noise."""

    def listed(self, inputs):
        return sorted(((i, i + 1) for i in range(8)), key=lambda tactic: self.time_ms(tactic) * NOISE.uniform(0.3, 1.7))

    def time_ms(self, tactic):
        return (10.0 if tactic == -1 else 5.0 - tactic[0] / 2) * NOISE.uniform(0.97, 1.03)


class Stage(CountingRunner):
    """One stage of a compound runner; its times are no parameter."""

    def __init__(self, times_ms):
        self.times_cache = times_ms

    def time_ms(self, tactic):
        return self.times_cache.get(tactic, 10.0)


class Compound(CountingRunner):
    """Lists what the tuner ranks for its stage, best first, as FlashInfer's compound runners do."""

    def __init__(self, times_ms):
        self.stage_cache = {0: Stage(times_ms)}

    def listed(self, inputs):
        rows = inputs[0].shape[0]
        return AutoTuner.get().rank_tactics("stage", [self.stage_cache[0]], config((rows,)), [matrix(rows)], k=3)


Seen = collections.namedtuple("Seen", "tactic after measured report counts")


def ask(runner, op="op", rows=300, columns=32, buckets=BUCKETS):
    """Ask FlashInfer's tuner, and return the tactic."""
    return choose(op, [runner], [matrix(rows, columns)], config(buckets))[1]


def tune(root, runner, prepare=None, settings=None, **place):
    """Tune one op with one runner, and ask for it again outside."""
    if prepare is not None:
        prepare()
    COUNTS.update(listings=0, runs=0)
    with timed() as measured, fi_cachestore.autotune(root=root, **(settings or {})) as session:
        inside = ask(runner, **place)
    after = ask(runner, **place)
    return Seen(inside, after, [tactic for _, tactic in measured], session.report(), dict(COUNTS))


def replay(root, runner, prepare=None, **place):
    """Only serve."""
    if prepare is not None:
        prepare()
    COUNTS.update(listings=0, runs=0)
    session = fi_cachestore.attach(root=root)
    tactic = ask(runner, **place)
    return Seen(tactic, tactic, [], session.report(), dict(COUNTS))


WRONG, RIGHT = Role.DYNAMIC, Role.SEMANTIC
