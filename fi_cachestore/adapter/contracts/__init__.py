"""Contracts: reviewed facts about FlashInfer's own runner classes, as data. They override the default rules.

The data are in ``flashinfer/``, one file per family. A contract holds for one state of a class: where the source of the class's methods is
not the one that was reviewed, the contract does not apply and the default rules do, which make a key bigger or none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

from fi_cachestore.adapter.roles import Role
from fi_cachestore.errors import ConfigError
from fi_cachestore.keys.canonical import Value, encode
from fi_cachestore.keys.digest import Digest, part_digest

_SPACES: Final = frozenset({"listed", "measured", "indexed"})
_TABLES: Final = ("parameters", "arguments", "extras")
_FIELDS: Final = frozenset(
    {"type", "fingerprint", "shares", "backends", "collective", "checks_size", "space", "pointer_alignment", "note", *_TABLES}
)
_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
Position = tuple[int, ...]
"""Where in a tuple of tuples something stands: ``(7,)`` is the eighth item, ``(20, 5)`` the sixth of the one at 20."""


@dataclass(frozen=True)
class Contract:
    """What was reviewed about one runner class.

    ``type`` is ``"module:qualname"``; ``fingerprint`` the start of the digest of its methods' source. ``roles`` and ``arguments`` give
    the role of attributes (and ``class.``, ``closure.`` and dotted paths) and of keyword arguments, ``extras`` what is left out of
    FlashInfer's own key extras. ``reasons`` has a sentence for each of these, by its path (``arguments.`` and ``extras.`` before those),
    and ``varies`` the paths of numbers that change from call to call. ``backends`` names the backend facets it needs, ``None`` all of
    them. ``collective``: it communicates while it runs or lists its tactics. ``checks_size``: tactics valid at the bucket need not be
    valid at every size. ``space`` is the kind of its tactic list. ``pointer_alignment`` maps an input to the alignment in bytes up to
    which the runner looks at its address.
    """

    type: str
    fingerprint: str
    roles: Mapping[str, Role] = field(default_factory=lambda: _NOTHING)
    arguments: Mapping[str, Role] = field(default_factory=lambda: _NOTHING)
    backends: tuple[str, ...] | None = None
    collective: bool = False
    checks_size: bool = False
    space: str = "listed"
    pointer_alignment: Mapping[int, int] = field(default_factory=lambda: _NOTHING)
    extras: Mapping[Position, Role] = field(default_factory=lambda: _NOTHING)
    reasons: Mapping[str, str] = field(default_factory=lambda: _NOTHING, compare=False)
    varies: frozenset[str] = frozenset()

    def roles_of(self, table: Mapping[str, Role], prefix: str = "") -> dict[str, Role]:
        """Return ``roles`` or ``arguments`` (paths of these have a ``prefix`` in ``varies``), where what varies has a role of its own."""
        return {path: Role.VARYING if f"{prefix}{path}" in self.varies else role for path, role in table.items()}

    @cached_property
    def digest(self) -> Digest:
        """A digest of everything that the contract says, but for its reasons."""
        tables: list[Value] = [{path: role.value for path, role in t.items()} for t in (self.roles, self.arguments)]
        tables.append({position: role.value for position, role in self.extras.items()})
        flags: list[Value] = [self.collective, self.checks_size, self.space, dict(self.pointer_alignment), tuple(sorted(self.varies))]
        return part_digest(encode([self.type, self.fingerprint, *tables, self.backends, *flags]))


@dataclass(frozen=True, slots=True)
class Term:
    """The role of one parameter, why, and whether it is a number that changes from call to call."""

    role: Role
    why: str
    varies: bool = False


def load_contracts(text: str, source: str) -> dict[str, Contract]:
    """Return the contracts in TOML ``text`` by runner type.

    A parameter is ``name = "why"`` where it is semantic and the default rules say so, else ``name = { role = "...", why = "..." }``. A row
    ``shares`` groups of such tables that the same text defines as ``[groups.NAME.parameters]``; the row's own tables count before them.

    Raises:
        ConfigError: the text is not such a table, or has an unknown field, role, kind or group.
    """
    document = tomllib.loads(text)
    groups: Mapping[str, Any] = document.get("groups", {})
    found: dict[str, Contract] = {}
    for row in document.get("runner", []):
        name = str(row.get("type"))
        unknown = sorted(set(row) - _FIELDS) + sorted(set(row.get("shares", ())) - set(groups))
        if unknown:
            raise ConfigError(f"contract of {name}", unknown[0], source, "a group of this file, or one of " + ", ".join(sorted(_FIELDS)))
        if name in found or row.get("space", "listed") not in _SPACES:
            raise ConfigError(f"contract of {name}", str(row.get("space")), source, "one row per type, space one of " + ", ".join(_SPACES))
        found[name] = _contract(row, groups, name, source)
    return found


def _contract(row: Mapping[str, Any], groups: Mapping[str, Any], name: str, source: str) -> Contract:
    parts = [*(groups[group] for group in row.get("shares", ())), row]
    parameters, arguments, extras = (
        _terms({key: term for part in parts for key, term in part.get(table, {}).items()}, name, source) for table in _TABLES
    )
    terms = {**parameters, **_under("arguments", arguments), **_under("extras", extras)}
    return Contract(
        type=name,
        fingerprint=row["fingerprint"],
        roles={path: term.role for path, term in parameters.items()},
        arguments={path: term.role for path, term in arguments.items()},
        backends=tuple(row["backends"]) if "backends" in row else None,
        collective=row.get("collective", False),
        checks_size=row.get("checks_size", False),
        space=row.get("space", "listed"),
        pointer_alignment={int(index): alignment for index, alignment in row.get("pointer_alignment", {}).items()},
        extras=_positions(extras, name, source),
        reasons={path: term.why for path, term in terms.items()},
        varies=frozenset(path for path, term in terms.items() if term.varies),
    )


def _terms(rows: Mapping[str, Any], name: str, source: str) -> dict[str, Term]:
    try:
        return {parameter: _term(row) for parameter, row in rows.items()}
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"contract of {name}", str(error), source, 'name = "why" or name = { role = "...", why = "..." }') from error


def _positions(terms: Mapping[str, Term], name: str, source: str) -> Mapping[Position, Role]:
    try:
        return {tuple(map(int, path.split("."))): term.role for path, term in terms.items()}
    except ValueError as error:
        raise ConfigError(f"contract of {name}", str(error), source, 'a position such as "7" or "20.5"') from error


def _term(row: str | Mapping[str, Any]) -> Term:
    if isinstance(row, str):
        return Term(Role.SEMANTIC, _reason(row))
    term = Term(Role(row["role"]), _reason(row["why"]), row.get("varies", False))
    if set(row) - {"role", "why", "varies"} or term.role is Role.VARYING or (term.varies and term.role is not Role.DYNAMIC):
        raise ValueError("only a dynamic parameter may vary, and nothing else is said of one")
    return term


def _reason(why: str) -> str:
    if not why.strip():
        raise ValueError("a parameter needs a reason")
    return why


def _under(prefix: str, terms: Mapping[str, Term]) -> dict[str, Term]:
    return {f"{prefix}.{path}": term for path, term in terms.items()}


@cache
def flashinfer_contracts() -> Mapping[str, Contract]:
    """Return the contracts that ship with this version. Read once per process: reading takes longer than attaching to a store."""
    found: dict[str, Contract] = {}
    for file in sorted(resources.files(__package__).joinpath("flashinfer").iterdir(), key=lambda file: file.name):
        found |= load_contracts(file.read_text("utf-8"), f"fi_cachestore/adapter/contracts/flashinfer/{file.name}")
    return MappingProxyType(found)
