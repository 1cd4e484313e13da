"""Runners for tests. Their tactics' times are made up, since there is no kernel to time: ``made_up_times`` is the timer."""

import contextlib
import dataclasses
import enum
from typing import NamedTuple

import numpy as np
import torch
from flashinfer.autotuner import AutoTuner, ConstraintSpec, DynamicTensorSpec, TunableRunner, TuningConfig

from fi_cachestore.testing.cpu_timing import cpu_timing
from fi_cachestore.testing.reference_gemm import make_bucket_mapper

BUCKETS = (16, 64, 256)


def made_up_times(run, runner, tactic):
    """Run the tactic once, so that it can fail, and return the time that the runner says it takes, in milliseconds."""
    run()
    return runner.time_ms(tactic)


def timed():
    """FlashInfer's loop with made-up times; yields what was measured."""
    return cpu_timing(made_up_times)


class PlainRunner(TunableRunner):
    """Tactics 0, 1, 2; the last is the fastest, the default the slowest."""

    def get_valid_tactics(self, inputs, profile):
        return [0, 1, 2]

    def time_ms(self, tactic):
        return 10.0 if tactic == -1 else 5.0 - tactic

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        return inputs[0]


class LayoutRunner(PlainRunner):
    """Tactics belong to a variant, and those of the other variant raise, as stored tactics of FlashInfer did."""

    variant = 0

    def get_valid_tactics(self, inputs, profile):
        return [10 * self.which(inputs) + tactic for tactic in (0, 1)]

    def which(self, inputs):
        return self.variant

    def time_ms(self, tactic):
        return 10.0 if tactic == -1 else 5.0 - tactic % 10

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        if tactic != -1 and tactic not in self.get_valid_tactics(inputs, None):
            message = f"tactic {tactic} is not one of variant {self.which(inputs)}"
            raise RuntimeError(message)
        return inputs[0]


def config(buckets=BUCKETS, *, round_up=False, inputs=(0,), dims=(0,), **changes):
    """M is dynamic in the given dims of the given inputs."""
    spec = DynamicTensorSpec(inputs, dims, buckets, make_bucket_mapper(buckets, round_map=round_up))
    return TuningConfig(dynamic_tensor_specs=(spec,), **changes)


def with_output(index):
    """The rows of one more input follow from M."""
    return (ConstraintSpec(index, 0, lambda shapes: shapes[0][0]),)


def choose(op, runners, inputs, tuning_config=None, **kwargs):
    """Call the live tuner as an op does; returns the index of the runner and the tactic."""
    chosen, tactic = AutoTuner.get().choose_one(op, list(runners), config() if tuning_config is None else tuning_config, inputs, **kwargs)
    return next(index for index, runner in enumerate(runners) if runner is chosen), tactic


def matrix(rows, columns=32, dtype=torch.float32):
    """A row-major matrix."""
    return torch.zeros(rows, columns, dtype=dtype)


class Kind(enum.Enum):
    """Values that a tactic or input may have."""

    SLOW = 1
    FAST = 2


class Point(NamedTuple):
    """A tactic with names."""

    x: int
    y: int


@dataclasses.dataclass(frozen=True)
class Tile:
    """A tactic with fields; one is named like a rank, and counts."""

    m: int
    tp_rank: int = 0


class ForeignInt:
    """An integer of some other library."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


class ForeignSequence:
    """A sequence of some other library."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    def __eq__(self, other):
        return isinstance(other, ForeignSequence) and self.items == other.items

    def __hash__(self):
        return hash(self.items)


def tvm_array():
    import tvm_ffi

    return tvm_ffi.Array([1, 2, 3])


TACTICS = {
    "int": lambda: 7,
    "tuple": lambda: ((128, 64), (1, 2), True),
    "list": lambda: [1, [2, 3]],
    "text": lambda: "warp_specialized",
    "none": lambda: None,
    "float": lambda: 0.5,
    "enum": lambda: Kind.FAST,
    "named tuple": lambda: Point(1, 2),
    "dataclass": lambda: Tile(128, 3),
    "numpy integer": lambda: np.int64(5),
    "tuple of numpy and enum": lambda: (np.int32(4), Kind.FAST, [Tile(1)]),
    "tvm array": tvm_array,
}


class TacticRunner(PlainRunner):
    """Offers a slow tactic 0, and the fast one of the given kind, a new object each time."""

    def __init__(self, kind):
        self.kind = kind

    def get_valid_tactics(self, inputs, profile):
        return [0, TACTICS[self.kind]()]

    def time_ms(self, tactic):
        return {0: 5.0, -1: 6.0}[tactic] if type(tactic) is int and tactic in (0, -1) else 1.0


@contextlib.contextmanager
def no_measurement():
    """Fail if anything is measured."""
    with timed() as measured:
        yield measured
    assert measured == []
