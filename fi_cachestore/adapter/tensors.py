"""Whether tensors are like those of the call before: dtype, shape, strides, device and layout, by one call of torch where it has one.

Engines make the same call thousands of times in a row. torch compares a row of tensors with what it noted of others in C++, for the
guards of compiled code, several times as fast as Python can collect the same facts. It notes types and numbers, never a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

import torch

from fi_cachestore.adapter.readings import UnreadableError, kept

try:
    from torch._C._dynamo import guards as _guards
except ImportError:  # a part of torch without a promise; without it the facts are collected
    _guards = None  # type: ignore[assignment]

_MAX_KNOWN: Final = 4096
_MAX_COMPARISONS: Final = 8
"""How often in a row torch may be told of tensors that it then does not find alike, because of what is no fact here (grad modes)."""
_facts: Final = attrgetter("shape", "dtype", "device", "layout")
_strides: Final = torch.Tensor.stride
_is_nested: Final = attrgetter("is_nested")


class Tensors:
    """Numbers for the tensors of calls of one kind: the same for tensors that are alike in every fact, for no others ever. Thread-safe."""

    def __init__(self, numbers: Iterator[int]) -> None:
        """Know nothing yet. ``numbers`` never repeat, also where another thread or a later call starts anew for such calls."""
        self._known: dict[tuple[Any, ...], int] = {}
        self._numbers = numbers
        self._before = -1
        self._last: tuple[Callable[..., bool], int] = (_never, -1)
        self._comparison_count = 0

    def number(self, tensors: Sequence[torch.Tensor]) -> int:
        """Return the number of some tensors.

        Raises:
            UnreadableError: one of them is nested.
            Exception: whatever torch raises for another tensor without strides.
        """
        is_alike, number = self._last
        if True in map(_is_nested, tensors):  # has no shape: torch's comparison ends the process
            raise UnreadableError
        return number if is_alike(*tensors) else self._collected(tensors)

    def _collected(self, tensors: Sequence[torch.Tensor]) -> int:
        facts = _collect(tensors)
        number = self._known.get(facts)
        if number is None:
            number = kept(self._known, facts, next(self._numbers), _MAX_KNOWN)
        if number != self._before:
            self._comparison_count = 0
        elif self._comparison_count < _MAX_COMPARISONS:  # the second time in a row: probably not the last
            self._comparison_count += 1
            is_alike = _comparison(tensors, facts)
            if _collect(tensors) == facts:  # nobody has changed one meanwhile
                self._last = is_alike, number
        self._before = number
        return number


def _collect(tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    return (*map(_facts, tensors), *map(_strides, tensors))


def _comparison(tensors: Sequence[torch.Tensor], facts: Sequence[Any]) -> Callable[..., bool]:
    """Return what tells whether as many other tensors are alike."""
    if not tensors or not hasattr(_guards, "TensorGuards"):
        return _never
    places: dict[int, int] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault(id(tensor), place)
    first = list(places.values())
    sizes: list[Any] = [list(facts[place][0]) for place in first]
    strides: list[Any] = [list(facts[len(tensors) + place]) for place in first]
    once = [tensors[place] for place in first]
    check: Callable[..., bool] = _guards.TensorGuards(*once, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    if len(first) == len(tensors):
        return check
    twins = [(places[id(tensor)], place) for place, tensor in enumerate(tensors) if places[id(tensor)] != place]

    def is_alike(*others: torch.Tensor) -> bool:  # torch finds no two alike that are one and the same
        return all(others[here] is others[there] for here, there in twins) and check(*[others[place] for place in first])

    return is_alike


def _never(*_: torch.Tensor) -> bool:
    return False
