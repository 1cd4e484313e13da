"""Hypothesis strategies for runners' parameters and for inputs. Needs hypothesis, which the package itself does not.

Inputs have no content worth mentioning (zeros); what a key is made of varies: dtype, shape, layout, presence, type of a value.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Union, get_args, get_origin

import torch
from hypothesis import strategies as st

_DTYPES: Final = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.bool,
)
_MAX_SIDE: Final = 64

Layout = tuple[tuple[int, ...], bool]
"""The dims in the order of their strides, largest first, and whether the rows of the innermost one are padded."""


def dtypes(*, floating: bool | None = None) -> st.SearchStrategy[torch.dtype]:
    """Return dtypes of FlashInfer's inputs; only floating or only other ones where that is said."""
    return st.sampled_from([dtype for dtype in _DTYPES if floating is None or dtype.is_floating_point == floating])


def shapes(*, min_dims: int = 1, max_dims: int = 4, max_side: int = _MAX_SIDE) -> st.SearchStrategy[tuple[int, ...]]:
    """Return shapes without empty dims; sides of 1, where a layout cannot be told, are frequent."""
    side = st.one_of(st.just(1), st.integers(1, max_side))
    return st.lists(side, min_size=min_dims, max_size=max_dims).map(tuple)


def layouts(dim_count: int) -> st.SearchStrategy[Layout]:
    """Return layouts of tensors with that many dims."""
    return st.tuples(st.permutations(range(dim_count)).map(tuple), st.booleans())


@st.composite
def tensors(
    draw: st.DrawFn,
    *,
    dtype: st.SearchStrategy[torch.dtype] | torch.dtype | None = None,
    shape: st.SearchStrategy[tuple[int, ...]] | tuple[int, ...] | None = None,
    layout: st.SearchStrategy[Layout] | Layout | None = None,
    device: Literal["cpu", "meta"] = "cpu",
) -> torch.Tensor:
    """Return tensors of zeros, on the CPU or without memory; what is not given is drawn."""
    made_dtype = _drawn(draw, dtype, dtypes())
    made_shape: tuple[int, ...] = _drawn(draw, shape, shapes())
    order, is_padded = _drawn(draw, layout, layouts(len(made_shape)))
    strides, step = [0] * len(made_shape), 1
    for position, dim in enumerate(reversed(order)):
        strides[dim] = step
        step *= made_shape[dim] + (is_padded and position == 0)
    storage = torch.zeros(max(step, 1), dtype=torch.uint8, device=device).to(made_dtype)
    return storage.as_strided(made_shape, strides)


def scalars() -> st.SearchStrategy[Any]:
    """Return plain values, among them those that Python takes for equal and a key must not: ``True``, ``1``, ``1.0``, ``"1"``."""
    alike = st.sampled_from([None, False, True, 0, 1, 0.0, -0.0, 1.0, "", "0", "1", "True", "None"])
    return st.one_of(alike, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=20))


def enums(kind: type[enum.Enum]) -> st.SearchStrategy[enum.Enum]:
    """Return members of an enum."""
    return st.sampled_from(list(kind))


def inputs(*, max_count: int = 6, device: Literal["cpu", "meta"] = "cpu") -> st.SearchStrategy[list[Any]]:
    """Return lists of inputs: a tensor first, then tensors, values and ``None``."""
    some = st.one_of(tensors(device=device), scalars(), dtypes())
    rest = st.lists(some, max_size=max_count - 1)
    return st.tuples(tensors(device=device), rest).map(lambda made: [made[0], *made[1]])


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Return values of an annotated type: bool, int, float, str, enums, dtypes, literals, unions and tuples of these.

    Raises:
        ValueError: there are no values to draw for the type.
    """
    simple: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(0, 2**16),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=20),
        torch.dtype: dtypes(),
        None: st.none(),
        types.NoneType: st.none(),
    }
    if annotation in simple:
        return simple[annotation]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return enums(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values_of, arguments))
    if origin is tuple and arguments[-1:] == (Ellipsis,):
        return st.lists(values_of(arguments[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    raise ValueError(f"no values to draw for {annotation!r}; give the parameter a strategy")


def parameters(factory: Callable[..., Any], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return arguments for a runner's class or for a factory, by name: what ``given`` has, else values of the annotated types.

    A parameter with neither takes its default.

    Raises:
        ValueError: a parameter has no strategy, no annotation that says enough, and no default.
    """
    hints = typing.get_type_hints(inspect.getattr_static(factory, "__init__") if isinstance(factory, type) else factory)
    found = dict(given)
    for name, parameter in inspect.signature(factory).parameters.items():
        if name in given or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        try:
            found[name] = values_of(hints.get(name, inspect.Parameter.empty))
        except ValueError as error:
            if parameter.default is parameter.empty:
                raise ValueError(f"{name}: {error}") from error
    return st.fixed_dictionaries(found)


def points(grid: Mapping[str, Sequence[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Return points of a grid, for those too large to go through one by one."""
    return st.fixed_dictionaries({name: st.sampled_from(list(values)) for name, values in grid.items()})


def _drawn(draw: st.DrawFn, given: Any, otherwise: st.SearchStrategy[Any]) -> Any:
    if given is None:
        return draw(otherwise)
    return draw(given) if isinstance(given, st.SearchStrategy) else given
