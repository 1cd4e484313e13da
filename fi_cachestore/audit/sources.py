"""Sources: what code reads of a runner and its call, by origin, name and part."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

EVERY: Final = "*"
PROFILE: Final = "profile"
TENSOR_PARTS: Final = {
    "shape": "shape", "size": "shape", "numel": "shape", "ndim": "shape", "dim": "shape", "nbytes": "shape",
    "dtype": "dtype", "element_size": "dtype", "itemsize": "dtype",
    "stride": "layout", "is_contiguous": "layout",
    "data_ptr": "address",
    "device": "device", "get_device": "device", "is_cuda": "device",
}  # fmt: skip


class Origin(StrEnum):
    """Where a value comes from."""

    ATTRIBUTE = "attribute"
    CLOSURE = "closure"
    ARGUMENT = "argument"
    INPUT = "input"


@dataclass(frozen=True, slots=True)
class Source:
    """A value as code names it: an attribute, a variable of the factory, a keyword argument or an input by its position.

    ``part`` is what is read of it: a dotted path of an attribute, or ``shape[0]``, ``dtype``, ``layout``, ``address``, ``device``,
    ``none`` and ``value`` of an input; empty for the whole. ``made``: not the value itself but what a call made of it.
    """

    origin: Origin
    name: str
    part: str = ""
    made: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """One place where a source is read. ``decides``: in a condition; ``handle``: only to call it or a method of it."""

    source: Source
    path: str
    line: int
    decides: bool = False
    handle: bool = False


Sources = frozenset[Source]
NOTHING: Final[Sources] = frozenset()


def positions(parts: Sequence[ast.expr]) -> Iterator[tuple[int | None, ast.expr]]:
    """Return the targets of an unpacking with their positions; those after a star count from the end, the starred one has none."""
    star = next((index for index, part in enumerate(parts) if isinstance(part, ast.Starred)), len(parts))
    for index, part in enumerate(parts):
        yield (None if index == star else index if index < star else index - len(parts)), part


def element(source: Source, place: int | None) -> Source:
    """Return an element of what is unpacked."""
    if source.origin is not Origin.INPUT or place is None:
        return source
    if not source.part:
        return Source(Origin.INPUT, str(place)) if source.name == EVERY else replace(source, part="item")
    return replace(source, part=f"shape[{place}]") if source.part == "shape" else source


def item(source: Source, index: ast.expr) -> Source:
    """Return what stands in brackets after a source."""
    match index:
        case ast.Constant(value=int() as place) | ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as place)):
            return element(source, -place if isinstance(index, ast.UnaryOp) else place)
    return replace(source, part="item") if source.origin is Origin.INPUT and not source.part and source.name != EVERY else source


def part(source: Source, attribute: str) -> Source:
    """Return an attribute of a source."""
    if source.origin is Origin.INPUT:
        if source.name == PROFILE:
            return replace(source, part="shape")
        if source.part == "device" and attribute == "index":
            return replace(source, part="device.index")
        return source if source.part else replace(source, part=TENSOR_PARTS.get(attribute, ""))
    if source.origin is Origin.ATTRIBUTE and not source.made and source.part.count(".") < 3:  # noqa: PLR2004 - enough to name a setting
        return replace(source, part=f"{source.part}.{attribute}" if source.part else attribute)
    return source


def passed(found: Sources) -> Sources:
    """Return what the result of a call outside depends on: a tensor that was passed as a whole is no longer looked at."""
    kept = (source for source in found if source.origin is not Origin.INPUT or source.part)
    return frozenset(replace(source, made=True) if source.origin is not Origin.INPUT else source for source in kept)


def keeps(function: ast.expr) -> bool:
    """Whether a call gives back what it is given: a copy of a list, or an object made of one."""
    match function:
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return attribute == "from_list" or name[:1].isupper()
        case ast.Name(id=name):
            return name in ("list", "tuple") or name[:1].isupper()
    return False


def presence(source: Source) -> Source:
    """Return whether an input is there, which the shapes of a key tell."""
    return replace(source, part="none") if source.origin is Origin.INPUT and not source.part and source.name != EVERY else source
