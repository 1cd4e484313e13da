"""Names and source text of code: what stands for a function or class in a key.

Code of an installed, versioned package counts by name, since its version is known; any other code counts by its source text too.
Everything is cached by code object: FlashInfer builds many runner classes inside factory functions, a new class object per call.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from fi_cachestore.keys.digest import Digest, source_digest

_sources: dict[CodeType, str | None] = {}
_implementations: dict[tuple[tuple[str, str, CodeType], ...], Digest | None] = {}
_MAX_CACHED = 16384


def type_name(cls: type) -> str:
    """Return ``"module:qualname"``."""
    return f"{cls.__module__}:{cls.__qualname__}"


@functools.cache
def is_versioned(module: str | None, file: str | None = None) -> bool:
    """Whether code of ``module`` is identified by its name and its package's version (an editable install is not).

    The module's file, and the ``file`` that the code itself came from where that is known, must lie where the package was installed: a
    script of one's own may have any name, and code that was made at run time may claim any module.
    """
    top = (module or "").partition(".")[0]
    if top == "flashinfer":  # its version and commit are facets of every key
        places = [Path(str(importlib.import_module("flashinfer").__file__)).parent]
    elif top in sys.stdlib_module_names:
        places = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("platstdlib"))]
    else:
        names = [top] if _distribution(top) else _distributions(module, top)
        found = [dist for name in names if (dist := _distribution(name)) is not None and _is_release(dist)]
        places = [Path(str(dist.locate_file(""))) for dist in found]
    return _lies_in(module, places) and (file is None or any(Path(file).is_relative_to(place) for place in places))


def _distributions(module: str | None, top: str) -> Sequence[str]:
    """Return the names of the distributions that install ``top``. Reading them all takes long, so only for what lies beside some."""
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    roots = [Path(entry) for entry in sys.path if file is not None and Path(file).is_relative_to(entry)]
    return metadata.packages_distributions().get(top, ()) if any(any(root.glob("*.dist-info")) for root in roots) else ()


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _is_release(dist: metadata.Distribution) -> bool:
    return '"editable": true' not in (dist.read_text("direct_url.json") or "")


def _lies_in(module: str | None, places: Sequence[Path]) -> bool:
    loaded = sys.modules.get(module or "")
    if loaded is None or not places:
        return False
    file = getattr(loaded, "__file__", None)
    return module != "__main__" if file is None else any(Path(file).is_relative_to(place) for place in places)


def source_text(function: FunctionType) -> str | None:
    """Return the function's source without its indentation, or ``None`` where no file has it or it cannot be told from its neighbour."""
    code = function.__code__
    if code not in _sources:
        if len(_sources) >= _MAX_CACHED:
            _sources.clear()
        try:
            _sources[code] = _lambda_text(code) if code.co_name == "<lambda>" else textwrap.dedent(inspect.getsource(code))
        except (OSError, TypeError, SyntaxError, ValueError):
            _sources[code] = None
    return _sources[code]


def _lambda_text(code: CodeType) -> str | None:
    """Return the text of one lambda, whose line may hold several: the smallest that encloses every position of its code."""
    text = "".join(inspect.findsource(code)[0])
    places = [place for place in code.co_positions() if None not in place and (place[0], place[2]) != (place[1], place[3])]
    starts = [(line, column) for line, _, column, _ in places if line is not None and column is not None]
    enclosing = [
        node
        for node in ast.walk(_parsed(text))
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno and all(_encloses(node.body, *at) for at in starts)
    ]
    texts = sorted((ast.get_source_segment(text, node) or "" for node in enclosing), key=len)
    return texts[0] if texts else None


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _encloses(node: ast.expr, line: int, column: int) -> bool:
    end = (node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)
    return (node.lineno, node.col_offset) <= (line, column) < end


def implementation_digest(cls: type, base: type) -> Digest | None:
    """Return a digest of the source of every function of ``cls`` and its bases below ``base``, ``None`` if some has no source."""
    functions = list(class_functions(cls, base))
    signature = tuple((owner.__qualname__, name, function.__code__) for owner, name, function in functions)
    if signature not in _implementations:
        if len(_implementations) >= _MAX_CACHED:
            _implementations.clear()
        texts = [(type_name(owner), name, source_text(function)) for owner, name, function in functions]
        known = all(text is not None for _, _, text in texts)
        _implementations[signature] = source_digest("\n".join(f"{o} {n} {text}" for o, n, text in texts)) if known else None
    return _implementations[signature]


def owners(cls: type, base: type) -> Iterator[type]:
    """Yield ``cls`` and its bases, up to ``base`` and what that inherits."""
    known = set(base.__mro__)
    yield from (owner for owner in cls.__mro__ if owner not in known)


def is_versioned_class(cls: type, base: type) -> bool:
    """Whether a class, with all functions that it and its bases below ``base`` define, is identified by name and version."""
    files = {function.__code__.co_filename for _, _, function in class_functions(cls, base)}
    return is_versioned(cls.__module__) and all(any(is_versioned(owner.__module__, file) for owner in owners(cls, base)) for file in files)


def class_functions(cls: type, base: type) -> Iterator[tuple[type, str, FunctionType]]:
    """Yield the functions that ``cls`` and its bases below ``base`` define, by owner and name; properties give their accessors."""
    for owner in owners(cls, base):
        for name, member in vars(owner).items():
            for function in _functions_in(member):
                yield owner, name, function


def _functions_in(member: Any) -> Iterator[FunctionType]:
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    if isinstance(member, property):
        for accessor in (member.fget, member.fset, member.fdel):
            yield from _functions_in(accessor)
        return
    if isinstance(member, functools.cached_property):
        member = member.func
    while not isinstance(member, FunctionType) and hasattr(member, "__wrapped__"):
        member = member.__wrapped__
    if isinstance(member, FunctionType):
        yield member
