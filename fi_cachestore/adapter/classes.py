"""Readings of runner classes: looked at once per code, compared on every call.

FlashInfer makes many runner classes inside functions, a new class per call. What there is to know of a class is therefore kept by its
code objects, and every call checks that a class has functions of just that code with the same defaults. Closures and plain data are read
each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import FunctionType
from typing import Any, Final

from flashinfer.autotuner import TunableRunner

from fi_cachestore.adapter.bodies import Same, same_as
from fi_cachestore.adapter.introspect import Introspector
from fi_cachestore.adapter.members import Attributes, Cells, ClassPlan, Facts, cells_of, is_current, look_at_owner, read_rest
from fi_cachestore.adapter.purity import Purity, purity_of
from fi_cachestore.adapter.readings import ATOMS, PLAIN, VARIES, Getter, Readings, UnreadableError, getter, is_of_module, kept
from fi_cachestore.adapter.roles import Role, mutated_names
from fi_cachestore.adapter.sources import functions_in, owners
from fi_cachestore.adapter.values import attributes, made_with

_MAX_ALIKE: Final = 4
_order: Final = attrgetter("__mro__")


@dataclass(frozen=True, slots=True)
class Lasting:
    """Classes that a module holds, with their functions, which last as long: they are compared as they are.

    ``functions`` may have more than theirs, which are looked at with them.
    """

    classes: tuple[type, ...]
    orders: list[tuple[type, ...]]
    rows: tuple[tuple[Mapping[str, Any], int, Getter, tuple[Any, ...]], ...]
    functions: tuple[FunctionType, ...]
    are_same: Same

    def is_current(self) -> bool:
        """Whether the classes are as they were looked at."""
        for members, count, functions, known in self.rows:
            if len(members) != count or functions(members) != known:
                return False
        return self.are_same(self.functions) and [*map(_order, self.classes)] == self.orders


def merged(known: Sequence[Lasting | None], more: Sequence[FunctionType] = ()) -> Lasting:
    """Return several classes as one, with what they share once, and with more functions."""
    each = [lasting for lasting in known if lasting is not None]
    classes = tuple(dict.fromkeys(cls for lasting in each for cls in lasting.classes))
    rows = {id(row[0]): row for lasting in each for row in lasting.rows}
    members = (function for row in rows.values() for member in row[3] for function in functions_in(member))
    functions = tuple(dict.fromkeys((*more, *members)))
    return Lasting(classes, [*map(_order, classes)], tuple(rows.values()), functions, same_as(functions))


class Classes:
    """Reads classes. Thread-safe; bounded by forgetting.

    Holds code and plain data, and classes that a module holds anyway; no other class, no function of one, no object.
    """

    def __init__(self, introspector: Introspector) -> None:
        """Know nothing yet. Contracts are the introspector's."""
        self._introspector = introspector
        self.lasting: dict[type, Lasting] = {}
        self._plain: dict[type, tuple[Lasting, ClassPlan]] = {}
        self._by_name: dict[tuple[str, str, bool], tuple[ClassPlan, ...]] = {}
        self._facts: dict[Hashable, Facts] = {}
        self._numbers_by_content: dict[Hashable, int] = {}
        self.numbers = itertools.count()

    def plan(self, runner: TunableRunner) -> ClassPlan:
        """Return how a runner's class is read, as it is now."""
        cls = type(runner)
        for plan in self._by_name.get((cls.__module__, cls.__qualname__, True), ()):
            if is_current(cls, plan):
                return plan
        return self.look_at(runner)

    def look_at(self, runner: TunableRunner) -> ClassPlan:
        """Look at a runner's class anew, because it is new or was changed."""
        cls = type(runner)
        plan = self._look_at(cls, TunableRunner, lambda: self._runner_facts(runner))
        if all(map(is_of_module, cls.__mro__[: len(plan.owners)])):
            kept(self.lasting, cls, _lasting(cls, plan))
        return plan

    def relearn(self, runner: TunableRunner) -> None:
        """Look again at a runner some of whose attributes are no longer plain data."""
        plan = self.look_at(runner)
        plan.attributes.clear()
        self.attributes(plan, attributes(runner) if plan.facts.has_slots else vars(runner))

    def _look_at(self, cls: type, base: type, facts_of: Callable[[], Facts]) -> ClassPlan:
        is_runner = base is TunableRunner
        below = tuple(owners(cls, base))
        if below != cls.__mro__[: len(below)]:
            raise UnreadableError  # some come after the base, as the second base of a runner does
        found = [look_at_owner(owner, counts_defaults=is_runner) for owner in below]
        cells = cells_of(cls, len(found)) if is_runner else Cells()
        signature = (is_runner, cells, tuple(signature for _, signature, _ in found))
        facts = self._facts.get(signature) or kept(self._facts, signature, facts_of())
        content = (signature, tuple(defaults for _, _, defaults in found))
        number = self._numbers_by_content.get(content)
        if number is None:
            number = kept(self._numbers_by_content, content, next(self.numbers))
        made = tuple(owner for owner, _, _ in found)
        is_bare = not cells.members and not any(owner.data or owner.wrapped or owner.odd for owner in made)
        plan = ClassPlan(number, is_runner, facts, len(cls.__mro__), made, cells, is_bare)
        name = (cls.__module__, cls.__qualname__, is_runner)
        kept(self._by_name, name, (plan, *self._by_name.get(name, ())[: _MAX_ALIKE - 1]))
        return plan

    def _runner_facts(self, runner: TunableRunner) -> Facts:
        contract = self._introspector.contract(runner)
        purity = purity_of(type(runner), contract.pointer_alignment)
        roles: dict[str, Any] = {**dict.fromkeys(mutated_names(type(runner), TunableRunner), Role.RESOURCE), **contract.roles}
        roles |= {name: VARIES for name in contract.varies if not name.startswith("arguments.")}
        node = _tree(roles)
        node.update(dict.fromkeys(purity.attributes, PLAIN))  # the extras look into these, whatever their role
        if purity.cells:
            node["closure"] = {**(node.get("closure") or {}), **dict.fromkeys(purity.cells, PLAIN)}
        varying = (name.removeprefix("arguments.") for name in contract.varies if name.startswith("arguments."))
        arguments = {**contract.arguments, **dict.fromkeys(varying, VARIES)}
        has_slots = any(vars(owner).get("__slots__") for owner in type(runner).__mro__)
        pointers = tuple(contract.pointer_alignment.items())
        return Facts(node, purity, not purity.is_pure or bool(pointers), has_slots, pointers, arguments)

    # -- reading ----------------------------------------------------------------------------------------------------------------

    def of_class(self, cls: type, readings: Readings) -> Hashable:
        """Return the reading of a class that is no runner's: its name, the code of its methods and its plain data."""
        known = self._plain.get(cls)
        if known is not None and known[0].is_current():
            plan = known[1]
        else:
            plans = self._by_name.get((cls.__module__, cls.__qualname__, False), ())
            plan = next((plan for plan in plans if is_current(cls, plan)), None) or self._look_at_plain(cls)
        parts: list[Any] = [plan.number]
        values: list[Any] = []
        read_rest(cls, plan, parts, values, readings)
        if not ATOMS.issuperset(map(type, values)):
            self._look_at_plain(cls)
            raise UnreadableError
        return tuple(parts), tuple(map(type, values)), tuple(values)

    def _look_at_plain(self, cls: type) -> ClassPlan:
        if made_with(cls):
            raise UnreadableError

        def facts() -> Facts:
            return Facts(dict.fromkeys(mutated_names(cls, object), Role.RESOURCE), Purity(is_pure=True))

        plan = self._look_at(cls, object, facts)
        if all(map(is_of_module, cls.__mro__[: len(plan.owners)])):
            kept(self._plain, cls, (_lasting(cls, plan), plan))
        return plan

    def attributes(self, plan: ClassPlan, held: Mapping[str, Any]) -> Attributes:
        """Return how the attributes of an instance are read, by their names in the order it has them."""
        names, facts = tuple(held), plan.facts
        found = plan.attributes.get(names)
        if found is None:
            is_hidden = "get_cache_key_extras" in held or not facts.purity.methods.isdisjoint(held)
            if is_hidden or not facts.purity.attributes <= held.keys():
                raise UnreadableError
            facts.special_names.update(name for name, item in held.items() if type(item) not in ATOMS or facts.node.get(name) is VARIES)
            special = tuple(name for name in names if name in facts.special_names)
            direct = getter([name for name in names if name not in special])
            found = kept(plan.attributes, names, Attributes(next(self.numbers), direct, special))
        return found


def _lasting(cls: type, plan: ClassPlan) -> Lasting:
    rows = []
    for owner, has in zip(cls.__mro__, plan.owners):  # noqa: B905 - the owners come first
        members = getter([*has.names, *has.wrapped])
        rows.append((vars(owner), has.count, members, members(vars(owner))))
    return merged([Lasting((cls,), [], tuple(rows), (), same_as(()))])


def _tree(roles: Mapping[str, Any]) -> dict[str, Any]:
    """Return roles by dotted path as nested mappings."""
    root: dict[str, Any] = {}
    for path, role in sorted(roles.items()):
        *above, name = path.split(".")
        node: Any = root
        for part in above:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                break
        else:
            node[name] = role
    return root
