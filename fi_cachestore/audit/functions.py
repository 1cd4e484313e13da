"""Functions as their source defines them: parameters, own statements, what closure variables are made of."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator

from fi_cachestore.audit.scopes import Function, Scope
from fi_cachestore.audit.sources import Origin, Source, Sources


def closure_roots(name: str, scope: Scope) -> Sources:
    """Return the parameters of an enclosing function that one of its variables is made of."""
    found: set[Source] = set()
    waiting, seen = [(name, False)], set[str]()
    while waiting:
        current, made = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for meaning in scope.bound.get(current, ()):
            if meaning is None and current in parameters(scope):
                found.add(Source(Origin.CLOSURE, current, made=made))
            elif isinstance(meaning, ast.expr):
                called = made or any(isinstance(item, ast.Call) for item in ast.walk(meaning))
                waiting.extend((item.id, called) for item in ast.walk(meaning) if isinstance(item, ast.Name) and item.id in scope.bound)
    return frozenset(found)


def own_statements(scope: Scope) -> Iterator[ast.stmt]:
    """Return the statements of a function, those of functions and classes inside left out."""
    node = scope.node
    waiting: list[ast.AST] = [*reversed(node.body)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(item, ast.stmt):
            yield item
        inner = [child for child in ast.iter_child_nodes(item) if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)]
        waiting.extend(reversed(inner))


def parameters(scope: Scope) -> list[str]:
    """Return the names of a function's parameters in order, keyword-only ones last."""
    node = scope.node
    if isinstance(node, ast.Module | ast.ClassDef):
        return []
    return [item.arg for item in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


@functools.lru_cache(maxsize=4096)
def annotated(scope: Scope) -> dict[str, str]:
    """Return the annotations of a function's parameters, as written."""
    node = scope.node
    if isinstance(node, ast.Module | ast.ClassDef):
        return {}
    every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return {item.arg: ast.unparse(item.annotation) for item in every if item.annotation is not None}


def _decorators(scope: Scope) -> set[str]:
    node = scope.node
    return {ast.unparse(item).rpartition(".")[2] for item in node.decorator_list} if isinstance(node, Function) else set()


def self_name(scope: Scope) -> str | None:
    """Return how a method, or a function inside one, calls the runner."""
    method: Scope | None = scope
    while method is not None and method.parent is not None and not method.parent.is_class:
        method = method.parent
    names = parameters(method) if method is not None and method.parent is not None else []
    return names[0] if names and method is not None and not is_static(method) else None


def is_static(scope: Scope) -> bool:
    """Whether a method takes no instance."""
    return "staticmethod" in _decorators(scope)


def is_property(scope: Scope) -> bool:
    """Whether a method is read as an attribute."""
    return bool(_decorators(scope) & {"property", "cached_property"})
