"""Facets: the named facts about machine and libraries, what each is for, and which of them a key holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fi_cachestore.errors import Gap
from fi_cachestore.keys.canonical import Value


class Role(StrEnum):
    """``validity``: a difference is a miss. ``backend``: the same, for runners that use that library. ``performance``: recorded only."""

    VALIDITY = "validity"
    BACKEND = "backend"
    PERFORMANCE = "performance"


class Unknown:
    """A fact that could not be determined, and why. It equals no other fact, known or not, and has no canonical form."""

    __slots__ = ("hint",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, hint: str) -> None:
        """Keep why."""
        self.hint = hint

    def __eq__(self, other: object) -> bool:
        """Never."""
        return False

    def __repr__(self) -> str:
        """Return why."""
        return f"unknown: {self.hint}"


ABSENT: Final = "absent"
"""A library that is known not to be installed: a fact, unlike ``Unknown``."""


@dataclass(frozen=True, slots=True)
class Device:
    """The device that holds a call's tensors: ``type`` (``"cuda"``, ``"cpu"``) and its index in this process."""

    type: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Facet:
    """One fact."""

    name: str
    role: Role
    value: str | Unknown

    @property
    def is_known(self) -> bool:
        """Whether it could be determined."""
        return isinstance(self.value, str)

    @property
    def hint(self) -> str:
        """Why it is unknown; empty for a known one."""
        return "" if isinstance(self.value, str) else self.value.hint


@dataclass(frozen=True, slots=True)
class Environment:
    """All facets of one device, probed once per process."""

    device: Device
    facets: tuple[Facet, ...]

    def for_key(self, backends: Collection[str] | None, *, strict: bool = False) -> dict[str, Value] | tuple[Gap, ...]:
        """Return the facets that a key holds, or why there can be no key.

        ``backends`` are the backend facets that a runner's contract names; ``None`` means all of them. With ``strict`` the performance
        facets are compared too.
        """
        wanted = [facet for facet in self.facets if _counts(facet, backends, strict=strict)]
        gaps = [Gap("environment", f.name, "facet", f"cannot be determined: {f.hint}") for f in wanted if not f.is_known]
        if self.device.type != "cpu":  # a call on CPU tensors runs none of the libraries that a contract may name
            known = {facet.name for facet in self.facets}
            gaps += [Gap("environment", name, "facet", "no such facet") for name in sorted(set(backends or ()) - known)]
        if gaps:
            return tuple(gaps)
        values: dict[str, Value] = {facet.name: facet.value for facet in wanted if isinstance(facet.value, str)}
        return {"device": self.device.type, **values}

    def performance(self) -> dict[str, Value]:
        """Return the facets that are recorded beside a measurement; unknown ones say so."""
        return {f.name: f.value if isinstance(f.value, str) else None for f in self.facets if f.role is Role.PERFORMANCE}

    def device_model(self) -> dict[str, Value]:
        """Return what identifies the kind of device, for things that help to find records and never decide validity."""
        named = {f.name: f.value for f in self.facets if f.name in ("gpu_name", "processor") and isinstance(f.value, str)}
        return {"device": self.device.type, **named}

    def unknown(self) -> tuple[Facet, ...]:
        """Return the facets that could not be determined."""
        return tuple(facet for facet in self.facets if not facet.is_known)


def _counts(facet: Facet, backends: Collection[str] | None, *, strict: bool) -> bool:
    match facet.role:
        case Role.VALIDITY:
            return True
        case Role.BACKEND:
            return backends is None or facet.name in backends
        case Role.PERFORMANCE:
            return strict
