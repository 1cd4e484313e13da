"""The members of a class, sorted by how they are read: those that are compared with what was there before, and those read each time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import CellType, CodeType, FunctionType
from typing import Any

from fi_cachestore.adapter.purity import Purity
from fi_cachestore.adapter.readings import ATOMS, Getter, Readings, UnreadableError, getter, is_scalar
from fi_cachestore.adapter.roles import Role, role_by_name
from fi_cachestore.adapter.sources import beside_functions, functions_in, is_generated
from fi_cachestore.adapter.values import is_plain


@dataclass(frozen=True, slots=True)
class Attributes:
    """Which attributes an instance of a class has: those read as they are, and those that need a reading.

    ``number`` stands for class and names, and for no others ever.
    """

    number: int
    direct: Getter
    special: tuple[str, ...]


@dataclass(slots=True)
class Facts:
    """What there is to know of a class by its code: the roles of its parameters, and whether its extras need to be asked for."""

    node: dict[str, Any]
    purity: Purity
    is_asked: bool = False
    has_slots: bool = False
    pointers: tuple[tuple[int, int], ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    special_names: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Owner:
    """One class of an order of resolution: the members that are compared, and the names of those that are read."""

    name: str
    count: int
    names: tuple[str, ...]
    functions: Getter
    codes: tuple[CodeType, ...]
    defaults: tuple[Any, ...]
    data: Getter | None
    wrapped: tuple[str, ...]
    wrapped_codes: tuple[CodeType | bool, ...]
    odd: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cells:
    """The closure cells of a class's methods: whose they are, which are read, which are the same and which only have the same name."""

    members: tuple[tuple[int, str], ...] = ()
    first: tuple[tuple[int, str], ...] = ()
    same: tuple[tuple[int, int], ...] = ()
    rivals: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """How a class is read. ``number`` stands for its names, code and constant defaults; ``is_bare``: these are all there is to it."""

    number: int
    is_runner: bool
    facts: Facts
    depth: int
    owners: tuple[Owner, ...]
    cells: Cells
    is_bare: bool
    attributes: dict[tuple[str, ...], Attributes] = field(default_factory=dict)


def is_current(cls: type, plan: ClassPlan) -> bool:
    """Whether a class has the members that ``plan`` is about, its functions with the same code and defaults."""
    order = cls.__mro__
    if len(order) != plan.depth:
        return False
    for owner, has in zip(order, plan.owners):  # noqa: B905 - the owners come first
        members = owner.__dict__
        if len(members) != has.count or owner.__qualname__ != has.name:
            return False
        for function, code, defaults in zip(has.functions(members), has.codes, has.defaults):  # noqa: B905 - of one length
            if function.__code__ is not code or function.__kwdefaults__ is not None:
                return False
            if function.__defaults__ is not defaults and not _are_alike(function.__defaults__, defaults):
                return False
        if has.wrapped and _codes_in(owner, has.wrapped) != has.wrapped_codes:
            return False
    return True


def _are_alike(defaults: Any, others: Any) -> bool:
    """Whether defaults that a factory computed are the same as others."""
    if type(defaults) is not tuple or type(others) is not tuple or [*map(type, defaults)] != [*map(type, others)]:
        return False
    return ATOMS.issuperset(map(type, defaults)) and defaults == others


def _codes_in(owner: type, names: Sequence[str]) -> tuple[CodeType | bool, ...]:
    """Return the code of some members, and which are static methods: these get other arguments."""
    members = [owner.__dict__[name] for name in names]
    return (*(type(member) is staticmethod for member in members), *(part.__code__ for member in members for part in functions_in(member)))


def read_rest(cls: type, plan: ClassPlan, parts: list[Any], values: list[Any], readings: Readings) -> None:
    """Read what may differ between classes of the same code: plain data go to ``values``, other readings to ``parts``.

    Raises:
        UnreadableError: something has no reading.
    """
    for owner, has in zip(cls.__mro__, plan.owners):  # noqa: B905 - the owners come first
        members = owner.__dict__
        if has.data is not None:
            values += has.data(members)
        parts.extend([_odd(members[name], name, plan.facts.node, readings, owner) for name in has.odd])
        parts.extend([readings.of(part) for name in has.wrapped for part in beside_functions(owner, members[name])])
        if plan.is_runner:
            parts.extend([_wrapped(members[name], plan.facts.node, readings) for name in has.wrapped])
    if plan.cells.members:
        _read_cells(cls, plan, parts, readings)


def _read_cells(cls: type, plan: ClassPlan, parts: list[Any], readings: Readings) -> None:
    cells = _flat_cells(cls, plan.cells.members)
    if any(cells[here] is not cells[there] for here, there in plan.cells.same):
        raise UnreadableError
    node = plan.facts.node.get("closure")
    parts.extend(readings.cell(name, cells[index], node) for index, name in plan.cells.first)
    parts.extend(cells[here].cell_contents is cells[there].cell_contents for here, there in plan.cells.rivals)


