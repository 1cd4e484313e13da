"""Fingerprints of raw calls: equal ones only for calls with equal keys and equal left-out values, and none for what cannot be read."""

import dataclasses
import functools
import itertools
import types

import pytest
import torch
from flashinfer.autotuner import AutoTuner, ConstraintSpec, DynamicTensorSpec, TunableRunner, TuningConfig, make_bucket_mapper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fi_cachestore.adapter import tensors
from fi_cachestore.adapter.contracts import flashinfer_contracts
from fi_cachestore.adapter.fingerprint import Fingerprints, is_sound
from fi_cachestore.adapter.introspect import Call, Introspector, RunnerView
from fi_cachestore.adapter.policy import resolved
from fi_cachestore.adapter.tensors import Tensors
from fi_cachestore.environment.identity import Environments
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.schema import left_out_digest
from tests.adapter import runners as module_of_runners
from tests.adapter.cases import CASES, Case
from tests.adapter.runners import BUCKETS, Kind, PlainRunner, config, matrix, with_output
from tests.flashinfer_runners.case import RECIPES

INTROSPECTOR = Introspector(flashinfer_contracts(), Environments())


@pytest.fixture
def prints():
    tuner = AutoTuner.get()
    tuner._get_override_stack(), tuner._get_skip_ops_stack()  # a thread has them from its first slow call on
    return Fingerprints(INTROSPECTOR)


def taken(prints, case):
    """The fingerprint under which an answer to the call would be kept, ``None`` if none would."""
    call = (AutoTuner.get(), case.op, [case.runner], case.config, case.inputs, case.arguments)
    try:
        found = prints.of(*call)
        if not is_sound(found):
            prints.learn([case.runner])
            found = prints.of(*call)
        hash(found)
    except Exception:  # noqa: BLE001 - as the memory of answers does
        return None
    return found if is_sound(found) else None


def described(case):
    """The keys and left-out values that the call has when it is described at length, ``None`` where it has gaps."""
    call = Call(INTROSPECTOR, case.op, case.config, case.inputs, case.arguments, resolved(case.config, None))
    view = RunnerView(call, case.runner)
    keys = view.keys(call.bucket(), serving=True)
    if view.gaps or not all(isinstance(key, TuneKey) for key in keys):
        return None
    return tuple(key.digest for key in keys), left_out_digest(view.left_out_values), view.schema_digest, call.raw_dims


# -- collisions -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_calls_that_may_not_share_a_key_share_no_fingerprint(prints, name):
    sides = [taken(prints, CASES[name](side)) for side in (0, 1, 0, 1)]
    assert None not in sides
    assert sides[0] != sides[1]
    assert sides[:2] == sides[2:]


# -- everything that a call consists of --------------------------------------------------------------------------------------------


class ShapedRunner(PlainRunner):
    scale = 1
    table = (1, 2)

    def __init__(self, **attributes):
        vars(self).update(attributes)


class SlottedRunner(PlainRunner):
    __slots__ = ("slot",)

    def __init__(self, slot):
        self.slot = slot


@dataclasses.dataclass
class Options:
    tile: int
    nested: object = None


def made(*, variable=1, default=1, other=1, plain=1, keyword=1, decorated=1):
    """A runner of a class that is made anew, with its configuration everywhere but in attributes."""

    def helper(unused=default):
        return variable

    class Made(PlainRunner):
        setting = plain

        def get_valid_tactics(self, inputs, profile, chosen=other, *, named=keyword):
            return [helper(), chosen, named]

        @staticmethod
        def static():
            return decorated

    return Made()


def handy(size):
    return size // 16 * 16


def other_handy(size):
    return size // 32 * 32


def slim(*, variable=1, setting=1, held=handy, handle=types, extra=1, wraps=staticmethod, **attributes):
    """A runner of a class like most of FlashInfer's: made anew, of plain methods, over a module, with a memo, functions and extras."""

    class Slim(TunableRunner):
        plain = setting

        def __init__(self):
            self._algo_cache, self.held, self.extra = {}, held, extra
            vars(self).update(attributes)

        def get_cache_key_extras(self, inputs):
            return (inputs[0].dtype, self.extra)

        @wraps
        def share(*arguments):
            return len(arguments)

        def get_valid_tactics(self, inputs, profile, chosen=1):
            self._algo_cache[chosen] = handle
            return [variable, chosen, self.held(16)]

        def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
            handle.run(held, variable)
            return inputs[0]

    return Slim()


def switched(is_first, tile):
    """A runner of one of two classes that differ in methods that are read each time: in what these close over, and in what they assign."""
    one = other = 1

    class Switched(PlainRunner):
        if is_first:

            def sum(self, more=[]):  # noqa: B006
                return one

            def note(self, more=[]):  # noqa: B006
                self.items = more

        else:

            def sum(self, more=[]):  # noqa: B006
                return one + other

            def note(self, more=[]):  # noqa: B006
                return self.items

        def which(self):
            return tile

    return Switched()


