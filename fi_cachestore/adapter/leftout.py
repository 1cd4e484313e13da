"""Parameters as a walker met them: their types and roles, for the schema of a key, and the values of those that no key holds.

What is left out of a key is not forgotten: whether a stored tactic may be believed is decided for the values that were seen.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

import numpy as np
import torch

from fi_cachestore.adapter.roles import Role
from fi_cachestore.adapter.sources import type_name
from fi_cachestore.adapter.values import foreign_enum
from fi_cachestore.errors import UnsupportedValueError
from fi_cachestore.keys.canonical import Named, Value, encode
from fi_cachestore.keys.digest import source_digest
from fi_cachestore.keys.schema import LeftOut, Parameters, left_out_value

_LONGEST_CHARS: Final = 4096
_DEEPEST: Final = 8
_IN_THE_KEY: Final = frozenset({Role.SEMANTIC, Role.ROUNDING})
_CODE: Final = (FunctionType, BuiltinFunctionType, property, classmethod, staticmethod, functools.cached_property)
_NAME_OF: Final = {role: role.value for role in Role}
ABSENT: Final = Named("absent", None)
"""The value of an attribute that the runner's methods will make and that is not there yet."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: where, what for, and its type. ``value`` is that of one that is left out of the key, else ``None``."""

    path: str
    role: Role
    cls: type
    value: Value = None

    @property
    def is_left_out(self) -> bool:
        """Whether the key does not hold its value."""
        return self.role not in _IN_THE_KEY


def parameter(path: str, role: Role | None, item: object) -> Parameter:
    """Return a parameter as it is now; without a role it is semantic."""
    role = role or Role.SEMANTIC
    return Parameter(path, role, type(item), None if role in _IN_THE_KEY else scalar(item, varies=role is Role.VARYING))


def absent(path: str) -> Parameter:
    """Return an attribute that methods of the runner assign and that it does not have yet."""
    return Parameter(path, Role.RESOURCE, type(None), ABSENT)


def is_code(item: object) -> bool:
    """Whether an attribute of a class is a function or accessor, and no state."""
    return isinstance(item, _CODE)


def scalar(item: Any, *, varies: bool = False) -> Value:
    """Return scalar plain data, and tuples of it, as a value; everything else (memos, buffers, modules) by its type alone.

    With ``varies`` a number counts by its type too: it changes from call to call.
    """
    if varies and type(item) in (int, float):
        return Named("varies", type_name(type(item)))
    value = _scalar(item, 0)
    try:
        encode(value)
    except UnsupportedValueError:
        return Named("type", type_name(type(item)))
    return value


def _scalar(item: Any, depth: int) -> Value:
    if item is None or type(item) in (bool, int, float):
        return item  # type: ignore[no-any-return]
    match item:
        case Enum():
            return Named("enum", (type_name(type(item)), item.name, _scalar(item.value, depth + 1)))
        case np.generic() if item.dtype.kind in "biuf":
            return Named("numpy", (item.dtype.name, item.item()))
        case torch.dtype() | torch.device():
            return Named(type(item).__name__, str(item))
        case str() | bytes():
            return _text(item)
        case bool() | int() | float():
            base: Any = next(kind for kind in (int, float) if isinstance(item, kind))
            return Named("subclass", (type_name(type(item)), base(item)))
        case tuple() if depth < _DEEPEST:
            parts = tuple(_scalar(part, depth + 1) for part in item)
            return parts if type(item) is tuple else Named("subclass", (type_name(type(item)), parts))
    member = foreign_enum(item)
    return Named("type", type_name(type(item))) if member is None else Named("enum", (type_name(type(item)), member, None))


def _text(item: str | bytes) -> Value:
    plain: str | bytes = str(item) if isinstance(item, str) else bytes(item)
    if len(plain) > _LONGEST_CHARS or (isinstance(plain, str) and not plain.isprintable()):
        plain = source_digest(plain if isinstance(plain, str) else plain.hex())
        return Named("text", (type_name(type(item)), plain))
    return plain if type(item) in (str, bytes) else Named("subclass", (type_name(type(item)), plain))


def rows(parameters: Iterable[Parameter]) -> Parameters:
    """Return path, type and role of parameters for a schema, each once.

    What is left out of the key has no type there, since a memo that is filled has another one: its type counts with its value.
    """
    found = {(each.path, type_name(each.cls) if each.role in _IN_THE_KEY else "", _NAME_OF[each.role]) for each in parameters}
    return tuple(sorted(found))


def left_out(parameters: Iterable[Parameter]) -> LeftOut:
    """Return the digests of the values that are left out of the key. Two of one path both count."""
    digests: dict[str, Any] = {}
    for found in parameters:
        if found.role in _IN_THE_KEY:
            continue
        path = found.path
        while path in digests:
            path += "'"
        digests[path] = left_out_value(_NAME_OF[found.role], found.value)
    return digests


def raw_values(parameters: Iterable[Parameter]) -> list[Value]:
    """Return the left-out values as they are, for remembering what was decided for them."""
    return [(found.path, found.value) for found in parameters if found.is_left_out]
