"""Which extras need not be asked for: those whose text follows from what a reading has, and no others."""

import itertools
import types

import pytest
import torch
from flashinfer.autotuner import AutoTuner, TunableRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fi_cachestore.adapter.contracts import Contract, flashinfer_contracts
from fi_cachestore.adapter.fingerprint import Fingerprints
from fi_cachestore.adapter.introspect import Introspector
from fi_cachestore.adapter.purity import purity_of
from fi_cachestore.adapter.sources import implementation_digest, type_name
from fi_cachestore.environment.identity import Environments
from tests.adapter.cases import Case
from tests.adapter.runners import PlainRunner, matrix
from tests.adapter.test_fingerprint import INTROSPECTOR, STRAIGHT, described, taken
from tests.flashinfer_runners.case import RECIPES
from tests.flashinfer_runners.gemm_compiled import bias_at

LIMIT = 4
no_torch = types.SimpleNamespace(float16=torch.float32)
CONTRACT = {1: 256}


@pytest.fixture(autouse=True)
def prints():
    tuner = AutoTuner.get()
    tuner._get_override_stack(), tuner._get_skip_ops_stack()  # a thread has them from its first slow call on
    return Fingerprints(INTROSPECTOR)


# -- the text of extras -----------------------------------------------------------------------------------------------------------


class Base(PlainRunner):
    @staticmethod
    def aligned(tensor):
        if tensor is None:
            return 0
        address = tensor.data_ptr()
        return min(address & -address, 256)

    @staticmethod
    def wide(dtype, other):
        return torch.float32 if dtype == torch.float16 else other

    @staticmethod
    def limit(tensor):
        return (tensor.shape, LIMIT)

    @staticmethod
    def content(tensor):
        return tensor.sum()

    @staticmethod
    def address(tensor):
        return tensor.data_ptr()

    @staticmethod
    def lowest(address):
        return min(address & -address, 16)

    @staticmethod
    def with_default(tensor, more=1):
        return more

    @classmethod
    def of_class(cls, tensor):
        return tensor.shape

    def of_itself(self, tensor):
        return tensor.shape


def closed():
    made = [1]

    class Closed(Base):
        @staticmethod
        def aligned(tensor):
            return made

        def get_cache_key_extras(self, inputs):
            return (self.aligned(inputs[1]),)

    return Closed


class ByName(Base):
    def get_cache_key_extras(self, inputs):
        a, bias, *_ = inputs
        return (a.shape[0], self.wide(a.dtype, a.dtype), self.aligned(bias))


class ByPlace(Base):
    def get_cache_key_extras(self, inputs):
        return (self.aligned(inputs[1]), len(inputs))


class WithoutStatic(Base):
    def get_cache_key_extras(self, inputs):
        bias = inputs[1]
        if bias is None:
            return (0,)
        return (min(bias.data_ptr() & -bias.data_ptr(), 16), self.lowest(bias.data_ptr()))


class OtherInput(Base):
    def get_cache_key_extras(self, inputs):
        a, bias, *_ = inputs
        return (self.aligned(a), bias.shape)


class EitherInput(Base):
    def get_cache_key_extras(self, inputs):
        bias = inputs[0]
        if inputs[1] is not None:
            bias = inputs[1]
        return (self.aligned(bias),)


class LastInput(Base):
    def get_cache_key_extras(self, inputs):
        return (self.aligned(inputs[-1]),)


class AfterStar(Base):
    def get_cache_key_extras(self, inputs):
        *_, bias = inputs
        return (self.aligned(bias),)


class Sliced(Base):
    def get_cache_key_extras(self, inputs):
        inputs = inputs[1:]
        return (self.aligned(inputs[1]),)


class Raw(Base):
    def get_cache_key_extras(self, inputs):
        return (inputs[1].data_ptr(),)


class RawByStatic(Base):
    def get_cache_key_extras(self, inputs):
        return (self.address(inputs[1]),)


class Masked(Base):
    def get_cache_key_extras(self, inputs):
        address = inputs[1].data_ptr()
        return (address & 512,)


