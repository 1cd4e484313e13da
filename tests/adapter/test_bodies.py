"""Code and defaults of functions, compared by one look at a whole row: never taken for the same when they are not, whatever else is."""

import sys
from types import FunctionType

import pytest
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TunableRunner, TuningConfig, make_bucket_mapper

import fi_cachestore
from fi_cachestore.adapter import bodies
from tests.adapter.processes import fresh
from tests.adapter.runners import BUCKETS, PlainRunner, choose, matrix, timed


def made(default=3):
    """Functions as a class body makes them, anew each time: plain, with a closure, with more or less to them."""

    def plain(self):
        return 1

    def documented(self, other: int) -> int:
        """Return something."""
        return default

    def defaulted(self, other=3):
        return other

    return [plain, documented, defaulted, lambda value: value]


def deleted(function, name):
    delattr(function, name)


CHANGES = {
    "code": lambda function: setattr(function, "__code__", function.__code__.replace(co_firstlineno=1)),
    "defaults": lambda function: setattr(function, "__defaults__", (1, 2)),
    "equal defaults of other types": lambda function: setattr(function, "__defaults__", (3.0,)),
    "keyword defaults": lambda function: setattr(function, "__kwdefaults__", {"other": 1}),
    "defaults or none": lambda function: setattr(function, "__defaults__", None if function.__defaults__ else (3,)),
}
BESIDES = {
    "nothing": lambda _: None,
    "no module": lambda function: deleted(function, "__module__"),
    "no documentation": lambda function: deleted(function, "__doc__"),
    "no annotations": lambda function: deleted(function, "__annotations__"),
    "annotations": lambda function: setattr(function, "__annotations__", {"self": int}),
    "a dictionary": lambda function: setattr(function, "mark", 1),
}
READINGS = pytest.mark.parametrize("look", [bodies.same_as, bodies.same_as_read], ids=["same_as", "by reading"])


@READINGS
def test_functions_made_anew_are_the_same(look):
    same = look(made())
    assert same(made())
    assert not same(made()[::-1])
    assert not same([*made()[:3], lambda value: value])
    assert not same(made()[:3])
    assert not same([*made(), lambda value: value])


def test_these_are_told_by_one_look():
    assert bodies._by_referents(made()) is not None
    assert bodies._by_referents([PlainRunner.forward, fresh]) is not None


@READINGS
@pytest.mark.parametrize("beside", BESIDES)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("index", range(4))
def test_functions_of_other_code_or_defaults_never_are(look, index, change, beside):
    functions = made()
    CHANGES[change](functions[index])
    BESIDES[beside](functions[index])
    assert not look(made())(functions)
    assert not look(functions)(made())
    assert look(functions)(functions)


@READINGS
def test_a_copy_with_defaults_instead_of_annotations_is_another(look):
    """It refers to as many objects as the first."""
    functions = made()
    function = functions[1]
    copy = FunctionType(function.__code__, function.__globals__, function.__name__, (3,), function.__closure__)
    assert not look(functions)([functions[0], copy, *functions[2:]])


@READINGS
def test_what_is_no_body_of_a_function_may_change(look):
    functions = made()
    same = look(functions)
    functions[1].__closure__[0].cell_contents = 5
    assert same(functions)


def test_functions_that_do_not_tell_as_expected_are_read():
    """Documentation may be anything, which is not compared by content."""
    functions = made()
    functions[0].__doc__ = (1,)
    assert bodies._by_referents(functions) is None
    same = bodies.same_as(functions)
    assert same(functions)
    functions[0].__defaults__ = (1,)
    assert not same(functions)


def buckets(_most, least=1):
    """As FlashInfer's: of a module, with defaults."""
    return tuple(bucket for bucket in BUCKETS if bucket >= least)


SETTINGS = TuningConfig(dynamic_tensor_specs=(DynamicTensorSpec((0,), (0,), buckets, make_bucket_mapper(BUCKETS)),))


def announced(root):
    """What two remembered calls announce to audit hooks: one on a class of a module, one on a class that was made for it."""
    fi_cachestore.attach(root=root)
    tuner, tensor = AutoTuner.get(), matrix(50)

    def made_runner():
        class Made(TunableRunner):
            def get_valid_tactics(self, inputs, profile):
                return [0, 1]

            def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
                return inputs

        return Made()

    calls = {"plain": [PlainRunner()], "made": [made_runner()]}
    events = []
    is_noting = []
    sys.addaudithook(lambda event, _: events.append(event) if is_noting else None)
    found = {}
    for name, runners in calls.items():
        for _ in range(4):
            tuner.choose_one("op", runners, SETTINGS, [tensor])
        is_noting.append(True)
        tuner.choose_one("op", runners, SETTINGS, [tensor])
        is_noting.clear()
        found[name] = [*events]
        events.clear()
    return found


def test_a_hit_is_announced_to_audit_hooks_once(tmp_path):
    """filelock has such a hook from CPython 3.12 on, and others may: a look-up that reads every function's code is slow there."""
    fi_cachestore.detach()
    with timed(), fi_cachestore.autotune(root=tmp_path / "root"):
        choose("op", [PlainRunner()], [matrix(50)], SETTINGS)
    fi_cachestore.detach()
    assert fresh(announced, tmp_path / "root") == {"plain": ["gc.get_referents"], "made": ["gc.get_referents"]}
