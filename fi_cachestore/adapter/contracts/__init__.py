"""Contracts: reviewed facts about FlashInfer's own runner classes, as data. They override the default rules.

The data are in ``flashinfer.toml``. A contract holds for one state of a class: where the source of the class's methods is not the one
that was reviewed, the contract does not apply and the default rules do, which make a key bigger or none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

from fi_cachestore.adapter.roles import Role
from fi_cachestore.errors import ConfigError

_SPACES: Final = frozenset({"listed", "measured", "indexed"})
_FIELDS: Final = frozenset(
    {"type", "fingerprint", "roles", "arguments", "backends", "collective", "checks_size", "space", "pointer_alignment", "note"}
)
_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Contract:
    """What was reviewed about one runner class.

    ``type`` is ``"module:qualname"``; ``fingerprint`` the start of the digest of its methods' source. ``roles`` and ``arguments`` give
    the role of attributes (and ``class.``, ``closure.`` and dotted paths) and of keyword arguments. ``backends`` names the backend
    facets it needs, ``None`` all of them. ``collective``: it communicates while it runs or lists its tactics. ``checks_size``: tactics
    valid at the bucket need not be valid at every size. ``space`` is the kind of its tactic list. ``pointer_alignment`` maps an input to
    the alignment in bytes up to which the runner looks at its address.
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


def load_contracts(text: str, source: str) -> dict[str, Contract]:
    """Return the contracts in TOML ``text`` by runner type.

    Raises:
        ConfigError: the text is not such a table, or has an unknown field, role or kind.
    """
    found: dict[str, Contract] = {}
    for row in tomllib.loads(text).get("runner", []):
        name = str(row.get("type"))
        unknown = sorted(set(row) - _FIELDS)
        if unknown:
            raise ConfigError(f"contract of {name}", unknown[0], source, "one of " + ", ".join(sorted(_FIELDS)))
        if name in found or row.get("space", "listed") not in _SPACES:
            raise ConfigError(f"contract of {name}", str(row.get("space")), source, "one row per type, space one of " + ", ".join(_SPACES))
        found[name] = Contract(
            type=name,
            fingerprint=row["fingerprint"],
            roles=_roles(row.get("roles", {}), name, source),
            arguments=_roles(row.get("arguments", {}), name, source),
            backends=tuple(row["backends"]) if "backends" in row else None,
            collective=row.get("collective", False),
            checks_size=row.get("checks_size", False),
            space=row.get("space", "listed"),
            pointer_alignment={int(index): alignment for index, alignment in row.get("pointer_alignment", {}).items()},
        )
    return found


def _roles(rows: Mapping[str, Mapping[str, str]], name: str, source: str) -> Mapping[str, Role]:
    try:
        return {parameter: Role(row["role"]) for parameter, row in rows.items() if row["why"]}
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"contract of {name}", str(error), source, 'name = { role = "...", why = "..." }') from error


def flashinfer_contracts() -> dict[str, Contract]:
    """Return the contracts that ship with this version."""
    text = resources.files(__package__).joinpath("flashinfer.toml").read_text("utf-8")
    return load_contracts(text, "fi_cachestore/adapter/contracts/flashinfer.toml")
