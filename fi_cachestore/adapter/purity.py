"""Whether a runner's own key extras are a function of what a reading of the call has anyway, so that they need not be asked for.

Decided by the text of the method, and of the static methods that it calls: it may take its inputs apart, look at the facts of tensors that
a reading has, and at its own attributes and closure; and at the alignment of an address, up to where a reading has that because a contract
says so. Whatever else it does, nothing is said about it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import FunctionType
from typing import Any, Final

import torch
from flashinfer.autotuner import TunableRunner

from fi_cachestore.adapter.sources import owners, release_of, source_text

_FACTS: Final = frozenset({"shape", "dtype", "device", "ndim", "itemsize"})
_METHODS: Final = frozenset({"size", "stride", "dim", "ndimension", "numel", "element_size", "is_contiguous", "get_device"})
_BUILTINS: Final = frozenset({"len", "int", "bool", "str", "tuple", "min", "max"})
_CONSTANTS: Final = frozenset({torch.dtype, torch.layout, torch.memory_format})
_OPERATORS: Final = (
    ast.Tuple,
    ast.List,
    ast.Starred,
    ast.Compare,
    ast.BoolOp,
    ast.UnaryOp,
    ast.BinOp,
    ast.IfExp,
    ast.Subscript,
    ast.Slice,
)


@dataclass(frozen=True, slots=True)
class Purity:
    """What a method's text shows.

    ``is_pure``: the extras follow from the inputs, from the alignments that a contract says are looked at, and from plain data in these
    ``attributes`` of the runner and ``cells`` of the closure, as long as no attribute of the runner hides one of the class's ``methods``.
    ``is_released``: the method is a released package's. ``is_absent``: it is FlashInfer's own, which returns nothing.
    """

    is_pure: bool
    attributes: frozenset[str] = frozenset()
    cells: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset()
    is_released: bool = False
    is_absent: bool = False


def purity_of(cls: type, pointers: Mapping[int, int]) -> Purity:
    """Return what is known of a runner class's extras. ``pointers``: up to which alignment a reading has the addresses of which inputs."""
    function = inspect.getattr_static(cls, "get_cache_key_extras")
    if function is TunableRunner.get_cache_key_extras:
        return Purity(is_pure=True, is_absent=True)
    if not isinstance(function, FunctionType):
        return Purity(is_pure=False)
    is_released = release_of(function.__module__, function.__code__.co_filename) is not None
    tree, seen = _tree(function, decorators=()), _Seen(cls, pointers)
    is_usual = inspect.getattr_static(cls, "__getattribute__") is object.__getattribute__
    names = [] if tree is None else [argument.arg for argument in tree.args.args]
    if tree is None or not is_usual or len(names) != 2:  # noqa: PLR2004 - self and inputs
        return Purity(is_pure=False, is_released=is_released)
    if not _Reader(function, seen, {names[1]: _Is.GIVEN}, names[0]).is_pure(tree):
        return Purity(is_pure=False, is_released=is_released)
    attributes, cells, methods = map(frozenset, (seen.attributes, seen.cells, seen.methods))
    return Purity(True, attributes, cells, methods, is_released)  # noqa: FBT003 - said by the if


def _tree(function: FunctionType, decorators: tuple[str, ...]) -> ast.FunctionDef | None:
    """Return the text of a function that takes nothing but arguments by position, and has just these decorators."""
    text = source_text(function)
    body = ast.parse(text).body if text is not None else []
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        return None
    tree, given = body[0], body[0].args
    names = tuple(item.id if isinstance(item, ast.Name) else "" for item in tree.decorator_list)
    return None if given.vararg or given.kwarg or given.kwonlyargs or given.posonlyargs or names != decorators else tree


class _Is(Enum):
    """What an expression stands for: the list of inputs, an input or a part or fact of one, or what follows from these and is neither."""

    GIVEN = 1
    PART = 2
    VALUE = 3


@dataclass(frozen=True, slots=True)
class _Input:
    """The input at a place."""

    place: int


@dataclass(frozen=True, slots=True)
class _Address:
    """The address of the input at a place. Nothing follows from it but its alignment."""

    place: int


_Kind = _Is | _Input | _Address


@dataclass(slots=True)
class _Seen:
    """The class that is read, and what its methods were seen to look at."""

    cls: type
    pointers: Mapping[int, int]
    attributes: set[str] = field(default_factory=set)
    cells: set[str] = field(default_factory=set)
    methods: set[str] = field(default_factory=set)


