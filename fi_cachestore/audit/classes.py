"""The runner classes of a package: every class derived from ``TunableRunner``, directly or not, factories' local classes included."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fi_cachestore.audit.scopes import Imported, Scope, module_scope
from fi_cachestore.audit.tree import SourceFile, SourceTree, open_package

ROOT: Final = "TunableRunner"
_MAX_HOPS: Final = 32


@dataclass(frozen=True, slots=True)
class RunnerClass:
    """One runner class.

    ``type`` is ``"module:qualname"``; ``direct`` says whether ``TunableRunner`` itself is among its bases; ``lineage`` are the classes
    of the audited source that it inherits from, nearest first, itself before all; ``text`` is the top-level statement that it is in.
    """

    type: str
    name: str
    path: str
    line: int
    direct: bool
    lineage: tuple[Scope, ...]
    text: str

    @property
    def scope(self) -> Scope:
        """The body of the class."""
        return self.lineage[0]

    @property
    def file(self) -> SourceFile:
        """The file that it is in."""
        return self.scope.file

    def method(self, name: str) -> Scope | None:
        """Return the method that an instance has under a name, where the audited source defines one."""
        for owner in self.lineage:
            found = [item for item in owner.inner if item.name == name and not item.is_class]
            if found:
                return found[-1]
        return None


class Names:
    """What names in the files of a tree stand for. Files are parsed when a name leads there."""

    def __init__(self, tree: SourceTree) -> None:
        """Start with nothing parsed."""
        self.tree = tree
        self._scopes: dict[str, Scope] = {}

    def scope(self, module: str) -> Scope | None:
        """Return the scope of a module of the tree."""
        if module not in self._scopes:
            file = self.tree.files.get(module)
            if file is None:
                return None
            self._scopes[module] = module_scope(file)
        return self._scopes[module]

    def meanings(self, expression: ast.expr, scope: Scope) -> list[Scope | Imported]:
        """Return what an expression may stand for: scopes of the tree, and imports that lead out of it."""
        return list(self._of_expression(expression, scope, _MAX_HOPS))

    def _of_expression(self, node: ast.expr, scope: Scope, hops: int) -> Iterator[Scope | Imported]:
        if not hops:
            return
        if isinstance(node, ast.Subscript):  # Generic[T]
            yield from self._of_expression(node.value, scope, hops - 1)
        elif isinstance(node, ast.Name):
            for place in scope.visible():
                if node.id in place.bound or place.parent is None:
                    yield from self._of_name(node.id, place, hops - 1)
                    return
        elif isinstance(node, ast.Attribute):
            for owner in self._of_expression(node.value, scope, hops - 1):
                yield from self._member(owner, node.attr, hops - 1)

    def _of_name(self, name: str, scope: Scope, hops: int) -> Iterator[Scope | Imported]:
        if not hops:
            return
        for found in scope.bound.get(name, ()):
            if isinstance(found, Scope):
                yield found
            elif isinstance(found, Imported):
                yield from self._of_import(found, hops - 1)
            elif isinstance(found, ast.Name | ast.Attribute) and not (isinstance(found, ast.Name) and found.id == name):
                yield from self._of_expression(found, scope, hops - 1)
        if name not in scope.bound:
            for module in scope.stars:
                yield from self._of_import(Imported(module, name), hops - 1)

    def _of_import(self, found: Imported, hops: int) -> Iterator[Scope | Imported]:
        if not hops:
            return
        if found.name is None:
            yield self.scope(found.module) or found
            return
        owner = self.scope(found.module)
        if owner is None:
            yield self.scope(f"{found.module}.{found.name}") or found
            return
        meanings = list(self._of_name(found.name, owner, hops - 1))
        inside = self.scope(f"{found.module}.{found.name}")
        yield from meanings or ([inside] if inside is not None else [])

    def _member(self, owner: Scope | Imported, name: str, hops: int) -> Iterator[Scope | Imported]:
        if isinstance(owner, Imported):
            inner = owner.module if owner.name is None else f"{owner.module}.{owner.name}"
            yield from self._of_import(Imported(inner, name), hops)
        elif owner.parent is None:
            yield from self._of_import(Imported(owner.file.module, name), hops)
        elif owner.is_class:
            yield from self._of_name(name, owner, hops)


class Finder:
    """The runner classes of one tree. Only files that mention a known runner class are parsed, and what they import from."""

    def __init__(self, tree: SourceTree) -> None:
        """Prepare; ``classes`` does the work."""
        self.tree, self.names = tree, Names(tree)
        self._known: set[Scope] = set()
        self._others: set[Scope] = set()

    @functools.cached_property
    def classes(self) -> tuple[RunnerClass, ...]:
        """All runner classes, by module and place in the text."""
        words, searched = {ROOT}, set[str]()
        while words:
            files = [file for file in self.tree.files.values() if _mentions(file, words)]
            searched |= words
            words = {word for file in files for word in self._learn(file)} - searched
        known = sorted(self._known, key=lambda scope: (scope.file.module, scope.line))
        return tuple(self._described(scope) for scope in known)

    def _learn(self, file: SourceFile) -> Iterator[str]:
        """Note the runner classes of a file; return the names under which others may know them or those that the file renames."""
        top = self.names.scope(file.module)
        if top is None:
            return
        for scope in (top, *top.all_inner()):
            if scope.is_class and self._is_runner(scope):
                yield scope.name
            for name, meanings in scope.bound.items():
                renamed = any(isinstance(item, Imported) and item.name not in (None, name) for item in meanings)
                aliased = any(isinstance(item, ast.Name | ast.Attribute) for item in meanings)
                if (renamed or aliased) and any(self._is_root_or_runner(item) for item in self.names.meanings(_name(name), scope)):
                    yield name

    def _is_root_or_runner(self, meaning: Scope | Imported) -> bool:
        if isinstance(meaning, Imported):
            return meaning.name == ROOT
        return meaning.is_class and (meaning.name == ROOT or self._is_runner(meaning))

    def _is_runner(self, scope: Scope) -> bool:
        """Whether a class derives from the root, which itself is none."""
        if scope in self._known or scope in self._others:
            return scope in self._known
        self._others.add(scope)  # ends circles
        if scope.name != ROOT and any(self._is_root_or_runner(base) for base in self._bases(scope)):
            self._others.discard(scope)
            self._known.add(scope)
        return scope in self._known

    def _bases(self, scope: Scope) -> list[Scope | Imported]:
        around = scope.parent
        return [meaning for base in scope.bases for meaning in self.names.meanings(base, around or scope)]

    def _described(self, scope: Scope) -> RunnerClass:
        direct = any((base.name if isinstance(base, Imported) else base.qualname) == ROOT for base in self._bases(scope))
        lineage = tuple(self._lineage(scope))
        return RunnerClass(scope.type, scope.name, scope.file.path, scope.line, direct, lineage, scope.text)

    def _lineage(self, scope: Scope) -> Iterable[Scope]:
        """Return a class and those it inherits from, in the order in which methods are looked up (depth first, the last of repeats)."""
        order: list[Scope] = []
        waiting = [scope]
        while waiting:
            owner = waiting.pop()
            if owner in order[:1] or len(order) > _MAX_HOPS:
                continue
            order = [*(item for item in order if item is not owner), owner]
            bases = [base for base in self._bases(owner) if isinstance(base, Scope) and base.is_class and base.qualname != ROOT]
            waiting.extend(reversed(bases))
        return order


def _mentions(file: SourceFile, words: set[str]) -> bool:
    if len(words) == 1:
        return next(iter(words)).encode() in file.content
    pattern = _pattern(tuple(sorted(words)))
    return pattern.search(file.content) is not None


@functools.lru_cache(maxsize=4)
def _pattern(words: tuple[str, ...]) -> re.Pattern[bytes]:
    return re.compile(rb"\b(?:" + b"|".join(re.escape(word.encode()) for word in words) + rb")\b")


def _name(name: str) -> ast.Name:
    return ast.Name(id=name, ctx=ast.Load())


def runner_classes(package: str = "flashinfer") -> dict[str, RunnerClass]:
    """Return the runner classes of an installed package by their type; of two of one type in a file's branches the last.

    Raises:
        NoSuchSourceError: there is no such package.
    """
    return {found.type: found for found in Finder(open_package(package)).classes}
