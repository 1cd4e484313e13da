"""Readings: what the walker would look at in an object, as a hashable value that is cheap to take.

Equal readings mean that the walker describes both objects alike: a reading has everything that counts, with its type, and more. It never
holds the object itself; an object that cannot be read so is refused, and the call it belongs to is described at length.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from operator import attrgetter, itemgetter
from typing import Any, Final, TypeVar

import numpy as np
import torch
from flashinfer.autotuner import TunableRunner, TuningConfig

from fi_cachestore.adapter.roles import Role, is_data
from fi_cachestore.adapter.sources import release_of
from fi_cachestore.adapter.values import constant_name, foreign_enum, holds_more, is_made_of_fields, resource_kind, wrapped_function

ATOMS: Final = frozenset({type(None), bool, int, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format})
"""Types whose values stand for themselves: immutable, and equal only to what a key has alike."""
TENSORS: Final = frozenset({torch.Tensor, torch.nn.Parameter})

Getter = Callable[[Any], tuple[Any, ...]]
Node = Mapping[str, Any]
"""The roles of what lies below a parameter: names to a role, to ``VARIES`` or ``PLAIN``, or to another node."""
VARIES: Final = "varies"
PLAIN: Final = "plain"
"""Of a parameter that the extras look into: it has a reading only where it is plain data that has no code of its own."""

_MAX_DEPTH: Final = 16
_MAX_ITEMS: Final = 512
_MAX_KNOWN: Final = 512
_EMPTY_CELL: Final = "empty cell"
_tensor_facts: Final = attrgetter("shape", "dtype", "device", "layout")
_function_facts: Final = attrgetter("__module__", "__qualname__", "__code__", "__code__.co_filename", "__defaults__", "__kwdefaults__")


_K = TypeVar("_K")
_V = TypeVar("_V")


class UnreadableError(Exception):
    """An object has no reading."""


class Readings:
    """Takes readings of the objects of one call. ``mappers`` are the call's own bucket mappers.

    ``of_runner`` and ``of_class`` read runners inside runners and classes, whose code is looked at once.
    """

    def __init__(
        self,
        mappers: Sequence[Any],
        of_runner: Callable[[TunableRunner, Readings], Hashable],
        of_class: Callable[[type, Readings], Hashable],
    ) -> None:
        """Read nothing yet."""
        self._mappers = mappers
        self._of_runner = of_runner
        self._of_class = of_class

    def of(self, obj: Any, node: Node | None = None, depth: int = 0) -> Hashable:
        """Return the reading of an object.

        Raises:
            UnreadableError: it has none.
        """
        kind = type(obj)
        if kind in ATOMS:
            return kind, obj
        if kind is float:
            return "float", obj.hex()  # 0.0 == -0.0, and no NaN is itself
        if depth > _MAX_DEPTH or holds_more(obj):
            raise UnreadableError
        if isinstance(obj, types.FunctionType):
            return self.function(obj, node, depth + 1)
        if (resource := resource_kind(obj)) is not None:
            return "resource", resource
        for read in (self._data, self._container, self._torch, self._code, self._object):
            found = read(obj, node, depth + 1)
            if found is not None:
                return found
        raise UnreadableError

    def parameter(self, name: str, item: Any, node: Node | None, depth: int = 0) -> Hashable:
        """Return the reading of a parameter, which its role may reduce to what is kept of parameters that are not in the key."""
        below = None if node is None else node.get(name)
        if below is PLAIN:
            if not is_own_plain(item):
                raise UnreadableError
            return self.of(item, None, depth)
        if isinstance(item, TuningConfig) or below is Role.RESOURCE:
            return self.held(item)
        if below is VARIES and type(item) in (int, float):
            return "varies", _type_name(type(item))
        if below is None and name.endswith("_cache") and not is_data(item):
            return self.held(item)
        found = self.of(item, below if isinstance(below, dict) else None, depth)
        return ("mapper", found) if callable(item) and self._is_own_mapper(item) else found

    def held(self, item: Any, depth: int = 0) -> Hashable:
        """Return the reading of a resource: scalar plain data and tuples of them by value, everything else by its type alone."""
        if isinstance(item, tuple) and depth < _MAX_DEPTH:
            return "tuple", _type_name(type(item)), tuple(self.held(part, depth + 1) for part in item)
        is_valued = type(item) in ATOMS or isinstance(item, bool | int | float | str | bytes | Enum | np.generic)
        return self.of(item) if is_valued or foreign_enum(item) is not None else ("held", _type_name(type(item)))

    def _parameters(self, items: Mapping[str, Any], node: Node | None, depth: int) -> tuple[Hashable, ...]:
        return tuple((name, self.parameter(name, item, node, depth)) for name, item in items.items())

    # -- kinds of objects: None where it is none of these -----------------------------------------------------------------------

    def _data(self, obj: Any, _node: Node | None, depth: int) -> Hashable | None:
        match obj:
            case Enum():
                return "enum", _type_name(type(obj)), obj.name, self.of(obj.value, None, depth)
            case np.generic():
                return "numpy", obj.dtype.name, self.of(obj.item(), None, depth)
            case np.dtype():
                return "numpy.dtype", obj.str
            case bool() | int() | float() | str() | bytes():
                base: Any = next(kind for kind in (int, float, str, bytes) if isinstance(obj, kind))
                return "subclass", _type_name(type(obj)), self.of(base(obj), None, depth)
        member = foreign_enum(obj)
        return None if member is None else ("enum", _type_name(type(obj)), member)

    def _container(self, obj: Any, _node: Node | None, depth: int) -> Hashable | None:
        if isinstance(obj, range):
            return "range", obj.start, obj.stop, obj.step
        if not isinstance(obj, Sequence | AbstractSet | Mapping) or isinstance(obj, bytearray | memoryview):
            return None
        if len(obj) > _MAX_ITEMS:
            raise UnreadableError
        name = _type_name(type(obj))
        if isinstance(obj, Mapping):
            return name, tuple((self.of(key, None, depth), self.of(item, None, depth)) for key, item in obj.items())
        if isinstance(obj, AbstractSet):
            return name, frozenset(Counter(self.of(item, None, depth) for item in obj).items())  # items that are unequal may read alike
        if isinstance(obj, tuple) and hasattr(obj, "_fields"):
            return name, tuple((field, self.of(getattr(obj, field), None, depth)) for field in obj._fields)
        return name, tuple(self.of(item, None, depth) for item in obj)

    @staticmethod
    def _torch(obj: Any, _node: Node | None, _depth: int) -> Hashable | None:
        return ("tensor", *_tensor_facts(obj), obj.stride()) if isinstance(obj, torch.Tensor) else None

    def _code(self, obj: Any, node: Node | None, depth: int) -> Hashable | None:
        match obj:
            case functools.partial():
                parts = (self.of(part, None, depth) for part in (obj.func, obj.args, obj.keywords))
                return "partial", self._is_own_mapper(obj), *parts
            case types.MethodType():
                return "method", self.of(obj.__func__, None, depth), self.of(obj.__self__, None, depth)
            case types.BuiltinFunctionType() if obj.__self__ is None or isinstance(obj.__self__, types.ModuleType):
                return "builtin", obj.__module__, obj.__qualname__
            case type():
                return "class", self._of_class(obj, self)
        wrapped = wrapped_function(obj)
        return None if wrapped is None else ("wrapped", self.of(wrapped, node, depth))

    def function(self, function: types.FunctionType, node: Node | None = None, depth: int = 0) -> Hashable:
        """Return the reading of a function: its code and name, defaults and closure."""
        module, name, code, file, defaults, keyword_defaults = _function_facts(function)
        below = None if node is None else node.get("closure")
        return (
            "function",
            (module, name, code, file, self._is_own_mapper(function)),
            None if defaults is None else self.of(defaults, None, depth),
            None if keyword_defaults is None else self.of(keyword_defaults, None, depth),
            self.cells(function, below, depth),
        )

    def cells(self, function: types.FunctionType, node: Node | None = None, depth: int = 0) -> Hashable:
        """Return the reading of what a function's closure holds now."""
        cells = function.__closure__
        names = function.__code__.co_freevars
        return None if cells is None else tuple(self.cell(name, cell, node, depth) for name, cell in zip(names, cells, strict=True))

    def cell(self, name: str, cell: types.CellType, node: Node | None, depth: int = 0) -> Hashable:
        """Return the reading of what a closure cell holds now."""
        if name == "__class__":
            return name
        try:
            item = cell.cell_contents
        except ValueError:
            return _EMPTY_CELL
        return self.parameter(name, item, node, depth)

    def _is_own_mapper(self, function: Any) -> bool:
        return any(function is mapper for mapper in self._mappers)

    def _object(self, obj: Any, node: Node | None, depth: int) -> Hashable | None:
        if isinstance(obj, TunableRunner):
            return "runner", self._of_runner(obj, self)
        if dataclasses.is_dataclass(obj) and is_made_of_fields(obj):
            fields = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj) if hasattr(obj, field.name)}
            own = self._of_class(type(obj), self) if "<locals>" in type(obj).__qualname__ else None
            return "dataclass", _type_name(type(obj)), self._parameters(fields, node, depth), own
        if isinstance(obj, types.SimpleNamespace):
            return "namespace", self._parameters(vars(obj), node, depth)
        constant = constant_name(obj)
        return None if constant is None else ("constant", constant)


