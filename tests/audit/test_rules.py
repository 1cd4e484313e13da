"""Every rule on small made-up packages: what it finds, and what it must not."""

from pathlib import Path

import pytest

from fi_cachestore.audit.audit import audit
from fi_cachestore.audit.findings import RULES, Report, Severity
from fi_cachestore.audit.tree import open_path
from tests.audit.packages import write

HEAD = "import torch\nfrom flashinfer.autotuner import AutoTuner, ConstraintSpec, DynamicTensorSpec, TunableRunner, TuningConfig\n"
CONFIG = "CONFIG = TuningConfig(dynamic_tensor_specs=(DynamicTensorSpec((0,), (0,), buckets, mapper),))\n"
RUN = """
def run(a, b, out, pdl: bool, out_dtype: torch.dtype):
    inputs = [a, b, out, pdl, out_dtype]
    runner, tactic = AutoTuner.get().choose_one("made_gemm", [make()], CONFIG, inputs)
    return runner(inputs, tactic=tactic)
"""


def report(root: Path, text: str, **others: str) -> Report:
    files = {"a.py": HEAD + CONFIG + text, **{f"{name}.py": content for name, content in others.items()}}
    return audit(open_path(write(root, files)))


def rules(root: Path, text: str, *, without: tuple[str, ...] = ("no-dtype", "no-extras", "list-size")) -> set[tuple[str, str, str]]:
    """Return the findings as (rule, severity, parameter); the rules in ``without`` have tests of their own."""
    found = report(root, text).findings
    return {(item.rule, item.severity.value, item.parameter) for item in found if item.rule not in without}


def runner(init: str = "", extras: str = "", listing: str = "return [1, 2]", forward: str = "module.launch(*inputs, tactic)") -> str:
    """Return a class with these bodies."""
    return (
        "class Runner(TunableRunner):\n"
        f"    def __init__(self, n: int = 0, flag: bool = False, scale: float = 1.0, tp_rank: int = 0, out_dtype: torch.dtype = None):\n"
        f"        {init or 'pass'}\n"
        + (f"    def get_cache_key_extras(self, inputs):\n        {extras}\n" if extras else "")
        + f"    def get_valid_tactics(self, inputs, profile):\n        {listing}\n"
        f"    def forward(self, inputs, tactic=-1, do_preparation=False, scale=1.0, flag=False, **kwargs):\n        {forward}\n"
        "def make(): return Runner()\n" + RUN
    )


# -- parameters -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listing", "extras", "expected"),
    [
        ("return [t for t in TACTICS if t <= self.n]", "", {("list-parameter", "error", "n")}),
        ("return [t for t in TACTICS if t <= self.n]", "return (self.n,)", set()),
        ("return [t for t in TACTICS if t <= self.n]", "return (int(self.n), 'x')", set()),
        ("return [t for t in TACTICS if t <= self.n]", "return self._key()\n    def _key(self): return (self.n,)", set()),
        ("return self._all()\n    def _all(self): return list(range(self.n))", "", {("list-parameter", "error", "n")}),
        ("return list(range(self.count))\n    @property\n    def count(self): return self.n", "", {("list-parameter", "error", "n")}),
        ("n = getattr(self, 'n', 1)\n        return list(range(n))", "", {("list-parameter", "error", "n")}),
        ("if self.n: return []\n        return [-1]", "", {("list-parameter", "note", "n")}),
        ("return list(range(self.tp_rank))", "", set()),
    ],
)
def test_parameters_of_the_list(tmp_path, listing, extras, expected):
    found = rules(tmp_path, runner("self.n = n; self.tp_rank = tp_rank", extras, listing))
    assert {item for item in found if item[0] == "list-parameter"} == expected


def test_attributes_lead_back_to_what_they_are_made_of(tmp_path):
    made = runner(
        "self.double = 2 * n; self.constant = 3; self.n = n", "return (self.n,)", "return list(range(self.double + self.constant))"
    )
    assert rules(tmp_path, made) == set()


def test_what_methods_assign_is_state_and_no_parameter(tmp_path):
    made = runner("self.n = n", "", "self.n = 3\n        return list(range(self.n))")
    assert rules(tmp_path, made) == set()


