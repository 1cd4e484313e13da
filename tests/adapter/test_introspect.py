"""What counts in a key, what is left out, and what cannot be described: the rules for runners without a contract."""

import contextlib
import dataclasses
import enum
import functools
import inspect
import sys
import textwrap
import threading
import types
import weakref
from collections import OrderedDict
from importlib import metadata
from pathlib import Path
from typing import ClassVar, NamedTuple

import flashinfer.autotuner
import numpy as np
import pytest
import torch
from flashinfer.autotune_cache import MeasurementPolicy
from flashinfer.autotuner import ConstraintSpec, DynamicTensorSpec, TunableRunner, TuningConfig, make_bucket_mapper
from flashinfer.fused_moe.utils import make_hybrid_bucket_mapper, map_to_hybrid_bucket_uncapped
from hypothesis import given
from hypothesis import strategies as st

import fi_cachestore
from fi_cachestore.adapter.contracts import Contract, load_contracts
from fi_cachestore.adapter.introspect import Call, Introspector, RunnerView
from fi_cachestore.adapter.layout import DERIVED, RawTensor, dynamic_dim, readings
from fi_cachestore.adapter.policy import from_rule, resolved, rule_fields
from fi_cachestore.adapter.roles import Role, mutated_names
from fi_cachestore.adapter.rounding import known_rounding
from fi_cachestore.adapter.sources import implementation_digest, release_of, release_of_class, source_text, type_name
from fi_cachestore.environment.facets import Role as EnvironmentRole
from fi_cachestore.environment.identity import Environments
from fi_cachestore.environment.probes import CPU_PROBES, Probe
from fi_cachestore.errors import ConfigError, IncompleteKeyError
from fi_cachestore.keys.canonical import Named
from fi_cachestore.records.rules import Rule
from tests.adapter import twin_a
from tests.adapter.processes import fresh
from tests.adapter.runners import BUCKETS, PlainRunner, config, matrix, with_output

ENVIRONMENTS = Environments()


class Mode(enum.Enum):
    A = 1
    B = 2


class ModeNumber(enum.IntEnum):
    A = 1


@dataclasses.dataclass
class Options:
    quant: str = "fp8"
    tp_rank: int = 0
    kv_lora_rank: int = 512
    inner: object = None