def with_items(runner, items):
    vars(runner).update(items=items)
    return runner


@dataclasses.dataclass(eq=False)
class Identical:
    """Equal to nothing but itself, whatever it holds."""

    tile: int

    def nearest(self, size):
        return size // self.tile * self.tile


STEP = Identical(16).nearest


def of(runner, inputs=None, arguments=None, settings=None):
    return Case(runner, [matrix(50)] if inputs is None else inputs, arguments or {}, settings or SETTINGS)


SETTINGS = config()
STEPS = config()
STEPS.dynamic_tensor_specs[0].map_to_tuning_buckets = STEP
VALUES = [
    None,
    True,
    1,
    1.0,
    -0.0,
    0.0,
    "1",
    b"1",
    (1,),
    (True,),
    [1],
    {1: 2},
    {1: 2.0},
    {1},
    torch.float16,
    Kind.FAST,
    Kind.SLOW,
    Options(1),
    Options(2),
]
DIFFERENT = {
    "attribute": [of(ShapedRunner(value=value)) for value in VALUES],
    "name": [of(ShapedRunner(a=1)), of(ShapedRunner(b=1)), of(ShapedRunner(a=1, b=1)), of(ShapedRunner())],
    "slot": [of(SlottedRunner(value)) for value in (1, True, 2, (1,))],
    "placement": [of(ShapedRunner(tp_rank=rank)) for rank in (0, 1)],
    "scalar of a resource": [of(ShapedRunner(some_cache=None)), of(ShapedRunner(some_cache={}))],
    "inner runner": [
        of(ShapedRunner(inner=inner)) for inner in (ShapedRunner(a=1), ShapedRunner(a=2), PlainRunner(), made(variable=1), made(variable=2))
    ],
    "number of items that look alike": [of(ShapedRunner(held={*map(Identical, tiles)})) for tiles in ((1,), (1, 1), (1, 1, 2), (1, 2, 2))],
    "mapper of the call, and its double": [
        of(ShapedRunner(held=mapper), settings=STEPS) for mapper in (STEP, types.MethodType(STEP.__func__, STEP.__self__))
    ],
    "closure of a class like another": [of(switched(is_first, tile)) for is_first in (True, False) for tile in (1, 2)],
    "attribute of a class like another that assigns it": [
        of(with_items(switched(is_first, 1), items)) for is_first, items in ((True, [1]), (False, [1]), (False, [2]))
    ],
    "namespace": [of(ShapedRunner(held=types.SimpleNamespace(tile=tile))) for tile in (1, 2)],
    "nested options": [of(ShapedRunner(held=Options(1, Options(tile)))) for tile in (1, 2)],
    "partial": [of(ShapedRunner(held=functools.partial(max, bound))) for bound in (1, 2, True)],
    "closure": [of(made(variable=value)) for value in (1, True, 2, (1,))],
    "default of a helper": [of(made(default=value)) for value in (1, 2, True)],
    "default of a method": [of(made(other=value)) for value in (1, 2, True)],
    "keyword default of a method": [of(made(keyword=value)) for value in (1, 2, True)],
    "class attribute": [of(made(plain=value)) for value in (1, True, 2, (1,), (2,))],
    "closure of a static method": [of(made(decorated=value)) for value in (1, 2)],
    "held tensor": [
        of(ShapedRunner(held=torch.zeros(rows, 3, dtype=dtype)))
        for rows, dtype in ((2, torch.float32), (3, torch.float32), (2, torch.int32))
    ],
    "value": [of(PlainRunner(), [matrix(50), value]) for value in VALUES],
    "argument": [of(PlainRunner(), arguments={"value": value}) for value in VALUES],
    "name of an argument": [of(PlainRunner(), arguments={name: 1}) for name in "ab"],
    "tensor": [
        of(PlainRunner(), [matrix(50), tensor])
        for tensor in (torch.zeros(4, 6), torch.zeros(6, 4).T, torch.zeros(4, 6).half(), torch.zeros(4, 12)[:, :6])
    ],
    "row count": [of(PlainRunner(), [matrix(rows)]) for rows in (50, 51, 64)],
    "pitch of one row": [of(PlainRunner(), [matrix(1)]), of(PlainRunner(), [torch.zeros(2, 64)[:1, :32]])],
    "device": [of(PlainRunner(), [torch.zeros(50, 32, device=device)]) for device in ("cpu", "meta")],
    "tensor as an argument": [of(PlainRunner(), arguments={"value": tensor}) for tensor in (torch.zeros(4, 6), torch.zeros(6, 4).T)],
    "list of tensors": [of(PlainRunner(), [matrix(50), [torch.zeros(size)]]) for size in (1, 2)],
    "config": [
        of(PlainRunner(), [matrix(50), matrix(50)], settings=settings)
        for settings in (
            config(),
            config((16, 32)),
            config(round_up=True),
            config(inputs=(1,)),
            config(use_cuda_graph=True),
            config(use_cold_l2_cache=True),
            config(constraint_specs=with_output(1)),
        )
    ],
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_difference_anywhere_is_a_difference_of_the_fingerprint(prints, name):
    found = [[taken(prints, case) for case in DIFFERENT[name]] for _ in range(3)][-1]  # first it learns which attributes need a reading
    assert None not in found
    for (one, first), (two, second) in itertools.combinations(enumerate(found), 2):
        assert first != second, (one, two)
    assert found == [taken(prints, case) for case in DIFFERENT[name]]


def chained(*tiles):
    """A runner whose class has bases of its own name, each with its own closure and default."""

    def make(base, tile):
        class Chained(base):
            def get_valid_tactics(self, inputs, profile, default=tile):
                return [tile, default, *super().get_valid_tactics(inputs, profile)]

        return Chained

    return functools.reduce(make, tiles, PlainRunner)()


class Decorator:
    """Wraps a function, and holds more."""

    def __init__(self, tile):
        functools.update_wrapper(self, other_list)
        self.tile = tile

    def __call__(self, *given):
        return self.tile


@dataclasses.dataclass
class Made:
    """Keeps what its constructor takes where no field shows it."""

    size: int
    tile: dataclasses.InitVar[int] = 0

    def __post_init__(self, tile):
        self._tile = tile


class Sizes(tuple):  # noqa: SLOT001 - attributes are the point
    """A tuple with more to it."""

    @staticmethod
    def of(tile):
        made = Sizes((1, 2))
        made.tile = tile
        return made


class PrivateSlot(PlainRunner):
    __slots__ = ("__tile",)

    def __init__(self, tile):
        self.__tile = tile


def strategy(variable, default):
    """A class that is no runner's, with configuration in its methods alone."""

    class Strategy:
        def run(self, tile=default):
            return variable, tile

    return Strategy


def options(tile):
    @dataclasses.dataclass
    class Local:
        size: int = 1

        def run(self):
            return tile

    return Local()


def of_class(**members):
    """A runner of a class with these members, made by a function."""
    return types.new_class("OfClass", (PlainRunner,), exec_body=lambda body: body.update(members, __module__=__name__))()


HIDDEN = {
    "first base of one name": lambda tile: chained(tile, 5, 3),
    "second base of one name": lambda tile: chained(5, tile, 3),
    "order of bases of one name": lambda tile: chained(*((1, 2, 1, 3), (1, 2, 3, 1), (1, 1, 2, 3))[tile]),
    "private slot": PrivateSlot,
    "closure of a class": lambda tile: ShapedRunner(held=strategy(tile, 1)),
    "default in a class": lambda tile: ShapedRunner(held=strategy(1, tile)),
    "closure of options": lambda tile: ShapedRunner(held=options(tile)),
    "what options take and do not show": lambda tile: ShapedRunner(held=Made(1, tile)),
    "decorator": lambda tile: ShapedRunner(held=Decorator(tile)),
    "attribute of a tuple": lambda tile: ShapedRunner(held=Sizes.of(tile)),
    "options of the class": lambda tile: of_class(held=Options(tile)),
    "decorator in the class": lambda tile: of_class(held=Decorator(tile)),
    "partial in the class": lambda tile: of_class(held=functools.partial(max, tile)),
    "partial method in the class": lambda tile: of_class(held=functools.partialmethod(other_list, profile=tile)),
    "partial as a static method": lambda tile: of_class(held=staticmethod(functools.partial(max, tile))),
    "partial as a property": lambda tile: of_class(held=property(functools.partial(max, tile), other_list)),
    "functions in the class": lambda tile: of_class(held=[lambda: tile]),
    "class in the class": lambda tile: of_class(held=strategy(tile, 1)),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_hides_in_code_is_in_the_key_or_there_is_none(prints, name):
    cases = [of(HIDDEN[name](tile)) for tile in (0, 1, 2)]
    keys = [described(case) for case in cases]
    found = [[taken(prints, case) for case in cases] for _ in range(3)][-1]
    for one, two in itertools.combinations(range(3), 2):
        assert keys[one] != keys[two] or keys[one] is None
        assert found[one] != found[two] or found[one] is None


@pytest.mark.parametrize("held", [functools.lru_cache(matrix), Kind, module_of_runners.Point, Options])
def test_wrappers_and_classes_that_hold_nothing_have_keys(held):
    assert described(of(ShapedRunner(held=held))) is not None
    assert described(of(of_class(held=held))) is not None


@pytest.mark.parametrize("place", ["variable", "other", "keyword"])
def test_what_a_factory_puts_into_methods_is_in_the_key(place):
    keys = [described(of(made(**{place: value})))[0] for value in (1, 2, True, 1)]
    assert len({*keys[:3]}) == 3
    assert keys[0] == keys[3]


def test_objects_made_anew_have_the_same_fingerprint(prints):
    def anew():
        return Case(made(), [matrix(50), Options(1), [1]], {"out": matrix(50)}, config())

    assert taken(prints, anew()) == taken(prints, anew()) is not None


class LiveRunner(PlainRunner):
    scale = 1

    def __init__(self):
        self.value = 1
        self.items = [1]
        self.options = Options(1, Options(1))
        self.handle_cache = None


def other_list(self, inputs, profile):
    return [0, 1]


CHANGES = {
    "value": lambda runner, patch: vars(runner).update(value=2),
    "type of a value": lambda runner, patch: vars(runner).update(value=True),
    "item": lambda runner, patch: runner.items.append(2),
    "field": lambda runner, patch: setattr(runner.options.nested, "tile", 2),
    "new attribute": lambda runner, patch: vars(runner).update(more=1),
    "deleted attribute": lambda runner, patch: vars(runner).pop("value"),
    "another attribute": lambda runner, patch: vars(runner).update(other=vars(runner).pop("value")),
    "class attribute": lambda runner, patch: patch.setattr(LiveRunner, "scale", 2),
    "type of a class attribute": lambda runner, patch: patch.setattr(LiveRunner, "scale", True),
    "new class attribute": lambda runner, patch: patch.setattr(LiveRunner, "more", 1, raising=False),
    "attribute of a base": lambda runner, patch: patch.setattr(PlainRunner, "more", 1, raising=False),
    "method": lambda runner, patch: patch.setattr(LiveRunner, "get_valid_tactics", other_list, raising=False),
    "method of a base": lambda runner, patch: patch.setattr(PlainRunner, "get_valid_tactics", other_list),
    "code of a method": lambda runner, patch: patch.setattr(PlainRunner.get_valid_tactics, "__code__", other_list.__code__),
    "defaults of a method": lambda runner, patch: patch.setattr(PlainRunner.forward, "__defaults__", (0, False)),
    "class of the runner": lambda runner, patch: setattr(runner, "__class__", PlainRunner),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_under_a_live_runner_is_seen(prints, monkeypatch, change):
    case = of(LiveRunner())
    before = [taken(prints, case) for _ in range(3)][-1]
    assert before is not None
    CHANGES[change](case.runner, monkeypatch)
    assert taken(prints, case) != before


class StraightRunner(PlainRunner):
    def __init__(self, value):
        self.value = value


STRAIGHT = TuningConfig(dynamic_tensor_specs=(DynamicTensorSpec((0,), (0,), BUCKETS, make_bucket_mapper(BUCKETS)),))


def test_straight_calls_tell_everything_apart_too(prints, monkeypatch):
    def case(value=1, second=1, rows=50, op="op"):
        return Case(StraightRunner(value), [matrix(rows), second], {}, STRAIGHT, op)

    cases = [
        case(),
        case(True),
        case(2),
        case("1"),
        case(b"1"),
        case(None),
        case(second=True),
        case(second=2),
        case(rows=51),
        case(op="other"),
    ]
    found = [[taken(prints, each) for each in cases] for _ in range(3)][-1]
    assert all(isinstance(one[0], int) for one in found), "not read straight"
    assert len({*found}) == len(cases)
    monkeypatch.setattr(PlainRunner, "get_valid_tactics", other_list)
    assert taken(prints, cases[0]) not in (None, *found)


STRAIGHT_CHANGES = {
    "code": lambda patch: patch.setattr(PlainRunner.get_valid_tactics, "__code__", other_list.__code__),
    "defaults": lambda patch: patch.setattr(PlainRunner.forward, "__defaults__", (0, False)),
    "defaults that are equal": lambda patch: patch.setattr(PlainRunner.forward, "__defaults__", (-1, 0)),
    "new member of a base": lambda patch: patch.setattr(PlainRunner, "more", 1, raising=False),
}


@pytest.mark.parametrize("change", STRAIGHT_CHANGES)
def test_what_changes_in_the_class_of_a_straight_call_is_seen(prints, monkeypatch, change):
    case = Case(StraightRunner(1), [matrix(50)], {}, STRAIGHT)
    before = [taken(prints, case) for _ in range(3)][-1]
    assert isinstance(before[0], int), "not read straight"
    STRAIGHT_CHANGES[change](monkeypatch)
    assert taken(prints, case) not in (None, before)


def test_another_base_of_the_class_of_a_straight_call_is_seen(prints):
    case = Case(StraightRunner(1), [matrix(50)], {}, STRAIGHT)
    before = [taken(prints, case) for _ in range(3)][-1]
    assert isinstance(before[0], int), "not read straight"
    StraightRunner.__bases__ = (LiveRunner,)
    changed = taken(prints, case)
    StraightRunner.__bases__ = (PlainRunner,)
    assert changed not in (None, before)
    assert taken(prints, case) == before


def test_a_class_of_the_same_name_is_not_taken_for_that_of_a_straight_call(prints):
    before = [taken(prints, Case(StraightRunner(1), [matrix(50)], {}, STRAIGHT)) for _ in range(3)][-1]
    assert isinstance(before[0], int), "not read straight"
    namesake = type("StraightRunner", (StraightRunner,), {"__module__": __name__, "__qualname__": "StraightRunner"})
    assert taken(prints, Case(namesake(1), [matrix(50)], {}, STRAIGHT)) not in (None, before)


OTHER_HANDLE = types.SimpleNamespace(run=None)
SLIM = {
    "variable": [1, True, 2, "1", None, (1,), (True,), 1.0],
    "setting": [1, True, 2],
    "held": [handy, other_handy, functools.partial(max, 1), functools.partial(max, 2), max],
    "handle": [types, OTHER_HANDLE],
    "extra": [1, True, 2, None],
    "wraps": [staticmethod, classmethod],
    "tile": [1, True, 1.0, (1,), Options(1), Options(2)],
}


@pytest.mark.parametrize("place", SLIM)
def test_classes_that_are_made_anew_are_read_straight_and_told_apart(prints, place):
    def case(value):
        return Case(slim(**{place: value}), [matrix(50), 1], {}, STRAIGHT)

    found = [[taken(prints, case(value)) for value in SLIM[place] for _ in range(3)] for _ in range(3)][-1]
    assert all(isinstance(one[0], int) for one in found), "not read straight"
    assert len({*found}) == len(SLIM[place])
    assert [len({*found[at : at + 3]}) for at in range(0, len(found), 3)] == [1] * len(SLIM[place])


SLIM_CHANGES = {
    "name of an attribute": lambda runner: vars(runner).update(other=vars(runner).pop("tile")),
    "new attribute": lambda runner: vars(runner).update(more=1),
    "new member": lambda runner: setattr(type(runner), "more", 1),
    "module": lambda runner: setattr(type(runner), "__module__", "another"),
    "method": lambda runner: setattr(type(runner), "get_valid_tactics", other_list),
    "static method": lambda runner: setattr(type(runner), "share", staticmethod(other_list)),
    "code": lambda runner: setattr(type(runner).__init__, "__code__", type(slim(wraps=classmethod)).__init__.__code__.replace(co_name="x")),
    "keyword default": lambda runner: setattr(type(runner).forward, "__kwdefaults__", {"more": 1}),
    "default of a static method": lambda runner: setattr(vars(type(runner))["share"].__func__, "__defaults__", (1,)),
    "base": lambda runner: setattr(type(runner), "__bases__", (PlainRunner,)),
    "memo": lambda runner: vars(runner).update(_algo_cache=1),
    "closure of one of two methods": lambda runner: setattr(type(runner), "forward", type(slim(handle=OTHER_HANDLE)).forward),
}


@pytest.mark.parametrize("change", SLIM_CHANGES)
def test_what_changes_in_a_class_made_anew_is_seen(prints, change):
    def case():
        return Case(slim(tile=1), [matrix(50), 1], {}, STRAIGHT)

    before = [taken(prints, case()) for _ in range(4)][-1]
    changed = case()
    SLIM_CHANGES[change](changed.runner)
    assert isinstance(before[0], int), "not read straight"
    assert taken(prints, changed) != before
    assert taken(prints, case()) == before


def test_a_default_that_a_factory_computes_is_looked_at_once(prints):
    def case(default):
        class Computed(PlainRunner):
            def which(self, tile=default):
                return tile

        return Case(Computed(), [matrix(50)], {}, STRAIGHT)

    found = [[taken(prints, case(default)) for default in (1, True, 2)] for _ in range(40)]
    assert found[-1] == found[-2]
    assert len({*found[-1]}) == 3
    assert None not in found[-1]


def test_the_function_in_a_class_made_anew_is_the_same_only_with_the_same_code(prints, monkeypatch):
    case = Case(slim(), [matrix(50)], {}, STRAIGHT)
    before = [taken(prints, case) for _ in range(4)][-1]
    monkeypatch.setattr(handy, "__code__", other_handy.__code__)
    assert isinstance(before[0], int), "not read straight"
    assert taken(prints, case) not in (None, before)


def test_flashinfers_extras_and_addresses_are_read_of_classes_made_anew(prints):
    found = []
    for differs in ({}, *RECIPES["cublaslt_bf16"].differs.values()):
        for _ in range(4):
            with RECIPES["cublaslt_bf16"].build(**differs) as built:
                made_anew = taken(prints, Case(built.runner, built.inputs, {}, built.config))
        found.append(made_anew)
        assert isinstance(made_anew[0], int), "not read straight"
    assert len({*found}) == 4


def test_a_closure_that_is_rebound_is_seen(prints):
    tile = 1

    class Rebound(PlainRunner):
        def which(self):
            return tile

    case = of(Rebound())
    before = taken(prints, case)
    tile = 2
    assert before is not None
    assert taken(prints, case) != before


CONFIG_CHANGES = {
    "spec": lambda config, other: setattr(config, "dynamic_tensor_specs", other.dynamic_tensor_specs),
    "equal spec": lambda config, other: setattr(config, "dynamic_tensor_specs", (replace(config.dynamic_tensor_specs[0], (False,)),)),
    "mapper": lambda config, other: copy_part(config, other, "dynamic_tensor_specs", "map_to_tuning_buckets"),
    "bucket list": lambda config, other: copy_part(config, other, "dynamic_tensor_specs", "gen_tuning_buckets"),
    "input": lambda config, other: copy_part(config, other, "dynamic_tensor_specs", "input_idx"),
    "dim": lambda config, other: setattr(config.dynamic_tensor_specs[0], "dim_idx", (1,)),
    "constraint": lambda config, other: setattr(config, "constraint_specs", ()),
    "constrained input": lambda config, other: setattr(config.constraint_specs[0], "input_idx", 0),
    "constrained dim": lambda config, other: setattr(config.constraint_specs[0], "dim_idx", 1),
    "rule": lambda config, other: setattr(config.constraint_specs[0], "infer_shape", lambda shapes: shapes[0][1]),
    "code of a rule": lambda config, other: setattr(config.constraint_specs[0].infer_shape, "__code__", (lambda shapes: 1).__code__),
    "graph": lambda config, other: setattr(config, "use_cuda_graph", True),
}


def replace(spec, dims):
    return dataclasses.replace(spec, dim_idx=dims)


def copy_part(settings, other, place, name):
    setattr(getattr(settings, place)[0], name, getattr(getattr(other, place)[0], name))


BOTH_KINDS = pytest.mark.parametrize("runner", [PlainRunner, slim], ids=["class of a module", "class made anew"])


@BOTH_KINDS
@pytest.mark.parametrize("change", CONFIG_CHANGES)
def test_a_config_that_is_changed_in_place_is_seen(prints, change, runner):
    rule = ConstraintSpec(1, 0, lambda shapes: shapes[0][0])
    case = of(runner(), [matrix(50), matrix(50)], settings=config(constraint_specs=(rule,)))
    before = [taken(prints, case) for _ in range(3)][-1]
    CONFIG_CHANGES[change](case.config, config((16, 32), round_up=True, inputs=(1,)))
    assert isinstance(before[0], int), "not read straight"
    assert taken(prints, case) not in (None, before)


def stepped(size, step=16):
    """A mapper of a module, with defaults."""
    return size // step * step


def new_mapper():
    """A mapper that is made for a config, with defaults."""

    def mapper(size, step=16):
        return size // step * step

    return mapper


@BOTH_KINDS
@pytest.mark.parametrize("mapper_of", [lambda: stepped, new_mapper], ids=["of a module", "made anew"])
@pytest.mark.parametrize("part", ["__defaults__", "__code__"])
def test_a_bucket_mapper_with_other_code_or_defaults_is_seen(prints, monkeypatch, part, mapper_of, runner):
    settings, mapper = config(), mapper_of()
    settings.dynamic_tensor_specs[0].map_to_tuning_buckets = mapper
    case = of(runner(), settings=settings)
    before = [taken(prints, case) for _ in range(4)][-1]
    monkeypatch.setattr(mapper, part, {"__defaults__": (32,), "__code__": other_handy.__code__}[part])
    assert isinstance(before[0], int), "not read straight"
    assert taken(prints, case) not in (None, before)


def test_a_table_of_a_class_that_becomes_a_method_is_seen(prints, monkeypatch):
    case = of(ShapedRunner())
    found = [taken(prints, case)]
    for method in (other_list, PlainRunner.get_valid_tactics):
        monkeypatch.setattr(ShapedRunner, "table", method)
        found.append(taken(prints, case))
    assert found[0] is not None
    assert found[1:] == [None, None]


def made_with_a_second_base(tile):
    class Second:
        def which(self):
            return tile

    class Both(TunableRunner, Second):
        def get_valid_tactics(self, inputs, profile):
            return [self.which()]

        def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
            return inputs[0]

    return Both()


def test_a_runner_with_bases_after_the_base_of_all_has_none(prints):
    assert [taken(prints, of(made_with_a_second_base(tile))) for tile in (1, 2)] == [None, None]


def test_what_is_forgotten_of_many_ops_is_not_taken_for_what_comes_later(prints):
    def case(number, rows):
        return Case(PlainRunner(), [matrix(rows)], {"value": 1}, SETTINGS, f"op {number}")

    first = taken(prints, case(0, 50))
    for number in range(1, 600):
        taken(prints, case(number, 50))
    assert first is not None
    assert taken(prints, case(0, 51)) != first


def test_a_bucket_mapper_whose_closure_is_rebound_is_seen(prints):
    step = 16

    def mapper(size):
        return size // step * step

    settings = config()
    settings.dynamic_tensor_specs[0].map_to_tuning_buckets = mapper
    case = of(PlainRunner(), settings=settings)
    before = [taken(prints, case) for _ in range(3)][-1]
    step = 32
    assert before is not None
    assert taken(prints, case) != before


def test_contexts_of_flashinfer_are_part_of_it(prints):
    tuner, case = AutoTuner.get(), of(PlainRunner())
    outside = taken(prints, case)
    found = [outside]
    for override in ((None, True, None), ((16, 32), False, None), ((16, 64), False, None), (None, False, 3)):
        tuner._get_override_stack().append(override)
        found.append(taken(prints, case))
        tuner._get_override_stack().pop()
    tuner._get_skip_ops_stack().append(frozenset({case.op}))
    skipped = taken(prints, case)
    tuner._get_skip_ops_stack().pop()
    tuner._cupti_disabled = True
    found.append(taken(prints, case))
    tuner._cupti_disabled = False
    assert len({*found}) == len(found)
    assert None not in found
    assert skipped is None
    assert taken(prints, case) == outside


def test_a_blocklist_is_part_of_it(prints, monkeypatch):
    case = of(PlainRunner())
    found = [taken(prints, case)]
    for blocked in ({"collision::PlainRunner": {1}}, {"collision::PlainRunner": {2}}):
        monkeypatch.setattr(AutoTuner.get()._blocklist, "_invalid", blocked)
        found.append(taken(prints, case))
    assert len({*found}) == 3


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_cannot_be_read_has_no_fingerprint(prints):
    unreadable = object.__new__(type("Unknown", (), {}))
    endless = []
    endless.append(endless)
    for value in (unreadable, endless, iter(()), [unreadable]):
        assert taken(prints, of(ShapedRunner(value=value))) is None
        assert taken(prints, of(PlainRunner(), [matrix(50), value])) is None
        assert taken(prints, of(PlainRunner(), arguments={"value": value})) is None
    for _ in range(3):
        assert taken(prints, of(PlainRunner(), [matrix(50), matrix(50)])) is not None
    assert taken(prints, of(PlainRunner(), [matrix(50), torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])])) is None


def test_memos_and_handles_do_not_make_a_new_fingerprint(prints):
    case = of(ShapedRunner(some_cache={}, module=types.ModuleType("compiled")))
    before = taken(prints, case)
    case.runner.some_cache["key"] = torch.zeros(3)
    case.runner.module = types.ModuleType("another")
    assert before is not None
    assert taken(prints, case) == before


# -- extras -----------------------------------------------------------------------------------------------------------------------

LIMIT = 100


class Reads(PlainRunner):
    def __init__(self, items):
        self.items = items


class ReadsGlobal(Reads):
    def get_cache_key_extras(self, inputs):
        return (inputs[0].shape[0] > LIMIT,)


class ReadsItself(Reads):
    def get_cache_key_extras(self, inputs):
        a, *_ = inputs
        _, columns = a.shape
        return (a.dtype, columns, self.items, len(inputs), a.is_contiguous(), inputs[1] is None)


class ReadsMore(Reads):
    def get_cache_key_extras(self, inputs):
        return (inputs[0]._version, self.items)


def test_extras_that_follow_from_the_call_are_not_asked_for(prints, monkeypatch):
    case = of(ReadsItself([1]), [matrix(50), None])
    before = taken(prints, case)
    assert before is not None
    monkeypatch.setattr(ReadsItself, "get_cache_key_extras", ReadsItself.get_cache_key_extras)
    case.runner.items.append(2)
    assert taken(prints, case) not in (None, before)


@pytest.mark.parametrize("kind", [ReadsGlobal, ReadsMore])
def test_extras_that_look_elsewhere_are_not_taken_for_known(prints, kind):
    assert taken(prints, of(kind([1]), [matrix(50), None])) is None


# -- the property -----------------------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 1.0, float("inf")]),
    st.sampled_from(["", "1", "a"]),
    st.sampled_from([b"1", torch.float16, torch.bfloat16, Kind.FAST, Kind.SLOW]),
)
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.lists(inner, max_size=2).map(tuple),
        st.dictionaries(st.sampled_from(["a", 1, True, 1.0]), inner, max_size=2),
        st.builds(Options, inner, inner),
    ),
    max_leaves=4,
)
names = st.sampled_from(["tile", "tp_rank", "some_cache", "_m", "device_index"])
shapes = st.tuples(st.sampled_from([1, 16, 50, 64]), st.sampled_from([1, 32]))


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(["shaped", "slim", "made"]))
    if kind == "shaped":
        runner = ShapedRunner(**draw(st.dictionaries(names, plain, max_size=2)))
    elif kind == "slim":
        runner = slim(**draw(st.dictionaries(st.sampled_from(["variable", "setting", "held", "extra", "tile"]), plain, max_size=2)))
    else:
        places = st.sampled_from(["variable", "default", "other", "plain", "keyword", "decorated"])
        runner = made(**draw(st.dictionaries(places, plain, max_size=2)))
    first = draw(shapes)
    tensor = torch.zeros(first[1], first[0]).T if draw(st.booleans()) else torch.zeros(first)
    inputs = [tensor, *draw(st.lists(plain, max_size=2))]
    arguments = draw(st.dictionaries(st.sampled_from(["out", "mode", "x_cache"]), st.one_of(plain, shapes.map(torch.zeros)), max_size=1))
    settings = draw(st.sampled_from([SETTINGS, config(), config(round_up=True), config((16, 64))]))
    return Case(runner, inputs, arguments, settings, draw(st.sampled_from(["op", "other op"])))