@pytest.mark.parametrize(
    ("forward", "extras", "expected"),
    [
        ("module.launch(*inputs, tactic, 1 if self.flag else 2)", "", {("kernel-parameter", "warning", "flag")}),
        ("module.launch(*inputs, tactic, self.flag)", "", {("kernel-parameter", "warning", "flag")}),
        ("module.launch(*inputs, tactic, self.flag)", "return (self.flag,)", set()),
        ("module.launch(*inputs, tactic, self.n)", "", {("kernel-parameter", "note", "n")}),
        ("module.launch(*inputs, tactic, self.scale)", "", {("kernel-parameter", "note", "scale")}),
        ("module.launch(*inputs, tactic, scale)", "", {("call-argument", "note", "scale")}),
        ("module.launch(*inputs, tactic, 1 if flag else 2)", "", {("call-argument", "warning", "flag")}),
        ("module.launch(*inputs, tactic, kwargs['mode'], kwargs.get('other'))", "", {("call-argument", "note", "mode, other")}),
    ],
)
def test_parameters_of_the_launch(tmp_path, forward, extras, expected):
    assert rules(tmp_path, runner("self.n, self.flag, self.scale = n, flag, scale", extras, forward=forward)) == set() | expected


def test_one_target_of_several_assigned_at_once_counts_too(tmp_path):
    made = runner("self.n = self.m = n", "", "return list(range(self.m))")
    assert rules(tmp_path, made) == {("list-parameter", "error", "n")}


FACTORY = """
def make(module, use_wide: bool, width: int, supports: Optional[Callable] = None):
    tiles = tile_table(width)
    class Runner(TunableRunner):
        {extras}
        def get_valid_tactics(self, inputs, profile):
            {listing}
        def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
            module.launch(*inputs, tactic)
    return Runner()
"""


@pytest.mark.parametrize(
    ("listing", "extras", "expected"),
    [
        ("return [t for t in TACTICS if use_wide or t < 3]", "", {("list-parameter", "error", "use_wide")}),
        ("return [t for t in TACTICS if use_wide or t < 3]", "def get_cache_key_extras(self, inputs): return (use_wide,)", set()),
        ("return [t for t in TACTICS if t in tiles]", "", {("list-parameter", "error", "width")}),
        ("return list(range(module.tactic_num()))", "", set()),
        ("return [1] if supports is not None and supports(inputs) else [1, 2]", "", {("list-parameter", "error", "supports")}),
    ],
)
def test_variables_of_the_factory(tmp_path, listing, extras, expected):
    assert rules(tmp_path, FACTORY.format(listing=listing, extras=extras or "x = 1")) == expected


def test_a_constructor_that_passes_on_to_its_base(tmp_path):
    text = """
class Base(TunableRunner):
    def __init__(self, tactics):
        self.tactics = tactics
    def get_valid_tactics(self, inputs, profile): return list(self.tactics)
    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs): raise NotImplementedError
class Leaf(Base):
    def __init__(self, wide: bool):
        super().__init__(WIDE if wide else NARROW)
        self.wide = wide
    def get_cache_key_extras(self, inputs): return (self.wide,)
    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs): module.launch(*inputs, tactic)
class Bad(Leaf):
    def get_cache_key_extras(self, inputs): return ()
"""
    found = {(item.severity.value, item.parameter, item.types) for item in report(tmp_path, text).findings if item.rule == "list-parameter"}
    assert found == {("note", "tactics", ("made.a:Base",)), ("error", "wide", ("made.a:Bad",))}


