"""What is left out of a key is noted with its value, whatever left it out; the schema of a key does not depend on values."""

import enum
import functools

import numpy as np
import pytest
import torch
from flashinfer.autotuner import TunableRunner, TuningConfig

from fi_cachestore.adapter.contracts import Contract
from fi_cachestore.adapter.introspect import Call, Introspector, RunnerView
from fi_cachestore.adapter.leftout import scalar
from fi_cachestore.adapter.roles import Role
from fi_cachestore.adapter.sources import implementation_digest, type_name
from fi_cachestore.environment.identity import Environments
from fi_cachestore.keys.canonical import encode
from fi_cachestore.keys.schema import joint, left_out_digest
from tests.adapter.runners import ForeignInt, Kind, PlainRunner, Point, Tile, matrix


def view(runner, contracts=None, inputs=None, **arguments):
    call = Call(Introspector(contracts or {}, Environments()), "op", TuningConfig(), inputs or [matrix(4)], arguments, {})
    return RunnerView(call, runner)


def changed(one, other):
    """The paths whose left-out values differ."""
    left, right = one.left_out_values, other.left_out_values
    return {path for path in {*left, *right} if left.get(path) != right.get(path)}


class Holding(PlainRunner):
    def __init__(self, **held):
        self.__dict__.update(held)


class Filling(PlainRunner):
    """Its methods assign what its constructor does not."""

    layout = "row"
    uses = 0

    def __init__(self, layout=None):
        self._out = None
        if layout is not None:
            self.set_layout(layout)

    def set_layout(self, layout):
        self.layout = layout

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        self._out = inputs[0]
        self._lazily = 3
        type(self).uses = Filling.uses + 1
        Filling.uses += 0
        return inputs[0]

    @functools.cached_property
    def plan(self):
        return 7


def with_cell(offset_rank):
    class Closing(PlainRunner):
        def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
            return inputs[0] + offset_rank

    return Closing()


def contract(**terms):
    fingerprint = implementation_digest(Holding, TunableRunner)[:16]
    return {type_name(Holding): Contract(type=type_name(Holding), fingerprint=fingerprint, **terms)}


