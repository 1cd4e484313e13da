"""Names and source text of code: what stands for a function or class in a key.

Code of an installed, versioned package counts by name, since its version is known; any other code counts by its source text too.
Everything is cached by code object: FlashInfer builds many runner classes inside factory functions, a new class object per call.
"""

from __future__ import annotations

import ast
import dataclasses
import dis
import functools
import importlib
import inspect
import reprlib
import sys
import sysconfig
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from importlib import metadata
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from flashinfer.autotuner import TuningConfig

from fi_cachestore.keys.digest import Digest, source_digest

_sources: dict[CodeType, str | None] = {}
_implementations: dict[tuple[tuple[str, str, CodeType], ...], Digest | None] = {}
_MAX_CACHED = 16384
CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__", "__init_subclass__"})
_OF_ANNOTATIONS = frozenset(["__annotate__", "__annotate_func__"])
_OF_DATACLASSES = frozenset(
    ["__init__", "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__setattr__", "__delattr__", "__replace__"]
)


def type_name(cls: type) -> str:
    """Return ``"module:qualname"``."""
    return f"{cls.__module__}:{cls.__qualname__}"


@functools.cache
def release_of(module: str | None, file: str | None = None) -> str | None:
    """Return the release whose code ``module`` is, so that a name identifies it; ``None`` for code that only its source text does.

    ``"vllm 0.33.0"`` for an installed package (an editable install is none), ``""`` where the environment or Python itself says which.
    The module's file, and the ``file`` that the code itself came from where that is known, must lie where the package was installed: a
    script of one's own may have any name, and code that was made at run time may claim any module.
    """
    top = (module or "").partition(".")[0]
    loaded = sys.modules.get(module or "")
    if loaded is None or module == "__main__":
        return None
    own = getattr(loaded, "__file__", None)
    if top in sys.stdlib_module_names:
        return "" if all(path is None or _is_standard(path) for path in (own, file)) else None
    if own is None:
        return None
    for release, place in _installed(own, top):
        if Path(own).is_relative_to(place):
            return release if file is None or Path(file).is_relative_to(place) or _is_standard(file) else None
    return None


def _is_standard(file: str) -> bool:
    places = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
    is_installed = {"site-packages", "dist-packages"} & set(Path(file).parts)  # these lie inside, but for a virtual environment
    return not is_installed and any(Path(file).is_relative_to(place) for place in places)


def _installed(file: str, top: str) -> Iterator[tuple[str, Path]]:
    """Yield the releases that may have installed a module, with the places where they did."""
    if top == "flashinfer":  # its version and commit are facets of every key
        yield "", Path(str(importlib.import_module(top).__file__)).parent
        return
    for name in _distributions(file, top):
        dist = _distribution(name)
        if dist is not None and _is_release(dist):
            yield f"{dist.name} {dist.version}", Path(str(dist.locate_file("")))


def _distributions(file: str, top: str) -> Sequence[str]:
    """Return the names of the distributions that may have installed a module: by its name, else by where its file lies."""
    if _distribution(top) is not None:
        return [top]
    for root in map(Path, sys.path):
        if Path(file).is_relative_to(root) and any(root.glob("*.dist-info")):  # reading all packages takes long
            return _names_by_folder().get(Path(file).relative_to(root).parts[0].partition(".")[0], [])
    return []


@functools.cache
def _names_by_folder() -> Mapping[str, Sequence[str]]:
    return metadata.packages_distributions()


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _is_release(dist: metadata.Distribution) -> bool:
    return '"editable": true' not in (dist.read_text("direct_url.json") or "")


def source_text(function: FunctionType) -> str | None:
    """Return the function's source without its indentation, or ``None`` where no file has it or it cannot be told from its neighbour."""
    code = function.__code__
    try:
        return _sources[code]
    except KeyError:
        found = _read_source(function)
    if len(_sources) >= _MAX_CACHED:
        _sources.clear()
    _sources[code] = found
    return found  # not what is there: another thread may have emptied the table


def _read_source(function: FunctionType) -> str | None:
    code = function.__code__
    try:
        lines, start = _found(function)
        return _lambda_text(code, lines) if code.co_name == "<lambda>" else textwrap.dedent("".join(inspect.getblock(lines[start:])))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None


