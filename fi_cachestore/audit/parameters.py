"""Where a runner's attributes and its factory's variables come from, and what kind of parameter each is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fi_cachestore.audit.classes import RunnerClass
from fi_cachestore.audit.functions import annotated, closure_roots, own_statements, parameters
from fi_cachestore.audit.scopes import Scope
from fi_cachestore.audit.sources import Origin, Read, Source

_ENVIRONMENT: Final = re.compile(
    r"^_*(sm_(major|minor|version|count)|num_sms?|(device_)?arch|major|minor|(target_)?compute_capability|use_sm_\d+\w*|device\w*|cuda_version)$"
)
_PLACEMENT: Final = re.compile(
    r"^_*((tp|ep|cp|dp|pp|cluster|local|global|world|device|node|moe_[a-z]+)_)?rank$|local_expert_offset$|device_(index|id)$"
)
_RESOURCE: Final = re.compile(
    r"(^|_)(module|mod|op|moe_op|kernel|fn|func|call_fn|forward_impl|impl|workspace\w*|buffers?|stream\w*|handle|group|launches|lse|out"
    r"|kv_cache|inputs_helper|parent|ws|cache|callback|lock|state)$"
)
_ROUNDING: Final = re.compile(r"(^|_)(tune_max_num_tokens|bucket\w*|mapper)$")
_TENSOR_LIKE: Final = re.compile(r"Tensor|Callable|Stream|ProcessGroup|Module|Generator|Event")
_NUMBER: Final = re.compile(r"^(Optional\[)?float(\]| \| None)?$|Union\[float, *torch\.Tensor\]|^float \| torch\.Tensor")


class Kind(StrEnum):
    """What kind of parameter this is, as far as its name, its annotation and its use tell."""

    CONFIGURATION = "configuration"
    ENVIRONMENT = "environment"
    PLACEMENT = "placement"
    RESOURCE = "resource"
    NUMBER = "number"
    ROUNDING = "rounding"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the class's constructor, its factory or its call, by ``origin`` and dotted ``name``."""

    origin: Origin
    name: str
    annotation: str = ""

    @property
    def kind(self) -> Kind:
        """Judge by name first, then by annotation."""
        first, last = self.name.partition(".")[0], self.name.rpartition(".")[2]
        if _PLACEMENT.search(last):
            return Kind.PLACEMENT
        if _ENVIRONMENT.match(last):
            return Kind.ENVIRONMENT
        if _ROUNDING.search(last):
            return Kind.ROUNDING
        if self.annotation.startswith("Optional[Callable"):
            return Kind.CONFIGURATION  # whether there is one decides; what it is, the class knows
        if (
            _RESOURCE.search(last)
            or _RESOURCE.search(first)
            or (_TENSOR_LIKE.search(self.annotation) and not _NUMBER.search(self.annotation))
        ):
            return Kind.RESOURCE
        return Kind.NUMBER if _NUMBER.search(self.annotation) else Kind.CONFIGURATION