def _flat_cells(cls: type, members: tuple[tuple[int, str], ...]) -> list[CellType]:
    order = cls.__mro__
    return [
        cell
        for position, name in members
        for function in functions_in(order[position].__dict__[name])
        for cell in function.__closure__ or ()
    ]


def cells_of(cls: type, count: int) -> Cells:
    """Find the closure cells of the methods of a class: a cell that several share is read once."""
    members = [
        (position, name)
        for position, owner in enumerate(cls.__mro__[:count])
        for name, member in vars(owner).items()
        if any(function.__closure__ and not is_generated(owner, name, function) for function in functions_in(member))
    ]
    names = [
        name
        for position, member in members
        for function in functions_in(vars(cls.__mro__[position])[member])
        for name in function.__code__.co_freevars
    ]
    cells = _flat_cells(cls, tuple(members))
    places: dict[int, int] = {}
    first: list[tuple[int, str]] = []
    same, rivals = [], []
    for index, (name, cell) in enumerate(zip(names, cells, strict=True)):
        if (earlier := places.setdefault(id(cell), index)) != index:
            same.append((earlier, index))
            continue
        rivals += [(other, index) for other, rival in first if rival == name != "__class__"]
        first.append((index, name))
    return Cells(tuple(members), tuple(first), tuple(same), tuple(rivals))


def look_at_owner(owner: type, *, counts_defaults: bool) -> tuple[Owner, Hashable, Hashable]:
    """Sort the members of a class; return them with what names them and the reading of the defaults that are compared."""
    members: dict[_Kind, list[str]] = {kind: [] for kind in _Kind}
    for name, member in vars(owner).items():
        members[_kind(owner, name, member)].append(name)
    names, data, wrapped, odd = (tuple(members[kind]) for kind in (_Kind.FUNCTION, _Kind.DATA, _Kind.WRAPPED, _Kind.ODD))
    functions: list[FunctionType] = [vars(owner)[name] for name in names]
    codes = tuple(function.__code__ for function in functions)
    defaults = tuple(function.__defaults__ for function in functions)
    made = Owner(
        name=owner.__qualname__,
        count=len(vars(owner)),
        names=names,
        functions=getter(list(names)),
        codes=codes,
        defaults=defaults,
        data=getter(list(data)) if data else None,
        wrapped=wrapped,
        wrapped_codes=_codes_in(owner, wrapped),
        odd=odd,
    )
    files = tuple((function.__module__, function.__code__.co_filename) for function in functions)
    signature = (owner.__module__, made.name, made.count, names, codes, files, data, wrapped, made.wrapped_codes, odd)
    return made, signature, Readings((), _nothing, _nothing).of(defaults) if counts_defaults else None


class _Kind(Enum):
    """How a member of a class is read: ``FUNCTION``s are compared, ``WRAPPED`` ones are more than that, ``NOTHING`` need not be read."""

    FUNCTION = "function with constant defaults"
    WRAPPED = "holds functions"
    DATA = "atom"
    ODD = "anything else"
    NOTHING = "made by Python"


def _kind(owner: type, name: str, member: Any) -> _Kind:
    if isinstance(member, FunctionType):
        if is_generated(owner, name, member):
            return _Kind.NOTHING
        is_constant = is_scalar(member.__defaults__ or ()) and member.__kwdefaults__ is None
        return _Kind.FUNCTION if is_constant else _Kind.WRAPPED
    if next(functions_in(member), None) is not None:
        return _Kind.WRAPPED
    if name.startswith("__") or type(member).__name__ == "_abc_data":
        return _Kind.NOTHING
    return _Kind.DATA if type(member) in ATOMS else _Kind.ODD


def _wrapped(member: Any, node: Mapping[str, Any], readings: Readings) -> Hashable:
    """Return the reading of a method that is more than a function with constant defaults."""
    return type(member).__qualname__, tuple(readings.function(function, node) for function in functions_in(member))


def _odd(member: Any, name: str, node: Mapping[str, Any], readings: Readings, owner: type) -> Hashable:
    """Return the reading of an attribute of a class that is neither a method nor an atom."""
    if next(functions_in(member), None) is not None:
        raise UnreadableError  # it was none when the class was looked at
    role = (node.get("class") or {}).get(name)
    is_left_out = node.get(name) is Role.RESOURCE or role not in (None, Role.SEMANTIC) or role_by_name(name, member) is not None
    if is_plain(member) and not is_left_out:
        return readings.of(member)
    return readings.held(member), () if is_left_out else tuple(map(readings.of, beside_functions(owner, member)))


def _nothing(*_: object) -> Hashable:
    raise UnreadableError