# -- inputs -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listing", "extras", "expected"),
    [
        ("a, *_ = inputs\n        return [1] if a.dtype == torch.float16 else [1, 2]", "", {"inputs[0].dtype"}),
        ("a, *_ = inputs\n        return [1] if a.dtype == torch.float16 else [1, 2]", "return (inputs[0].dtype,)", set()),
        ("return table(inputs[0].dtype)", "return tuple(str(item.dtype) for item in inputs)", set()),
        ("return [1] if inputs[1].stride(0) == 1 else [1, 2]", "", {"inputs[1].layout"}),
        ("return [1] if inputs[2].is_contiguous() else [1, 2]", "", {"inputs[2].layout"}),
        ("return table(inputs[0].shape[1])", "", set()),
        ("return [1] if inputs[1] is None else [1, 2]", "", set()),
        ("return [1] if isinstance(inputs[1], torch.Tensor) else [1, 2]", "", set()),
        ("*_, pdl, out_dtype = inputs\n        return [1] if pdl else [1, 2]", "", {"inputs[-2].value"}),
        ("a, b, out, pdl, _ = inputs\n        return [1] if pdl else [1, 2]", "return (bool(inputs[3]),)", set()),
        ("return table(inputs[0].dtype)", "return other.get_cache_key_extras(inputs)", set()),
    ],
)
def test_properties_of_inputs(tmp_path, listing, extras, expected):
    found = rules(tmp_path, runner("", extras, listing, "module.launch(tactic)"))
    assert {(rule, name) for rule, _, name in found} == {("list-input", name) for name in expected}


def test_an_input_that_is_no_tensor_is_known_from_the_call_site(tmp_path):
    passed = "a, b, out, pdl, out_dtype = inputs\n        module.launch(a, b, out, pdl, tactic)"
    assert rules(tmp_path, runner("", "return (inputs[0].dtype,)", forward=passed)) == {("kernel-input", "warning", "inputs[3].value")}
    assert rules(tmp_path, runner("", "return (inputs[0].dtype, inputs[3])", forward=passed)) == set()


def test_a_dtype_parameter_is_held_by_the_dtype_of_the_input_that_it_is_named_after(tmp_path):
    listing = "a, b, out, *_ = inputs\n        return table(self.out_dtype)"
    named = runner("self.out_dtype = out_dtype", "a, b, out, *_ = inputs\n        return (out.dtype,)", listing, "module.launch(tactic)")
    assert rules(tmp_path, named) == set()
    other = named.replace("return (out.dtype,)", "return (a.dtype,)")
    assert rules(tmp_path, other) == {("list-parameter", "error", "out_dtype")}


def test_a_launch_that_falls_back_is_a_warning(tmp_path):
    forward = "try:\n            launch(inputs, tactic=tactic)\n        except Exception:\n            launch(inputs, tactic=-1)"
    listing = "return [1] if inputs[1].stride(0) == 1 else [1, 2]"
    assert rules(tmp_path, runner("", "", listing, forward)) == {("list-input", "warning", "inputs[1].layout")}


# -- the key ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extras", "forward", "expected"),
    [
        ("", "module.launch(*inputs, tactic)", {"no-extras", "no-dtype"}),
        ("", "module.launch(tactic)", {"no-extras"}),
        ("", "a, *_ = inputs\n        module.launch(a, tactic)", {"no-extras", "no-dtype"}),
        ("return (1,)", "a, *_ = inputs\n        module.launch(a, tactic)", {"no-dtype"}),
        ("return (str(inputs[0].dtype),)", "a, *_ = inputs\n        module.launch(a, tactic)", set()),
        ("return (self.out_dtype,)", "a, *_ = inputs\n        module.launch(a, tactic)", set()),
        ("return other.get_cache_key_extras(inputs)", "a, *_ = inputs\n        module.launch(a, tactic)", set()),
    ],
)
def test_classes_without_extras_or_dtypes(tmp_path, extras, forward, expected):
    found = report(tmp_path, runner("self.out_dtype = out_dtype", extras, forward=forward)).findings
    assert {item.rule for item in found if item.rule in ("no-extras", "no-dtype")} == expected


