"""The source files of a package, or of one module or directory, read and parsed on demand and never imported."""

from __future__ import annotations

import ast
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fi_cachestore.errors import NoSuchSourceError

MAX_FILE_BYTES: Final = 16 << 20
_FAULTS: Final = (SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that was left out, and why."""

    path: str
    reason: str


class SourceFile:
    """One file. ``module`` is its dotted name, ``path`` where it lies relative to what is audited."""

    def __init__(self, module: str, path: str, content: bytes, *, is_package: bool) -> None:
        """Keep the content; it is parsed when ``tree`` is asked for."""
        self.module, self.path, self.content, self.is_package = module, path, content, is_package
        self.fault: str | None = None

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file; empty, with ``fault`` set, where it cannot be parsed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return ast.parse(self.content)
            except _FAULTS as error:
                self.fault = f"{type(error).__name__}: {error}"
                return ast.Module(body=[], type_ignores=[])

    @cached_property
    def lines(self) -> list[str]:
        """The file's lines, numbered as the tree numbers them less one."""
        return self.content.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n").split("\n")

    def text(self, node: ast.stmt | ast.expr) -> str:
        """Return the lines that a node stands on."""
        return "\n".join(self.lines[node.lineno - 1 : node.end_lineno])

    def absolute(self, module: str | None, level: int) -> str:
        """Return the full name of a module that is imported here with ``level`` leading dots."""
        if not level:
            return module or ""
        parts = self.module.split(".")
        here = parts[: len(parts) - level + self.is_package]
        return ".".join([*here, *((module or "").split(".") if module else [])])


class SourceTree:
    """All files of one package or directory by module name; those that cannot be read are in ``unread``."""

    def __init__(self, name: str, files: dict[str, SourceFile], unread: list[Unread]) -> None:
        """Take the files as they were found; ``open_package`` and ``open_path`` do that."""
        self.name, self.files, self._unread = name, files, unread

    @property
    def unread(self) -> tuple[Unread, ...]:
        """What was left out so far: files of odd kinds or sizes, and those that did not parse when they were asked for."""
        return (*self._unread, *(Unread(file.path, file.fault) for file in self.files.values() if file.fault is not None))


def open_package(name: str) -> SourceTree:
    """Return the source of an installed package or module, found on the import path without importing it.

    Raises:
        NoSuchSourceError: there is none of that name, or it has no Python source.
    """
    top, *rest = name.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError) as error:
        raise NoSuchSourceError(name, str(error)) from error
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    if origin is None or origin.suffix != ".py":
        raise NoSuchSourceError(name, "not installed as Python source")
    root = origin.parent if origin.name == "__init__.py" else origin
    target = root.joinpath(*rest)
    if rest and not target.is_dir():
        target = target.with_suffix(".py")
    return _opened(target, name, name)


def open_path(path: Path) -> SourceTree:
    """Return the source under a directory, or of one file. A directory that is no package itself gives its content's own names.

    Raises:
        NoSuchSourceError: there is no such file or directory.
    """
    path = path.resolve()
    if path.is_dir():
        return _opened(path, str(path), path.name if (path / "__init__.py").exists() else "")
    return _opened(path, str(path), path.stem)


def _opened(path: Path, name: str, module: str) -> SourceTree:
    files: dict[str, SourceFile] = {}
    unread: list[Unread] = []
    if not path.exists():
        raise NoSuchSourceError(name, f"{path} does not exist")
    base = path.parent if module or path.is_file() else path
    for file in _python_files(path):
        relative = file.relative_to(path) if path.is_dir() else Path(path.name)
        parts = [*filter(None, [module]), *(relative.with_suffix("").parts if path.is_dir() else ())]
        is_package = bool(parts) and parts[-1] == "__init__"
        dotted = ".".join(parts[:-1] if is_package else parts)
        shown = _shown(module, relative, base, file)
        content = _content(file)
        if isinstance(content, str):
            unread.append(Unread(shown, content))
        else:
            files[dotted] = SourceFile(dotted, shown, content, is_package=is_package)
    return SourceTree(name, files, unread)


def _shown(module: str, relative: Path, base: Path, file: Path) -> str:
    """Return a path that is the same on every machine: below the audited package's parent."""
    parents = module.split(".")[:-1]
    return "/".join([*parents, *file.relative_to(base).parts]) if relative.parts else file.name


def _python_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(item for item in folders if item != "__pycache__")
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _content(file: Path) -> bytes | str:
    """Return the content of a regular file of bounded size, or why there is none."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        if status.st_size > MAX_FILE_BYTES:
            return f"{status.st_size} bytes, more than the {MAX_FILE_BYTES} that are read"
        return file.read_bytes()
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror}"
