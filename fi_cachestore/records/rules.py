"""Under which rules a session looked at sizes: its buckets, rounding and timing policy, kept so that a later process finds its records."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.canonical import Named, Value, encode
from fi_cachestore.keys.digest import Digest, rules_digest
from fi_cachestore.records.envelope import MissReason

_KIND: Final = "fi_cachestore.rules/1"


@dataclass(frozen=True, slots=True)
class Rule:
    """What was in force for one tuning call.

    ``buckets`` (sizes, ascending) is ``None`` where each op used its own; ``replays`` counts CUDA graph replays per sample, ``None``
    where inherited; ``execution`` (``"cuda_graph"``, ``"eager"``), ``cold_l2`` and ``timer`` are FlashInfer's measurement policy,
    ``None`` where inherited.
    """

    buckets: tuple[int, ...] | None = None
    round_up: bool = False
    replays: int | None = None
    execution: str | None = None
    cold_l2: bool | None = None
    timer: str | None = None

    def same_manner(self, other: Rule) -> bool:
        """Whether two rules differ in nothing but their buckets."""
        return self._manner() == other._manner()

    def _manner(self) -> tuple[object, ...]:
        return (self.round_up, self.replays, self.execution, self.cold_l2, self.timer)


NO_RULE: Final = Rule()
"""Every op by its own configuration."""


@dataclass(frozen=True, slots=True)
class SessionRules:
    """The rules of one session on one device model, in the order in which they were first used."""

    device: dict[str, Value]
    rules: tuple[Rule, ...]

    @property
    def digest(self) -> Digest:
        """Where the rules for this device model are kept."""
        return rules_digest(encode(self.device))

    def search_order(self) -> tuple[Rule, ...]:
        """Return the rules to try for a look-up outside any context.

        First the latest, with the buckets of all rounds in the same manner together (two rounds with different buckets cover one
        range), then each as it was, latest first.
        """
        if not self.rules:
            return ()
        latest = self.rules[-1]
        alike = [rule.buckets for rule in self.rules if rule.same_manner(latest)]
        united = latest
        if all(buckets is not None for buckets in alike):
            united = replace(latest, buckets=tuple(sorted({size for buckets in alike for size in buckets or ()})))
        return tuple(dict.fromkeys((united, *reversed(self.rules))))

    def to_value(self) -> Value:
        """Return the rules as the content of an envelope."""
        rows: list[Value] = [(r.buckets, r.round_up, r.replays, r.execution, r.cold_l2, r.timer) for r in self.rules]
        return Named(_KIND, {"device": self.device, "rules": rows})

    @classmethod
    def from_value(cls, value: Value) -> SessionRules:
        """Return the rules in an envelope's content.

        Raises:
            DamagedError: the content is not rules of this format.
        """
        if not isinstance(value, Named) or value.kind != _KIND or type(value.content) is not dict or len(value.content) != 2:  # noqa: PLR2004
            raise DamagedError(MissReason.CORRUPT, "not session rules of this format")
        content: dict[str, Any] = value.content
        try:
            found = cls(content["device"], tuple(Rule(a, b, c, d, e, f) for a, b, c, d, e, f in content["rules"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(MissReason.CORRUPT, f"not session rules: {error}"[:200]) from error
        if type(found.device) is not dict or not all(map(_well_formed, found.rules)):
            raise DamagedError(MissReason.CORRUPT, "session rules with fields of other types")
        return found


def _well_formed(rule: Rule) -> bool:
    buckets_right = rule.buckets is None or (
        type(rule.buckets) is tuple and len(rule.buckets) > 0 and all(type(size) is int and size > 0 for size in rule.buckets)
    )
    return (
        buckets_right
        and type(rule.round_up) is bool
        and (rule.replays is None or (type(rule.replays) is int and rule.replays > 0))
        and rule.execution in (None, "auto", "cuda_graph", "eager")
        and (rule.cold_l2 is None or type(rule.cold_l2) is bool)
        and rule.timer in (None, "auto", "cupti", "events", "events_no_delay")
    )