class HoldingRunner(PlainRunner):
    """Holds whatever it is given, under any name."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


def view(runner, inputs=None, tuning_config=None, contracts=None, **arguments):
    tuning_config = config() if tuning_config is None else tuning_config
    introspector = Introspector(contracts or {}, ENVIRONMENTS)
    return RunnerView(Call(introspector, "op", tuning_config, inputs or [matrix(100)], arguments, resolved(tuning_config, None)), runner)


def params(**attributes):
    made = view(HoldingRunner(**attributes))
    assert made.gaps == (), made.gaps
    return made.params


def key(runner=None, **given):
    made = view(runner or PlainRunner(), **given)
    (first, *_) = made.keys(made.call.bucket(), serving=True)
    return first


def gap_of(value):
    made = view(HoldingRunner(field=value))
    (gap,) = made.gaps
    assert gap.subject == type_name(HoldingRunner)
    return gap


# -- plain data and objects -------------------------------------------------------------------------------------------------------

DIFFERENT = [
    None,
    True,
    1,
    1.0,
    "1",
    b"1",
    (1,),
    [1],
    {"a": 1},
    {1: "a"},
    {"a": 1.0},
    {1, 2},
    {1, 2, 3},
    range(3),
    range(4),
    Mode.A,
    Mode.B,
    ModeNumber.A,
    np.int32(1),
    np.int64(1),
    np.float32(1),
    np.dtype("int32"),
    torch.float16,
    torch.bfloat16,
    torch.device("cpu"),
    torch.device("cuda", 0),
    torch.Size([1]),
    torch.contiguous_format,
    torch.channels_last,
    Options(),
    Options(quant="nvfp4"),
    Options(kv_lora_rank=256),
    Options(inner=[Mode.A]),
    types.SimpleNamespace(a=1),
    types.SimpleNamespace(a=True),
    OrderedDict(a=1),
    torch.zeros(3, 4),
    torch.zeros(4, 3).T,
    torch.zeros(3, 4, dtype=torch.float16),
    torch.zeros(3, 5),
    torch.zeros(3, 8)[:, :4],
    torch.zeros(4).expand(3, 4),
    functools.partial(int, base=2),
    functools.partial(int, base=8),
    functools.partial(int),
    functools.partial(int, 1),
    functools.partial(int, 2),
    functools.partial(functools.partial(int, 1), 2),
    int,
    float,
    len,
    torch.nn.functional.relu,
    twin_a.TwinRunner(),
    PlainRunner(),
    HoldingRunner(a=1),
    HoldingRunner(a=2),
]


def test_different_values_are_told_apart():
    digests = [key(HoldingRunner(field=value)).digest for value in DIFFERENT]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("value", DIFFERENT, ids=lambda value: type(value).__name__)
def test_a_value_has_one_digest(value):
    assert key(HoldingRunner(field=value)).digest == key(HoldingRunner(field=value)).digest


@pytest.mark.parametrize(
    "value",
    [
        object(),
        PlainRunner.forward,
        iter([]),
        (x for x in ()),
        1j,
        slice(1),
        memoryview(b"a"),
        bytearray(b"a"),
        np.zeros(3),
        torch.Generator(),
        threading.Thread(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_a_gap_that_names_runner_field_and_type(value):
    made = view(HoldingRunner(deep={"x": [value]}))
    if value is PlainRunner.forward:  # a function of unversioned code has its source
        assert made.gaps == ()
        return
    (gap,) = made.gaps
    assert (gap.subject, gap.field, gap.type_name) == (type_name(HoldingRunner), "deep['x'][0]", type_name(type(value)))


def test_text_that_is_not_unicode_is_a_gap():
    assert gap_of("\ud800").field == "field"


def test_what_is_too_long_or_too_deep_is_a_gap():
    assert "items" in gap_of(list(range(5000))).why
    deep = []
    for _ in range(200):
        deep = [deep]
    assert "deep" in gap_of(deep).why


def test_a_key_that_cannot_be_made_names_what_is_missing():
    with pytest.raises(IncompleteKeyError) as caught:
        fi_cachestore.tune_key("op", HoldingRunner(field=object()), [matrix(100)], tuning_config=config())
    assert [(gap.subject, gap.field) for gap in caught.value.gaps] == [(type_name(HoldingRunner), "field")]
    assert "field" in str(caught.value)


def test_resources_count_by_presence_alone():
    import tvm_ffi

    first, second = threading.Lock(), threading.Lock()
    assert params(a=first) == params(a=second)
    assert params(a=types.ModuleType("a")) == params(a=types.ModuleType("b"))
    assert params(a=first) != params(a=None)
    kinds = [
        first,
        threading.RLock(),
        types,
        weakref.ref(HoldingRunner),
        weakref.WeakKeyDictionary(),
        threading.Event(),
        tvm_ffi.get_global_func("ffi.Array"),
    ]
    assert all(params(a=kind)["a"].kind == "resource" for kind in kinds)


def test_enums_of_bound_libraries_count():
    import cudnn

    assert params(a=cudnn.data_type.HALF) != params(a=cudnn.data_type.FLOAT)


def test_sequences_of_other_libraries_count():
    import tvm_ffi

    assert params(a=tvm_ffi.Array([1, 2])) != params(a=tvm_ffi.Array([1, 3]))
    assert params(a=tvm_ffi.Array([1, 2])) != params(a=[1, 2])


def test_a_tuning_config_is_never_a_parameter():
    assert params(tuning_config=TuningConfig()) == {}
    assert params(other=config()) == params(other=TuningConfig(use_cuda_graph=True)) == {}


def test_cycles_are_written_as_references_back():
    parent = HoldingRunner(size=1)
    child = HoldingRunner(size=2, parent=parent)
    parent.child = child
    made = view(parent)
    assert made.gaps == ()
    assert made.params["child"].content["params"]["parent"] == Named("backref", "runner")
    other = HoldingRunner(size=1)
    other.child = HoldingRunner(size=3, parent=other)
    assert view(other).params != made.params
    loop = []
    loop.append(loop)
    assert params(field=loop) == params(field=loop)


def test_cycles_to_different_places_are_told_apart():
    def chain(last):
        top, middle = HoldingRunner(size=1), HoldingRunner(size=1)
        top.child = middle
        middle.back = {"top": top, "middle": middle}[last]
        return view(top).params

    assert chain("top") != chain("middle")


def test_the_order_of_a_set_does_not_count():
    first, second = set(range(0, 9, 8)), set(range(8, -1, -8))  # these iterate in the order in which they were filled
    assert list(first) != list(second)
    assert params(field=first) == params(field=second) != params(field={0})


@dataclasses.dataclass
class OtherOptions(Options):
    pass


class OtherPlainRunner(PlainRunner):
    pass


def test_what_something_is_counts_beside_what_it_holds():
    assert params(field=Options()) != params(field=OtherOptions())
    assert params(field=PlainRunner()) != params(field=OtherPlainRunner())
    assert key(PlainRunner()).digest != key(OtherPlainRunner()).digest


def test_enums_of_one_name_with_other_values_are_told_apart():
    def make(value):
        class Same(enum.Enum):
            A = value

        return Same.A

    assert params(field=make(1)) != params(field=make(2))


# -- names and places -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tp_rank", "ep_rank", "cluster_rank", "cp_rank", "tensor_parallel_rank", "local_expert_offset", "device_index"]
)
def test_places_are_left_out_by_name(name):
    assert params(**{name: 1}) == params(**{name: 2}) == {}
    assert (name, Role.PLACEMENT) in view(HoldingRunner(**{name: 1})).left_out


@pytest.mark.parametrize("item", [None, {}, {"a": torch.zeros(2)}, [], [3], {1}, object()], ids=lambda item: type(item).__name__)
def test_memos_are_left_out_by_name(item):
    assert params(plan_cache=item) == params(plan_cache=None) == {}


SIZES = ["kv_lora_rank", "q_lora_rank", "lora_rank", "svd_rank", "svdquant_rank", "adapter_rank", "rank"]


@pytest.mark.parametrize("name", [*SIZES, "ranks", "rank_count", "cache", "cache_size", "local_expert_count", "use_l2_cache"])
def test_sizes_that_are_called_ranks_or_caches_count(name):
    assert params(**{name: 1}) != params(**{name: 2})


def test_tensors_that_are_called_caches_count():
    for wrap in (lambda tensor: tensor, lambda tensor: (tensor, tensor), lambda tensor: [tensor]):
        low, high = (wrap(torch.zeros(3, 4, dtype=dtype)) for dtype in (torch.int8, torch.bfloat16))
        assert params(kv_cache=low) != params(kv_cache=high)
        assert key(kv_cache=low).digest != key(kv_cache=high).digest


def test_names_count_inside_configuration_objects_and_not_inside_data():
    assert params(field=Options(tp_rank=0)) == params(field=Options(tp_rank=1))
    assert params(field=Options(inner=Options(tp_rank=0))) == params(field=Options(inner=Options(tp_rank=1)))
    assert params(field=types.SimpleNamespace(ep_rank=0)) == params(field=types.SimpleNamespace(ep_rank=1))
    assert params(field={"tp_rank": 0}) != params(field={"tp_rank": 1})


def test_the_index_of_a_device_is_a_place():
    assert params(field=torch.device("cuda", 0)) == params(field=torch.device("cuda", 1))


class StatefulRunner(PlainRunner):
    shared: ClassVar = {}
    registry: ClassVar = {"a": 1}
    limit = 4
    table = ("a", "b")
    _hidden = 3
    memo_cache = ()
    run_count = 0

    def __init__(self, size):
        self.size = size
        self.options = {"a": 1}
        self._configure(size)
        self._reset()
        self.buffer = None
        self.counts = {}
        self.log = []
        StatefulRunner.shared[size] = object()

    def _configure(self, size):
        self.configured = 2 * size
        self._more(size)

    def _more(self, size):
        self.more = 3 * size

    def _helper(self):
        self.helped = True

    def _reset(self):
        self.filled = 0

    @functools.cached_property
    def derived(self):
        return self.size + 1

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        self.buffer = torch.zeros(3)
        self.counts[tactic] = self.counts.get(tactic, 0) + 1
        self.log.append(tactic)
        self._helper()
        self._reset()
        StatefulRunner.run_count += 1
        setattr(self, "named", 3)  # noqa: B010 - another way to change an attribute
        self.total: int = 3
        self.late = self.derived
        (self.first, self.second) = (1, 2)
        type(self).registry.update(b=2)
        return inputs[0]


def test_what_methods_change_after_construction_is_state():
    names = mutated_names(StatefulRunner, TunableRunner)
    assert names >= {
        "shared",
        "buffer",
        "counts",
        "log",
        "helped",
        "total",
        "late",
        "first",
        "second",
        "derived",
        "filled",
        "named",
        "run_count",
    }
    assert not names & {"size", "options", "configured", "more", "limit", "table"}


def test_what_only_constructors_set_is_a_parameter():
    plain = {"class.limit", "class.table", "class._hidden", "class.registry"}
    assert set(view(StatefulRunner(1)).params) == {"size", "options", "configured", "more"} | plain
    assert view(StatefulRunner(1)).params != view(StatefulRunner(2)).params


def test_a_forward_call_changes_no_key():
    runner = StatefulRunner(1)
    before = {name: value for name, value in view(runner).params.items() if name != "class.registry"}
    runner([matrix(3)])
    assert {name: value for name, value in view(runner).params.items() if name != "class.registry"} == before


def test_classes_of_one_name_have_their_own_state():
    def make(is_changed):
        if is_changed:

            class Same(PlainRunner):
                def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
                    self.size = 3

        else:

            class Same(PlainRunner):
                def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
                    return self.size

        return Same

    assert mutated_names(make(True), TunableRunner) == {"size"}
    assert mutated_names(make(False), TunableRunner) == set()


class SlottedRunner(PlainRunner):
    __slots__ = ("size", "unset")

    def __init__(self, size):
        self.size = size


def test_slots_count():
    assert view(SlottedRunner(1)).params == {"size": 1}
    assert view(SlottedRunner(1)).params != view(SlottedRunner(2)).params


class Base(PlainRunner):
    block = 64


class Derived(Base):
    pass


class Overriding(Base):
    block = 128


def test_class_attributes_count_with_those_of_bases():
    assert view(Derived()).params == {"class.block": 64}
    assert view(Overriding()).params == {"class.block": 128}


# -- code -------------------------------------------------------------------------------------------------------------------------


def test_lambdas_of_one_line_are_told_apart():
    first, second = lambda x: x + 1, lambda x: x + 2
    nested = lambda x: lambda y: x + y
    helpers = [
        first,
        second,
        nested,
        nested(1),
        nested(2),
        lambda: 0,
        lambda: 1,
        lambda x: 1,
        lambda *x: 1,
        lambda: True,
        lambda: (1,),
        lambda: -1,
    ]
    assert len({key(make_closure_runner(0, helper)).digest for helper in helpers}) == len(helpers)


def make_closure_runner(value, helper=None):
    class ClosureRunner(PlainRunner):
        def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
            return value, helper

        @property
        def a_property(self):
            return value

        @staticmethod
        def a_static():
            return value

        @classmethod
        def a_class_method(cls):
            return value

    return ClosureRunner()


def test_closure_cells_of_all_methods_count():
    assert view(make_closure_runner(1)).params == {"closure.value": 1, "closure.helper": None}
    assert view(make_closure_runner(1)).params != view(make_closure_runner(2)).params
    assert key(make_closure_runner(1)).digest == key(make_closure_runner(1)).digest


def captures(kind, value):
    """A runner of which one member alone knows ``value``."""

    def function(*_):
        return value

    member = {
        "method": lambda: function,
        "property": lambda: property(function),
        "setter": lambda: property(None, function),
        "static method": lambda: staticmethod(function),
        "class method": lambda: classmethod(function),
        "cached property": lambda: functools.cached_property(function),
        "cached method": lambda: functools.cache(function),
    }[kind]()
    return type("CapturingRunner", (PlainRunner,), {"member": member})()


@pytest.mark.parametrize("kind", ["method", "property", "setter", "static method", "class method", "cached property", "cached method"])
def test_every_kind_of_member_has_its_closure_counted(kind):
    assert view(captures(kind, 1)).params == {"closure.value": 1}
    assert key(captures(kind, 1)).digest != key(captures(kind, 2)).digest


def test_variables_of_one_name_in_different_methods_all_count():
    def make(first, second):
        def capturing(value):
            return lambda *_: value

        return type("TwoRunner", (PlainRunner,), {"one": capturing(first), "two": capturing(second)})()

    assert len({key(make(*values)).digest for values in [(1, 2), (1, 3), (2, 1), (1, 1)]}) == 4


def test_a_class_that_is_held_counts_with_its_data():
    def make(size):
        class Same:
            block = size

        return Same

    assert params(field=make(1)) != params(field=make(2))


def test_a_cached_function_counts_like_the_function():
    def make(step):
        return functools.cache(lambda x: x + step)

    assert params(field=make(1)) != params(field=make(2))
    assert params(field=make(1)) == params(field=make(1))


def test_keyword_defaults_count():
    def make(default):
        def helper(x, *, y=default):
            return x + y

        return helper

    assert params(field=make(1)) != params(field=make(2))


def test_functions_count_by_source_defaults_and_closure():
    def make(step, default):
        def helper(x, y=default, *, z=step):
            return x + y + step

        return helper

    digests = [key(make_closure_runner(0, make(*given))).digest for given in [(1, 1), (1, 2), (2, 1), (1, 1)]]
    assert len(set(digests[:3])) == 3
    assert digests[0] == digests[3]


def test_functions_of_versioned_packages_count_by_name():
    made = view(make_closure_runner(0, map_to_hybrid_bucket_uncapped)).params["closure.helper"]
    assert "flashinfer.fused_moe.utils:map_to_hybrid_bucket_uncapped" in str(made)
    named = view(make_closure_runner(0, torch.nn.functional.relu)).params["closure.helper"]
    assert set(named.content) >= {"name"}
    assert "source" not in named.content


def test_code_without_source_is_a_gap():
    namespace = {"PlainRunner": PlainRunner}  # without a module's name, so that what is made claims to be a builtin
    exec("class MadeUp(PlainRunner):\n    def forward(self, inputs, **kwargs):\n        return 1\nhelper = lambda: 3", namespace)
    assert any(gap.field == "type" for gap in view(namespace["MadeUp"]()).gaps)
    assert view(HoldingRunner(field=namespace["helper"])).gaps


def test_two_classes_with_one_name_and_other_methods_are_told_apart():
    def make(flag):
        if flag:

            class Same(PlainRunner):
                def time_ms(self, tactic):
                    return 1.0

        else:

            class Same(PlainRunner):
                def time_ms(self, tactic):
                    return 2.0

        return Same()

    assert type_name(type(make(True))) == type_name(type(make(False)))
    assert key(make(True)).digest != key(make(False)).digest


def test_which_release_code_belongs_to():
    assert release_of("flashinfer.gemm.gemm_base") == ""  # a facet of every key
    assert release_of("json") == ""
    assert release_of("torch.nn") == f"torch {metadata.version('torch')}"
    assert release_of("_pytest.config") == f"pytest {metadata.version('pytest')}"  # known by where it lies
    assert release_of("__main__") is None
    assert release_of("fi_cachestore.testing.reference_gemm") is None  # an editable install
    assert release_of("tests.adapter.runners") is None
    assert release_of("no_such_module") is None
    assert release_of(None) is None


def test_the_source_of_a_function_is_that_of_its_code_wherever_it_says_it_is_from():
    @functools.wraps(release_of)
    def wrapping():
        return 1

    assert source_text(wrapping) == textwrap.dedent(inspect.getsource(wrapping.__code__))
    assert source_text(release_of.__wrapped__) == inspect.getsource(release_of)
    namespace = {"__name__": "tests.adapter.runners"}  # whose loader knows a source
    exec(compile("def made(): return 1", "/no/such/file.py", "exec"), namespace)
    assert namespace["made"].__module__ == "tests.adapter.runners"
    assert source_text(namespace["made"]) is None


def test_code_that_only_claims_a_module_has_no_release():
    assert release_of("torch.nn", __file__) is None
    assert release_of("torch.nn", "<string>") is None
    assert release_of("json", __file__) is None
    assert release_of("json", torch.__file__) is None
    assert release_of("torch.nn", contextlib.__file__) is not None  # what the standard library wraps around


def test_a_class_with_code_of_elsewhere_has_no_release():
    own = type("Patched", (PlainRunner,), {"__module__": "torch.nn", "time_ms": HoldingRunner.__init__})
    assert release_of_class(own, TunableRunner) is None
    assert release_of_class(torch.nn.Linear, torch.nn.Module) == release_of("torch.nn")


def test_another_release_of_a_package_is_another_key(tmp_path):
    """A kernel package is upgraded: same names, other code, and nothing of it in any facet."""
    digests = [fresh(digests_of_installed, install(tmp_path / version, version)) for version in ("1.0", "1.1")]
    assert all(before != after for before, after in zip(*digests, strict=True))
    assert digests[0] == fresh(digests_of_installed, tmp_path / "1.0")


def install(site, version):
    package = site / "kernel_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(INSTALLED)
    info = site / f"kernel_package-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernel-package\nVersion: {version}\n")
    (info / "RECORD").write_text("kernel_package/__init__.py,,\n")
    return site


INSTALLED = """
from flashinfer.autotuner import TunableRunner
from tests.adapter.runners import PlainRunner

