"""The rules of one session and those that earlier ones kept, per device model."""

from __future__ import annotations

import threading
from dataclasses import replace

from fi_cachestore.keys.canonical import Value, encode
from fi_cachestore.records.rules import NO_RULE, Rule, SessionRules
from fi_cachestore.store.rules_log import RulesLog


class RuleBook:
    """Which rules a session's calls were made under, and which to try for a look-up outside any context. Thread-safe."""

    def __init__(self, log: RulesLog | None) -> None:
        """Start with what ``log`` has, read when it is asked for; ``None`` keeps everything in memory."""
        self._log = log
        self._own: dict[bytes, SessionRules] = {}
        self._orders: dict[bytes, tuple[Rule, ...]] = {}
        self._lock = threading.Lock()

    def note(self, device: dict[str, Value], rule: Rule) -> None:
        """Remember the rule of a call; the latest comes last."""
        name = encode(device)
        with self._lock:
            own = self._own.get(name, SessionRules(device, ()))
            if own.rules[-1:] != (rule,):
                kept = tuple(earlier for earlier in own.rules if earlier != rule)
                self._own[name] = replace(own, rules=(*kept, rule))
                self._orders = {}

    def in_force(self, device: dict[str, Value]) -> tuple[Rule, ...]:
        """Return the rules to try, in order."""
        name = encode(device)
        orders = self._orders  # a change meanwhile leaves them behind
        order = orders.get(name)
        if order is None:
            own = self._own.get(name)
            kept = () if self._log is None else self._log.latest(SessionRules(device, ()).digest)
            sessions = (own, *kept) if own is not None else kept
            tried = [rule for session in sessions for rule in session.search_order()]
            order = orders[name] = tuple(dict.fromkeys((*tried, NO_RULE)))
        return order

    def reload(self) -> None:
        """Read again what others kept since."""
        self._orders = {}

    def store(self) -> None:
        """Keep the session's rules for later ones.

        Raises:
            CacheStoreError: the file system refused.
        """
        if self._log is not None:
            for rules in list(self._own.values()):
                self._log.append(rules)
