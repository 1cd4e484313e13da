"""Small facts about Python objects that the walker asks for, and values that have several readings."""

from __future__ import annotations

import dataclasses
import functools
import sys
import threading
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations, islice, product
from typing import Any, Final

import numpy as np
import torch

from fi_cachestore.adapter.layout import RawTensor
from fi_cachestore.adapter.sources import class_functions, computed_defaults, is_released, release_of, told_apart
from fi_cachestore.keys.canonical import Named, Value, encode

MAX_READINGS: Final = 32
"""How many keys one call may have; the first is the one it is tuned under."""


MAX_MIXED_DIMS: Final = 2


@dataclass(frozen=True, slots=True)
class Alternatives:
    """A place in a key where this call does not tell which of several values the tuned call had; the first is the likeliest."""

    options: tuple[Value, ...]


def one_of(options: Sequence[Value]) -> Any:
    """Return the only option, or all of them as alternatives."""
    return options[0] if len(options) == 1 else Alternatives(tuple(options))


def expand(value: Any) -> list[Any]:
    """Return the readings of a value that holds alternatives, likeliest first, at most ``MAX_READINGS``."""
    places: list[Alternatives] = []
    _collect(value, places)
    if not places:
        return [value]
    picks = product(*(range(len(place.options)) for place in places))
    ordered = sorted(islice(picks, MAX_READINGS * MAX_READINGS), key=lambda pick: (sum(pick), pick))
    return [_resolve(value, iter(pick)) for pick in ordered[:MAX_READINGS]]


def _collect(value: Any, places: list[Alternatives]) -> None:
    match value:
        case Alternatives():
            places.append(value)
        case Named():
            _collect(value.content, places)
        case tuple() | list():
            for item in value:
                _collect(item, places)
        case dict():
            for item in value.values():
                _collect(item, places)


def _resolve(value: Any, picks: Iterator[int]) -> Any:
    match value:
        case Alternatives():
            return value.options[next(picks)]
        case Named():
            return Named(value.kind, _resolve(value.content, picks))
        case tuple():
            return tuple(_resolve(item, picks) for item in value)
        case list():
            return [_resolve(item, picks) for item in value]
        case dict():
            return {name: _resolve(item, picks) for name, item in value.items()}
    return value


def same_but(here: Value, there: Value, pairs: set[tuple[int, int]]) -> bool:
    """Whether two values differ in nothing but numbers that are a pair of ``pairs``."""
    if type(here) is int and type(there) is int and here != there:
        return (here, there) in pairs
    if isinstance(here, Named) and isinstance(there, Named):
        return here.kind == there.kind and same_but(here.content, there.content, pairs)
    if isinstance(here, tuple | list) and type(here) is type(there) and len(here) == len(there):
        return all(same_but(a, b, pairs) for a, b in zip(here, there, strict=True))
    return bytes_of(here) == bytes_of(there)


def bytes_of(value: Any) -> bytes:
    """Return canonical bytes of a value that may hold alternatives."""
    return encode(frozen(value))


def frozen(value: Any) -> Any:
    """Return a value that may hold alternatives as one without."""
    match value:
        case Alternatives():
            return Named("alternatives", tuple(frozen(option) for option in value.options))
        case Named():
            return Named(value.kind, frozen(value.content))
        case tuple():
            return tuple(map(frozen, value))
        case list():
            return [frozen(item) for item in value]
        case dict():
            return {name: frozen(item) for name, item in value.items()}
    return value


def subsets(dims: list[int]) -> list[tuple[int, ...]]:
    """Return all of ``dims``, none of them, and (of few) every mixture."""
    if len(dims) > MAX_MIXED_DIMS:
        return [tuple(dims), ()]
    subsets = [subset for count in range(len(dims) - 1, 0, -1) for subset in combinations(dims, count)]
    return list(dict.fromkeys([tuple(dims), (), *subsets]))


def raw_tensor(tensor: torch.Tensor) -> RawTensor | None:
    """Return what a key needs of a tensor, ``None`` for one without strides (sparse, for example)."""
    if tensor.layout is not torch.strided:
        return None
    return RawTensor(str(tensor.dtype), tuple(tensor.shape), tuple(tensor.stride()), tensor.device.type)