@pytest.mark.parametrize(
    ("extras", "expected"),
    [
        ("return (inputs[0].data_ptr() % 16,)", {("address-in-key", "address")}),
        ("return (self._aligned(inputs[1]),)\n    def _aligned(self, t): return t.data_ptr() % 16 == 0", {("address-in-key", "address")}),
        ("a = inputs[0]\n        return (a.shape[0], a.shape[1])", {("dynamic-in-key", "inputs[0].shape[0]")}),
        ("m, k = inputs[0].shape\n        return (m, k)", {("dynamic-in-key", "inputs[0].shape[0]")}),
        ("return (inputs[0].shape,)", {("dynamic-in-key", "inputs[0].shape")}),
        ("return (inputs[0].shape[1], inputs[1].shape[0])", set()),
        ("return (self.tp_rank,)", {("placement-in-key", "tp_rank")}),
        ("return (inputs[0].device.index,)", {("placement-in-key", "device index")}),
        ("return (inputs[0].device.type,)", set()),
        ("return (id(self.n),)", {("unstable-in-key", "id()")}),
        ("return (hash(self.n),)", {("unstable-in-key", "hash()")}),
        ("return (repr(self.n),)", {("repr-in-key", "repr()")}),
    ],
)
def test_values_that_a_key_should_not_hold(tmp_path, extras, expected):
    found = rules(
        tmp_path,
        runner(
            "self.n, self.tp_rank = n, tp_rank\n        self.n = n\n        self.tp_rank = tp_rank", extras, forward="module.launch(tactic)"
        ),
    )
    assert {(rule, name) for rule, _, name in found} == expected


def test_a_config_without_dynamic_dims_buckets_nothing(tmp_path):
    text = runner("", "return (inputs[0].shape[0],)", forward="module.launch(tactic)").replace("CONFIG, inputs", "TuningConfig(), inputs")
    assert rules(tmp_path, text) == set()


# -- sizes ------------------------------------------------------------------------------------------------------------------------

VALIDATES = "\n    def validate_tactic(self, inputs, tactic): return True"


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        ("return [t for t in TACTICS if t <= inputs[0].shape[0]]", "warning"),
        ("m, k = inputs[0].shape\n        return [t for t in TACTICS if t <= m]", "warning"),
        ("m = profile.get_opt_shapes()[0][0]\n        return [t for t in TACTICS if t <= m]", "warning"),
        ("return module.list_for(inputs[0])", "warning"),
        ("return [t for t in TACTICS if t <= inputs[0].shape[0]]" + VALIDATES, "note"),
        ("return [t for t in TACTICS if t <= inputs[0].shape[1]]", None),
        ("return list(TACTICS)", None),
        ("return [-1]", None),
        ("if inputs[0].shape[0] > 4: return []\n        return [-1]", None),
    ],
)
def test_lists_by_raw_size(tmp_path, listing, expected):
    made = report(tmp_path, runner("", "return (inputs[0].dtype,)", listing, "module.launch(tactic)"))
    found = [item.severity.value for item in made.findings if item.rule == "list-size"]
    assert found == ([] if expected is None else [expected])


# -- names ------------------------------------------------------------------------------------------------------------------------


def test_equal_class_names(tmp_path):
    other = "from flashinfer.autotuner import TunableRunner\nclass Runner(TunableRunner): pass\ndef other(): return Runner()"
    text = runner("", "", "return [1, 2]", "module.launch(tactic)")
    apart = [item for item in report(tmp_path, text, b=other).findings if item.rule == "class-name"]
    assert [(item.severity, item.types) for item in apart] == [(Severity.NOTE, ("made.a:Runner", "made.b:Runner"))]
    shared = text.replace("[make()]", "[make(), beside.other()]")
    shared = "from . import b as beside\n" + shared
    together = [item for item in report(tmp_path, shared, b=other).findings if item.rule == "class-name"]
    assert [item.severity for item in together] == [Severity.WARNING]
    assert "they share the op made_gemm" in together[0].message


def test_an_op_with_two_call_sites(tmp_path):
    text = runner() + RUN.replace("def run", "def run_again")
    (found,) = (item for item in report(tmp_path, text).findings if item.rule == "op-name")
    assert (found.op, found.severity, found.message.count("made/a.py:")) == ("made_gemm", Severity.NOTE, 2)
    assert not [item for item in report(tmp_path / "one", runner()).findings if item.rule == "op-name"]


KEYS = "class Key:\n    def key_fields(self):\n        return (self.op, self.name, self.profile, self.extras)\n"


@pytest.mark.parametrize(("key", "expected"), [("('op', 'Runner', ((1,),))", 1), ("('op', 'Runner', ((1,),), ())", 0)])
def test_bundled_configurations(tmp_path, key, expected):
    made = report(tmp_path, runner(), keys=KEYS, bundled=f'best_configs = {{"{key}": (0, 5)}}\n')
    assert len([item for item in made.findings if item.rule == "bundled-config"]) == expected