def _found(function: FunctionType) -> tuple[list[str], int]:
    """Return the lines of the file that has a function's code, and where the code starts in it.

    For code alone, ``inspect`` first goes through the files of all modules, for tens of milliseconds in a process with torch. Which module
    it is only matters for a file that does not exist.

    Raises:
        OSError: nothing has the source.
    """
    code = function.__code__
    return inspect.findsource(function if Path(code.co_filename).is_file() else code)


def _lambda_text(code: CodeType, lines: Sequence[str]) -> str | None:
    """Return the text of one lambda, whose line may hold several: the smallest that encloses every position of its code."""
    text = "".join(lines)
    places = [place for place in code.co_positions() if None not in place and (place[0], place[2]) != (place[1], place[3])]
    starts = [(line, column) for line, _, column, _ in places if line is not None and column is not None]
    lambdas = [node for node in ast.walk(_parsed(text)) if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno]
    if starts:
        enclosing = [node for node in lambdas if all(_encloses(node.body, *at) for at in starts)]
    else:  # CPython 3.12 and 3.13 do not say where the constant is that a lambda is all there is of
        enclosing = [node for node in lambdas if _returns_the_same(node, code)]
    texts = sorted((ast.get_source_segment(text, node) or "" for node in enclosing), key=len)
    return texts[0] if texts else None


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _returns_the_same(node: ast.Lambda, code: CodeType) -> bool:
    """Whether a lambda has the arguments of ``code``, and the constant that it returns."""
    given = node.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    body = compile(ast.Expression(node.body), "<lambda>", "eval")
    returned = [[*dis.get_instructions(one)][-1].argval for one in (body, code)]
    return tuple(name.arg for name in arguments) == code.co_varnames and len({*map(type, returned)}) == len({*map(repr, returned)}) == 1


def _encloses(node: ast.expr, line: int, column: int) -> bool:
    end = (node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)
    return (node.lineno, node.col_offset) <= (line, column) < end


def implementation_digest(cls: type, base: type) -> Digest | None:
    """Return a digest of the source of every function of ``cls`` and its bases below ``base``, ``None`` if some has no source."""
    functions = list(class_functions(cls, base))
    signature = tuple((owner.__qualname__, name, function.__code__) for owner, name, function in functions)
    try:
        return _implementations[signature]
    except KeyError:
        texts = [(type_name(owner), name, source_text(function)) for owner, name, function in functions]
    known = all(text is not None for _, _, text in texts)
    found = source_digest("\n".join(f"{o} {n} {text}" for o, n, text in texts)) if known else None
    if len(_implementations) >= _MAX_CACHED:
        _implementations.clear()
    _implementations[signature] = found
    return found


def owners(cls: type, base: type) -> Iterator[type]:
    """Yield ``cls`` and its bases, up to ``base`` and what that inherits."""
    known = set(base.__mro__)
    yield from (owner for owner in cls.__mro__ if owner not in known)


def release_of_class(cls: type, base: type) -> str | None:
    """Return the releases that identify a class by its name, with all functions that it and its bases below ``base`` define."""
    found = {release_of(cls.__module__)}
    found.update(release_of(function.__module__, function.__code__.co_filename) for _, _, function in class_functions(cls, base))
    return None if None in found else ", ".join(sorted(filter(None, found)))


def class_functions(cls: type, base: type) -> Iterator[tuple[type, str, FunctionType]]:
    """Yield the functions that ``cls`` and its bases below ``base`` define, by owner and name; properties give their accessors."""
    for owner in owners(cls, base):
        for name, member in vars(owner).items():
            for function in functions_in(member):
                if not is_generated(owner, name, function):
                    yield owner, name, function


def is_generated(owner: type, name: str, function: FunctionType) -> bool:
    """Whether Python wrote the function: for annotations, which it computes since 3.14, or from fields, which count by themselves."""
    if name in _OF_ANNOTATIONS:
        return True
    if function.__code__.co_filename == reprlib.__file__:  # around the ``__repr__`` of a dataclass since 3.13, and around anybody's own
        function = getattr(function, "__wrapped__", function)
    if function.__code__.co_filename not in ("<string>", dataclasses.__file__):
        return False
    return (dataclasses.is_dataclass(owner) and name in _OF_DATACLASSES) or (hasattr(owner, "_fields") and name == "__new__")


