"""FlashInfer's runner classes as its source defines them, found without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Where the runners of the contracts live: the GEMMs with what their package imports, the MoE entry points, MLA and communication.
_PLACES = (
    "comm",
    "fused_moe/backends/trtllm",
    "fused_moe/core.py",
    "fused_moe/cute_dsl",
    "gemm",
    "mla",
    "prims_ts/gemm",
    "trtllm_low_latency_gemm.py",
)


@dataclass(frozen=True)
class Definition:
    """One class: its type as contracts write it, the names of its bases, and the source of the top-level statement that it is in."""

    type: str
    name: str
    bases: frozenset[str]
    text: str


def runner_classes() -> dict[str, Definition]:
    """Return the classes derived from ``TunableRunner``, directly or not, by their type."""
    definitions = [definition for path in _files() for definition in _definitions(path)]
    names = {"TunableRunner"}
    while True:
        found = [definition for definition in definitions if definition.bases & names]
        more = {definition.name for definition in found} - names
        if not more:
            return {definition.type: definition for definition in found}
        names |= more


def _root() -> Path:
    spec = find_spec("flashinfer")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _files() -> Iterator[Path]:
    for place in _PLACES:
        path = _root() / place
        yield from [path] if path.suffix else sorted(path.rglob("*.py"))


def _definitions(path: Path) -> Iterator[Definition]:
    parts = path.relative_to(_root().parent).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text = path.read_text("utf-8")
    lines = text.splitlines()
    for statement in ast.parse(text).body:
        source = "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
        for qualname, node in _classes(statement, ""):
            bases = frozenset(ast.unparse(base).rpartition(".")[2] for base in node.bases)
            yield Definition(f"{module}:{qualname}", node.name, bases, source)


def _classes(node: Any, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    inside = prefix
    if isinstance(node, ast.ClassDef):
        yield prefix + node.name, node
        inside = f"{prefix}{node.name}."
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        inside = f"{prefix}{node.name}.<locals>."
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _classes(child, inside)
