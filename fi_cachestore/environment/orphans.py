"""Records that a change of the environment has left behind: which facets changed, told from the environments that a root has described."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fi_cachestore.environment.facets import Environment, Role
from fi_cachestore.environment.manifest import SCHEMA
from fi_cachestore.keys.canonical import Value

_COMPARED: Final = (Role.VALIDITY, Role.BACKEND)
_MAX_SHOWN_CHARS: Final = 80


@dataclass(frozen=True, slots=True)
class Described:
    """An environment as a manifest has it: the facets that are compared, ``None`` for one that could not be determined."""

    device: str
    facets: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Change:
    """A facet with another value than before; ``None`` is unknown or not there."""

    name: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.name} {_shown(self.old)} -> {_shown(self.new)}"


def described(data: bytes) -> Described | None:
    """Return what a manifest says; ``None`` for bytes that are no manifest. Never raises."""
    try:
        content = json.loads(data)
        if content["schema"] != SCHEMA or not isinstance(content["device"], str):
            return None
        rows: dict[str, Any] = content["facets"]
        facets = {name: row["value"] for name, row in rows.items() if row["role"] in _COMPARED}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return Described(content["device"], facets) if all(value is None or isinstance(value, str) for value in facets.values()) else None


def changes_since(earlier: Iterable[Described], current: Environment) -> tuple[Change, ...]:
    """Return in what ``current`` differs from the most similar environment of the same kind of device.

    Nothing where ``current`` is among them, or where none is of that kind.
    """
    now = {f.name: f.value if isinstance(f.value, str) else None for f in current.facets if f.role in _COMPARED}
    model = current.device_model()
    rows = [_changes(one.facets, now) for one in earlier if {"device": one.device, **one.facets}.items() >= model.items()]
    return min(rows, key=lambda row: (len(row), row and row[0].name), default=())


def _changes(old: Mapping[str, str | None], new: Mapping[str, str | None]) -> tuple[Change, ...]:
    names = dict.fromkeys((*new, *old))
    return tuple(Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name))


def is_left_behind(facets: Mapping[str, Value], current: Environment) -> bool:
    """Whether a key with these facets is one of this kind of device that the current environment asks for no more."""
    now = {"device": current.device.type, **{f.name: f.value for f in current.facets if isinstance(f.value, str)}}
    of_this_kind = all(facets.get(name) == value for name, value in current.device_model().items())
    return of_this_kind and any(now.get(name) != value for name, value in facets.items())


def _shown(value: str | None) -> str:
    if value is None:
        return "(unknown)"
    text = value if value.isprintable() else repr(value)
    return (text[:_MAX_SHOWN_CHARS] + "…" if len(text) > _MAX_SHOWN_CHARS else text) or "(none)"
