"""From live Python objects to values of a key: what counts, what is left out, and what cannot be described.

The rules are those of the design: plain data, enums, dtypes and containers of these count as they are; tensors by dtype and dims;
functions by name or source, defaults and closure; nested runners and configuration objects are walked; compiled modules, streams,
locks and the like are resources; every other object is a gap.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any, Final

import numpy as np
import torch
from flashinfer.autotuner import TunableRunner, TuningConfig

from fi_cachestore.adapter import sources, values
from fi_cachestore.adapter.layout import readings, tensor_value
from fi_cachestore.adapter.leftout import Parameter, absent, is_code, parameter
from fi_cachestore.adapter.roles import Role, mutated_names, role_by_name
from fi_cachestore.adapter.rounding import is_mapper, known_rounding, without_bucket_lists
from fi_cachestore.adapter.sources import type_name
from fi_cachestore.errors import Gap, UnsupportedValueError
from fi_cachestore.keys.canonical import MAX_DEPTH, MAX_ITEMS, Named, Value, encode
from fi_cachestore.keys.digest import source_digest

_MAX_WALK_DEPTH: Final = MAX_DEPTH // 2
_NOT_ONE: Final = 0
RolesFor = Callable[[TunableRunner], Mapping[str, Role]]


class Walker:
    """Walks the objects of one call. Collects gaps and every parameter it meets; never raises for an object it does not know."""

    def __init__(
        self, subject: str, contract_roles: RolesFor, dims: Mapping[int, Value], mappers: tuple[Callable[[int], int], ...] = ()
    ) -> None:
        """Know the contracts' roles of a runner, the symbols of raw dynamic sizes, and the call's own bucket mappers."""
        self.subject = subject
        self.gaps: list[Gap] = []
        self.met: list[Parameter] = []
        self.held_mappers: list[Callable[[int], int]] = []
        self._contract_roles = contract_roles
        self._dims = dims
        self._mappers = mappers
        self._on_path: dict[int, str] = {}
        self._scopes: list[tuple[str, Mapping[str, Role]]] = []

    def gap(self, path: str, obj: object, why: str) -> None:
        """Note that ``obj`` makes the key incomplete."""
        self.gaps.append(Gap(self.subject, path, type_name(type(obj)), why))

    def value(self, obj: Any, path: str) -> Any:
        """Return ``obj`` as a value (which may hold ``Alternatives``); what cannot be described is noted as a gap."""
        if obj is None or type(obj) in (bool, int, float, bytes):
            return obj
        if type(obj) is str:
            return self._checked(obj, obj, path)
        if id(obj) in self._on_path:
            return Named("backref", self._on_path[id(obj)])
        if len(self._on_path) >= _MAX_WALK_DEPTH:
            self.gap(path, obj, "nested too deep")
            return None
        self._on_path[id(obj)] = path
        try:
            return self._by_type(obj, path)
        finally:
            del self._on_path[id(obj)]

    def _by_type(self, obj: Any, path: str) -> Any:
        if (kind := values.resource_kind(obj)) is not None:
            return Named("resource", kind)  # that there is one counts, which one does not
        if values.holds_more(obj):
            self.gap(path, obj, "it has attributes beside what it is by its type")
            return None
        for describe in (self._data, self._container, self._torch, self._code, self._object):
            found = describe(obj, path)
            if found is not NotImplemented:
                return found
        self.gap(path, obj, "an object of this type has no canonical form")
        return None

    # -- data -------------------------------------------------------------------------------------------------------------------

    def _data(self, obj: Any, path: str) -> Any:
        match obj:
            case Enum():
                return Named("enum", (type_name(type(obj)), obj.name, self.value(obj.value, f"{path}.value")))
            case np.generic():
                return Named("numpy", (obj.dtype.name, self.value(obj.item(), path)))
            case np.dtype():
                return Named("numpy.dtype", obj.str)
            case bool() | int() | float() | str() | bytes():
                base: Any = next(kind for kind in (int, float, str, bytes) if isinstance(obj, kind))
                return Named("subclass", (type_name(type(obj)), self._checked(base(obj), obj, path)))
        member = values.foreign_enum(obj)
        return NotImplemented if member is None else Named("enum", (type_name(type(obj)), member, None))

    def _checked(self, value: Value, obj: object, path: str) -> Value:
        try:
            encode(value)
        except UnsupportedValueError as error:
            self.gap(path, obj, error.why)
            return None
        return value

    def _container(self, obj: Any, path: str) -> Any:
        if isinstance(obj, range):
            return Named("range", (obj.start, obj.stop, obj.step))
        if not isinstance(obj, Sequence | AbstractSet | Mapping) or isinstance(obj, bytearray | memoryview):
            return NotImplemented
        if len(obj) > MAX_ITEMS:
            self.gap(path, obj, f"more than {MAX_ITEMS} items")
            return None
        if isinstance(obj, Mapping):
            return self._mapping(obj, path)
        if isinstance(obj, AbstractSet):
            return Named("set", tuple(sorted((self.value(item, f"{path}.item") for item in obj), key=encode)))
        if isinstance(obj, tuple) and hasattr(obj, "_fields"):
            fields = {name: self.value(getattr(obj, name), f"{path}.{name}") for name in obj._fields}
            return Named("namedtuple", (type_name(type(obj)), fields))
        items = [self.value(item, f"{path}[{i}]") for i, item in enumerate(obj)]
        plain = items if isinstance(obj, list) else tuple(items)
        return plain if type(obj) in (tuple, list) else Named("sequence", (type_name(type(obj)), plain))

    def _mapping(self, obj: Mapping[Any, Any], path: str) -> Any:
        rows: list[tuple[Any, Any]] = []
        for key, item in obj.items():
            where = f"{path}[{key!r:.40}]"
            role = self._contract_role(where)
            if role is None or role is Role.SEMANTIC:
                rows.append((self.value(key, f"{path}.key"), self.value(item, where)))
            else:
                self.met.append(parameter(where, role, item))
        has_plain_keys = all(type(key) in (str, int, bool, float, bytes, type(None)) for key, _ in rows)
        plain: Value = dict(rows) if has_plain_keys else Named("pairs", tuple(sorted(rows, key=_key_bytes)))
        return plain if type(obj) is dict else Named("mapping", (type_name(type(obj)), plain))

    # -- torch ------------------------------------------------------------------------------------------------------------------

    def _torch(self, obj: Any, path: str) -> Any:
        match obj:
            case torch.dtype():
                return Named("dtype", str(obj))
            case torch.device():
                self.met.append(parameter(f"{path}.index", Role.PLACEMENT, obj.index))
                return Named("device", obj.type)
            case torch.layout() | torch.memory_format():
                return Named("torch", str(obj))
            case torch.Tensor():
                return self.held_tensor(obj, path)
        return NotImplemented

    def held_tensor(self, tensor: torch.Tensor, path: str) -> Any:
        """Return a tensor that is not an input: dims that equal a raw dynamic dim are probably that dim."""
        raw = values.raw_tensor(tensor)
        if raw is None:
            self.gap(path, tensor, "a tensor without strides")
            return None
        alike = {dim: self._dims[size] for dim, size in enumerate(raw.sizes) if size in self._dims}
        options = []
        for chosen in values.subsets(list(alike)):
            symbols = {dim: alike[dim] for dim in chosen}
            shape = [symbols.get(dim, size) for dim, size in enumerate(raw.sizes)]
            lasting = [_NOT_ONE if dim in symbols else size for dim, size in enumerate(raw.sizes)]  # 1 now, another size in other calls
            options += [tensor_value(raw, shape, layout) for layout in readings(raw, lasting, symbols)]
        return values.one_of(options)

    # -- code -------------------------------------------------------------------------------------------------------------------

    def _code(self, obj: Any, path: str) -> Any:
        match obj:
            case functools.partial():
                rest = {"args": self.value(obj.args, f"{path}.args"), "keywords": self.value(obj.keywords, f"{path}.keywords")}
                return Named("partial", {"function": self.value(obj.func, f"{path}.func"), **rest})
            case types.FunctionType():
                return self.function(obj, path)
            case types.MethodType():
                return Named("method", (self.value(obj.__func__, path), self.value(obj.__self__, f"{path}.__self__")))
            case types.BuiltinFunctionType() if obj.__self__ is None or isinstance(obj.__self__, types.ModuleType):
                return Named("builtin", f"{obj.__module__}:{obj.__qualname__}")
            case type():
                return self._class(obj, path)
        wrapped = values.wrapped_function(obj)
        return NotImplemented if wrapped is None else Named("wrapped", self.value(wrapped, path))

    def function(self, function: types.FunctionType, path: str, *, is_mapper: bool = False) -> Value:
        """Return a function: its name with its package's release or a digest of its source, defaults and closure."""
        parts: dict[str, Value] = {"name": f"{function.__module__}:{function.__qualname__}"}
        release = sources.release_of(function.__module__, function.__code__.co_filename)
        if release:
            parts["release"] = release
        elif release is None:
            text = sources.source_text(function)
            if text is None:
                self.gap(path, function, "its source is not to be had")
                return None
            parts["name"] = function.__qualname__.rpartition(".")[2]
            parts["source"] = source_digest(text)
        defaults: dict[Any, Any] = {**dict(enumerate(function.__defaults__ or ())), **(function.__kwdefaults__ or {})}
        cells = dict(values.closure_cells(function))
        if is_mapper:
            defaults, cells = without_bucket_lists(defaults), without_bucket_lists(cells)
        if defaults:
            parts["defaults"] = {key: self.value(item, f"{path}.defaults.{key}") for key, item in defaults.items()}
        if cells:
            parts["closure"] = self.parameters(cells, f"{path}.closure")
        return Named("function", parts)

    def _class(self, cls: type, path: str) -> Value:
        parts: dict[str, Value] = {"type": self.type_identity(cls, path, object), "data": self.class_data(cls, path, object)}
        made = values.made_with(cls)
        return Named("class", parts | {kind: self.parameters(items, f"{path}.{kind}") for kind, items in made.items()})

    def type_identity(self, cls: type, path: str, base: type) -> Value:
        """Return a class's name with its package's release, or with a digest of its methods' source where no release has it."""
        release = sources.release_of_class(cls, base)
        if release is not None:
            return f"{type_name(cls)} {release}".rstrip()
        digest = sources.implementation_digest(cls, base)
        if digest is None:
            self.gap(path, cls, "the source of its methods is not to be had")
        return f"{type_name(cls)} {digest}"

    def class_data(self, cls: type, path: str, base: type) -> dict[str, Value]:
        """Return the plain-data attributes of a class and its bases: configuration, not state that its methods change."""
        changed = mutated_names(cls, base)
        found: dict[str, Value] = {}
        for owner in reversed(list(sources.owners(cls, base))):
            for name, item in vars(owner).items():
                found.pop(name, None)  # of a base, which this one hides
                where = f"{path}.{name}"
                role = self._class_role(where, name, item, changed)
                if name.startswith("__"):
                    continue
                if is_code(item) or not (role or values.is_plain(item)):
                    parts = [] if role else [self.value(part, where) for part in sources.beside_functions(owner, item)]
                    found |= {name: parts} if parts else {}
                    continue
                self.met.append(parameter(where, role, item))
                if role is None:
                    found[name] = self.value(item, where)
        return found

    def _class_role(self, where: str, name: str, item: object, changed: AbstractSet[str]) -> Role | None:
        """Return why an attribute of a class is no part of the key, if so."""
        role = Role.RESOURCE if name in changed else role_by_name(name, item) or self._contract_role(where)
        return None if role is Role.SEMANTIC else role

    # -- objects ----------------------------------------------------------------------------------------------------------------

    def _object(self, obj: Any, path: str) -> Any:
        if isinstance(obj, TunableRunner):
            return Named("runner", {"type": self.type_identity(type(obj), path, TunableRunner), "params": self.runner(obj, path)})
        if dataclasses.is_dataclass(obj) and values.is_made_of_fields(obj):
            names = [field.name for field in dataclasses.fields(obj) if hasattr(obj, field.name)]
            own = (self._class(type(obj), path),) if "<locals>" in type(obj).__qualname__ else ()
            return Named("dataclass", (type_name(type(obj)), self._fields(obj, names, path), *own))
        if isinstance(obj, types.SimpleNamespace):
            return Named("namespace", self._fields(obj, list(vars(obj)), path))
        constant = values.constant_name(obj)
        return NotImplemented if constant is None else Named("constant", constant)

    def _fields(self, obj: Any, names: list[str], path: str) -> dict[str, Value]:
        return self.parameters({name: getattr(obj, name) for name in names}, path)

    def runner(self, runner: TunableRunner, path: str) -> dict[str, Value]:
        """Return a runner's parameters: attributes, and of its class plain data (``class.``), closure cells and computed defaults."""
        cls = type(runner)
        roles = dict(self._contract_roles(runner))
        lazy = {name for name in mutated_names(cls, TunableRunner) if roles.setdefault(name, Role.RESOURCE) is not Role.SEMANTIC}
        self._scopes.append((f"{path}." if path else "", roles))
        self._on_path[id(runner)] = path or "runner"
        try:
            held = values.attributes(runner)
            found = self.parameters(held, path)
            self.met += [absent(f"{path}.{name}" if path else name) for name in sorted(lazy - set(held))]
            data = self.class_data(cls, f"{path}.class" if path else "class", TunableRunner)
            found |= {f"class.{name}": item for name, item in data.items()}
            found |= self.parameters(
                {f"defaults.{name}": item for name, item in sources.computed_defaults(cls, TunableRunner).items()}, path
            )
            return found | self.parameters({f"closure.{name}": item for name, item in values.method_cells(cls, TunableRunner)}, path)
        finally:
            self._scopes.pop()

    def arguments(self, items: Mapping[str, Any], roles: Mapping[str, Role]) -> dict[str, Value]:
        """Return keyword arguments; ``roles`` are the contract's for them."""
        self._scopes.append(("arguments.", roles))
        try:
            return self.parameters(items, "arguments")
        finally:
            self._scopes.pop()

    def parameters(self, items: Mapping[str, Any], path: str) -> dict[str, Value]:
        """Return those of ``items`` that are part of the key: by the contract of the runner they belong to, by name, and by value."""
        found: dict[str, Value] = {}
        for name, item in items.items():
            where = f"{path}.{name}" if path else name
            role = self._role(where, name, item)
            self.met.append(parameter(where, role, item))
            if role is Role.ROUNDING and callable(item):
                self.held_mappers.append(item)
                found[name] = self.rounding(item, where)
            elif role in (None, Role.SEMANTIC, Role.ROUNDING):
                found[name] = self.value(item, where)
        return found

    def _role(self, where: str, name: str, item: object) -> Role | None:
        if isinstance(item, TuningConfig):
            return Role.RESOURCE
        return (
            self._contract_role(where)
            or role_by_name(name.rpartition(".")[2], item)
            or (Role.ROUNDING if is_mapper(item, self._mappers) else None)
        )

    def _contract_role(self, where: str) -> Role | None:
        """Return what the contract of the runner that is being walked says of a path."""
        for prefix, roles in self._scopes[-1:]:
            if where.startswith(prefix):
                return roles.get(where.removeprefix(prefix))
        return None

    def rounding(self, mapper: Callable[[int], int], path: str) -> Value:
        """Return how a bucket mapper rounds."""
        known = known_rounding(mapper)
        if known is not None:
            return known
        if isinstance(mapper, types.FunctionType):
            return Named("rounding", self.function(mapper, path, is_mapper=True))
        return Named("rounding", self.value(mapper, path))


def _key_bytes(row: Any) -> bytes:
    return encode(row[0])
