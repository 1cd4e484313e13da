"""Runners of classes that are made for the call, as most of FlashInfer's are, read in one pass.

What was read at length once is noted in two parts. What has one reading as long as it is the same function, or of the same type, is
compared with what was there; a number stands for all of that. What may differ is taken from the objects: values, what closures hold,
addresses, and readings of whatever is told apart by neither.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, is_
from types import CellType, FunctionType
from typing import Any, Final

import torch
from flashinfer.autotuner import TunableRunner

from fi_cachestore.adapter.bodies import Same, same_as
from fi_cachestore.adapter.configs import ConfigPlan
from fi_cachestore.adapter.members import Attributes, ClassPlan
from fi_cachestore.adapter.readings import ATOMS, PLAIN, VARIES, Getter, getter, is_of_module
from fi_cachestore.adapter.roles import Role
from fi_cachestore.adapter.standins import alignment
from fi_cachestore.adapter.values import resource_kind

_IS_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a type that is none lasts as long as the process
_function: Final = attrgetter("__func__")
_OTHER: Final = -1

Roles = Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Row:
    """What one class and its instance have, and where. ``kinds`` are the types of its static methods."""

    module: str
    bases: tuple[type, ...]
    member_count: int
    attribute_count: int
    functions: Getter
    statics: Getter
    kinds: tuple[Any, ...]
    data: Getter | None
    direct: Getter | None
    special: Getter | None
    extras_count: int | None

    def read_statics(self, members: Mapping[str, Any], functions: list[FunctionType]) -> bool:
        """Add the functions of static methods; say whether all are the kind of method that they were."""
        for kind, member in zip(self.kinds, self.statics(members)):  # noqa: B905 - of one length
            if type(member) is not kind:
                return False
            functions.append(member.__func__)
        return True


@dataclass(frozen=True, slots=True)
class _Items:
    """How attributes that are no plain data, and the contents of closures, are read. ``loose`` are places, names and roles.

    ``once`` are the constants without repetition.
    """

    values: Getter
    typed: Getter
    types: list[type]
    functions: Getter
    constants: tuple[FunctionType, ...]
    once: tuple[FunctionType, ...]
    loose: tuple[tuple[int, str, Roles], ...]


@dataclass(frozen=True, slots=True)
class Made:
    """How runners of classes that are made for the call are read. ``content`` stands for all that is compared."""

    content: Hashable
    rows: tuple[_Row, ...]
    are_same: Same
    closed: tuple[int, ...]
    same: tuple[tuple[int, int], ...]
    first: tuple[int, ...]
    items: _Items
    is_asked: bool
    pointers: tuple[tuple[int, int], ...]

    def read(
        self, runners: Sequence[TunableRunner], inputs: Sequence[Any], values: list[Any], loose: list[Hashable], config: ConfigPlan
    ) -> bool:
        """Read runners, and say whether they are like those that were looked at, and so the functions of the config.

        Raises:
            Exception: they cannot be read, or are others. Objects of runners may raise anything when they are looked at.
        """
        functions = [*config.functions]
        items: list[Any] = []
        for runner, row in zip(runners, self.rows):  # noqa: B905 - of one length
            cls, held = type(runner), runner.__dict__
            members = cls.__dict__
            if cls.__mro__[1:] != row.bases or len(members) != row.member_count or len(held) != row.attribute_count:
                return False
            if cls.__module__ != row.module:
                return False
            functions += row.functions(members)
            if row.direct is not None:
                values += row.direct(held)
            if row.special is not None:
                items += row.special(held)
            if row.kinds and not row.read_statics(members, functions):
                return False
            if row.data is not None:
                values += row.data(members)
        if not (self._read_closures(functions, items) and self._is_same(functions, items)):
            return False
        known = self.items
        values += known.values(items)
        if known.loose:
            loose.extend([config.readings.parameter(name, items[index], node) for index, name, node in known.loose])
        return not self.is_asked or self._ask(runners, inputs, values)

    def _read_closures(self, functions: Sequence[FunctionType], items: list[Any]) -> bool:
        cells: list[CellType] = []
        for index in self.closed:
            cells += functions[index].__closure__ or ()
        for here, there in self.same:
            if cells[here] is not cells[there]:
                return False
        for index in self.first:
            items.append(cells[index].cell_contents)  # noqa: PERF401 - one or two, for which a comprehension takes longer
        return True

    def _is_same(self, functions: list[FunctionType], items: Sequence[Any]) -> bool:
        known = self.items
        if known.constants:
            if False in map(is_, known.functions(items), known.constants):
                return False
            functions += known.once
        return self.are_same(functions) and [*map(type, known.typed(items))] == known.types

    def _ask(self, runners: Sequence[TunableRunner], inputs: Sequence[Any], values: list[Any]) -> bool:
        for runner, row in zip(runners, self.rows):  # noqa: B905 - of one length
            if row.extras_count is not None:
                extras = runner.get_cache_key_extras(list(inputs))
                if type(extras) is not tuple or len(extras) != row.extras_count:
                    return False
                values += extras
        for index, limit_bytes in self.pointers:
            values.append(alignment(inputs[index], limit_bytes))
        return True


def made_of(
    runners: Sequence[TunableRunner],
    read: Sequence[tuple[ClassPlan, Attributes]],
    inputs: Sequence[Any],
    config: ConfigPlan,
) -> Made | None:
    """Return how runners are read that were just read at length, ``None`` where one is of a class that is more than a few methods."""
    rows: list[_Row] = []
    content: list[Hashable] = []
    functions = [*config.functions]
    closed, same, first = [], [], []
    attributes: list[tuple[str, Any, Roles]] = []
    contents: list[tuple[str, Any, Roles]] = []
    cell_count = 0
    for runner, (plan, has) in zip(runners, read, strict=True):
        owner, node, members = plan.owners[0], plan.facts.node, vars(type(runner))
        extras_count = _extras_count(runner, plan, inputs)
        if not _is_plain(type(runner), plan) or extras_count == _OTHER:
            return None
        own = owner.functions(members)
        places = [index for index, function in enumerate(own) if function.__closure__]
        if [name for _, name in plan.cells.members] != [owner.names[index] for index in places]:
            return None
        cells = [cell for index in places for cell in own[index].__closure__ or ()]
        closed += [len(functions) + index for index in places]
        same += [(cell_count + here, cell_count + there) for here, there in plan.cells.same]
        named = [(index, name) for index, name in plan.cells.first if name != "__class__"]
        first += [cell_count + index for index, _ in named]
        contents += [(name, cells[index].cell_contents, node.get("closure")) for index, name in named]
        attributes += [(name, vars(runner)[name], node) for name in has.special]
        cell_count += len(cells)
        statics = [members[name] for name in owner.wrapped]
        functions += [*own, *map(_function, statics)]
        rows.append(_row(runner, plan, has, statics, extras_count))
        content.append((has.number, plan.number, tuple(map(type, statics)), extras_count))
    items, reading = _items([*attributes, *contents], config)
    functions += items.once
    given = dict(enumerate(inputs))  # calls that are read so have inputs of the same types: only tensors have addresses
    pointers = tuple((at, limit) for plan, _ in read for at, limit in plan.facts.pointers if isinstance(given.get(at), torch.Tensor))
    return Made(
        content=(*content, reading),
        rows=tuple(rows),
        are_same=same_as(functions),
        closed=tuple(closed),
        same=tuple(same),
        first=tuple(first),
        items=items,
        is_asked=bool(pointers) or any(row.extras_count is not None for row in rows),
        pointers=pointers,
    )


def _row(runner: TunableRunner, plan: ClassPlan, has: Attributes, statics: Sequence[Any], extras_count: int | None) -> _Row:
    cls, owner = type(runner), plan.owners[0]
    return _Row(
        cls.__module__,
        cls.__mro__[1:],
        owner.count,
        len(vars(runner)),
        owner.functions,
        getter(list(owner.wrapped)),
        tuple(map(type, statics)),
        owner.data,
        has.direct if len(vars(runner)) > len(has.special) else None,
        getter(list(has.special)) if has.special else None,
        extras_count,
    )


def _is_plain(cls: type, plan: ClassPlan) -> bool:
    """Whether a class has nothing but plain data, and methods and static methods that have no parts of their own beside closures."""
    owner = plan.owners[0]
    is_simple = not plan.facts.has_slots and not owner.odd and not plan.cells.rivals
    return (
        len(plan.owners) == 1
        and is_simple
        and all(map(_is_static, map(vars(cls).get, owner.wrapped)))
        and all(map(_lasts, cls.__mro__[1:]))
    )


def _extras_count(runner: TunableRunner, plan: ClassPlan, inputs: Sequence[Any]) -> int | None:
    """Return how many extras a runner has, ``None`` where these follow from the call, ``_OTHER`` where they are more than plain data."""
    if plan.facts.purity.is_absent or plan.facts.purity.is_pure:
        return None
    extras = runner.get_cache_key_extras(list(inputs))
    return len(extras) if type(extras) is tuple and ATOMS.issuperset(map(type, extras)) else _OTHER


def _items(named: Sequence[tuple[str, Any, Roles]], config: ConfigPlan) -> tuple[_Items, Hashable]:
    """Sort items by how they are read; return with it what stands for those that are compared."""
    places: dict[str, list[int]] = {"value": [], "typed": [], "function": [], "loose": []}
    reading: list[Hashable] = []
    for index, (name, item, node) in enumerate(named):
        kind = _kind(name, item, node, config.mappers)
        places[kind].append(index)
        reading.append((name, kind if kind in ("value", "loose") else config.readings.parameter(name, item, node)))
    values, typed, functions, loose = places.values()
    constants = tuple(named[index][1] for index in functions)
    found = _Items(
        getter(values),
        getter(typed),
        [type(named[index][1]) for index in typed],
        getter(functions),
        constants,
        tuple(dict.fromkeys(constants)),
        tuple((index, named[index][0], named[index][2]) for index in loose),
    )
    return found, tuple(reading)


def _kind(name: str, item: Any, node: Roles, mappers: Sequence[Any]) -> str:
    if type(item) in ATOMS and (node is None or node.get(name) is not VARIES):
        return "value"
    if _is_told_by_type(name, item, node, mappers):
        return "typed"
    return "function" if is_constant(item) else "loose"


def _is_told_by_type(name: str, item: Any, node: Roles, mappers: Sequence[Any]) -> bool:
    """Whether everything of this type has the same reading here: a memo or handle whose content is not in the key."""
    kind, below = type(item), None if node is None else node.get(name)
    if not _lasts(kind) or below is PLAIN or kind in map(type, mappers):
        return False
    if below is VARIES:
        return kind in (int, float)
    if below is Role.RESOURCE:
        return kind in (dict, list, set) or resource_kind(item) is not None
    if below is None and name.endswith("_cache"):
        return kind is dict
    return resource_kind(item) is not None


def is_constant(item: Any) -> bool:
    """Whether an item is a function of a module that has no parts of its own."""
    if type(item) is not FunctionType or item.__closure__ is not None or item.__defaults__ or item.__kwdefaults__:
        return False
    return is_of_module(item)


def _is_static(member: Any) -> bool:
    """Whether a member is a static method or one of the class, of a function that has no parts of its own."""
    if type(member) not in (staticmethod, classmethod) or type(member.__func__) is not FunctionType:
        return False
    function = member.__func__
    return function.__closure__ is None and function.__defaults__ is None and function.__kwdefaults__ is None


def _lasts(cls: type) -> bool:
    """Whether a class lasts as long as the process, or as long as a module."""
    return not cls.__flags__ & _IS_HEAP_TYPE or is_of_module(cls)
