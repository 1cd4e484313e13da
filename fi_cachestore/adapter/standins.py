"""FlashInfer's own key extras, computed on stand-ins of a bucket's shapes.

A runner whose extras leak the raw dynamic dim is then served at every size instead of at none; one whose extras look at content or
addresses is found out, because a stand-in has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from flashinfer.autotuner import TunableRunner

_META: Final = torch.device("meta")
_STORAGE_NAMES: Final = frozenset({"storage", "untyped_storage", "_typed_storage", "const_data_ptr", "mutable_data_ptr"})


class PointerReadError(Exception):
    """Somebody asked a stand-in for its address."""


class StandIn(torch.Tensor):
    """A tensor with dtype, shape, strides and device type, and nothing behind it. Reading content or storage raises."""

    pretended: tuple[torch.device, int | None]

    @staticmethod
    def like(tensor: torch.Tensor, sizes: Sequence[int], alignment_bytes: int | None) -> StandIn:
        """Return a stand-in for ``tensor`` with other sizes; with ``alignment_bytes`` its address is just that."""
        same = tuple(sizes) == tuple(tensor.shape) and tensor.layout is torch.strided
        strides = tensor.stride() if same else _dense_like(tensor, sizes)
        return _pretend(torch.empty_strided(tuple(sizes), strides, dtype=tensor.dtype, device=_META), (tensor.device, alignment_bytes))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` on plain meta tensors: the device that a stand-in names must never make torch allocate there."""
        if getattr(func, "__name__", "") in _STORAGE_NAMES:
            raise PointerReadError
        given = _leaves((args, kwargs or {}))
        device = next((leaf.pretended[0] for leaf in given if isinstance(leaf, StandIn)), _META)
        result = func(*_map(_plain, args), **_map(_plain, kwargs or {}))
        return _map(lambda leaf: _pretend(leaf, (device, None)) if isinstance(leaf, torch.Tensor) else leaf, result)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device of the tensor it stands for."""
        return self.pretended[0]

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Whether the tensor it stands for is on a CUDA device."""
        return self.device.type == "cuda"

    def data_ptr(self) -> int:
        """Return the alignment that a contract allows to be seen.

        Raises:
            PointerReadError: no contract does.
        """
        alignment_bytes = self.pretended[1]
        if alignment_bytes is None:
            raise PointerReadError
        return alignment_bytes


def _pretend(tensor: torch.Tensor, pretended: tuple[torch.device, int | None]) -> StandIn:
    made: StandIn = torch.Tensor._make_subclass(StandIn, tensor)
    made.pretended = pretended
    return made


def _plain(leaf: Any) -> Any:
    if not isinstance(leaf, StandIn):
        return leaf
    with torch._C.DisableTorchFunctionSubclass():
        return leaf.as_subclass(torch.Tensor)


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map(function, item) for name, item in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(_map(function, item) for item in tree)
    return function(tree)


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    _map(found.append, tree)
    return found


def _dense_like(tensor: torch.Tensor, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return strides for ``sizes`` in the dim order of ``tensor``."""
    before = tuple(tensor.stride())
    order = sorted(range(tensor.dim()), key=lambda dim: (-before[dim], dim))
    strides = [1] * len(sizes)
    step = 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(sizes[dim], 1)
    return tuple(strides)


def alignment(tensor: object, limit_bytes: int) -> int:
    """Return the alignment of a tensor's address up to ``limit_bytes``; 0 where there is no tensor or no address."""
    if not isinstance(tensor, torch.Tensor):
        return 0
    address = tensor.data_ptr()
    return min(address & -address, limit_bytes)


@dataclass(frozen=True, slots=True)
class Extras:
    """What ``get_cache_key_extras`` gave, or why it gave nothing that a key can hold."""

    value: Any
    why: str | None = None


def has_extras(runner: TunableRunner) -> bool:
    """Whether the runner defines extras of its own."""
    return type(runner).get_cache_key_extras is not TunableRunner.get_cache_key_extras


def without(extras: Extras, positions: Iterable[tuple[int, ...]]) -> Extras:
    """Return the extras with ``None`` at ``positions``; one that they do not have is passed over."""
    value = extras.value
    for position in positions:
        value = _without(value, position)
    return Extras(value, extras.why)


def _without(value: Any, position: tuple[int, ...]) -> Any:
    if not position:
        return None
    if not isinstance(value, tuple) or position[0] >= len(value):
        return value
    items = list(value)
    items[position[0]] = _without(items[position[0]], position[1:])
    return tuple(items)


def at(value: Any, position: tuple[int, ...]) -> Any:
    """Return what extras have at a position, ``None`` where they do not have it."""
    for index in position:
        value = value[index] if isinstance(value, tuple) and index < len(value) else None
    return value


def extras_on(runner: TunableRunner, inputs: Sequence[Any], shapes: Sequence[Sequence[int]], pointers: Mapping[int, int]) -> Extras:
    """Return the runner's extras on stand-ins of ``shapes`` for its tensor inputs. ``pointers`` has the addresses it may see."""
    if not has_extras(runner):
        return Extras(())
    try:
        with torch.no_grad():
            stand_ins = [_stand_in(item, shapes[i], pointers.get(i)) for i, item in enumerate(inputs)]
            return Extras(runner.get_cache_key_extras(stand_ins))
    except PointerReadError:
        return Extras(None, "its key extras look at the address of an input")
    except Exception as error:  # noqa: BLE001 - a runner's code, on tensors without content: whatever it raises means "not known"
        return Extras(None, f"its key extras need the content of an input ({type(error).__name__}: {error})"[:200])


def _stand_in(item: Any, sizes: Sequence[int], alignment_bytes: int | None) -> Any:
    if isinstance(item, torch.Tensor):
        return StandIn.like(item, sizes, alignment_bytes)
    if isinstance(item, list | tuple) and any(isinstance(part, torch.Tensor) for part in item):
        parts = [_stand_in(part, tuple(getattr(part, "shape", ())), None) for part in item]
        return parts if isinstance(item, list) else tuple(parts)
    return item
