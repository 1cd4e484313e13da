"""The role of a parameter where no contract speaks: from its name, and from what the class's own methods do with it."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from enum import Enum, StrEnum
from types import CodeType, FunctionType
from typing import Final

import torch

from fi_cachestore.adapter.sources import CONSTRUCTORS, class_functions, source_text


class Role(StrEnum):
    """What a parameter is for; only semantic ones (and the kind of rounding) are in the key.

    A varying one is dynamic, and its numbers change from call to call while serving.
    """

    SEMANTIC = "semantic"
    PLACEMENT = "placement"
    RESOURCE = "resource"
    DYNAMIC = "dynamic"
    VARYING = "varying"
    ROUNDING = "rounding"


_PLACEMENT_NAME: Final = re.compile(r"(.*_)?rank|local_expert_offset|device_index|device_id")
# The rank of a decomposition or of a tensor is a size, not a place: kv_lora_rank, svdquant_rank, low_rank. So may be a bare "rank".
_SIZE_NAME: Final = re.compile(r"rank|(.*_)?(.*lora|svd.*|.*quant|low|adapter|decomposition|factor|matrix|tensor|latent)_rank")
_MUTATORS: Final = frozenset(
    "add append appendleft clear discard extend insert pop popitem remove setdefault sort update".split()  # noqa: SIM905
)

_mutated: dict[tuple[tuple[str, CodeType], ...], frozenset[str]] = {}
_MAX_CACHED = 4096


def role_by_name(name: str, item: object) -> Role | None:
    """Return the role that a parameter's name gives it."""
    if name.endswith("_cache") and not is_data(item):  # FlashInfer's own convention: left out of TunableRunner.__hash__
        return Role.RESOURCE
    if _PLACEMENT_NAME.fullmatch(name) and not _SIZE_NAME.fullmatch(name):
        return Role.PLACEMENT
    return None


def is_data(item: object) -> bool:
    """Whether something called a cache is no memo: a switch (``use_l2_cache``), or tensors (``kv_cache``)."""
    if isinstance(item, list | tuple):
        return any(isinstance(part, torch.Tensor) for part in item)
    return isinstance(item, bool | int | float | str | bytes | Enum | torch.dtype | torch.Tensor)


def mutated_names(cls: type, base: type) -> frozenset[str]:
    """Return the attributes that methods of ``cls`` assign or change after construction: memos, buffers, lazily filled state.

    Constructors do not count, nor do private methods that only constructors call. State of the class itself counts wherever it is
    changed. A class without source gives none, which makes the key bigger, never smaller.
    """
    functions = list(class_functions(cls, base))
    signature = tuple((name, function.__code__) for _, name, function in functions)
    found = _mutated.get(signature)
    if found is None:
        class_names = frozenset(owner.__name__ for owner, _, _ in functions)
        found = _scan([(name, function) for _, name, function in functions], class_names)
        if len(_mutated) >= _MAX_CACHED:
            _mutated.clear()
        _mutated[signature] = found
    lazy = {name for name, member in _members(cls) if isinstance(member, functools.cached_property)}
    return found | lazy


def _members(cls: type) -> Iterator[tuple[str, object]]:
    for owner in cls.__mro__:
        yield from vars(owner).items()


def _scan(functions: list[tuple[str, FunctionType]], class_names: frozenset[str]) -> frozenset[str]:
    trees = [(name, tree) for name, function in functions if (tree := _parse(function)) is not None]
    constructing = _constructing(trees)
    found: set[str] = set()
    for name, tree in trees:
        receivers = {"cls"} | class_names
        if name not in constructing:
            receivers |= {_first_argument(tree)}
        found.update(_changed_attributes(tree, receivers))
    return frozenset(found)


def _parse(function: FunctionType) -> ast.FunctionDef | None:
    text = source_text(function)
    if text is None:
        return None
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return None
    return body[0] if body and isinstance(body[0], ast.FunctionDef) else None


def _first_argument(tree: ast.FunctionDef) -> str:
    arguments = [*tree.args.posonlyargs, *tree.args.args]
    return arguments[0].arg if arguments else "self"


def _constructing(methods: list[tuple[str, ast.FunctionDef]]) -> frozenset[str]:
    """Return the constructors, with the private methods that nothing else calls; a name stands for all that bases define under it."""
    calls: dict[str, set[str]] = {}
    for name, tree in methods:
        calls.setdefault(name, set()).update(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    inside = set(CONSTRUCTORS & set(calls))
    while True:
        outside = {called for name, names in calls.items() if name not in inside for called in names}
        more = {
            called for name in inside for called in calls[name] if called in calls and called[:1] == "_" and called not in outside
        } - inside
        if not more:
            return frozenset(inside)
        inside |= more


def _changed_attributes(tree: ast.AST, receivers: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ctx=ast.Store() | ast.Del()):
                yield from _attribute_of(node, receivers)
            case ast.Subscript(ctx=ast.Store() | ast.Del()):
                yield from _attribute_of(node.value, receivers)
            case ast.Call(func=ast.Attribute(value=owner, attr=method)) if method in _MUTATORS:
                yield from _attribute_of(owner, receivers)
            case ast.Call(func=ast.Name(id="setattr"), args=[ast.Name(id=receiver), ast.Constant(value=str(name)), *_]):
                if receiver in receivers:
                    yield name


def _attribute_of(node: ast.expr, receivers: set[str]) -> Iterator[str]:
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in receivers:
        yield node.attr
