"""Tensors in a key: dtype, shape with dynamic dims as symbols, layout, device type.

A layout is the order of the dims by stride and whether the tensor is dense. Dims whose bucketed size is 1 are left out of the order:
their stride says nothing. Where a dim is 1 now and its bucket is not, the stride says nothing either but the order matters, so there
are several readings; row-major is the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fi_cachestore.keys.canonical import Named, Value

MAX_READINGS: Final = 8
DERIVED: Final = Named("dim", "derived")
"""A dim that follows from the dynamic ones (FlashInfer's constraint specs)."""


@dataclass(frozen=True, slots=True)
class RawTensor:
    """What a key needs of one tensor: ``sizes`` and ``strides`` in elements."""

    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    device_type: str


def dynamic_dim(position: int) -> Named:
    """Return the symbol of the call's dynamic dim number ``position``."""
    return Named("dim", f"d{position}")


def tensor_value(raw: RawTensor, shape: Sequence[Value], layout: Value) -> Named:
    """Return a tensor's entry in a key."""
    return Named("tensor", {"dtype": Named("dtype", raw.dtype), "shape": tuple(shape), "layout": layout, "device": raw.device_type})


def readings(raw: RawTensor, bucketed: Sequence[int], symbols: Mapping[int, Value]) -> list[Value]:
    """Return the layouts that the tensor may have, most likely first; one unless a dim is 1 now and not in its bucket.

    ``bucketed`` has the size of every dim in the bucket, ``symbols`` the dims that are dynamic or derived.
    """
    counted = [dim for dim, size in enumerate(bucketed) if size != 1]
    open_dims = [dim for dim in counted if raw.sizes[dim] == 1]
    fixed = sorted((dim for dim in counted if dim not in open_dims), key=lambda dim: (-raw.strides[dim], dim))
    found: dict[tuple[int, ...], None] = {}
    for order in itertools.islice(_insertions(fixed, open_dims), MAX_READINGS):
        found.setdefault(order)
    values = [_layout(raw, order, symbols) for order in found]
    padded = _padded_outermost(raw, list(found), open_dims, symbols)
    return values[:1] + padded + values[1:]


def _insertions(fixed: list[int], open_dims: list[int]) -> Iterator[tuple[int, ...]]:
    """Yield the orders that put ``open_dims`` anywhere among ``fixed``, the most row-major ones first."""
    if not open_dims:
        yield tuple(fixed)
        return
    orders: list[tuple[int, ...]] = [tuple(fixed)]
    for dim in open_dims:
        orders = [(*order[:at], dim, *order[at:]) for order in orders for at in range(len(order) + 1)]
    yield from sorted(dict.fromkeys(orders), key=_disorder)


def _disorder(order: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return (sum(1 for a, b in itertools.combinations(order, 2) if a > b), order)


def _layout(raw: RawTensor, order: tuple[int, ...], symbols: Mapping[int, Value]) -> Value:
    """Describe one order of the counted dims. A tensor that is dense as a whole is dense in every bucket."""
    everything = sorted(range(len(raw.sizes)), key=lambda dim: (-raw.strides[dim], dim))
    if _is_dense(raw, order) or _is_dense(raw, everything):
        return Named("layout", {"order": order, "strides": None})
    return Named("layout", {"order": order, "strides": _strides(raw, order, symbols)})


def _is_dense(raw: RawTensor, order: Sequence[int]) -> bool:
    """Whether the dims follow each other without gaps. Dims of size 1 take whatever stride fits."""
    expected = 1
    for dim in reversed(order):
        if raw.sizes[dim] != 1 and raw.strides[dim] != expected:
            return False
        expected *= raw.sizes[dim]
    return True


def _strides(raw: RawTensor, order: tuple[int, ...], symbols: Mapping[int, Value]) -> tuple[Value, ...]:
    """Return the strides in ``order``; one that depends on a dynamic dim is ``padded``, not a number of this call."""
    rows: list[Value] = []
    for at, dim in enumerate(order):
        stride = raw.strides[dim]
        inner = set(order[at + 1 :]) | {other for other in symbols if raw.sizes[other] != 1 and raw.strides[other] < stride}
        if stride == 0:
            rows.append("broadcast")
        else:
            rows.append("padded" if inner & set(symbols) else stride)
    return tuple(rows)


def _padded_outermost(raw: RawTensor, orders: list[tuple[int, ...]], open_dims: list[int], symbols: Mapping[int, Value]) -> list[Value]:
    """Return the row-major reading with its real pitch, where the outermost dim is 1 now and its stride shows padding.

    A slice of a wider matrix keeps its row pitch at one row; a contiguous tensor of one row has the dense stride.
    """
    if not open_dims or not orders or orders[0][0] not in open_dims:
        return []
    order = orders[0]
    inner_count = 1
    for dim in order[1:]:
        inner_count *= raw.sizes[dim]
    if raw.strides[order[0]] <= inner_count or not _is_dense(raw, order[1:]):
        return []
    return [Named("layout", {"order": order, "strides": _strides(raw, order, symbols)})]