class PartOfAddress(Base):
    def get_cache_key_extras(self, inputs):
        one = inputs[1].data_ptr()
        other = inputs[0].shape[0]
        return (min(one & -one, 16), min(one & -other, 16))


class Wider(Base):
    def get_cache_key_extras(self, inputs):
        address = inputs[1].data_ptr()
        return (min(address & -address, 512),)


class TestsAddress(Base):
    def get_cache_key_extras(self, inputs):
        return (1,) if inputs[1].data_ptr() else (2,)


class OwnMin(Base):
    def get_cache_key_extras(self, inputs):
        min = inputs[0].shape  # noqa: A001
        address = inputs[1].data_ptr()
        return (min(address & -address, 16),)


class Global(Base):
    def get_cache_key_extras(self, inputs):
        return (self.limit(inputs[0]),)


class NoTorch(Base):
    def get_cache_key_extras(self, inputs):
        return (no_torch.float16,)


class NoConstant(Base):
    def get_cache_key_extras(self, inputs):
        return (torch.backends,)


class Content(Base):
    def get_cache_key_extras(self, inputs):
        return (self.content(inputs[0]),)


class Default(Base):
    def get_cache_key_extras(self, inputs):
        return (self.with_default(inputs[0]),)


class OfClass(Base):
    def get_cache_key_extras(self, inputs):
        return (self.of_class(inputs[0]),)


class OfItself(Base):
    def get_cache_key_extras(self, inputs):
        return (self.of_itself(inputs[0]),)


class Unknown(Base):
    def get_cache_key_extras(self, inputs):
        return (self.aligned_elsewhere(inputs[0]),)


PURE = [ByName, ByPlace, WithoutStatic]
IMPURE = [
    OtherInput,
    EitherInput,
    LastInput,
    AfterStar,
    Sliced,
    Raw,
    RawByStatic,
    Masked,
    PartOfAddress,
    Wider,
    TestsAddress,
    OwnMin,
    Global,
    NoTorch,
    NoConstant,
    Content,
    Default,
    OfClass,
    OfItself,
    Unknown,
    closed(),
]


@pytest.mark.parametrize("kind", PURE)
def test_static_methods_and_alignments_that_a_contract_names_are_followed(kind):
    assert purity_of(kind, CONTRACT).is_pure
    assert not purity_of(kind, {}).is_pure
    assert not purity_of(kind, {0: 256}).is_pure
    assert not purity_of(kind, {1: 8}).is_pure


@pytest.mark.parametrize("kind", IMPURE)
def test_what_does_not_follow_from_a_reading_is_not_taken_for_known(kind):
    assert not purity_of(kind, CONTRACT).is_pure


def test_only_these_of_flashinfers_classes_look_at_addresses_and_are_known_all_the_same():
    with RECIPES["cublaslt_bf16"].build() as built:
        found = purity_of(type(built.runner), INTROSPECTOR.contract(built.runner).pointer_alignment)
        assert not purity_of(type(built.runner), {}).is_pure
    assert found.is_pure
    assert found.methods == {"_pointer_alignment", "_compute_dtype"}


# -- fingerprints of such calls ---------------------------------------------------------------------------------------------------


def contracted(*kinds):
    """What takes fingerprints where these classes have a contract for their second input."""
    contracts = {
        type_name(kind): Contract(
            type=type_name(kind), fingerprint=implementation_digest(kind, TunableRunner)[:16], pointer_alignment=CONTRACT
        )
        for kind in kinds
    }
    return Fingerprints(Introspector({**flashinfer_contracts(), **contracts}, Environments()))


def aligned(offset):
    storage = torch.zeros(1024, dtype=torch.uint8)
    start = -storage.data_ptr() % 512
    return storage[start + offset : start + offset + 64]


@pytest.mark.parametrize("kind", PURE)
def test_an_alignment_up_to_the_limit_is_in_the_fingerprint_and_the_address_is_not(kind):
    prints, runner = contracted(kind), kind()

    def case(bias):
        return Case(runner, [matrix(50), bias], {}, STRAIGHT)

    offsets = (1, 2, 16, 128, 256)
    found = [taken(prints, case(bias)) for bias in (None, *map(aligned, offsets))]
    assert len({*found}) == len(found)
    assert None not in found
    assert [taken(prints, case(aligned(offset))) for offset in (3, 6, 48, 384, 0)] == found[1:]