def closure_cells(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the names and contents of a function's closure; a cell that is not filled yet is left out."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name == "__class__":
            continue
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue


def method_cells(cls: type, base: type) -> list[tuple[str, Any]]:
    """Return the closure cells of all methods below ``base``. Two different contents under one name are told apart by the method's name."""
    functions = class_functions(cls, base)
    cells = [(name, f"{owner.__qualname__}.{method}.{name}", item) for owner, method, f in functions for name, item in closure_cells(f)]
    return list(told_apart(cells).items())


def made_with(cls: type) -> dict[str, dict[str, Any]]:
    """Return the closure and the computed defaults of the methods of a class that is no runner's, where no release says what they hold."""
    if is_released(cls) or "_fields" in vars(cls):  # a named tuple's are of its fields
        return {}
    made = {"closure": dict(method_cells(cls, object)), "defaults": computed_defaults(cls, object)}
    return {kind: items for kind, items in made.items() if items}


def is_plain(obj: Any) -> bool:
    """Whether ``obj`` is plain data: numbers, text, enums, dtypes, and containers of these."""
    if obj is None or isinstance(obj, bool | int | float | str | bytes | Enum | torch.dtype):
        return True
    if isinstance(obj, tuple | list | set | frozenset):
        return all(map(is_plain, obj))
    return isinstance(obj, dict) and all(is_plain(key) and is_plain(item) for key, item in obj.items())


def attributes(obj: Any) -> dict[str, Any]:
    """Return an object's instance attributes by name, slots included, in the order of their names."""
    slots = (name for owner in type(obj).__mro__ for name in _slots(owner))
    found = {name: getattr(obj, name) for name in slots if hasattr(obj, name)}
    return dict(sorted((found | getattr(obj, "__dict__", {})).items()))


def _slots(owner: type) -> tuple[str, ...]:
    slots = vars(owner).get("__slots__", ())
    names = [name for name in ([slots] if isinstance(slots, str) else slots) if name not in ("__dict__", "__weakref__")]
    private = f"_{owner.__name__.lstrip('_')}"
    return tuple(f"{private}{name}" if name.startswith("__") and not name.endswith("__") else name for name in names)


def wrapped_function(obj: Any) -> types.FunctionType | None:
    """Return the function that ``obj`` wraps, ``None`` where it is no wrapper or holds something of its own."""
    wrapped = getattr(obj, "__wrapped__", None)
    if not isinstance(wrapped, types.FunctionType):
        return None
    usual = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", *vars(wrapped)}
    return wrapped if isinstance(obj, functools._lru_cache_wrapper) or usual.issuperset(attributes(obj)) else None


def holds_more(obj: Any) -> bool:
    """Whether an object of a type derived from one of Python's own holds more than that type says: attributes."""
    return isinstance(obj, _OWN_KINDS) and not isinstance(obj, Enum | np.generic) and bool(getattr(obj, "__dict__", None))


def is_made_of_fields(obj: Any) -> bool:
    """Whether the fields of a dataclass say all of it: its constructor took nothing else, or kept nothing of it."""
    declared: Mapping[str, Any] = obj.__dataclass_fields__
    fields = {field.name for field in dataclasses.fields(obj)}
    taken = {name for name, field in declared.items() if field._field_type is dataclasses._FIELD_INITVAR}  # type: ignore[attr-defined]
    return not taken or fields.issuperset(attributes(obj))


def constant_name(obj: object) -> str | None:
    """Return ``"module:name release"`` of a sentinel: an object with nothing in it that is a constant of a released module."""
    cls = type(obj)
    if cls is object or any(owner.__module__ == "builtins" and owner is not object for owner in cls.__mro__) or attributes(obj):
        return None
    release = release_of(cls.__module__)
    constants = {} if release is None else vars(sys.modules[cls.__module__])
    return next((f"{cls.__module__}:{name} {release}".rstrip() for name, item in constants.items() if item is obj), None)


def foreign_enum(obj: Any) -> str | None:
    """Return the member name of an enum made by pybind11 or nanobind (``cudnn.data_type.HALF``), else ``None``."""
    members = getattr(type(obj), "__members__", None)
    name = getattr(obj, "name", None)
    return name if isinstance(members, Mapping) and isinstance(name, str) and name in members else None


_OWN_KINDS: Final = (int, float, str, bytes, tuple, list, dict, set, frozenset, functools.partial)
_RESOURCE_TYPES: Final = (
    types.ModuleType,
    torch.cuda.Stream,
    torch.cuda.Event,
    torch.Event,
    weakref.ReferenceType,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    *((torch.distributed.ProcessGroup,) if torch.distributed.is_available() else ()),
)
# Compiled code and handles, by the package and name of their type: they carry no readable configuration. Everything else of these
# packages may be configuration, and is a gap unless it is data.
_COMPILED: Final = {
    "tvm_ffi": ("Module", "Function"),
    "cutlass": ("JitCompiledFunction", "JitExecutor", "JitModule", "CudaDialectJitCompiledFunction", "CudaDialectJitModule"),
    "cudnn": ("pygraph", "Graph"),
    "triton": ("JITFunction", "CompiledKernel"),
    "cuda": ("CUfunction", "CUmodule", "CUlibrary", "CUkernel", "CUstream", "CUevent", "CUcontext", "Stream", "Event", "Kernel"),
}


def resource_kind(obj: object) -> str | None:
    """Return what kind of resource ``obj`` is by its type, else ``None``."""
    if isinstance(obj, _RESOURCE_TYPES):
        return type(obj).__name__
    package = type(obj).__module__.partition(".")[0]
    return package if type(obj).__qualname__ in _COMPILED.get(package, ()) else None
