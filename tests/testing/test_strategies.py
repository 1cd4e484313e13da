"""The strategies draw what they say, and whatever they draw has one key."""

import enum
from typing import Literal

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

from fi_cachestore.testing import TunedCall, strategies
from tests.adapter.runners import PlainRunner


class Activation(enum.Enum):
    RELU = 1
    SILU = "silu"


class Configured(PlainRunner):
    def __init__(
        self,
        use_8x4_sf_layout: bool,
        activation: Activation,
        out_dtype: torch.dtype,
        tile: tuple[int, int],
        backend: Literal["cutlass", "trtllm"] = "cutlass",
        scale: float | None = None,
        groups: tuple[str, ...] = (),
        handle=None,
    ):
        vars(self).update(locals())
        del self.self


@settings(max_examples=50, deadline=None)
@given(strategies.tensors(layout=strategies.layouts(2), shape=(3, 5)))
def test_tensors_have_the_layout_that_was_drawn(tensor):
    assert tensor.shape == (3, 5)
    assert tensor.stride() in {(5, 1), (6, 1), (1, 3), (1, 4)}
    assert tensor.count_nonzero() == 0 if tensor.dtype.itemsize > 1 else True


def test_all_layouts_and_dtypes_are_drawn():
    for strides in ((5, 1), (6, 1), (1, 3), (1, 4)):
        find(strategies.tensors(shape=(3, 5)), lambda tensor, strides=strides: tensor.stride() == strides)
    assert find(strategies.dtypes(floating=False), lambda dtype: True).is_floating_point is False
    assert find(strategies.tensors(dtype=torch.float8_e4m3fn), lambda tensor: tensor.dim() == 3).dtype is torch.float8_e4m3fn
    assert find(strategies.tensors(device="meta"), lambda tensor: True).device.type == "meta"


def test_scalars_that_python_takes_for_equal_are_drawn():
    for value in (True, 1, 1.0, "1", None):
        find(strategies.scalars(), lambda drawn, value=value: type(drawn) is type(value) and drawn == value)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(["cpu", "meta"]))
def test_every_drawn_call_has_one_key(data, device):
    parameters = data.draw(strategies.parameters(Configured))
    inputs = data.draw(strategies.inputs(device=device))
    keys = {TunedCall(Configured(**parameters), inputs).key().digest for _ in range(2)}
    assert len(keys) == 1


@settings(max_examples=50, deadline=None)
@given(strategies.parameters(Configured), strategies.parameters(Configured))
def test_other_parameters_have_another_key(left, right):
    same = repr(sorted(left.items())) == repr(sorted(right.items()))
    keys = [TunedCall(Configured(**parameters), [torch.zeros(2, 2)]).key() for parameters in (left, right)]
    assert (keys[0] == keys[1]) is same


@settings(max_examples=50, deadline=None)
@given(strategies.parameters(Configured, handle=st.just(7)))
def test_parameters_are_of_their_annotated_types(drawn):
    assert set(drawn) == {"use_8x4_sf_layout", "activation", "out_dtype", "tile", "backend", "scale", "groups", "handle"}
    assert type(drawn["use_8x4_sf_layout"]) is bool
    assert isinstance(drawn["activation"], Activation)
    assert isinstance(drawn["out_dtype"], torch.dtype)
    assert [type(side) for side in drawn["tile"]] == [int, int]
    assert drawn["backend"] in ("cutlass", "trtllm")
    assert drawn["scale"] is None or type(drawn["scale"]) is float
    assert all(type(group) is str for group in drawn["groups"])
    assert drawn["handle"] == 7


def test_a_parameter_that_nothing_says_anything_about_is_named():
    def factory(a: int, b): ...

    with pytest.raises(ValueError, match="b: no values to draw"):
        strategies.parameters(factory)


@settings(max_examples=20, deadline=None)
@given(strategies.points({"a": [1, True], "b": (x for x in "xy")}))
def test_points_lie_on_the_grid(point):
    assert point["a"] == 1
    assert point["b"] in "xy"