class Roots:
    """The parameters behind what a class reads. Constants, imports and what methods other than ``__init__`` assign have none."""

    def __init__(self, runner: RunnerClass) -> None:
        """Read every ``__init__`` of the class's lineage once."""
        self.runner = runner
        self._assigned: dict[str, tuple[Scope, ast.expr]] = {}
        self._mutated: set[str] = set()
        self._known: dict[Source, frozenset[Parameter]] = {}
        for owner in reversed(runner.lineage):
            for method in (item for item in owner.inner if not item.is_class):
                self._read_method(method)

    def of(self, read: Read) -> frozenset[Parameter]:
        """Return the parameters that a read leads back to."""
        source = read.source
        if source not in self._known:
            self._known[source] = self._of(source)
        return self._known[source]

    def _of(self, source: Source) -> frozenset[Parameter]:
        if source.origin is Origin.ATTRIBUTE:
            return self._of_attribute(source)
        if source.origin is Origin.INPUT:
            return frozenset()
        return frozenset({Parameter(source.origin, source.name, self._annotation(source))})

    def _read_method(self, method: Scope) -> None:
        for statement in own_statements(method):
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            value = getattr(statement, "value", None)
            for name, part in (pair for target in targets for pair in _assigned(target, value, method)):
                if method.name == "__init__" and isinstance(part, ast.expr):
                    self._assigned[name] = (method, part)
                    self._mutated.discard(name)
                elif method.name not in ("__init__", "__post_init__"):
                    self._mutated.add(name)

    def _of_attribute(self, source: Source) -> frozenset[Parameter]:
        if source.name in self._mutated or source.name.endswith("_cache") or source.name not in self._assigned:
            return frozenset()
        method, value = self._assigned[source.name]
        found = self._in_init(method, value)
        if source.part and isinstance(value, ast.Name) and len(found) == 1:
            (only,) = found
            return frozenset({Parameter(only.origin, f"{only.name}.{source.part}", only.annotation)})
        return found

    def _in_init(self, method: Scope, value: ast.expr) -> frozenset[Parameter]:
        """Return the constructor's parameters in an expression, those of the most derived constructor where that passes them on."""
        typed, names = annotated(method), parameters(method)[1:]
        found: set[Parameter] = set()
        for source in _names(value, method):
            if source.origin is Origin.CLOSURE and source.name in names:
                found |= self._passed_down(method, source.name) or {Parameter(Origin.ATTRIBUTE, source.name, typed.get(source.name, ""))}
            elif source.origin is Origin.CLOSURE:
                found.add(Parameter(Origin.CLOSURE, source.name, self._annotation(source)))
        return frozenset(found)

    def _passed_down(self, method: Scope, name: str) -> set[Parameter]:
        """Return what the constructor of a derived class passes for a parameter of its base's."""
        owner = method.parent
        lineage = self.runner.lineage
        before = lineage[: lineage.index(owner)] if owner in lineage else ()
        for scope in reversed(before):
            derived = next((item for item in scope.inner if item.name == "__init__"), None)
            call = _super_call(derived) if derived is not None else None
            if derived is None or call is None:
                continue
            value = _argument(call, name, parameters(method)[1:])
            return set(self._in_init(derived, value)) or {Parameter(Origin.CLOSURE, "constant", "Callable")} if value is not None else set()
        return set()

    def _annotation(self, source: Source) -> str:
        scope: Scope | None = self.runner.scope.parent
        if source.origin is Origin.ARGUMENT:
            scope = self.runner.method("forward")
        while scope is not None:
            found = annotated(scope).get(source.name)
            if found is not None:
                return found
            scope = scope.parent
        return ""


def _assigned(target: ast.expr | None, value: ast.expr | None, method: Scope) -> Iterator[tuple[str, ast.expr | None]]:
    """Return the runner's attributes that a target names, each with its part of the value."""
    if isinstance(target, ast.Attribute) and _is_self(target.value, method):
        yield target.attr, value
    elif isinstance(target, ast.Tuple | ast.List):
        same = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
        parts = value.elts if isinstance(value, ast.Tuple | ast.List) and same else [value] * len(target.elts)
        for inner, part in zip(target.elts, parts, strict=True):
            yield from _assigned(inner, part, method)


def _is_self(node: ast.expr, method: Scope) -> bool:
    names = parameters(method)
    return isinstance(node, ast.Name) and bool(names) and node.id == names[0]


def _names(value: ast.expr, scope: Scope) -> set[Source]:
    """Return the parameters of a function, and of those around it, that an expression in it is made of."""
    found: set[Source] = set()
    for node in ast.walk(value):
        place: Scope | None = scope
        while isinstance(node, ast.Name) and place is not None and place.parent is not None:
            if not place.is_class and node.id in place.bound:
                found |= closure_roots(node.id, place)
                break
            place = place.parent
    return found


def _super_call(method: Scope) -> ast.Call | None:
    for node in ast.walk(method.node):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="__init__")):
                return node
    return None


def _argument(call: ast.Call, name: str, names: list[str]) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    position = names.index(name)
    return call.args[position] if position < len(call.args) else None
