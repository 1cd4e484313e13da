"""Where the tuner is asked: call sites, their op names, the classes that may reach them, and the dims that are bucketed there."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fi_cachestore.audit.classes import Finder, RunnerClass
from fi_cachestore.audit.scopes import Imported, Scope

_ASKS: Final = ("choose_one", "rank_tactics")
_ORDER: Final = ("custom_op", "runners", "tuning_config", "inputs")
_MAX_HOPS: Final = 4

Dims = frozenset[tuple[int, int]]
"""Dynamic dims as (input, dim); a dim from the end is negative."""


@dataclass(frozen=True, slots=True)
class CallSite:
    """One call. ``op`` is the op name where it is written there, ``None`` where it is computed."""

    op: str | None
    path: str
    line: int
    function: Scope
    node: ast.Call

    def argument(self, name: str) -> ast.expr | None:
        """Return what the call passes for one of the tuner's parameters."""
        found = next((item.value for item in self.node.keywords if item.arg == name), None)
        place = _ORDER.index(name)
        return found if found is not None or place >= len(self.node.args) else self.node.args[place]


class CallSites:
    """The call sites of one tree, and which runner classes they reach."""

    def __init__(self, finder: Finder) -> None:
        """Prepare; files that mention the tuner's methods are parsed when asked."""
        self.finder, self.names = finder, finder.names
        self._runners = {item.scope: item for item in finder.classes}

    @cached_property
    def all(self) -> tuple[CallSite, ...]:
        """Every call site, by file and line."""
        return tuple(self._find())

    @cached_property
    def of_class(self) -> dict[str, tuple[CallSite, ...]]:
        """The call sites that may be reached with an instance of a class, by its type."""
        found: dict[str, list[CallSite]] = {}
        for site in self.all:
            for scope in self._reached(site.function):
                runner = self._runners.get(scope)
                if runner is not None and site not in found.setdefault(runner.type, []):
                    found[runner.type].append(site)
        return {name: tuple(sites) for name, sites in found.items()}

    @cached_property
    def _asking(self) -> set[Scope]:
        return {site.function for site in self.all}

    def ops(self) -> dict[str, list[CallSite]]:
        """Return the call sites of ``choose_one`` by op name, where it is written there."""
        found: dict[str, list[CallSite]] = {}
        for site in self.all:
            if site.op is not None and _name_of(site.node.func) == "choose_one":
                found.setdefault(site.op, []).append(site)
        return found

    def dynamic_dims(self, runner: RunnerClass) -> Dims | None:
        """Return the dims that are bucketed for a class, ``None`` where no tuning configuration of it was found."""
        known: list[Dims] = []
        for site in self.of_class.get(runner.type, ()):
            config = site.argument("tuning_config")
            if config is not None:
                known += [_dims(call) for call in self._configs(config, site.function, _MAX_HOPS)]
        for owner in runner.lineage:
            known += [_dims(node) for node in ast.walk(owner.node) if isinstance(node, ast.Call) and _name_of(node.func) == "TuningConfig"]
        return frozenset().union(*known) if known else None

    def _find(self) -> Iterator[CallSite]:
        for file in self.finder.tree.files.values():
            if not any(name.encode() + b"(" in file.content for name in _ASKS):
                continue
            top = self.names.scope(file.module)
            if top is None:
                continue
            for scope in (top, *top.all_inner()):
                for node in _calls(scope):
                    if _name_of(node.func) in _ASKS and isinstance(node.func, ast.Attribute):
                        site = CallSite(None, file.path, node.lineno, scope, node)
                        op = site.argument("custom_op")
                        text = op.value if isinstance(op, ast.Constant) and isinstance(op.value, str) else None
                        yield CallSite(text, file.path, node.lineno, scope, node)

    def _reached(self, function: Scope) -> set[Scope]:
        """Return what a function names, and what that names, up to a few steps; a factory brings the classes inside it."""
        seen: set[Scope] = set()
        edge = {function}
        for _ in range(_MAX_HOPS):
            found = {target for scope in edge for target in self._mentioned(scope)} - seen
            seen |= found
            seen |= {inner for scope in found if not scope.is_class for inner in scope.all_inner() if inner.is_class}
            edge = {scope for scope in found if not scope.is_class and scope not in self._asking}
        return seen

    def _mentioned(self, scope: Scope) -> Iterable[Scope]:
        names = {node.id for node in ast.walk(scope.node) if isinstance(node, ast.Name)}
        dotted = [node for node in ast.walk(scope.node) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
        for expression in (*(ast.Name(id=name, ctx=ast.Load()) for name in sorted(names)), *dotted):
            for meaning in self.names.meanings(expression, scope):
                if not isinstance(meaning, Imported) and meaning.parent is not None:
                    yield meaning

    def _configs(self, node: ast.expr, scope: Scope, hops: int) -> Iterator[ast.Call]:
        """Return the ``TuningConfig(...)`` calls that an expression may stand for."""
        if not hops:
            return
        match node:
            case ast.Call(func=function) if _name_of(function) == "TuningConfig":
                yield node
            case ast.Call(func=ast.Name(id="replace"), args=[first, *_]):
                yield from self._configs(first, scope, hops - 1)
            case ast.Call(func=function):
                for meaning in self.names.meanings(function, scope):
                    if not isinstance(meaning, Imported):
                        yield from (
                            item for item in ast.walk(meaning.node) if isinstance(item, ast.Call) and _name_of(item.func) == "TuningConfig"
                        )
            case ast.IfExp(body=body, orelse=orelse):
                yield from self._configs(body, scope, hops - 1)
                yield from self._configs(orelse, scope, hops - 1)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                for place, value in self._assigned(node, name, scope):
                    yield from self._configs(value, place, hops - 1)

    def _assigned(self, node: ast.expr, name: str, scope: Scope) -> Iterator[tuple[Scope, ast.expr]]:
        places = [*scope.visible()]
        if isinstance(node, ast.Attribute):
            places = [item for item in self.names.meanings(node.value, scope) if not isinstance(item, Imported)]
        for place in places:
            for value in place.bound.get(name, ()):
                if isinstance(value, ast.expr):
                    yield place, value
                elif isinstance(value, Imported) and value.name is not None:
                    home = self.names.scope(value.module)
                    yield from (
                        (home, item) for item in (home.bound.get(value.name, ()) if home else ()) if home and isinstance(item, ast.expr)
                    )
            if name in place.bound:
                return


def _calls(scope: Scope) -> Iterator[ast.Call]:
    """Return the calls in a scope's own code, what is inside its functions and classes left out."""
    waiting: list[ast.AST] = [*reversed(scope.node.body)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.Call):
            yield node
        waiting.extend(reversed([*ast.iter_child_nodes(node)]))


def _name_of(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _dims(config: ast.Call) -> Dims:
    found: set[tuple[int, int]] = set()
    for node in ast.walk(config):
        if isinstance(node, ast.Call) and _name_of(node.func) == "DynamicTensorSpec":
            named = {item.arg: item.value for item in node.keywords}
            inputs = named.get("input_idx", node.args[0] if node.args else None)
            dims = named.get("dim_idx", node.args[1] if len(node.args) > 1 else None)
            found |= set(zip(_numbers(inputs), _numbers(dims), strict=False))
    return frozenset(found)


def _numbers(node: ast.expr | None) -> list[int]:
    try:
        value = ast.literal_eval(node) if node is not None else ()
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return [0]
    return [item for item in value if isinstance(item, int)] if isinstance(value, tuple | list) else []