def is_scalar(item: Any) -> bool:
    """Whether an object is scalar plain data, or a tuple of such."""
    if type(item) is tuple:
        return all(map(is_scalar, item))
    return type(item) in ATOMS or isinstance(item, bool | int | float | str | bytes | Enum)


def is_own_plain(item: Any) -> bool:
    """Whether an object is plain data of Python's own types, or a member of a released enum: their operators look at nothing else."""
    kind = type(item)
    if kind in (tuple, list, set, frozenset):
        return all(map(is_own_plain, item))
    if kind is dict:
        return all(is_own_plain(key) and is_own_plain(value) for key, value in item.items())
    return kind in ATOMS or kind is float or (isinstance(item, Enum) and release_of(kind.__module__) is not None)


def _type_name(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def is_of_module(item: type | types.FunctionType) -> bool:
    """Whether a module has a class or function under its name, so that it lasts."""
    found: Any = sys.modules.get(item.__module__)
    for name in item.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is item


def getter(places: list[Any]) -> Getter:
    """Return what takes the items of a mapping or sequence at some places, as a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    if places:
        only = places[0]
        return lambda items: (items[only],)
    return lambda _: ()


def kept(known: dict[_K, _V], key: _K, value: _V, limit_count: int = _MAX_KNOWN) -> _V:
    """Keep a value and return it; a full mapping is emptied first."""
    if len(known) >= limit_count:
        known.clear()
    known[key] = value
    return value
