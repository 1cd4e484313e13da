"""What a run of a tactic produced, and whether another tactic's run produced the same: for trying tactics out, not for testing kernels.

The bounds are wide: kernels of one op differ in the order of their sums, in TF32 and in how they round on the way. What they catch is a
result of another problem, or none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, Self

import torch

from fi_cachestore.records.observation import Output

_TOLERANCE: Final = {torch.float64: 1e-6, torch.float32: 2e-2, torch.float16: 5e-2, torch.bfloat16: 5e-2}
_TOLERANCE_OF_FEW_BITS: Final = 0.3
"""Of one byte or less per number, in shares of the largest value as above: a step of FP8 is up to a quarter."""
_OTHER_SHARE: Final = 1 / 16
"""The share of integers (packed or quantised numbers, indices of equal scores) that may be others."""
_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a result, arguments or inputs, inside tuples, lists and dicts too."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))


class Watch:
    """Finds the results of runs: the tensors that one returns or, where it returns none, those that it changes in place.

    Results are wiped once they are copied, so that a run that writes nothing is not taken for one that writes the same. Buffers that
    were there before have the first run's result again at the end of the block.
    """

    def __init__(self, tree: Any) -> None:
        """Look at the tensors in ``tree`` as they are now, without keeping copies."""
        self._before = [(tensor, _sum(tensor)) for tensor in tensors_in(tree)]
        self._wiped: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give buffers their content back."""
        for tensor, copy in self._wiped.values():
            tensor.detach().copy_(copy)

    def outputs(self, result: Any) -> list[torch.Tensor]:
        """Return copies of a run's results."""
        changed = [tensor for tensor, before in self._before if _sum(tensor) != before]
        numbers = [tensor for tensor in changed if tensor.dtype.is_floating_point]  # the rest may be a workspace
        found = list(tensors_in(result)) or numbers or changed
        copies = [tensor.detach().clone() for tensor in found]
        written, known = {_place(tensor) for tensor in changed}, {_place(tensor) for tensor, _ in self._before}
        for tensor, copy in zip(found, copies, strict=True):
            if _place(tensor) in written and tensor.dtype.is_floating_point:
                self._wiped.setdefault(id(tensor), (tensor, copy))
            elif _place(tensor) in known:
                continue
            with contextlib.suppress(RuntimeError):
                tensor.detach().zero_()
        return copies


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _sum(tensor: torch.Tensor) -> int | None:
    """Return the sum of a tensor's bits as integers, ``None`` for one that cannot be read like that."""
    try:
        return int(tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64))
    except (KeyError, RuntimeError):
        return None


def compare(first: Sequence[torch.Tensor], again: Sequence[torch.Tensor], tried: Sequence[torch.Tensor]) -> Output:
    """Return how a tactic's results compare with those of two runs of the default.

    Where the default does not give the same twice (it adds to its output, or leaves part of it as it was), nothing can be said but
    whether the tactic's numbers are finite where the default's are, and the same both times.
    """
    if not first or not _are_alike(first, again):
        return Output.NOT_COMPARED
    if not _are_alike(first, tried):
        return Output.DIFFERS
    if any(_loses_numbers(*three) for three in zip(first, again, tried, strict=True)):
        return Output.NOT_FINITE
    if not all(_is_close(one, two) for one, two in zip(first, again, strict=True)):
        return Output.NOT_COMPARED
    return Output.EQUAL if all(_is_close(one, two) for one, two in zip(first, tried, strict=True)) else Output.DIFFERS


def _are_alike(these: Sequence[torch.Tensor], those: Sequence[torch.Tensor]) -> bool:
    return [(one.shape, one.dtype) for one in these] == [(one.shape, one.dtype) for one in those]


def _loses_numbers(first: torch.Tensor, again: torch.Tensor, tried: torch.Tensor) -> bool:
    if not first.dtype.is_floating_point:
        return False
    one, two, three = (_numbers(tensor) for tensor in (first, again, tried))
    lasting = torch.isfinite(one) & torch.isfinite(two) & torch.isclose(one, two, rtol=_tolerance(first.dtype))
    return bool((lasting & ~torch.isfinite(three)).any())


def _is_close(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether two results are the same within the bounds of their dtype, as shares of the largest number."""
    if not expected.numel():
        return True
    if not expected.dtype.is_floating_point:
        return float((expected != found).to(torch.float32).mean()) <= _OTHER_SHARE
    one, two = _numbers(expected), _numbers(found)
    comparable = torch.isfinite(one) & torch.isfinite(two)
    one, two = one[comparable], two[comparable]
    if not one.numel():
        return True
    return bool((one - two).abs().max() <= _tolerance(expected.dtype) * one.abs().max())


def _tolerance(dtype: torch.dtype) -> float:
    return _TOLERANCE.get(dtype, _TOLERANCE_OF_FEW_BITS)


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32)