def computed_defaults(cls: type, base: type) -> dict[str, Any]:
    """Return the defaults of a class's methods that their source text does not say, by method and parameter.

    A factory that makes a class may compute them, and then they are no more in the text than the variables of a closure. Those of
    constructors are in the attributes that these set.
    """
    rows: list[tuple[str, str, Any]] = []
    for _, method, function in class_functions(cls, base):
        if "<locals>" not in function.__qualname__ or method in CONSTRUCTORS:
            continue
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        given = function.__defaults__ or ()
        items = {**dict(zip(names[len(names) - len(given) :], given, strict=True)), **(function.__kwdefaults__ or {})}
        written = _written_defaults(function) if items else frozenset()
        for name, item in items.items():
            if name not in written:
                rows.append((f"{method}.{name}", f"{function.__qualname__}.{name}", item))
    return told_apart(rows)


def told_apart(rows: Sequence[tuple[str, str, Any]]) -> dict[str, Any]:
    """Return items by name, or by their longer name where another item has the short one; by number where the longer do not tell either.

    They do not where bases have the same name, as those that a factory makes of its own classes.
    """
    if len({longer for _, longer, _ in rows}) < len(rows):
        return {f"{number}.{name}": item for number, (name, _, item) in enumerate(rows)}
    found: dict[str, Any] = {}
    for name, longer, item in rows:
        found[name if name not in found or found[name] is item else longer] = item
    return dict(sorted(found.items()))


def _written_defaults(function: FunctionType) -> frozenset[str]:
    """Return the parameters whose defaults are constants in the source text."""
    text = source_text(function)
    try:
        body = ast.parse(text or "").body
    except SyntaxError:
        return frozenset()
    if not body or not isinstance(body[0], ast.FunctionDef | ast.AsyncFunctionDef):
        return frozenset()
    given = body[0].args
    positional = [*given.posonlyargs, *given.args]
    pairs = [
        *zip(positional[len(positional) - len(given.defaults) :], given.defaults, strict=True),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]
    return frozenset(parameter.arg for parameter, default in pairs if default is not None and _is_literal(default))


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True


def is_released(cls: type) -> bool:
    """Whether a class stands in a released module, so that its name says what it holds. One that a function makes does not."""
    return "<locals>" not in cls.__qualname__ and release_of(cls.__module__) is not None


def beside_functions(owner: type, member: Any) -> Iterator[Any]:
    """Yield what makes a member of a class and is no function, whose text counts: a partial in a ``staticmethod``, for example.

    Nothing of a class that a release identifies, nor what Python itself puts there: its members say that.
    """
    if is_released(owner) or issubclass(owner, Enum) or isinstance(member, TuningConfig) or _is_of_python(type(member)):
        return
    match member:
        case types.MemberDescriptorType() | types.GetSetDescriptorType():
            return
        case staticmethod() | classmethod():
            made: tuple[Any, ...] = (member.__func__,)
        case property():
            made = tuple(filter(None, (member.fget, member.fset, member.fdel)))
        case functools.cached_property():
            made = (member.func,)
        case _:
            made = (member,)
    yield from (part for part in made if not isinstance(part, FunctionType | functools._lru_cache_wrapper))


def _is_of_python(cls: type) -> bool:
    return cls is object or cls.__name__ in ("_abc_data", "_tuplegetter")


def functions_in(member: Any) -> Iterator[FunctionType]:
    """Yield the functions that make a member of a class: itself, what it wraps, or a property's accessors."""
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    if isinstance(member, property):
        for accessor in (member.fget, member.fset, member.fdel):
            yield from functions_in(accessor)
        return
    if isinstance(member, functools.cached_property):
        member = member.func
    while not isinstance(member, FunctionType) and hasattr(member, "__wrapped__"):
        member = member.__wrapped__
    if isinstance(member, FunctionType):
        yield member