def test_a_tensor_without_an_address_is_no_aligned_one():
    prints, emptied = contracted(ByName), torch.zeros(64, dtype=torch.uint8)
    emptied.untyped_storage().resize_(0)
    found = [taken(prints, Case(ByName(), [matrix(50), bias], {}, STRAIGHT)) for bias in (aligned(0), emptied)]
    assert None not in found
    assert found[0] != found[1]


def test_an_attribute_of_the_runner_that_hides_a_static_method_leaves_nothing_known():
    prints, runner = contracted(ByName), ByName()
    case = Case(runner, [matrix(50), aligned(0)], {}, STRAIGHT)
    assert taken(prints, case) is not None
    runner.aligned = len
    assert taken(prints, case) is None


def test_a_static_method_that_becomes_one_of_the_class_is_looked_at_again(monkeypatch):
    class Made(Base):
        @staticmethod
        def shape_of(tensor):
            return tensor.shape

        def get_cache_key_extras(self, inputs):
            return (self.shape_of(inputs[0]),)

    prints, case = contracted(), Case(Made(), [matrix(50), None], {}, STRAIGHT)
    assert taken(prints, case) is not None
    monkeypatch.setattr(Made, "shape_of", classmethod(vars(Made)["shape_of"].__func__))
    assert taken(prints, case) is None


# -- FlashInfer's class, and one that was changed ---------------------------------------------------------------------------------

BIASES = [None, *(bias_at(alignment) for alignment in (2, 2, 16, 128, 256, 256, 512))]
ROWS = (100, 200)
asked = []


def copied(tensor):
    """FlashInfer's static method, but for a global that it looks at, so that what it says is not in the text."""
    asked.append(tensor)
    return LIMIT


def built(bias, rows=100, out_dtype=torch.bfloat16, *, is_changed=False):
    with RECIPES["cublaslt_bf16"].build(bias=bias, rows=rows, out_dtype=out_dtype) as case:
        if is_changed:
            type(case.runner)._pointer_alignment = staticmethod(copied)
        return Case(case.runner, case.inputs, case.arguments, case.config, case.op)


def test_flashinfers_extras_are_not_asked_for_while_those_of_a_changed_class_are(prints, monkeypatch):
    for is_changed, count in ((False, 0), (True, 1)):
        cases = [built(bias, is_changed=is_changed) for bias in (None, BIASES[1])]
        before = [[taken(prints, case) for case in cases] for _ in range(4)][-1]
        assert None not in before
        asked.clear()
        assert [taken(prints, case) for case in cases] == before
        assert len(asked) == count * len(cases)
        assert all(isinstance(found[0], int) for found in before), "not read straight"
    monkeypatch.setitem(globals(), "LIMIT", LIMIT + 1)
    assert before[0] != taken(prints, cases[0]) is not None


def test_alignments_are_told_apart_up_to_the_limit_of_flashinfers_contract(prints):
    found = [[taken(prints, built(bias)) for bias in BIASES] for _ in range(3)][-1]
    assert [found.index(one) for one in found] == [0, 1, 1, 3, 4, 5, 5, 5]
    keys = [described(built(bias)) for bias in BIASES]
    assert None not in keys
    for one, other in itertools.combinations(range(len(BIASES)), 2):
        assert (found[one] == found[other]) == (keys[one] == keys[other])


calls = st.builds(
    built,
    st.sampled_from(BIASES),
    rows=st.sampled_from(ROWS),
    out_dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    is_changed=st.booleans(),
)


@given(st.lists(calls, min_size=2, max_size=12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_equal_fingerprints_mean_equal_keys_for_calls_that_differ_in_alignment(prints, cases):
    seen = {}
    for case in cases:
        found = taken(prints, case)
        if found is not None:
            described_now = described(case)
            assert seen.setdefault(found, described_now) == described_now
