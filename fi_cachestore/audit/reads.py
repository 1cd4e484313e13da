"""What code reads of a runner and its call: a data flow over the AST, from where values come to where they are looked at.

It is a taint analysis without order: a local name stands for everything that is ever assigned to it. Calls are followed into methods of the
class, functions of the enclosing factory and, where asked, functions of the audited source; what leaves that source is opaque. So it may
name a read that cannot happen; it does not follow values through containers, ``setattr`` or globals.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from fi_cachestore.audit.classes import Names, RunnerClass
from fi_cachestore.audit.functions import closure_roots, is_property, is_static, own_statements, parameters, self_name
from fi_cachestore.audit.scopes import Imported, Scope
from fi_cachestore.audit.sources import (
    EVERY,
    NOTHING,
    PROFILE,
    TENSOR_PARTS,
    Origin,
    Read,
    Source,
    Sources,
    element,
    item,
    keeps,
    part,
    passed,
    positions,
    presence,
)

_MAX_DEPTH: Final = 6
_SAME_TENSOR: Final = frozenset({"T", "t", "transpose", "view", "unsqueeze", "squeeze", "contiguous", "reshape", "flatten", "to"})
_TO_VALUE: Final = frozenset({"int", "bool", "float", "str"})


class Reader:
    """Reads of one class. ``follow`` says whether functions outside the class and its factory are followed too."""

    def __init__(self, names: Names, runner: RunnerClass, *, follow: bool = False) -> None:
        """Prepare; ``method`` does the work."""
        self.names, self.runner, self.follow = names, runner, follow
        self.reads: dict[Read, None] = {}
        self.result: Sources = NOTHING
        self.builtins: dict[tuple[str, str, int], None] = {}
        self.input_names: dict[str, set[str]] = {}
        self.delegated = False
        self.fault = ""
        self._frames: list[_Body] = []
        self._results: dict[tuple[Scope, frozenset[tuple[str, Sources]]], Sources] = {}

    def method(self, name: str) -> list[Read]:
        """Return the reads of a method, what it calls included; nothing where the class has none of that name."""
        scope = self.runner.method(name)
        if scope is not None:
            try:
                self.result = self.call(scope, self._entry(scope))
            except RecursionError:
                self.fault = f"{scope.qualname} nests too deeply to be read"
        return list(self.reads)

    def _entry(self, scope: Scope) -> dict[str, Sources]:
        """Return what the parameters of a tuner's call stand for."""
        known: dict[str, Sources] = {}
        arguments = parameters(scope)
        for position, name in enumerate(arguments[1:]):
            if position == 0:
                known[name] = frozenset({Source(Origin.INPUT, EVERY)})
            elif name.strip("_") == "profile":
                known[name] = frozenset({Source(Origin.INPUT, PROFILE)})
            elif name not in ("tactic", "tactics", "do_preparation"):
                known[name] = frozenset({Source(Origin.ARGUMENT, name)})
        return known

    def call(self, scope: Scope, known: dict[str, Sources]) -> Sources:
        """Walk one function with its parameters bound; return what its result depends on."""
        key = (scope, frozenset(known.items()))
        if key in self._results:
            return self._results[key]
        if len(self._frames) >= _MAX_DEPTH or any(frame.scope is scope for frame in self._frames):
            return NOTHING
        frame = _Body(self, scope, known)
        self._frames.append(frame)
        try:
            self._results[key] = frame.walk()
        finally:
            self._frames.pop()
        return self._results[key]

    def frame(self, scope: Scope) -> _Body | None:
        """Return the function that is being walked and that a scope is the body of."""
        return next((frame for frame in reversed(self._frames) if frame.scope is scope), None)


