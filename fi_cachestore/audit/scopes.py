"""Names in a parsed module: which scope binds what, and what a name or dotted name in some scope stands for."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fi_cachestore.audit.tree import SourceFile

Function = ast.FunctionDef | ast.AsyncFunctionDef
_NESTED: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class Imported:
    """A name that an import binds: ``module`` alone, or ``name`` of it."""

    module: str
    name: str | None


@dataclass(eq=False)
class Scope:
    """The body of a module, class or function.

    ``bound`` has what each name is bound to, in the order of the text: classes and functions as scopes, imports, assigned expressions and
    ``None`` for what only running it would tell, such as a parameter. ``stars`` are the modules that are imported with ``*``.
    """

    file: SourceFile
    node: ast.Module | ast.ClassDef | Function
    parent: Scope | None
    qualname: str
    bound: dict[str, list[Scope | Imported | ast.expr | None]] = field(default_factory=lambda: defaultdict(list))
    stars: list[str] = field(default_factory=list)
    inner: list[Scope] = field(default_factory=list)
    statement: ast.stmt | None = None

    @property
    def type(self) -> str:
        """``"module:qualname"``, as contracts and keys write it."""
        return f"{self.file.module}:{self.qualname}"

    @property
    def name(self) -> str:
        """The bare name."""
        return self.qualname.rpartition(".")[2]

    @property
    def bases(self) -> list[ast.expr]:
        """The expressions that a class names as its bases."""
        return self.node.bases if isinstance(self.node, ast.ClassDef) else []

    @property
    def line(self) -> int:
        """Where it begins."""
        return 1 if isinstance(self.node, ast.Module) else self.node.lineno

    @property
    def text(self) -> str:
        """The top-level statement that it is in."""
        return self.file.text(self.statement) if self.statement is not None else ""

    @property
    def is_class(self) -> bool:
        """Whether this is the body of a class."""
        return isinstance(self.node, ast.ClassDef)

    def all_inner(self) -> Iterator[Scope]:
        """Return all classes and functions inside, at any depth, in the order of the text."""
        waiting = [*reversed(self.inner)]
        while waiting:
            scope = waiting.pop()
            yield scope
            waiting.extend(reversed(scope.inner))

    def visible(self) -> Iterator[Scope]:
        """Return the scopes in which a name that stands here is looked for, innermost first; classes hide theirs from inner functions."""
        scope: Scope | None = self
        while scope is not None:
            if scope is self or not scope.is_class:
                yield scope
            scope = scope.parent


def module_scope(file: SourceFile) -> Scope:
    """Return the scopes of a file. Statements are walked with a list, not by recursion: a chain of thousands of ``elif`` is no problem."""
    top = Scope(file, file.tree, None, "")
    waiting: list[tuple[ast.stmt | ast.ExceptHandler | ast.match_case, Scope]] = [(item, top) for item in reversed(file.tree.body)]
    while waiting:
        node, scope = waiting.pop()
        if isinstance(node, _NESTED):
            scope = _entered(node, scope)
        else:
            _bind(node, scope)
        inside = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)]
        waiting.extend((child, scope) for child in reversed(inside))
    return top


def _entered(node: ast.ClassDef | Function, scope: Scope) -> Scope:
    prefix = "" if scope.parent is None else f"{scope.qualname}." if scope.is_class else f"{scope.qualname}.<locals>."
    made = Scope(scope.file, node, scope, prefix + node.name, statement=scope.statement or node)
    scope.bound[node.name].append(made)
    scope.inner.append(made)
    if not isinstance(node, ast.ClassDef):
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
            if argument is not None:
                made.bound[argument.arg].append(None)
    return made


def _bind(node: ast.AST, scope: Scope) -> None:
    match node:
        case ast.Import() | ast.ImportFrom():
            _bind_import(node, scope)
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                _bind_target(target, value, scope)
        case ast.AnnAssign(target=target, value=value) if value is not None:
            _bind_target(target, value, scope)
        case ast.AugAssign(target=target) | ast.For(target=target) | ast.AsyncFor(target=target):
            _bind_target(target, None, scope)
        case ast.With(items=items) | ast.AsyncWith(items=items):
            for target in (item.optional_vars for item in items if item.optional_vars is not None):
                _bind_target(target, None, scope)


def _bind_import(node: ast.Import | ast.ImportFrom, scope: Scope) -> None:
    for alias in node.names:
        if isinstance(node, ast.Import):
            top = alias.name.partition(".")[0]
            scope.bound[alias.asname or top].append(Imported(alias.name if alias.asname else top, None))
            continue
        source = scope.file.absolute(node.module, node.level)
        if alias.name == "*":
            scope.stars.append(source)
        else:
            scope.bound[alias.asname or alias.name].append(Imported(source, alias.name))


def _bind_target(target: ast.expr, value: ast.expr | None, scope: Scope) -> None:
    if isinstance(target, ast.Name):
        scope.bound[target.id].append(value)
        return
    if isinstance(target, ast.Tuple | ast.List):
        whole = value if isinstance(value, ast.Call) else None  # what a call gives back in parts is made of its arguments
        parts = value.elts if isinstance(value, ast.Tuple | ast.List) else [whole] * len(target.elts)
        for item, part in zip(target.elts, parts, strict=False):
            _bind_target(item, part, scope)
