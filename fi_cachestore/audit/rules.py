"""The rules: from what a class reads and what its key holds to findings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fi_cachestore.audit.calls import CallSites
from fi_cachestore.audit.classes import RunnerClass
from fi_cachestore.audit.coverage import EXTRAS, Coverage, Missed
from fi_cachestore.audit.findings import RULES, Finding, Severity
from fi_cachestore.audit.parameters import Kind
from fi_cachestore.audit.sources import Origin, Read, Source

_CHECKS = ("validate_tactic", "is_tactic_compatible", "is_valid_tactic")
_IDENTITIES = ("id", "hash")
_PARTS = {"dtype": "dtype", "layout": "strides", "value": "value"}


@dataclass(frozen=True, slots=True)
class _At:
    """Where a finding points."""

    path: str
    line: int


def class_findings(found: Coverage) -> Iterator[Finding]:
    """Return the findings about one class."""
    yield from _missed_parameters(found)
    yield from _missed_inputs(found)
    yield from _without_key(found)
    yield from _bad_values(found)
    yield from _sizes(found)


def _finding(found: Coverage, rule: str, parameter: str, message: str, at: Read | _At, severity: Severity | None = None) -> Finding:
    worst = RULES[rule].severity if severity is None else severity
    if found.is_base:
        worst = Severity.NOTE
    elif found.falls_back and worst is Severity.ERROR and rule.startswith("list-"):
        worst, message = Severity.WARNING, f"{message}; a launch that raises is tried again with tactic -1"
    return Finding(rule, worst, parameter, message, at.path, at.line, (found.runner.type,))


# -- parameters -----------------------------------------------------------------------------------------------------------------------


def _missed_parameters(found: Coverage) -> Iterator[Finding]:
    listed = {item.parameter.name: item for item in found.missed(found.listing)}
    for item in listed.values():
        severity = Severity.ERROR if found.has_choice else Severity.NOTE
        text = f"get_valid_tactics reads {_described(item)}, which is in neither the extras nor the shapes of the key"
        yield _finding(found, "list-parameter", item.parameter.name, text, item.read, severity)
    launched = [item for item in found.missed(found.launch) if item.parameter.name not in listed]
    for item in launched:
        if item.parameter.origin is not Origin.ARGUMENT:
            text = f"forward reads {_described(item)}, which is not in the key"
            yield _finding(found, "kernel-parameter", item.parameter.name, text, item.read, _weight(found, item))
    arguments = [item for item in launched if item.parameter.origin is Origin.ARGUMENT]
    if arguments:
        names = ", ".join(sorted({item.parameter.name for item in arguments}))
        severity = Severity.WARNING if any(item.decides for item in arguments) and found.has_choice else Severity.NOTE
        text = f"forward reads keyword arguments of choose_one, which are never in the key: {names}"
        yield _finding(found, "call-argument", names, text, arguments[0].read, severity)


def _described(item: Missed) -> str:
    where = {Origin.ATTRIBUTE: "the constructor's", Origin.CLOSURE: "its factory's", Origin.ARGUMENT: "the call's"}
    typed = f" ({item.parameter.annotation})" if item.parameter.annotation else ""
    return f"{where[item.parameter.origin]} {item.parameter.name}{typed}"


def _weight(found: Coverage, item: Missed) -> Severity:
    """A number that no condition reads is an operand; without a choice of tactics nothing wrong can be served."""
    if not found.has_choice or (item.parameter.kind is Kind.NUMBER and not item.decides):
        return Severity.NOTE
    typed = any(word in item.parameter.annotation for word in ("bool", "dtype", "str", "Enum", "Type", "Literal"))
    return Severity.WARNING if item.decides or typed else Severity.NOTE


# -- inputs ---------------------------------------------------------------------------------------------------------------------------


def _missed_inputs(found: Coverage) -> Iterator[Finding]:
    listed = found.missed_inputs(found.listing, tuple(_PARTS))
    for (position, part), reads in listed.items():
        severity = Severity.ERROR if found.has_choice else Severity.NOTE
        text = f"get_valid_tactics reads the {_PARTS[part]} of {_input(found, position)}, which is not in the key"
        yield _finding(found, "list-input", f"inputs[{position}].{part}", text, reads[0], severity)
    for (position, part), reads in found.missed_inputs(found.launch, tuple(_PARTS)).items():
        deciding = [read for read in reads if read.decides or part == "value"]
        if deciding and (position, part) not in listed and not (part == "dtype" and not _holds_dtype(found)):
            severity = Severity.WARNING if found.has_choice else Severity.NOTE
            text = f"forward decides by the {_PARTS[part]} of {_input(found, position)}, which is not in the key"
            yield _finding(found, "kernel-input", f"inputs[{position}].{part}", text, deciding[0], severity)
    yield from _scalars(found)


def _scalars(found: Coverage) -> Iterator[Finding]:
    keyed = {position for position, _ in found.keyed_inputs}
    names = {read.source.name: read for read in found.launch.reads if read.source.origin is Origin.INPUT and not read.source.part}
    for position, annotation in found.scalars.items():
        read = names.get(position)
        if read is not None and position not in keyed and ("value" not in {part for p, part in found.keyed_inputs if p == position}):
            if annotation.endswith("dtype") and any(part == "dtype" for _, part in found.keyed_inputs):
                continue
            severity = Severity.WARNING if found.has_choice else Severity.NOTE
            text = f"forward passes {_input(found, position)} ({annotation}) on; as a shape it is (0,), so the key does not hold it"
            yield _finding(found, "kernel-input", f"inputs[{position}].value", text, read, severity)


def _input(found: Coverage, position: str) -> str:
    names = sorted(name for name in found.input_names.get(position, ()) if name != "_")
    return f"input {position} ({names[0]})" if names else f"input {position}"


# -- the key itself -------------------------------------------------------------------------------------------------------------------


def _without_key(found: Coverage) -> Iterator[Finding]:
    runner = found.runner
    at = _At(runner.path, runner.line)
    if runner.method(EXTRAS) is None and runner.method("forward") is not None:
        yield _finding(found, "no-extras", "", "the class defines and inherits no get_cache_key_extras", at)
    if found.has_choice and not _holds_dtype(found) and _passes_tensors(found):
        text = "forward passes tensors to compiled code, and neither their dtypes nor any other dtype is in the key"
        yield _finding(found, "no-dtype", "dtype", text, at)


def _holds_dtype(found: Coverage) -> bool:
    read = {name for item in found.extras.reads for name in (item.source.name, item.source.part)}
    named = any(word in name for name in read for word in ("dtype", "format", "quant", "module_base_args", "kernels", "state", "parent"))
    scalars = {name for position, part in found.keyed_inputs if not part for name in found.input_names.get(position, ())}
    return named or found.extras.delegated or any("dtype" in name for name in scalars)


def _passes_tensors(found: Coverage) -> bool:
    return any(read.source.origin is Origin.INPUT and not read.source.part for read in found.launch.reads)


def _bad_values(found: Coverage) -> Iterator[Finding]:
    reads = {read.source: read for read in found.extras.reads}
    sources = sorted({replace(source, made=False) for source in found.extras.result}, key=str)
    known = [(source, reads[source]) for source in sources if source in reads]
    yield from _addresses(found, known)
    for source, read in known:
        if found.is_dynamic(read):
            text = f"the extras hold {source.part} of {_input(found, source.name)}, a dimension that the shapes of the key hold as a bucket"
            yield _finding(found, "dynamic-in-key", f"inputs[{source.name}].{source.part}", text, read)
        if source.part == "device.index":
            yield _finding(found, "placement-in-key", "device index", "the extras hold the index of the device", read)
        for parameter in found.roots.of(read):
            if parameter.kind is Kind.PLACEMENT:
                yield _finding(found, "placement-in-key", parameter.name, f"the extras hold {parameter.name}", read)
    for name, path, line in found.extras.builtins:
        at = _At(path, line)
        if name in _IDENTITIES:
            yield _finding(found, "unstable-in-key", f"{name}()", f"the extras call {name}(), whose result holds for one process only", at)
        elif name == "repr":
            yield _finding(
                found, "repr-in-key", "repr()", "the extras hold the text of an object; it is the same only while its repr is", at
            )


def _addresses(found: Coverage, known: list[tuple[Source, Read]]) -> Iterator[Finding]:
    places = [(source, read) for source, read in known if source.part == "address"]
    if places:
        names = ", ".join(_input(found, source.name) for source, _ in places)
        yield _finding(found, "address-in-key", "address", f"the extras hold what follows from the address of {names}", places[0][1])


# -- sizes ----------------------------------------------------------------------------------------------------------------------------


def _sizes(found: Coverage) -> Iterator[Finding]:
    if not found.has_choice or not found.dims:
        return
    check = next((name for name in _CHECKS if found.runner.method(name) is not None), None)
    severity = Severity.NOTE if check is not None or found.falls_back else Severity.WARNING
    after = ", and nothing in the class is asked again at the raw size"
    if check is not None or found.falls_back:
        after = f"; {check} can refuse what does not fit" if check is not None else "; a launch that raises is tried again with tactic -1"
    read = found.dynamic(found.listing)
    if read is not None:
        name = "the profile" if read.source.name == "profile" else _input(found, read.source.name)
        yield _finding(
            found,
            "list-size",
            f"{read.source.name}.{read.source.part}",
            f"the list reads a bucketed dimension of {name}{after}",
            read,
            severity,
        )
        return
    read = found.hands_over()
    if read is not None:
        text = f"the list is made from {_input(found, read.source.name)} itself by code outside the source{after}"
        yield _finding(found, "list-size", f"inputs[{read.source.name}]", text, read, severity)


# -- the package ----------------------------------------------------------------------------------------------------------------------


def package_findings(sites: CallSites, classes: tuple[RunnerClass, ...]) -> Iterator[Finding]:
    """Return the findings about names: of classes, of ops, in bundled configurations."""
    yield from _class_names(sites, classes)
    for op, calls in sorted(sites.ops().items()):
        if len(calls) > 1:
            places = ", ".join(f"{call.path}:{call.line}" for call in calls)
            text = f"op {op!r} is tuned by {len(calls)} call sites: {places}"
            yield Finding("op-name", Severity.NOTE, op, text, calls[0].path, calls[0].line, (), op)
    yield from _bundled(sites)


def _class_names(sites: CallSites, classes: tuple[RunnerClass, ...]) -> Iterator[Finding]:
    for name in sorted({item.name for item in classes}):
        same = [item for item in classes if item.name == name]
        if len(same) < 2:  # noqa: PLR2004 - a pair
            continue
        ops = [{site.op for site in sites.of_class.get(item.type, ()) if site.op is not None} for item in same]
        shared = sorted(op for op in set[str]().union(*ops) if sum(op in mine for mine in ops) > 1)
        places = ", ".join(f"{item.path}:{item.line}" for item in same)
        text = f"{len(same)} classes are named {name}: {places}" + (
            f"; they share the op {', '.join(shared)}" if shared else "; no op is shared"
        )
        severity = Severity.WARNING if shared else Severity.NOTE
        yield Finding("class-name", severity, name, text, same[0].path, same[0].line, tuple(item.type for item in same))


def _bundled(sites: CallSites) -> Iterator[Finding]:
    fields = _key_fields(sites)
    for file in sites.finder.tree.files.values():
        if b"best_configs" not in file.content:
            continue
        for node in file.tree.body:
            match node:
                case ast.Assign(targets=[ast.Name(id="best_configs")], value=ast.Dict(keys=keys)):
                    sizes = {_size(key) for key in keys}
                    if fields is not None and sizes and fields not in sizes:
                        known = " or ".join(str(size) for size in sorted(size for size in sizes if size is not None))
                        text = f"all {len(keys)} keys have {known} parts, the keys of calls {fields}; none can ever match"
                        yield Finding("bundled-config", Severity.WARNING, "best_configs", text, file.path, node.lineno)


def _key_fields(sites: CallSites) -> int | None:
    """Return how many parts a persisted key has: those of the tuple that ``key_fields`` returns."""
    for module, file in sites.finder.tree.files.items():
        top = sites.names.scope(module) if b"def key_fields" in file.content else None
        for scope in top.all_inner() if top is not None else ():
            returned = [node.value for node in ast.walk(scope.node) if isinstance(node, ast.Return)] if scope.name == "key_fields" else []
            if returned and isinstance(returned[0], ast.Tuple):
                return len(returned[0].elts)
    return None


def _size(key: ast.expr | None) -> int | None:
    try:
        value = ast.literal_eval(ast.literal_eval(key)) if key is not None else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return len(value) if isinstance(value, tuple) else None