class _Body:
    """One function under analysis."""

    def __init__(self, reader: Reader, scope: Scope, known: dict[str, Sources]) -> None:
        self.reader, self.scope = reader, scope
        self.local: dict[str, Sources] = dict(known)
        self.self_name = self_name(scope)
        node = scope.node
        self.kwargs_name = node.args.kwarg.arg if not isinstance(node, ast.Module | ast.ClassDef) and node.args.kwarg else None
        self.result: set[Source] = set()
        self.silent = False

    def walk(self) -> Sources:
        statements = list(own_statements(self.scope))
        self.silent = True  # names first: what is assigned below may be read above, in a loop
        for _ in range(2):
            for statement in statements:
                self._statement(statement)
        self.silent = False
        for statement in statements:
            self._statement(statement)
        return frozenset(self.result)

    # -- statements ---------------------------------------------------------------------------------------------------------------

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                self._assign(targets, value)
            case ast.AnnAssign(target=target, value=ast.expr() as value) | ast.AugAssign(target=target, value=value):
                self._assign([target], value)
            case ast.For(target=target, iter=over):
                self._bind(target, self.sources(over), None)
            case ast.If(test=test) | ast.While(test=test) | ast.Assert(test=test) | ast.Match(subject=test):
                self.sources(test, decides=True)
            case ast.Return(value=ast.expr() as value):
                self.result |= self.sources(value)
            case ast.With(items=items):
                for item in items:
                    found = self.sources(item.context_expr)
                    if item.optional_vars is not None:
                        self._bind(item.optional_vars, found, None)
            case ast.Expr(value=value):
                self.sources(value)

    def _assign(self, targets: Sequence[ast.expr], value: ast.expr) -> None:
        found = self.sources(value)
        for target in targets:
            self._bind(target, found, value)

    def _bind(self, target: ast.expr, found: Sources, value: ast.expr | None) -> None:
        match target:
            case ast.Name(id=name):
                self.local[name] = self.local.get(name, NOTHING) | found
                for source in found:
                    if source.origin is Origin.INPUT and not source.part:
                        self.reader.input_names.setdefault(source.name, set()).add(name)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(parts):
                    for part, item in zip(parts, value.elts, strict=True):
                        self._bind(part, self.sources(item), item)
                    return
                for place, target_part in positions(parts):
                    self._bind(target_part, frozenset(element(source, place) for source in found), None)
            case ast.Starred(value=inner):
                self._bind(inner, found, None)

    # -- expressions --------------------------------------------------------------------------------------------------------------

    def sources(self, node: ast.expr, *, decides: bool = False) -> Sources:
        """Return what an expression depends on, and note what it reads."""
        match node:
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return self._note(self._reference(node, decides=decides), node, decides=decides)
            case ast.Call():
                return self._call(node, decides=decides)
            case ast.Compare(left=left, ops=[ast.Is() | ast.IsNot()], comparators=[ast.Constant(value=None)]):
                return self._note(frozenset(presence(source) for source in self._quiet(left)), node, decides=True)
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                return self._inside(node, decides=True)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.sources(test, decides=True) | self.sources(body, decides=decides) | self.sources(orelse, decides=decides)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self._comprehension(node)
            case ast.Lambda() | ast.Constant():
                return NOTHING
        return self._inside(node, decides=decides)

    def _inside(self, node: ast.expr, *, decides: bool) -> Sources:
        found = NOTHING
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                found |= self.sources(child, decides=decides)
        return found

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Sources:
        found = NOTHING
        for generator in node.generators:
            over = self.sources(generator.iter)
            self._bind(generator.target, over, None)
            found |= over
            for test in generator.ifs:
                found |= self.sources(test, decides=True)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        return found.union(*(self.sources(part) for part in parts))

    def _quiet(self, node: ast.expr) -> Sources:
        was, self.silent = self.silent, True
        try:
            return self.sources(node)
        finally:
            self.silent = was

    def _note(self, found: Sources, node: ast.expr, *, decides: bool = False, handle: bool = False) -> Sources:
        if not self.silent:
            for source in found:
                noted = source
                if decides and source.origin is Origin.INPUT and source.part == "" and source.name != EVERY:
                    noted = replace(source, part="value")
                calls = handle or (source.made and not decides)
                self.reader.reads[Read(replace(noted, made=False), self.scope.file.path, node.lineno, decides, calls)] = None
        return found

    def _reference(self, node: ast.expr, *, decides: bool) -> Sources:
        match node:
            case ast.Name(id=name):
                return self.local[name] if name in self.local else self._outer(name)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name == self.self_name:
                return self._attribute(attribute)
            case ast.Attribute(value=value, attr=attribute):
                return frozenset(part(source, attribute) for source in self._base(value, decides=decides))
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str() as key)) if name == self.kwargs_name:
                return frozenset({Source(Origin.ARGUMENT, key)})
            case ast.Subscript(value=value, slice=index):
                inner = self._base(value, decides=decides)
                if not isinstance(index, ast.Slice):
                    self.sources(index, decides=decides)
                return frozenset(item(source, index) for source in inner)
        return self.sources(node, decides=decides)

    def _base(self, node: ast.expr, *, decides: bool) -> Sources:
        """Return what stands before a dot or bracket: it is not read as a whole."""
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            return self._reference(node, decides=decides)
        return self.sources(node, decides=decides)

    def _attribute(self, name: str) -> Sources:
        method = self.reader.runner.method(name)
        if method is not None:  # a property; a method that is called does not get here
            return self.reader.call(method, {}) if is_property(method) else NOTHING
        return frozenset({Source(Origin.ATTRIBUTE, name)})

    def _outer(self, name: str) -> Sources:
        """Return what a variable of an enclosing function stands for: that function's parameters that it is made of."""
        scope = self.scope.parent
        while scope is not None and scope.parent is not None:
            frame = self.reader.frame(scope)
            if frame is not None and name in frame.local:
                return frame.local[name]
            if not scope.is_class and name in scope.bound:
                return NOTHING if scope.parent.is_class else closure_roots(name, scope)
            scope = scope.parent
        return NOTHING

    # -- calls --------------------------------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call, *, decides: bool) -> Sources:
        positional = [self.sources(item.value if isinstance(item, ast.Starred) else item) for item in node.args]
        named = {item.arg: self.sources(item.value) for item in node.keywords}
        together = NOTHING.union(*positional, *named.values())
        if decides:  # the answer decides; a tensor that was passed is not itself compared with anything
            self._note(frozenset(source for source in together if source.origin is not Origin.INPUT or source.part), node, decides=True)
        match node.func:
            case ast.Name(id="isinstance"):
                return frozenset(presence(source) for source in together)
            case ast.Name(id=name) if name in _TO_VALUE:
                wholes = frozenset(replace(item, part="value") for item in together if item.origin is Origin.INPUT and item.part == "")
                return self._note(wholes, node) | (together - frozenset(replace(item, part="") for item in wholes))
            case ast.Name(id="getattr") if node.args:
                return self._getattr(node)
            case ast.Attribute(value=ast.Name(id=name), attr="get") if name == self.kwargs_name and node.args:
                key = ast.unparse(node.args[0]).strip("'")
                return self._note(frozenset({Source(Origin.ARGUMENT, key)}), node)
        target = self._target(node.func)
        if target is None and isinstance(node.func, ast.Attribute) and node.func.attr == "get_cache_key_extras":
            self.reader.delegated = True  # another runner's key counts for what it reads
        if target is not None:
            return passed(self._enter(target, positional, named) or together)
        kept = frozenset(source for source in together if source.name == EVERY and not source.part) if keeps(node.func) else NOTHING
        return passed(together) | kept | self._receiver(node)

    def _getattr(self, node: ast.Call) -> Sources:
        match node.args:
            case [ast.Name(id=name), ast.Constant(value=str() as attribute), *_] if name == self.self_name:
                return self._note(self._attribute(attribute), node)
            case [base, ast.Constant(value=str() as attribute), *_]:
                return self._note(frozenset(part(source, attribute) for source in self._base(base, decides=False)), node)
        return NOTHING

    def _receiver(self, node: ast.Call) -> Sources:
        """Return what a call outside the audited source depends on besides its arguments: what it is a method of."""
        match node.func:
            case ast.Attribute(value=value, attr=attribute):
                found = self._base(value, decides=False)
                if attribute in _SAME_TENSOR:
                    return found
                return self._note(frozenset(part(source, attribute) for source in found), node, handle=attribute not in TENSOR_PARTS)
            case ast.Name(id=name):
                self.reader.builtins[(name, self.scope.file.path, node.lineno)] = None
                return self._note(self.local.get(name, NOTHING) or self._outer(name), node, handle=True)
        return self.sources(node.func)

    def _target(self, function: ast.expr) -> Scope | None:
        """Return the function that is called, where it is to be followed."""
        match function:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name == self.self_name:
                return self.reader.runner.method(attribute)
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=attribute):
                owner = self.scope.parent
                after = self.reader.runner.lineage
                later = after[after.index(owner) + 1 :] if owner in after else ()
                return next((item for scope in later for item in scope.inner if item.name == attribute and not item.is_class), None)
            case ast.Name(id=name) if name not in self.local:
                return self._function(name)
        return None

    def _function(self, name: str) -> Scope | None:
        for meaning in self.reader.names.meanings(ast.Name(id=name, ctx=ast.Load()), self.scope):
            if isinstance(meaning, Imported) or meaning.is_class or meaning.parent is None:
                continue
            if meaning.parent.parent is not None or self.reader.follow:
                return meaning
        return None

    def _enter(self, target: Scope, positional: list[Sources], named: dict[str | None, Sources]) -> Sources:
        names = parameters(target)
        owner = target.parent
        if owner is not None and owner.is_class and not is_static(target):
            names = names[1:]
        known = dict(zip(names, positional, strict=False)) | {name: found for name, found in named.items() if name is not None}
        return self.reader.call(target, {name: known.get(name, NOTHING) for name in parameters(target)})
