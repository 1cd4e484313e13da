"""Another value for every parameter of a constructed runner, by its type, and the walker's roles of all of them."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from flashinfer.autotuner import TunableRunner

from fi_cachestore.adapter.introspect import Call
from fi_cachestore.adapter.policy import resolved
from fi_cachestore.adapter.roles import Role
from fi_cachestore.adapter.sources import class_functions
from fi_cachestore.adapter.values import attributes
from fi_cachestore.adapter.walker import Walker
from tests.flashinfer_runners.case import Case, Compiled
from tests.flashinfer_runners.keys import introspector

_UNCHANGED = object()


class _Noting(Walker):
    """Notes the role of every parameter of the runner it is asked about, not of runners inside it."""

    def note(self, runner: TunableRunner, arguments: dict[str, Any], roles: Mapping[str, Role]) -> dict[str, Role]:
        self.seen: dict[str, Role] = {}
        found = self.runner(runner, "")
        self.arguments(arguments, roles)
        return self.seen | {name: Role.SEMANTIC for name in found if name.startswith("class.")}

    def _role(self, where: str, name: str, item: object) -> Role | None:
        role = super()._role(where, name, item)
        if len(self._scopes) == 1:
            self.seen[where] = role or Role.SEMANTIC
        return role

    def _contract_role(self, where: str) -> Role | None:
        role = super()._contract_role(where)
        if "[" in where and role is not None and len(self._scopes) == 1:
            self.seen[where] = role
        return role


def roles(case: Case, *, by_contract: bool = True) -> dict[str, Role]:
    """Return the role of every parameter and keyword argument of a case's runner by path, nested ones too."""
    call = Call(introspector(), case.op, case.config, case.inputs, case.arguments, resolved(case.config, None))
    walker = call.walker("")
    none: Mapping[str, Role] = {}
    noting = _Noting("", lambda runner: introspector().contract(runner).roles if by_contract else none, walker._dims, walker._mappers)
    return noting.note(case.runner, case.arguments, introspector().contract(case.runner).arguments if by_contract else none)


def is_top(path: str) -> bool:
    """Whether a path names a parameter itself and nothing inside it."""
    rest = path.partition(".")[2] if path.startswith(("class.", "closure.", "arguments.", "extras.")) else path
    return not set(".[") & set(rest)


# -- other values -----------------------------------------------------------------------------------------------------------------


def other(value: Any) -> Any:
    """Return a value of the same type that differs in what can be read of it, ``_UNCHANGED`` where there is none."""
    for kind, make in _OTHERS:
        if isinstance(value, kind):
            return make(value)
    if value is None:
        return 1
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _other_dataclass(value)
    return _UNCHANGED


def _other_enum(value: Any) -> Any:
    return next((member for member in type(value) if member.value != value.value), _UNCHANGED)


def _other_dataclass(value: Any) -> Any:
    for field in dataclasses.fields(value):
        changed = other(getattr(value, field.name)) if field.name != "local_expert_offset" else _UNCHANGED
        if changed is not _UNCHANGED:
            made = copy.copy(value)
            object.__setattr__(made, field.name, changed)
            return made
    return _UNCHANGED


def _other_tensor(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.float64 if value.dtype is not torch.float64 else torch.float32)


def _other_runner(value: TunableRunner) -> Any:
    for name, item in attributes(value).items():
        changed = other(item) if isinstance(item, bool | int | float | str | torch.dtype) and not name.startswith("_built") else _UNCHANGED
        if changed is not _UNCHANGED:
            made = copy.copy(value)
            setattr(made, name, changed)
            return made
    return _UNCHANGED


_OTHERS: list[tuple[Any, Callable[[Any], Any]]] = [
    (Enum, _other_enum),
    (bool, lambda value: not value),
    (int, lambda value: value + 1),
    (float, lambda value: value / 2 if value else 1.0),
    (str, lambda value: value + "x"),
    (torch.dtype, lambda value: torch.float64 if value is not torch.float64 else torch.float32),
    (torch.device, lambda value: torch.device("meta") if value.type != "meta" else torch.device("cpu")),
    (torch.Tensor, _other_tensor),
    (tuple, lambda value: (*value, 1)),
    (list, lambda value: [*value, 1]),
    (dict, lambda value: {**value, "x": 1}),
    (TunableRunner, _other_runner),
    (functools.partial, lambda value: functools.partial(value, x=1)),
    (FunctionType, lambda value: roles if value is not roles else other),
    (type, lambda value: Case if value is not Case else Compiled),
    (SimpleNamespace, lambda value: SimpleNamespace(**vars(value), x=1)),
]


def elsewhere(value: Any) -> Any:
    """Return what another rank or process may have instead of something that is left out of the key."""
    if isinstance(value, bool | float) or value is None:
        return other(value)
    if isinstance(value, int):
        return value - 1  # a length grows within its power of two
    if isinstance(value, ModuleType):
        made = type(value)("another")
        vars(made).update(vars(value))
        return made
    return value.clone() if isinstance(value, torch.Tensor) else copy.copy(value)


# -- where they stand -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One parameter of a case: its path, its value, and how to put another value in its place for a while."""

    path: str
    value: Any
    replaced: Callable[[Any], Any]


def parameters(case: Case) -> Iterator[Parameter]:
    """Yield every parameter of a case's runner: attributes, attributes that its class itself has, cells of its methods, keyword arguments."""
    runner, cls = case.runner, type(case.runner)
    for name, value in attributes(runner).items():
        yield Parameter(name, value, functools.partial(_attribute, runner, name, value))
    for name, value in list(vars(cls).items()):
        yield Parameter(f"class.{name}", value, functools.partial(_attribute, cls, name, value))
    for name, cells in _cells(cls).items():
        yield Parameter(f"closure.{name}", cells[0].cell_contents, functools.partial(_cell, cells))
    for name, value in case.arguments.items():
        yield Parameter(f"arguments.{name}", value, functools.partial(_item, case.arguments, name, value))


def _cells(cls: type) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for _, _, function in class_functions(cls, TunableRunner):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                found.setdefault(name, []).append(cell)
    return found


@contextmanager
def _attribute(owner: Any, name: str, value: Any, changed: Any) -> Iterator[None]:
    setattr(owner, name, changed)
    try:
        yield
    finally:
        setattr(owner, name, value)


@contextmanager
def _cell(cells: list[Any], changed: Any) -> Iterator[None]:
    before = [cell.cell_contents for cell in cells]
    for cell in cells:
        cell.cell_contents = changed
    try:
        yield
    finally:
        for cell, value in zip(cells, before, strict=True):
            cell.cell_contents = value


@contextmanager
def _item(arguments: dict[str, Any], name: str, value: Any, changed: Any) -> Iterator[None]:
    arguments[name] = changed
    try:
        yield
    finally:
        arguments[name] = value


UNCHANGED = _UNCHANGED