@given(st.lists(cases(), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_equal_fingerprints_mean_equal_keys_and_equal_left_out_values(prints, calls):
    seen = {}
    for case in calls:
        found = taken(prints, case)
        if found is None:
            continue
        described_now = described(case)
        assert seen.setdefault(found, described_now) == described_now


# -- tensors ----------------------------------------------------------------------------------------------------------------------

ALIKE = [torch.zeros(4, 6), torch.zeros(8)]
UNLIKE = [
    torch.zeros(6, 4).T,
    torch.zeros(4, 12)[:, :6],
    torch.zeros(4, 6, 1),
    torch.zeros(4, 6, dtype=torch.int32),
    torch.zeros(4, 6, device="meta"),
    torch.zeros(4, 6).to_sparse(),
    torch.zeros(4, 6).to_mkldnn(),
    torch.zeros(1).expand(4, 6),
]


@pytest.mark.parametrize("has_comparison", [True, False])
def test_tensors_have_the_number_of_others_only_if_they_are_alike_in_every_fact(monkeypatch, has_comparison):
    if not has_comparison:
        monkeypatch.setattr(tensors, "_guards", None)
    known = Tensors(itertools.count())
    numbers = {known.number([torch.zeros(4, 6), torch.zeros(8)]) for _ in range(4)}
    assert len(numbers) == 1
    for other in UNLIKE:
        assert known.number([other, ALIKE[1]]) not in numbers
        assert {known.number(ALIKE) for _ in range(3)} == numbers
    with torch.inference_mode():
        assert known.number([torch.zeros(4, 6), torch.zeros(8)]) in numbers


def test_one_tensor_in_two_places_is_compared_too(monkeypatch):
    known, tensor, other = Tensors(itertools.count()), torch.zeros(4, 6), torch.zeros(4, 6)
    number = [known.number([tensor, tensor, other]) for _ in range(4)][-1]
    monkeypatch.setattr(tensors, "_collect", lambda _: pytest.fail("the facts are collected"))
    assert known.number([tensor, tensor, other]) == number
    assert known.number([other, other, tensor]) == number
    monkeypatch.undo()
    assert known.number([tensor, other, tensor]) == number
    assert known.number([tensor, torch.zeros(6, 4).T, other]) != number
    assert known.number([tensor, tensor, torch.zeros(6, 4).T]) != number


def test_torch_compares_tensors_here():
    assert hasattr(tensors._guards, "TensorGuards"), "torch has it no more: serving costs twice as much"


def test_a_tensor_that_is_reshaped_in_place_is_seen():
    known, tensor = Tensors(itertools.count()), torch.zeros(4, 6)
    before = [known.number([tensor]) for _ in range(4)][-1]
    tensor.t_()
    turned = known.number([tensor])
    tensor.t_().resize_(4, 5)
    assert len({before, turned, known.number([tensor])}) == 3


def test_runners_of_a_module_and_made_ones_are_both_read(prints):
    assert isinstance(PlainRunner(), TunableRunner)
    assert vars(module_of_runners)["PlainRunner"] is PlainRunner
    assert taken(prints, of(PlainRunner()))[0] != taken(prints, of(made()))[0]