DYNAMIC = contract(roles={"size": Role.DYNAMIC, "closure.x": Role.PLACEMENT}, arguments={"scale": Role.DYNAMIC})
VARIES = contract(roles={"size": Role.DYNAMIC}, arguments={"scale": Role.DYNAMIC}, varies=frozenset({"size", "arguments.scale"}))
PAIRS = {
    "place by name": (lambda: view(Holding(tp_rank=0)), lambda: view(Holding(tp_rank=1)), {"tp_rank"}),
    "device index": (
        lambda: view(Holding(where=torch.device("cuda", 0))),
        lambda: view(Holding(where=torch.device("cuda", 1))),
        {"where.index"},
    ),
    "memo scalar": (lambda: view(Holding(plan_cache=None)), lambda: view(Holding(plan_cache=object())), {"plan_cache"}),
    "mutated attribute": (lambda: view(Filling("row")), lambda: view(Filling("column")), {"layout"}),
    "closure cell": (lambda: view(with_cell(0)), lambda: view(with_cell(1)), {"closure.offset_rank"}),
    "argument by name": (lambda: view(Holding(), tp_rank=0), lambda: view(Holding(), tp_rank=1), {"arguments.tp_rank"}),
    "dynamic": (lambda: view(Holding(size=3), DYNAMIC), lambda: view(Holding(size=4), DYNAMIC), {"size"}),
    "dynamic argument": (lambda: view(Holding(), DYNAMIC, scale=1.0), lambda: view(Holding(), DYNAMIC, scale=2.0), {"arguments.scale"}),
    "dynamic, not a number": (lambda: view(Holding(size=None), VARIES), lambda: view(Holding(size=4), VARIES), {"size"}),
    "dynamic, another kind of number": (lambda: view(Holding(size=4.0), VARIES), lambda: view(Holding(size=4), VARIES), {"size"}),
    "dynamic switch": (lambda: view(Holding(size=True), VARIES), lambda: view(Holding(size=False), VARIES), {"size"}),
    "varies": (lambda: view(Holding(size=3), VARIES, scale=1.0), lambda: view(Holding(size=4), VARIES, scale=2.0), set()),
    "memo container": (lambda: view(Holding(plan_cache={})), lambda: view(Holding(plan_cache={1: 2})), set()),
    "inside a configuration": (
        lambda: view(PlainRunner(), inputs=[matrix(4), Tile(1, 0)]),
        lambda: view(PlainRunner(), inputs=[matrix(4), Tile(1, 1)]),
        {"inputs[1].tp_rank"},
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_values_that_are_left_out_are_told_apart_and_the_schema_is_one(name):
    one, other, paths = PAIRS[name]
    assert changed(one(), other()) == paths
    assert one().schema_digest == other().schema_digest == one().schema.digest
    assert changed(one(), one()) == set()
    assert (one().fingerprint() == other().fingerprint()) == (not paths)


def test_what_a_run_fills_changes_values_and_not_the_schema():
    runner = Filling()
    before = view(runner)
    runner.forward([matrix(4)])
    _ = runner.plan
    after = view(runner)
    assert changed(before, after) == {"_out", "_lazily", "plan", "class.uses"}
    assert before.schema == after.schema
    assert before.params == after.params


def test_the_schema_has_every_parameter_with_type_and_role():
    made = view(Holding(width=3, tp_rank=0), DYNAMIC, scale=1.0, flag=True)
    rows = set(made.schema.parameters)
    assert made.schema_digest == made.schema.digest
    assert set(made.left_out_values) == {"tp_rank", "arguments.scale"}
    assert {("width", "builtins:int", "semantic"), ("tp_rank", "", "placement")} <= rows
    assert {("arguments.scale", "", "dynamic"), ("arguments.flag", "builtins:bool", "semantic")} <= rows
    assert ("class.variant", "builtins:int", "semantic") not in rows
    assert view(Holding(width=3.0, tp_rank=0), DYNAMIC, scale=1.0, flag=True).schema_digest != made.schema_digest
    assert view(Holding(width=4, tp_rank=0), DYNAMIC, scale=1.0, flag=True).schema_digest == made.schema_digest


def test_another_contract_is_another_schema():
    views = [view(Holding(size=3), terms) for terms in ({}, DYNAMIC, VARIES, contract(), contract(space="indexed"))]
    assert len({made.schema_digest for made in views}) == 5
    assert [made.schema_digest for made in views] == [made.schema.digest for made in views]


class Shade(enum.IntEnum):
    DARK = 1


SCALARS = [
    None, True, 1, 1.0, "1", b"1", Kind.FAST, Shade.DARK, torch.float16, torch.bfloat16, torch.device("cpu"), torch.device("cuda", 0),
    torch.device("cuda", 1), np.int64(1), np.float32(1), (1, 2), (1, (2, None)), Point(1, 2), "x" * 5000, "y" * 5000, "\ud800", "\ud801",
]  # fmt: skip


def test_scalars_are_told_apart_by_type_and_value():
    assert len({encode(scalar(item)) for item in SCALARS}) == len(SCALARS)
    assert [encode(scalar(item)) for item in SCALARS] == [encode(scalar(item)) for item in SCALARS]


def test_everything_else_counts_by_its_type():
    for one, other in (({}, {1: 2}), ([], [1]), (set(), {1}), (ForeignInt(1), ForeignInt(2)), (matrix(1), matrix(2)), (object(), object())):
        assert encode(scalar(one)) == encode(scalar(other))
    nested = ()
    for _ in range(100):
        nested = (nested,)
    assert encode(scalar(nested))


def test_values_of_two_sides_are_one_pair_in_either_order():
    one, other, third = (view(Holding(tp_rank=rank, ep_rank=0)).left_out_values for rank in range(3))
    assert joint(one, one) == one
    assert joint(one, other) == joint(other, one)
    pairs = [joint(one, other), joint(one, third), joint(other, third), one, other, third, joint(one, {}), joint({}, other)]
    assert len({left_out_digest(pair) for pair in pairs}) == len(pairs)


def test_values_of_two_sides_are_not_exchanged_one_by_one():
    low, high, mixed, other = (
        view(Holding(tp_rank=tp_rank, ep_rank=ep_rank)).left_out_values for tp_rank, ep_rank in ((0, 0), (1, 1), (0, 1), (1, 0))
    )
    assert left_out_digest(joint(low, high)) != left_out_digest(joint(mixed, other))
