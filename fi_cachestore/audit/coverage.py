"""What FlashInfer's persisted key holds of a class, and what its code reads besides."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property

from fi_cachestore.audit.calls import CallSites, Dims
from fi_cachestore.audit.classes import RunnerClass
from fi_cachestore.audit.functions import annotated
from fi_cachestore.audit.parameters import Kind, Parameter, Roots
from fi_cachestore.audit.reads import Reader
from fi_cachestore.audit.scopes import Scope
from fi_cachestore.audit.sources import EVERY, PROFILE, Origin, Read

EXTRAS = "get_cache_key_extras"
LIST = "get_valid_tactics"
LAUNCH = "forward"
_SCALARS = ("bool", "int", "float", "str", "torch.dtype", "dtype")


@dataclass(frozen=True, slots=True)
class Missed:
    """A parameter that is read in some method and that the key does not hold: the first read of it, and whether any read decides."""

    parameter: Parameter
    read: Read
    decides: bool


class Coverage:
    """One class under audit."""

    def __init__(self, sites: CallSites, runner: RunnerClass) -> None:
        """Prepare; everything is computed when asked for."""
        self.sites, self.runner = sites, runner
        self.roots = Roots(runner)

    # -- the key ------------------------------------------------------------------------------------------------------------------

    @cached_property
    def extras(self) -> Reader:
        """What the extras read."""
        reader = Reader(self.sites.names, self.runner, follow=True)
        reader.method(EXTRAS)
        return reader

    @cached_property
    def keyed(self) -> frozenset[Parameter]:
        """The parameters that the extras are made of."""
        return frozenset(parameter for read in self.extras.reads for parameter in self.roots.of(read))

    @cached_property
    def keyed_inputs(self) -> frozenset[tuple[str, str]]:
        """The inputs and their properties that the extras read."""
        return frozenset((read.source.name, read.source.part) for read in self.extras.reads if read.source.origin is Origin.INPUT)

    def holds(self, parameter: Parameter) -> bool:
        """Whether the key holds a parameter, or a part of it, or the dtype of the input that it is named after."""
        if any(_within(parameter.name, other.name) or _within(other.name, parameter.name) for other in self.keyed):
            return True
        last = parameter.name.rpartition(".")[2]
        keyed = {name for position, part in self.keyed_inputs if part == "dtype" for name in self.input_names.get(position, ())}
        return last.endswith("_dtype") and last.removesuffix("_dtype") in keyed

    def _holds_dtype(self, position: str) -> bool:
        """Whether the key holds a parameter that is named as the dtype of an input, such as ``weight_dtype`` for ``fc2_expert_weights``."""
        keyed = {item.name.rpartition(".")[2].removesuffix("_dtype") for item in self.keyed if item.name.endswith("_dtype")}
        return any(prefix in name for prefix in keyed for name in self.input_names.get(position, ()))

    @cached_property
    def input_names(self) -> dict[str, set[str]]:
        """What the class's methods call their inputs, by position."""
        found: dict[str, set[str]] = {}
        for reader in (self.extras, self.listing, self.launch):
            for position, names in reader.input_names.items():
                found.setdefault(position, set()).update(names)
        return found

    # -- behaviour ----------------------------------------------------------------------------------------------------------------

    @cached_property
    def listing(self) -> Reader:
        """What the tactic list reads."""
        reader = Reader(self.sites.names, self.runner)
        reader.method(LIST)
        return reader

    @cached_property
    def launch(self) -> Reader:
        """What a launch reads."""
        reader = Reader(self.sites.names, self.runner)
        reader.method(LAUNCH)
        return reader

    @property
    def faults(self) -> list[str]:
        """What could not be read of the class."""
        return [reader.fault for reader in (self.extras, self.listing, self.launch) if reader.fault]

    @cached_property
    def has_choice(self) -> bool:
        """Whether the list can have more than one tactic, as far as its source tells."""
        method = self.runner.method(LIST)
        if method is None:
            return False
        returned = [node.value for node in ast.walk(method.node) if isinstance(node, ast.Return)]
        return not all(isinstance(value, ast.List) and len(value.elts) <= 1 for value in returned)

    @cached_property
    def is_base(self) -> bool:
        """Whether the class leaves something to derived classes: a method that is missing, abstract or raises NotImplementedError."""
        own = [self.runner.method(name) for name in (LIST, LAUNCH)]
        methods = [item for owner in self.runner.lineage for item in owner.inner if not item.is_class]
        chosen = [item for item in methods if self.runner.method(item.name) is item]
        return None in own or any(_is_open(item) for item in chosen)

    @cached_property
    def falls_back(self) -> bool:
        """Whether a launch that raises is tried again with the default tactic."""
        method = self.runner.method(LAUNCH)
        handlers = [node for node in ast.walk(method.node) if isinstance(node, ast.ExceptHandler)] if method is not None else []
        calls = [node for handler in handlers for node in ast.walk(handler) if isinstance(node, ast.Call)]
        return any(item.arg == "tactic" and ast.unparse(item.value) == "-1" for node in calls for item in node.keywords)

    def parameters(self, reader: Reader) -> dict[Parameter, list[Read]]:
        """Return the parameters behind what a method reads, handles to compiled code left out."""
        found: dict[Parameter, list[Read]] = {}
        for read in reader.reads:
            for parameter in self.roots.of(read):
                found.setdefault(parameter, []).append(read)
        return {parameter: reads for parameter, reads in found.items() if not all(read.handle for read in reads)}

    def missed(self, reader: Reader) -> list[Missed]:
        """Return the configuration and numbers that a method reads and the key does not hold."""
        found = self.parameters(reader).items()
        counted = ((item, reads) for item, reads in found if item.kind in (Kind.CONFIGURATION, Kind.NUMBER))
        return [Missed(item, reads[0], any(read.decides for read in reads)) for item, reads in counted if not self.holds(item)]

    def missed_inputs(self, reader: Reader, parts: tuple[str, ...]) -> dict[tuple[str, str], list[Read]]:
        """Return the reads of properties of inputs that the key does not hold, by input and property."""
        found: dict[tuple[str, str], list[Read]] = {}
        for read in reader.reads:
            source = read.source
            if source.origin is Origin.INPUT and source.part in parts and source.name not in (EVERY, PROFILE):
                found.setdefault((source.name, source.part), []).append(read)
        keyed = self.keyed_inputs
        if self.extras.delegated:
            return {}
        missed = {key: reads for key, reads in found.items() if not _held(key, keyed)}
        return {key: reads for key, reads in missed.items() if key[1] != "dtype" or not self._holds_dtype(key[0])}

    @cached_property
    def scalars(self) -> dict[str, str]:
        """The inputs that are no tensors, by position, with their annotation at the call site."""
        found: dict[str, str] = {}
        for site in self.sites.of_class.get(self.runner.type, ()):
            listed = site.argument("inputs")
            for position, name in enumerate(_list_names(listed, site.function)):
                annotation = annotated(site.function).get(name, "")
                if annotation.removeprefix("Optional[").removesuffix("]") in _SCALARS:
                    found[str(position)] = annotation
        return found

    # -- sizes --------------------------------------------------------------------------------------------------------------------

    @cached_property
    def dims(self) -> Dims | None:
        """The dims that are bucketed."""
        return self.sites.dynamic_dims(self.runner)

    def dynamic(self, reader: Reader) -> Read | None:
        """Return a read of a bucketed dim, by index or through the whole shape or the profile."""
        return next((read for read in reader.reads if self.is_dynamic(read)), None)

    def is_dynamic(self, read: Read) -> bool:
        """Whether a read looks at a bucketed dim."""
        source, dims = read.source, self.dims
        if source.origin is not Origin.INPUT or not dims or not source.part.startswith("shape"):
            return False
        if source.name in (PROFILE, EVERY):
            return True
        mine = {dim for position, dim in dims if str(position) == source.name}
        if source.part == "shape":
            return bool(mine)
        index = int(source.part[6:-1])
        return index in mine or (index == 0 and -2 in mine)  # noqa: PLR2004 - the rows of a matrix, counted from either end

    def hands_over(self) -> Read | None:
        """Return where the list hands a bucketed tensor to code outside the source."""
        dynamic = {str(position) for position, _ in self.dims or ()}
        return next(
            (r for r in self.listing.reads if r.source.origin is Origin.INPUT and r.source.name in dynamic and not r.source.part), None
        )


def _is_open(method: Scope) -> bool:
    """Whether a method does nothing but raise NotImplementedError, or is abstract."""
    body = [item for item in method.node.body if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))]
    raises = len(body) == 1 and isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.unparse(body[0])
    return raises or "abstractmethod" in {ast.unparse(item) for item in getattr(method.node, "decorator_list", ())}


def _held(key: tuple[str, str], keyed: frozenset[tuple[str, str]]) -> bool:
    """Whether a property is in the key: itself, of every input, or the whole of what is no tensor."""
    return key in keyed or (EVERY, key[1]) in keyed or (key[0], "") in keyed or (key[0], "value") in keyed


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")


def _list_names(node: ast.expr | None, function: Scope) -> list[str]:
    """Return the names in the list literal that an argument stands for."""
    if isinstance(node, ast.Name):
        literals = [item for item in function.bound.get(node.id, ()) if isinstance(item, ast.List)]
        node = literals[0] if len(literals) == 1 else None
    return [item.id if isinstance(item, ast.Name) else "" for item in node.elts] if isinstance(node, ast.List) else []
