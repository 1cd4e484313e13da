"""Whether a runner's own key extras are a function of what a reading of the call has anyway, so that they need not be asked for.

Decided by the method's source text: it may take its inputs apart, look at the facts of tensors that a reading has, and at its own
attributes and closure. Whatever else it does, nothing is said about it.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from types import FunctionType
from typing import Final

from flashinfer.autotuner import TunableRunner

from fi_cachestore.adapter.sources import release_of, source_text

_FACTS: Final = frozenset({"shape", "dtype", "device", "ndim", "itemsize"})
_METHODS: Final = frozenset({"size", "stride", "dim", "ndimension", "numel", "element_size", "is_contiguous", "get_device"})
_BUILTINS: Final = frozenset({"len", "int", "bool", "str", "tuple", "min", "max"})
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

    ``is_pure``: the extras follow from the inputs, and from plain data in these ``attributes`` of the runner and ``cells`` of the closure.
    ``is_released``: the method is a released package's. ``is_absent``: it is FlashInfer's own, which returns nothing.
    """

    is_pure: bool
    attributes: frozenset[str] = frozenset()
    cells: frozenset[str] = frozenset()
    is_released: bool = False
    is_absent: bool = False


def purity_of(cls: type) -> Purity:
    """Return what is known of a runner class's extras."""
    function = inspect.getattr_static(cls, "get_cache_key_extras")
    if function is TunableRunner.get_cache_key_extras:
        return Purity(is_pure=True, is_absent=True)
    if not isinstance(function, FunctionType):
        return Purity(is_pure=False)
    is_released = release_of(function.__module__, function.__code__.co_filename) is not None
    text = source_text(function)
    body = ast.parse(text).body if text is not None else []
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        return Purity(is_pure=False, is_released=is_released)
    reader = _Reader(body[0], function, cls)
    if not reader.is_pure():
        return Purity(is_pure=False, is_released=is_released)
    return Purity(True, frozenset(reader.attributes), frozenset(reader.cells), is_released)  # noqa: FBT003 - said by the if


class _Reader:
    def __init__(self, tree: ast.FunctionDef, function: FunctionType, cls: type) -> None:
        self.attributes: set[str] = set()
        self.cells: set[str] = set()
        self._tree, self._function, self._cls = tree, function, cls
        names = [argument.arg for argument in tree.args.args]
        self._itself, self._inputs = (names[0], {names[1]}) if len(names) == 2 else ("", set())  # noqa: PLR2004 - self and inputs
        self._others: set[str] = set()

    def is_pure(self) -> bool:
        tree = self._tree
        plain = not (tree.decorator_list or tree.args.vararg or tree.args.kwarg or tree.args.kwonlyargs or tree.args.posonlyargs)
        is_usual = inspect.getattr_static(self._cls, "__getattribute__") is object.__getattribute__
        return plain and is_usual and bool(self._itself) and all(map(self._statement, tree.body))

    def _statement(self, node: ast.stmt) -> bool:
        match node:
            case ast.Expr(value=ast.Constant()):
                return True
            case ast.Return(value=value):
                return value is not None and self._value(value)
            case ast.Assign(targets=[target], value=value):
                return self._value(value) and self._target(target, self._inputs if self._is_of_inputs(value) else self._others)
            case ast.If(test=test, body=body, orelse=orelse):
                return self._value(test) and all(map(self._statement, (*body, *orelse)))
        return False

    def _target(self, node: ast.expr, known: set[str]) -> bool:
        match node:
            case ast.Name(id=name):
                known.add(name)  # a name that was given both kinds of values is of neither
                return name != self._itself and not self._inputs & self._others
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return all(self._target(item, known) for item in items)
            case ast.Starred(value=item):
                return self._target(item, known)
        return False

    def _value(self, node: ast.expr) -> bool:
        """Whether an expression follows from what a reading has."""
        match node:
            case ast.Constant():
                return True
            case ast.Name(id=name):
                return name in self._inputs or name in self._others or self._cell(name)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner == self._itself:
                return self._own(name)
            case ast.Attribute(value=value, attr=name):
                return name in _FACTS and self._is_of_inputs(value)
            case ast.Call(func=ast.Name(id=name), args=given, keywords=[]):
                return self._is_builtin(name) and all(map(self._value, given))
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=given, keywords=[]):
                return name in _METHODS and self._is_of_inputs(value) and all(map(self._value, given))
        parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        return isinstance(node, _OPERATORS) and all(map(self._value, parts))

    def _cell(self, name: str) -> bool:
        if name in self._function.__code__.co_freevars:
            self.cells.add(name)
            return True
        return False

    def _own(self, name: str) -> bool:
        """Whether an attribute of the runner is one that a reading has: not computed by the class."""
        if inspect.getattr_static(self._cls, name, None) is not None:
            return False
        self.attributes.add(name)
        return True

    def _is_of_inputs(self, node: ast.expr) -> bool:
        """Whether an expression is an input, or a part or fact of one."""
        match node:
            case ast.Name(id=name):
                return name in self._inputs
            case ast.Subscript(value=value, slice=index):
                return self._is_of_inputs(value) and self._value(index)
            case ast.Attribute(value=value, attr=name):
                return name in _FACTS and self._is_of_inputs(value)
        return False

    def _is_builtin(self, name: str) -> bool:
        function = self._function
        return name in _BUILTINS and name not in function.__globals__ and name not in self._inputs | self._others
