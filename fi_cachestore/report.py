"""What a session did: counters for people and programs."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from fi_cachestore.errors import Gap


@dataclass(frozen=True, slots=True)
class Report:
    """The counts of one session so far. Counts are profiles of one runner, except where they say otherwise.

    ``hit_count`` found, ``tuned_count`` measured here, ``waited_count`` measured by another process meanwhile, ``failed_count`` measured
    here without one working tactic, ``out_of_memory_count`` given up, ``unmeasured_count`` too, as nothing can be measured here,
    ``unshared_count`` measured here and kept in memory only.
    ``renewed_count`` were measured again (mode ``refresh``), with a result so much better that the stored one gave way.
    ``ephemeral`` has calls by reason, ``misses`` look-ups by reason, ``refused_count`` tactics that a runner or blocklist refused.
    ``beyond`` has, by op, calls whose size is far beyond the largest bucket: different ones, however often they were made.
    ``varying`` has parameters that took so many values that they are probably dynamic, with what to do about it.
    ``unreviewed`` has runner classes of FlashInfer that no contract speaks for, and why: the default rules made their keys.
    ``verified_count`` records of other processes were tried out, which took ``listing_count`` tactic lists and ``run_count`` runs of
    tactics. ``size_check_count`` stored tactics were checked at the very size of a call, ``size_misfit_count`` of them did not fit it.
    ``spent_ns`` went into measuring, ``waited_ns`` into waiting for others, ``saved_ns`` is what the hits had cost whoever measured them.

    Among ranks, in calls (one op, its runners, one profile): ``shared_call_count`` were made by two ranks or more, ``settled_call_count``
    of them were answered differently at first, ``local_call_count`` were made here alone. ``ranks`` has, by rank, host,
    ``measured_count``, ``waited_count``, ``spent_ns`` and ``waited_ns``.

    ``quarantined`` has the key schemas that calls met and that are served by nobody, by digest, and why.
    """

    hit_count: int = 0
    tuned_count: int = 0
    waited_count: int = 0
    failed_count: int = 0
    out_of_memory_count: int = 0
    unmeasured_count: int = 0
    unshared_count: int = 0
    renewed_count: int = 0
    refused_count: int = 0
    verified_count: int = 0
    listing_count: int = 0
    run_count: int = 0
    size_check_count: int = 0
    size_misfit_count: int = 0
    shared_call_count: int = 0
    settled_call_count: int = 0
    local_call_count: int = 0
    spent_ns: int = 0
    waited_ns: int = 0
    saved_ns: int = 0
    ephemeral: dict[str, int] = field(default_factory=dict)
    misses: dict[str, int] = field(default_factory=dict)
    beyond: dict[str, int] = field(default_factory=dict)
    varying: dict[str, str] = field(default_factory=dict)
    unreviewed: dict[str, str] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    ranks: dict[int, Any] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain data with raw units."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "gaps"}
        gaps = [{"subject": g.subject, "field": g.field, "type": g.type_name, "why": g.why} for g in self.gaps]
        return {"schema": "fi_cachestore.report/1", **fields, "gaps": gaps}

    def __str__(self) -> str:
        """Return one line."""
        parts = [
            f"{self.hit_count} hits",
            f"{self.tuned_count} measured in {self.spent_ns / 1e9:.2f} s",
            f"{self.waited_count} measured elsewhere",
            f"{self.saved_ns / 1e9:.2f} s saved",
        ]
        if self.ranks:
            counts = (self.shared_call_count, self.settled_call_count, self.local_call_count)
            parts.append(f"{len(self.ranks)} ranks: {counts[0]} calls shared, {counts[1]} settled, {counts[2]} local")
        if self.ephemeral:
            parts.append("ephemeral: " + ", ".join(f"{reason} ({count})" for reason, count in sorted(self.ephemeral.items())))
        if self.beyond:
            parts.append("far beyond the largest bucket: " + ", ".join(f"{op} ({count})" for op, count in sorted(self.beyond.items())))
        if self.varying:
            parts.append("probably dynamic: " + "; ".join(sorted(self.varying)))
        if self.unreviewed:
            parts.append("contracts that do not hold: " + "; ".join(f"{name} ({why})" for name, why in sorted(self.unreviewed.items())))
        return ", ".join(parts)


class Recorder:
    """Collects counts from any thread."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._ephemeral: defaultdict[str, int] = defaultdict(int)
        self._misses: defaultdict[str, int] = defaultdict(int)
        self._beyond: defaultdict[str, int] = defaultdict(int)
        self._varying: dict[str, str] = {}
        self._unreviewed: dict[str, str] = {}
        self._gaps: dict[Gap, None] = {}
        self._ranks: dict[int, Any] = {}

    def add(self, name: str, amount: int = 1) -> None:
        """Add to one of the report's numbers."""
        with self._lock:
            self._counts[name] += amount

    def agreed(self, shared_count: int, settled_count: int, local_count: int, ranks: dict[int, Any]) -> None:
        """Keep what the ranks came to at the end."""
        with self._lock:
            self._counts["shared_call_count"] += shared_count
            self._counts["settled_call_count"] += settled_count
            self._counts["local_call_count"] += local_count
            self._ranks = ranks

    def miss(self, reason: str) -> None:
        """Count a look-up that found nothing."""
        with self._lock:
            self._misses[reason] += 1

    def beyond(self, op: str) -> None:
        """Count a call far beyond the largest bucket."""
        with self._lock:
            self._beyond[op] += 1

    def varying(self, name: str, advice: str) -> None:
        """Keep a parameter that is probably dynamic."""
        with self._lock:
            self._varying[name] = advice

    def unreviewed(self, name: str, why: str) -> bool:
        """Keep a runner class that no contract speaks for; return whether it is new."""
        with self._lock:
            new = name not in self._unreviewed
            self._unreviewed[name] = why
            return new

    def ephemeral(self, reason: str, gaps: tuple[Gap, ...] = ()) -> bool:
        """Count a call that stays in memory; return whether its reason is new."""
        with self._lock:
            new = reason not in self._ephemeral or any(gap not in self._gaps for gap in gaps)
            self._ephemeral[reason] += 1
            self._gaps.update(dict.fromkeys(gaps))
            return new

    def report(self) -> Report:
        """Return the counts so far."""
        with self._lock:
            counts: dict[str, Any] = dict(self._counts)
            return Report(
                **counts,
                ephemeral=dict(self._ephemeral),
                misses=dict(self._misses),
                beyond=dict(self._beyond),
                varying=dict(self._varying),
                unreviewed=dict(self._unreviewed),
                gaps=tuple(self._gaps),
                ranks=self._ranks,
            )