def helper(x):
    return x

class InstalledRunner(PlainRunner):
    def __init__(self):
        self.helper = helper

class OwnRunner(TunableRunner):
    def get_valid_tactics(self, inputs, profile):
        return [0]

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        return inputs[0]
"""


def digests_of_installed(site):
    sys.path.insert(0, str(site))
    import kernel_package

    made = view(kernel_package.InstalledRunner())
    assert made.params["helper"].content["release"].startswith("kernel-package 1.")
    digests = [key(runner()).digest for runner in (kernel_package.InstalledRunner, kernel_package.OwnRunner)]
    assert view(kernel_package.OwnRunner()).type.startswith("kernel_package:OwnRunner kernel-package 1.")
    return digests


@dataclasses.dataclass(frozen=True)
class Chosen:
    tile: int = 1

    def doubled(self):
        return 2 * self.tile


class Pair(NamedTuple):
    left: int
    right: int = 2


def test_classes_whose_functions_are_generated_count():
    for cls in (Chosen, Pair):
        found = params(field=cls)["field"]
        assert view(HoldingRunner(field=cls)).gaps == ()
        assert cls.__qualname__ in found.content["type"]


UNSET = type("Unset", (), {"__module__": "flashinfer.autotuner"})()
OWN_UNSET = type("Unset", (), {})()


def test_a_sentinel_of_a_released_module_counts_by_its_name(monkeypatch):
    monkeypatch.setattr(flashinfer.autotuner, "UNSET", UNSET, raising=False)
    assert view(HoldingRunner(field=UNSET)).gaps == ()
    assert params(field=UNSET) != params(field=None)
    assert view(HoldingRunner(field=type(UNSET)())).gaps != ()  # another object of the class
    UNSET.state = 3
    assert view(HoldingRunner(field=UNSET)).gaps != ()  # something is in it
    del UNSET.state
    with_release = type("Unset", (), {"__module__": "torch.nn"})()
    monkeypatch.setattr(torch.nn, "UNSET", with_release, raising=False)
    assert params(field=with_release)["field"] == Named("constant", f"torch.nn:UNSET {release_of('torch.nn')}")
    filled = type("Filled", (Exception,), {"__module__": "torch.nn"})("something that no attribute shows")
    monkeypatch.setattr(torch.nn, "FILLED", filled, raising=False)
    assert view(HoldingRunner(field=filled)).gaps != ()
    assert view(HoldingRunner(field=OWN_UNSET)).gaps != ()  # its module is no release's, and may change


def test_methods_count_with_the_object_they_belong_to():
    assert params(a=HoldingRunner(size=1).forward) != params(a=HoldingRunner(size=2).forward)


# -- inputs, arguments, profile ---------------------------------------------------------------------------------------------------


def test_dynamic_and_derived_dims_are_symbols_and_static_ones_numbers():
    tuning_config = config(constraint_specs=with_output(1))
    made = key(inputs=[matrix(100, 32), matrix(100, 8)], tuning_config=tuning_config)
    shapes = [item.content["shape"] for item in made.inputs]
    assert shapes == [(dynamic_dim(0), 32), (DERIVED, 8)]
    assert made.profile == ({"bucket": 64, "rounding": Named("rounding", "floor")},)


def test_negative_dims_are_the_same_dims():
    first = TuningConfig(dynamic_tensor_specs=(DynamicTensorSpec((0,), (-2,), BUCKETS, make_bucket_mapper(BUCKETS)),))
    assert key(tuning_config=first).inputs == key(tuning_config=config()).inputs


@pytest.mark.parametrize("rows", [16, 40, 63, 64, 100, 255])
def test_sizes_of_one_bucket_have_one_key(rows):
    same = [size for size in range(16, 256) if (size >= 64) == (rows >= 64)]
    digests = {key(inputs=[matrix(size)]).digest for size in same[::17]}
    assert digests == {key(inputs=[matrix(rows)]).digest}


def test_dims_of_arguments_that_equal_the_dynamic_dim_are_that_dim():
    digests = {key(inputs=[matrix(rows)], weights=matrix(rows, 8), scale=torch.zeros(3)).digest for rows in (70, 80, 90)}
    assert len(digests) == 1
    assert key(inputs=[matrix(70)], weights=matrix(71, 8)).digest != key(inputs=[matrix(80)], weights=matrix(81, 8)).digest


def test_a_static_dim_that_happens_to_equal_the_dynamic_one_is_tried_as_a_number_too():
    made = view(PlainRunner(), inputs=[matrix(80)], weights=matrix(80, 8))
    elsewhere = key(inputs=[matrix(70)], weights=matrix(80, 8))
    assert elsewhere in made.keys(made.call.bucket(), serving=True)


@pytest.mark.parametrize("make", [lambda rows: matrix(rows, 8), lambda rows: torch.zeros(8, rows).T], ids=["row-major", "column-major"])
def test_what_was_tuned_with_many_rows_is_found_with_one(make):
    made = view(PlainRunner(), inputs=[matrix(1)], weights=make(1))
    assert key(inputs=[matrix(17)], weights=make(17)) in made.keys(made.call.bucket(), serving=True)


def test_of_two_dims_that_equal_the_dynamic_one_either_may_be_it():
    made = view(PlainRunner(), inputs=[matrix(80)], weights=matrix(80, 80))
    found = made.keys(made.call.bucket(), serving=True)
    for shape in ((70, 80), (80, 70), (70, 70), (80, 80)):
        assert key(inputs=[matrix(70)], weights=matrix(*shape)) in found


@pytest.mark.parametrize("rows", [1, 16])
def test_a_profile_has_the_key_that_a_call_of_its_size_has(rows):
    tuning_config = config((1, 16), constraint_specs=with_output(1))
    made = view(PlainRunner(), inputs=[matrix(100), matrix(100, 8)], tuning_config=tuning_config)
    tuned = [made.keys(made.call.bucket(((size, 32), (100, 8))), serving=False) for size in (16, 1)]
    there = view(PlainRunner(), inputs=[matrix(rows), matrix(rows, 8)], tuning_config=tuning_config)
    assert tuned[rows == 1][0] in there.keys(there.call.bucket(), serving=True)


def test_negative_derived_dims_are_the_same_dims():
    keys = [
        key(inputs=[matrix(100), matrix(100, 8)], tuning_config=config(constraint_specs=(ConstraintSpec(1, dim, lambda s: s[0][0]),)))
        for dim in (0, -2)
    ]
    assert keys[0].inputs == keys[1].inputs


class DerivedExtrasRunner(PlainRunner):
    def get_cache_key_extras(self, inputs):
        return (inputs[1].shape[0],)


def test_derived_dims_follow_the_bucket():
    tuning_config = config(constraint_specs=with_output(1))
    digests = {
        key(DerivedExtrasRunner(), inputs=[matrix(rows), matrix(rows, 8)], tuning_config=tuning_config).digest for rows in (64, 70, 80)
    }
    assert len(digests) == 1


def test_performance_facets_are_compared_where_strict():
    def digest(driver, strict):
        environments = Environments(lambda _: (*CPU_PROBES, Probe("driver", EnvironmentRole.PERFORMANCE, lambda _: driver)))
        call = Call(Introspector({}, environments, strict), "op", config(), [matrix(100)], {}, {})
        return RunnerView(call, PlainRunner()).keys(call.bucket(), serving=True)[0].digest

    assert digest("1", False) == digest("2", False)
    assert digest("1", True) != digest("2", True)


def test_where_a_tensor_lies_counts():
    here, nowhere = (params(field=torch.zeros(3, 4, device=device)) for device in ("cpu", "meta"))
    assert here != nowhere


def test_arguments_count_like_inputs():
    arguments = [
        {},
        {"a": 1},
        {"a": True},
        {"a": None},
        {"b": 1},
        {"a": torch.float16},
        {"a": matrix(3)},
        {"a": [matrix(3)]},
        {"a": Mode.A},
    ]
    assert len({key(**given).digest for given in arguments}) == len(arguments)


def test_places_among_arguments_are_left_out():
    assert key(local_expert_offset=0, ep_rank=1).digest == key(local_expert_offset=8, ep_rank=2).digest == key().digest


@pytest.mark.parametrize("name", ["out", "lse", "routing_replay_out"])
def test_outputs_among_arguments_count_by_presence_and_dtype(name):
    given = key(**{name: matrix(100, 8)}).digest
    assert given == key(**{name: matrix(8192, 9)}).digest
    assert given != key().digest
    assert key(**{name: None}).digest != key().digest
    assert given != key(**{name: matrix(100, 8, torch.float16)}).digest


def test_a_sparse_tensor_is_a_gap():
    sparse = torch.zeros(3, 3).to_sparse()
    assert [gap.field for gap in view(PlainRunner(), inputs=[matrix(100), sparse]).gaps] == ["inputs[1]"]
    assert [gap.field for gap in view(PlainRunner(), a=sparse).gaps] == ["arguments.a"]


def test_two_gpus_are_a_gap_and_the_device_of_the_tensors_counts(monkeypatch):
    from unittest import mock

    def on(index):
        tensor = mock.Mock(spec=torch.Tensor)
        tensor.device = torch.device("cuda", index)
        return tensor

    from fi_cachestore.adapter.introspect import device_of
    from fi_cachestore.environment.facets import Device

    assert device_of([on(1), torch.zeros(1)]) == Device("cuda", 1)
    assert device_of([on(0), on(1)]) is None
    monkeypatch.setattr("fi_cachestore.adapter.introspect.device_of", lambda inputs: None)
    assert [gap.field for gap in view(PlainRunner()).gaps] == ["inputs"]


# -- rounding ---------------------------------------------------------------------------------------------------------------------


def roundings(mapper):
    spec = DynamicTensorSpec((0,), (0,), BUCKETS, mapper)
    made = key(tuning_config=TuningConfig(dynamic_tensor_specs=(spec,)))
    return made.profile[0]["rounding"]


def make_mapper(buckets, up):
    def mapper(size):
        return 64 if up else buckets[1]

    return mapper


def test_directions_differ_and_lists_do_not_count():
    assert (
        roundings(make_bucket_mapper((16, 64), round_map=False))
        == roundings(make_bucket_mapper(BUCKETS, round_map=False))
        == Named("rounding", "floor")
    )
    assert roundings(make_bucket_mapper(BUCKETS, round_map=True)) == Named("rounding", "ceil")
    assert roundings(make_hybrid_bucket_mapper(8192)) == roundings(make_hybrid_bucket_mapper(16384))
    assert roundings(make_hybrid_bucket_mapper(8192)) != roundings(map_to_hybrid_bucket_uncapped)
    assert roundings(make_mapper((16, 64), True)) == roundings(make_mapper((16, 64, 256), True))
    assert roundings(make_mapper((16, 64), True)) != roundings(make_mapper((16, 64), False))


def test_a_mapper_that_a_runner_holds_counts_by_direction():
    assert known_rounding(len) is None
    floor, longer, ceil = make_bucket_mapper((16, 64)), make_bucket_mapper(BUCKETS), make_bucket_mapper(BUCKETS, round_map=True)
    assert params(m=floor) == params(m=longer)
    assert params(m=floor) != params(m=ceil)
    made = view(HoldingRunner(m=ceil))
    assert made.held_mappers == (ceil,)
    (gap,) = made.keys(made.call.bucket(), serving=True)
    assert gap.field == "rounding"


def test_the_calls_own_mapper_is_known_where_a_runner_holds_it():
    mapper, other = make_mapper((16, 64), True), make_mapper((16, 64), False)
    tuning_config = TuningConfig(dynamic_tensor_specs=(DynamicTensorSpec((0,), (0,), BUCKETS, mapper),))
    made = view(HoldingRunner(m=mapper, other=other), tuning_config=tuning_config)
    assert made.held_mappers == (mapper,)
    assert made.params["m"].kind == "rounding"
    assert made.params["other"].kind == "function"


# -- how times are taken ----------------------------------------------------------------------------------------------------------


def test_how_times_are_taken_counts():
    graph = {"use_cuda_graph": True}
    ways = [
        {},
        graph,
        {"use_cold_l2_cache": True},
        {**graph, "cuda_graph_profile_replays": 20},
        {**graph, "use_cold_l2_graph_replay": True},
    ]
    assert len({key(tuning_config=config(**way)).digest for way in ways}) == len(ways)
    assert key(tuning_config=config(cuda_graph_profile_replays=20)).digest == key().digest  # replays of graphs, and there are none


def policy_part(**given):
    return resolved(config(), MeasurementPolicy(**given))


def test_the_timer_counts_and_falls_back_where_it_does_not_work():
    timers = ["cupti", "events", "events_no_delay"]
    parts = [policy_part(execution_mode="cuda_graph", _timer=timer) for timer in timers]
    assert [part["timer"] for part in parts] == timers
    policy = MeasurementPolicy(execution_mode="cuda_graph", _timer="cupti")
    assert resolved(config(), policy, cupti_works=False)["timer"] == "events"
    assert resolved(config(), None) == resolved(config(), MeasurementPolicy(_timer="events"))


@pytest.mark.parametrize("execution_mode", ["auto", "cuda_graph", "eager"])
@pytest.mark.parametrize("cold_l2", [None, True, False])
@pytest.mark.parametrize("timer", ["auto", "events", "events_no_delay"])
def test_a_policy_survives_as_a_rule(execution_mode, cold_l2, timer):
    policy = MeasurementPolicy(execution_mode=execution_mode, cold_l2=cold_l2, _timer=timer)
    assert from_rule(Rule(**rule_fields(policy))) == policy


def test_a_key_for_people_has_the_policy_applied():
    def digest(policy):
        return fi_cachestore.tune_key("op", PlainRunner(), [matrix(100)], tuning_config=config(), policy=policy).digest

    policies = [None, MeasurementPolicy("cuda_graph"), MeasurementPolicy("cuda_graph", cold_l2=True)]
    assert len(set(map(digest, policies))) == len(policies)


# -- layout -----------------------------------------------------------------------------------------------------------------------


def layout(tensor, bucketed=None, symbols=()):
    raw = RawTensor("dtype", tuple(tensor.shape), tuple(tensor.stride()), "cpu")
    return readings(raw, bucketed or raw.sizes, {dim: dynamic_dim(0) for dim in symbols})


def test_row_and_column_major_differ_and_density_counts():
    assert layout(torch.zeros(4, 8)) == [Named("layout", {"order": (0, 1), "strides": None})]
    assert layout(torch.zeros(8, 4).T) == [Named("layout", {"order": (1, 0), "strides": None})]
    assert layout(torch.zeros(4, 16)[:, :8]) == [Named("layout", {"order": (0, 1), "strides": (16, 1)})]
    assert layout(torch.zeros(8).expand(4, 8)) == [Named("layout", {"order": (1, 0), "strides": (1, "broadcast")})]


def test_a_stride_that_depends_on_a_dynamic_dim_is_not_a_number():
    for rows in (3, 5):
        padded = torch.zeros(8, rows + 13).T[:rows]
        assert layout(padded, symbols=(0,)) == [Named("layout", {"order": (1, 0), "strides": ("padded", 1)})]
        assert layout(torch.zeros(rows, 16)[:, :8], symbols=(0,)) == [Named("layout", {"order": (0, 1), "strides": (16, 1)})]


def test_dims_whose_bucket_is_one_are_left_out():
    for tensor in (torch.zeros(100, 8), torch.zeros(8, 100).T, torch.zeros(1, 8), torch.zeros(8, 1).T):
        assert layout(tensor, (1, 8), symbols=(0,)) == [Named("layout", {"order": (1,), "strides": None})]
    for rows in (3, 5):  # their size still shows in the strides of others
        padded = torch.zeros(8, rows + 13).T[:rows]
        assert layout(padded, (1, 8), symbols=(0,)) == [Named("layout", {"order": (1,), "strides": ("padded",)})]


def test_where_a_dim_is_one_now_and_not_in_its_bucket_row_major_comes_first():
    row, column = Named("layout", {"order": (0, 1), "strides": None}), Named("layout", {"order": (1, 0), "strides": None})
    for tensor in (torch.zeros(1, 8), torch.zeros(8, 1).T):
        assert layout(tensor, (16, 8), symbols=(0,)) == [row, column]
    assert layout(torch.zeros(2, 16)[:1, :8], (16, 8), symbols=(0,)) == [
        row,
        Named("layout", {"order": (0, 1), "strides": (16, 1)}),
        column,
    ]
    assert len(layout(torch.zeros(1, 1, 1, 1), (2, 3, 4, 5), symbols=(0,))) == 8


@given(st.permutations([0, 1, 2]), st.integers(2, 5), st.integers(2, 5), st.sampled_from([1, 2, 3, 7]))
def test_every_size_has_the_reading_it_was_tuned_under(order, width, depth, rows):
    """A tensor of any dim order, tuned with many rows, is found with few."""

    def tensor(count):
        sizes = [count, width, depth]
        return torch.zeros([sizes[dim] for dim in order]).permute(*[order.index(dim) for dim in range(3)])

    tuned = layout(tensor(50), (64, width, depth), symbols=(0,))
    assert len(tuned) == 1
    assert tuned[0] in layout(tensor(rows), (64, width, depth), symbols=(0,))


# -- contracts --------------------------------------------------------------------------------------------------------------------


class ContractedRunner(PlainRunner):
    def __init__(self):
        self.thing = object()
        self.max_seq_len = 10
        self.memo_cache = 1
        self.options = Options()


def contract(**terms):
    fingerprint = implementation_digest(ContractedRunner, TunableRunner)[:16]
    return {type_name(ContractedRunner): Contract(**{"type": type_name(ContractedRunner), "fingerprint": fingerprint, **terms})}


def test_a_contract_gives_roles_where_the_rules_would_not():
    runner = ContractedRunner()
    assert [gap.field for gap in view(runner).gaps] == ["thing"]
    roles = {"thing": Role.RESOURCE, "max_seq_len": Role.DYNAMIC, "memo_cache": Role.SEMANTIC, "options.quant": Role.RESOURCE}
    made = view(runner, contracts=contract(roles=roles))
    assert made.gaps == ()
    assert set(made.params) == {"memo_cache", "options"}
    assert "quant" not in str(made.params["options"])
    assert ("thing", Role.RESOURCE) in made.left_out
    assert ("options.quant", Role.RESOURCE) in made.left_out


def test_a_contract_holds_for_one_state_of_a_class():
    made = view(ContractedRunner(), contracts=contract(roles={"thing": Role.RESOURCE}, fingerprint="0" * 16))
    assert [gap.field for gap in made.gaps] == ["thing"]


def test_a_contract_for_a_runner_inside_holds_there_too():
    made = view(HoldingRunner(inner=ContractedRunner()), contracts=contract(roles={"thing": Role.RESOURCE}))
    assert made.gaps == ()
    made = view(HoldingRunner(inner=ContractedRunner()), contracts=contract(roles={"thing": Role.RESOURCE}, fingerprint="0" * 16))
    assert [gap.field for gap in made.gaps] == ["inner.thing"]


class BlockRunner(PlainRunner):
    block = 64
    size = 0

    def __init__(self):
        self.plan = 0
        self.inner = HoldingRunner(thing=object())

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        self.plan = 1
        return inputs[0]


def contract_of(runner_class, **roles):
    fingerprint = implementation_digest(runner_class, TunableRunner)[:16]
    return {type_name(runner_class): Contract(type=type_name(runner_class), fingerprint=fingerprint, roles=roles)}


def block_params(**roles):
    return view(BlockRunner(), contracts=contract_of(BlockRunner, **roles))


def test_a_contract_speaks_of_class_attributes_and_before_what_methods_change():
    made = block_params(**{"class.block": Role.RESOURCE, "plan": Role.SEMANTIC, "inner": Role.RESOURCE})
    assert made.params == {"class.size": 0, "plan": 0}
    assert block_params(inner=Role.RESOURCE).params == {"class.block": 64, "class.size": 0}


class HidingRunner(BlockRunner):
    block = object()


def test_what_a_class_hides_of_its_base_does_not_count():
    inner = contract_of(HidingRunner, inner=Role.RESOURCE)
    assert view(HidingRunner(), contracts=inner).params == {"class.size": 0}


def test_a_contract_does_not_speak_for_a_runner_inside():
    made = block_params(**{"inner.thing": Role.RESOURCE})
    assert [gap.field for gap in made.gaps] == ["inner.thing"]


def test_roles_of_arguments():
    arguments = contract(roles={"thing": Role.RESOURCE}, arguments={"seq_len": Role.DYNAMIC})
    first, second = (view(ContractedRunner(), contracts=arguments, seq_len=value).arguments for value in (1, 2))
    assert first == second == {}


def test_a_contract_speaks_of_the_items_of_a_mapping():
    def made(offset, bits=4):
        arguments = contract(roles={"thing": Role.RESOURCE}, arguments={"state['offset']": Role.PLACEMENT})
        return view(ContractedRunner(), contracts=arguments, state=types.MappingProxyType({"offset": offset, "bits": bits}))

    assert made(0).arguments == made(8).arguments != made(0, bits=8).arguments
    assert ("arguments.state['offset']", Role.PLACEMENT) in made(0).left_out


class PlacedRunner(PlainRunner):
    def __init__(self, offset, where):
        self.offset = offset
        self.where = where

    def get_cache_key_extras(self, inputs):
        return ("op", self.offset, ("catalogue", self.where))


def test_a_contract_leaves_positions_out_of_the_extras():
    fingerprint = implementation_digest(PlacedRunner, TunableRunner)[:16]
    roles = {"offset": Role.PLACEMENT, "where": Role.PLACEMENT}
    extras = {(1,): Role.PLACEMENT, (2, 1): Role.PLACEMENT, (2, 9): Role.PLACEMENT, (0, 1): Role.PLACEMENT}

    def made(offset, where, extras):
        terms = Contract(type_name(PlacedRunner), fingerprint, roles, extras=extras)
        return key(PlacedRunner(offset, where), contracts={terms.type: terms})

    assert made(0, Path("/a"), extras) == made(8, Path("/b"), extras)
    assert made(0, Path("/a"), extras).extras == ("op", None, ("catalogue", None))
    assert made(0, "a", {(1,): Role.PLACEMENT}) != made(0, "b", {(1,): Role.PLACEMENT})
    terms = Contract(type_name(PlacedRunner), fingerprint, roles, extras={(1,): Role.PLACEMENT})
    assert ("extras.1", Role.PLACEMENT) in view(PlacedRunner(0, "a"), contracts={terms.type: terms}).left_out


ROW = """
[[runner]]
type = "module:Runner"
fingerprint = "0123"
"""


def test_a_row_is_read_as_it_stands():
    text = """
    backends = ["cublas"]
    collective = true
    checks_size = true
    space = "indexed"
    pointer_alignment = { 2 = 256 }
    note = "why"
    parameters = { thing = { role = "resource", why = "compiled" }, width = "a size" }
    arguments = { size = { role = "dynamic", why = "data", varies = true } }
    extras = { "3.1" = { role = "placement", why = "a place" } }
    """
    assert load_contracts(ROW, "here") == {"module:Runner": Contract("module:Runner", "0123")}
    assert load_contracts(ROW + text, "here")["module:Runner"] == Contract(
        "module:Runner",
        "0123",
        {"thing": Role.RESOURCE, "width": Role.SEMANTIC},
        {"size": Role.DYNAMIC},
        ("cublas",),
        collective=True,
        checks_size=True,
        space="indexed",
        pointer_alignment={2: 256},
        extras={(3, 1): Role.PLACEMENT},
        varies=frozenset({"arguments.size"}),
    )


@pytest.mark.parametrize(
    "text",
    [
        ROW + "checks_sizes = true",
        ROW + ROW,
        ROW + 'space = "guessed"',
        ROW + 'parameters = { thing = { role = "resource" } }',
        ROW + 'parameters = { thing = { role = "resource", why = " " } }',
        ROW + 'parameters = { thing = { role = "unimportant", why = "no" } }',
        ROW + 'arguments = { thing = " " }',
        ROW + 'arguments = { thing = { role = "resource", why = "a buffer", varies = true } }',
        ROW + 'arguments = { thing = { role = "resource", why = "a buffer", kind = "x" } }',
        ROW + 'extras = { first = { role = "placement", why = "a place" } }',
        ROW + 'shares = ["nothing"]',
    ],
    ids=["field", "twice", "space", "no why", "no reason", "role", "empty", "varies", "word", "position", "group"],
)
def test_a_row_that_cannot_be_understood_is_an_error(text):
    with pytest.raises(ConfigError, match="module:Runner"):
        load_contracts(text, "here")
