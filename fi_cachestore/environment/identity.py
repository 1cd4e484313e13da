"""The environment of each device, determined once per process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from fi_cachestore.environment.facets import Device, Environment, Facet, Unknown
from fi_cachestore.environment.probes import Probe, default_probes
from fi_cachestore.errors import Gap
from fi_cachestore.keys.canonical import Value

ProbesFor: TypeAlias = Callable[[Device], tuple[Probe, ...]]


def collect(device: Device, probes: tuple[Probe, ...]) -> Environment:
    """Run every probe. A probe that fails or finds nothing gives an unknown facet with the reason; never raises."""
    return Environment(device, tuple(_facet(probe, device) for probe in probes))


def _facet(probe: Probe, device: Device) -> Facet:
    try:
        value = probe.function(device)
    except Exception as error:  # noqa: BLE001 - a probe runs foreign libraries; whatever it raises means "unknown"
        return Facet(probe.name, probe.role, Unknown(f"{type(error).__name__}: {error}"[:200]))
    if value is None:
        return Facet(probe.name, probe.role, Unknown("nothing reports it"))
    return Facet(probe.name, probe.role, value)


class Environments:
    """Environments by device, each probed on first use. Thread-safe: two threads may probe twice and get equal answers."""

    def __init__(self, probes_for: ProbesFor = default_probes) -> None:
        """Probe with ``probes_for``."""
        self._probes_for = probes_for
        self._known: dict[Device, Environment] = {}
        self._for_key: dict[tuple[Device, tuple[str, ...] | None, bool], dict[str, Value] | tuple[Gap, ...]] = {}

    def of(self, device: Device) -> Environment:
        """Return the environment of ``device``."""
        known = self._known.get(device)
        if known is None:
            known = self._known.setdefault(device, collect(device, self._probes_for(device)))
        return known

    def for_key(self, device: Device, backends: tuple[str, ...] | None, *, strict: bool) -> dict[str, Value] | tuple[Gap, ...]:
        """Return what ``Environment.for_key`` does; the same object for the same question, so it must not be changed."""
        known = self._for_key.get((device, backends, strict))
        if known is None:
            known = self._for_key.setdefault((device, backends, strict), self.of(device).for_key(backends, strict=strict))
        return known