class _Reader:
    """Reads the text of one function, in the order in which it runs. ``names`` says what its arguments stand for."""

    def __init__(self, function: FunctionType, seen: _Seen, names: dict[str, _Kind], itself: str) -> None:
        self._function, self._seen, self._names, self._itself = function, seen, names, itself

    def is_pure(self, tree: ast.FunctionDef) -> bool:
        return all(map(self._statement, tree.body))

    def _statement(self, node: ast.stmt) -> bool:
        match node:
            case ast.Expr(value=ast.Constant()):
                return True
            case ast.Return(value=value):
                return value is not None and self._is_value(value)
            case ast.Assign(targets=[target], value=value):
                kind = self._kind(value)
                return kind is not None and self._target(target, kind)
            case ast.If(test=test, body=body, orelse=orelse):
                return self._is_value(test) and all(map(self._statement, (*body, *orelse)))
        return False

    def _target(self, node: ast.expr, kind: _Kind) -> bool:
        match node:
            case ast.Name(id=name):
                before = self._names.get(name, kind)
                if before != kind and (not _is_of_inputs(before) or not _is_of_inputs(kind)):
                    return False  # a name that was given both kinds of values is of neither
                self._names[name] = kind if before == kind else _Is.PART
                return name != self._itself
            case ast.Tuple(elts=items) | ast.List(elts=items):
                starred = next((place for place, item in enumerate(items) if isinstance(item, ast.Starred)), len(items))
                return all(self._target(item, _item(kind, place if place < starred else None)) for place, item in enumerate(items))
            case ast.Starred(value=item):
                return self._target(item, kind)
        return False

    def _is_value(self, node: ast.expr) -> bool:
        """Whether an expression follows from what a reading has."""
        kind = self._kind(node)
        return kind is not None and not isinstance(kind, _Address)

    def _kind(self, node: ast.expr) -> _Kind | None:
        """Return what an expression stands for, ``None`` where that does not follow from what a reading has."""
        match node:
            case ast.Constant():
                return _Is.VALUE
            case ast.Name(id=name):
                return self._names.get(name) or self._if(self._cell(name))
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner == self._itself:
                return self._if(self._own(name))
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if self._is_global(owner):
                return self._if(self._function.__globals__.get(owner) is torch and type(getattr(torch, name, None)) in _CONSTANTS)
            case ast.Attribute(value=value, attr=name):
                return _Is.PART if name in _FACTS and _is_of_inputs(self._kind(value)) else None
            case ast.Call(func=function, args=given, keywords=[]):
                return self._call(function, given)
            case ast.Subscript(value=value, slice=index):
                kind = self._kind(value)
                if kind is not None and _is_of_inputs(kind) and self._is_value(index):
                    return _item(kind, index.value if isinstance(index, ast.Constant) and isinstance(index.value, int) else None)
        parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        return self._if(isinstance(node, _OPERATORS) and all(map(self._is_value, parts)))

    def _call(self, function: ast.expr, given: list[ast.expr]) -> _Kind | None:
        match function:
            case ast.Name(id="min") if self._is_alignment(given):
                return self._if(self._is_builtin("min"))
            case ast.Name(id=name):
                return self._if(self._is_builtin(name) and all(map(self._is_value, given)))
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner == self._itself:
                return self._if(self._static(name, [*map(self._kind, given)]))
            case ast.Attribute(value=value, attr="data_ptr") if not given:
                kind = self._kind(value)
                return _Address(kind.place) if isinstance(kind, _Input) and kind.place in self._seen.pointers else None
            case ast.Attribute(value=value, attr=name):
                return self._if(name in _METHODS and _is_of_inputs(self._kind(value)) and all(map(self._is_value, given)))
        return None

    @staticmethod
    def _if(is_value: bool) -> _Kind | None:  # noqa: FBT001 - reads as it is said
        return _Is.VALUE if is_value else None

    def _is_alignment(self, given: list[ast.expr]) -> bool:
        """Whether the smaller of these is an alignment that a reading has, or less: ``address & -address``, and a limit."""
        match given:
            case [ast.BinOp(left=left, op=ast.BitAnd(), right=ast.UnaryOp(op=ast.USub(), operand=right)), ast.Constant(value=limit)]:
                address = self._kind(left)
                if isinstance(address, _Address) and address == self._kind(right) and isinstance(limit, int):
                    return limit <= self._seen.pointers[address.place]
        return False

    def _static(self, name: str, given: list[_Kind | None]) -> bool:
        """Whether the result of a static method of the class follows from what it is given."""
        found: Any = next((vars(owner)[name] for owner in owners(self._seen.cls, TunableRunner) if name in vars(owner)), None)
        if (
            name.startswith("__")
            or type(found) is not staticmethod
            or type(found.__func__) is not FunctionType
            or found.__func__.__closure__
        ):
            return False
        tree = _tree(found.__func__, ("staticmethod",))
        kinds = [kind for kind in given if kind is not None]
        names = [] if tree is None else [argument.arg for argument in tree.args.args]
        if tree is None or len(names) != len(given) or len(kinds) != len(given):
            return False
        self._seen.methods.add(name)
        return _Reader(found.__func__, self._seen, dict(zip(names, kinds, strict=True)), "").is_pure(tree)

    def _cell(self, name: str) -> bool:
        if name in self._function.__code__.co_freevars:
            self._seen.cells.add(name)
            return True
        return False

    def _own(self, name: str) -> bool:
        """Whether an attribute of the runner is one that a reading has: not computed by the class."""
        if name.startswith("__") or inspect.getattr_static(self._seen.cls, name, None) is not None:
            return False
        self._seen.attributes.add(name)
        return True

    def _is_global(self, name: str) -> bool:
        return name not in self._names and name not in self._function.__code__.co_freevars

    def _is_builtin(self, name: str) -> bool:
        return name in _BUILTINS and self._is_global(name) and name not in self._function.__globals__


def _is_of_inputs(kind: _Kind | None) -> bool:
    """Whether something is an input, or a part or fact of one."""
    return kind in (_Is.GIVEN, _Is.PART) or isinstance(kind, _Input)


def _item(kind: _Kind, place: int | None) -> _Kind:
    """Return what an item of something is, ``None`` for a place that is not known."""
    if kind is _Is.GIVEN and place is not None and place >= 0:
        return _Input(place)
    return _Is.PART if _is_of_inputs(kind) else kind