def test_every_rule_has_a_test_here():
    text = Path(__file__).read_text("utf-8")
    assert [name for name in RULES if f'"{name}"' not in text and name not in text] == []


# -- classes ----------------------------------------------------------------------------------------------------------------------


def test_a_class_is_described(tmp_path):
    listing = "return [t for t in TACTICS if t <= self.n and inputs[0].dtype and inputs[0].shape[0]]"
    made = runner("self.n = n\n        self.flag = flag", "return (self.flag,)", listing, "module.launch(self.flag)")
    (found,) = report(tmp_path, made).classes
    assert (found.type, found.path, found.line, found.direct) == ("made.a:Runner", "made/a.py", 4, True)
    assert (found.extras, found.ops, found.size_dependent) == ("made.a:Runner.get_cache_key_extras", ("made_gemm",), True)
    assert found.keyed == ("flag", "inputs[0].shape[0]")
    assert found.missed == ("inputs[0].dtype", "n")
    assert found.rules == ("list-input", "list-parameter", "list-size", "no-dtype") or "no-dtype" not in found.rules


def test_what_several_classes_inherit_is_one_finding(tmp_path):
    text = runner("self.n = n", "", "return list(range(self.n))") + "class A(Runner): pass\nclass B(Runner): pass\n"
    (found,) = (item for item in report(tmp_path, text).findings if item.rule == "list-parameter")
    assert found.types == ("made.a:Runner", "made.a:A", "made.a:B")


def test_a_finding_is_as_bad_as_for_the_worst_class_that_inherits_it(tmp_path):
    text = """
class Base(TunableRunner):
    def __init__(self, n): self.n = n
    def get_valid_tactics(self, inputs, profile): return list(range(self.n))
    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs): raise NotImplementedError
class Leaf(Base):
    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs): module.launch(tactic)
"""
    (found,) = (item for item in report(tmp_path, text).findings if item.rule == "list-parameter")
    assert (found.severity, found.types) == (Severity.ERROR, ("made.a:Base", "made.a:Leaf"))


def test_a_class_belongs_to_the_nearest_call_site(tmp_path):
    text = (
        runner()
        + "def outer(a, b, out):\n    AutoTuner.get().choose_one('other_op', [], CONFIG, [])\n    return run(a, b, out, True, None)\n"
    )
    (found,) = report(tmp_path, text).classes
    assert found.ops == ("made_gemm",)


# -- hostile source ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "listing",
    [
        "return self.get_valid_tactics(inputs, profile)",
        "return self._a()\n    def _a(self): return self._b()\n    def _b(self): return self._a()",
        "return " + " + ".join(["[1]"] * 600),
        "x = inputs\n" + "".join("        x = [x, x]\n" for _ in range(300)) + "        return x",
        "return (lambda: (yield))()",
        "return [*(*inputs,), **{}] if 0 else []".replace("**{}", "*{}"),
        "match inputs:\n            case [a, *_] if a.dtype: return [1]\n            case _: return [1, 2]",
        "global g\n        g = inputs\n        del g\n        return [1, 2]",
        "class Inner:\n            def get_valid_tactics(self): return self.nothing\n        return [1, 2]",
        "return getattr(self, name)(getattr(inputs[0], 'dtype'))",
    ],
    ids=range(10),
)
def test_odd_code_does_not_stop_the_audit(tmp_path, listing):
    made = report(tmp_path, runner("", "", listing), other="class A(TunableRunner:\n", third="# choose_one( get_valid_tactics")
    assert [item.type for item in made.classes] == ["made.a:Runner"]
    assert ("made/other.py", "SyntaxError: '(' was never closed (other.py, line 1)".partition(":")[0]) in [
        (p, r.partition(":")[0]) for p, r in made.unread
    ]


def test_what_nests_too_deeply_is_named(tmp_path):
    made = report(tmp_path, runner("", "", "return " + " + ".join(["[1]"] * 600)))
    assert made.unread == (("made/a.py", "Runner.get_valid_tactics nests too deeply to be read"),)
