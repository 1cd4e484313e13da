"""Pairs of calls that must not share a key: ``CASES[name](side)`` with side 0 or 1 gives one call of the pair."""

from dataclasses import dataclass, field
from typing import Any

import torch

from tests.adapter import twin_a, twin_b
from tests.adapter.runners import BUCKETS, Kind, LayoutRunner, config, matrix


@dataclass
class Case:
    runner: Any
    inputs: list
    arguments: dict = field(default_factory=dict)
    config: Any = field(default_factory=config)
    op: str = "collision"


class ConstructorRunner(LayoutRunner):
    def __init__(self, use_8x4_sf_layout):
        self._use_8x4_sf_layout = use_8x4_sf_layout

    def which(self, inputs):
        return 2 if self._use_8x4_sf_layout else 1


def constructor(side):
    return Case(ConstructorRunner(bool(side)), [matrix(50)])


def closure(side):
    layout = side + 1

    class ClosureRunner(LayoutRunner):
        def which(self, inputs):
            return layout

    return Case(ClosureRunner(), [matrix(50)])


def nested_closure(side):
    layout = side + 1

    def helper():
        return layout

    class NestedClosureRunner(LayoutRunner):
        def which(self, inputs):
            return helper()

    return Case(NestedClosureRunner(), [matrix(50)])


def equal_class_names(side):
    return Case((twin_a, twin_b)[side].TwinRunner(), [matrix(50)])


class ArgumentRunner(LayoutRunner):
    """Learns its variant from a keyword argument; FlashInfer passes those to forward only."""

    def __init__(self):
        self.seen_cache = [0]

    def get_valid_tactics(self, inputs, profile):
        return [10, 11, 20, 21]

    def forward(self, inputs, tactic=-1, do_preparation=False, *, layout, **kwargs):
        if tactic not in (-1, 10 * layout, 10 * layout + 1):
            message = f"tactic {tactic} is not one of layout {layout}"
            raise RuntimeError(message)
        return inputs[0]


def keyword_argument(side):
    return Case(ArgumentRunner(), [matrix(50)], {"layout": side + 1})


class InputRunner(LayoutRunner):
    """Learns its variant from its second input."""

    order = ()

    def __init__(self, *order):
        self.order = order

    def which(self, inputs):
        return next(
            number
            for number, value in enumerate(self.order, 1)
            if value is inputs[1] or (type(value), value) == (type(inputs[1]), inputs[1])
        )


def non_tensor_input(first, second):
    def case(side):
        return Case(InputRunner(first, second), [matrix(50), (first, second)[side]])

    return case


class DtypeRunner(LayoutRunner):
    def which(self, inputs):
        return 1 if inputs[1].dtype is torch.float16 else 2


def tensor_dtype(side):
    return Case(DtypeRunner(), [matrix(50), torch.zeros(32, 64, dtype=(torch.float16, torch.bfloat16)[side])])


class MajorRunner(LayoutRunner):
    def which(self, inputs):
        return 1 if inputs[1].stride(-1) == 1 else 2


def tensor_layout(side):
    return Case(MajorRunner(), [matrix(50), torch.zeros(32, 64) if side == 0 else torch.zeros(64, 32).T])


class RoundingRunner(LayoutRunner):
    """What is valid depends on whether the profile lies above or below the call's own size."""

    def __init__(self, side):
        self.side_cache = side  # by its name not part of the key: only the rounding itself may tell the two apart

    def which(self, inputs):
        return self.side_cache + 1


def rounding(side):
    return Case(RoundingRunner(side), [matrix(50)], config=config(BUCKETS, round_up=bool(side)))


class ExtrasRunner(LayoutRunner):
    """Its extras tell the sides apart, and nothing else that counts does."""

    def __init__(self, side):
        self.side_cache = [side]

    def which(self, inputs):
        return self.side_cache[0] + 1

    def get_cache_key_extras(self, inputs):
        return (self.side_cache[0],)


def extras(side):
    return Case(ExtrasRunner(side), [matrix(50)])


CASES = {
    "constructor parameter": constructor,
    "closure variable": closure,
    "variable of a function in the closure": nested_closure,
    "module of equal class names": equal_class_names,
    "keyword argument": keyword_argument,
    "int input": non_tensor_input(3, 4),
    "bool and int input": non_tensor_input(True, 1),
    "dtype input": non_tensor_input(torch.float16, torch.bfloat16),
    "enum input": non_tensor_input(Kind.FAST, Kind.SLOW),
    "missing input": non_tensor_input(None, 0),
    "float and int input": non_tensor_input(1.0, 1),
    "text and int input": non_tensor_input("1", 1),
    "list and tuple input": non_tensor_input([1], (1,)),
    "tensor dtype": tensor_dtype,
    "tensor layout": tensor_layout,
    "rounding direction": rounding,
    "extras": extras,
}
