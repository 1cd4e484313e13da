"""The calls of a session and which (runner, tactic) each is to be served: by its records, or by what ranks settled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fi_cachestore.coordination.agreement import DEFAULT, CallId, Pair, call_id, pair_of
from fi_cachestore.errors import CacheStoreError
from fi_cachestore.group import Agreement, Group
from fi_cachestore.keys.canonical import Value, encode
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.choosing import Candidate, preference
from fi_cachestore.records.record import Record
from fi_cachestore.records.settlement import Settlement
from fi_cachestore.store.port import Hit, Store

Call = tuple[Digest, ...]
"""The keys of a call's candidate runners, in the order of its list."""

_MAX_REMEMBERED: Final = 65536


@dataclass(slots=True)
class _Settled:
    """What is known of settlements: of calls those that were asked for, of the store whether it has none at all."""

    pairs: dict[CallId, Pair | None] = field(default_factory=dict)
    is_store_empty: bool | None = None

    def lasting(self) -> dict[CallId, Pair | None]:
        """Return the pairs that were settled."""
        return {call: pair for call, pair in list(self.pairs.items()) if pair is not None}


class Choices:
    """Thread-safe; calls, refusals and settlements are added and never taken back."""

    def __init__(
        self, record: Callable[[Digest], Record | None], settled: Store[Settlement] | None, earlier: Choices | None = None
    ) -> None:
        """``record`` finds a record by its digest; ``settled`` has what earlier sessions settled, ``earlier`` the last one's memory."""
        self._record, self._store = record, settled
        self._calls: dict[CallId, Call] = {}
        self._refused: set[Pair] = set()
        self._settled = _Settled()
        if earlier is not None:  # on disk it need not be
            self._refused |= earlier._refused  # noqa: SLF001 - the same class
            self._settled.pairs |= earlier._settled.lasting()  # noqa: SLF001
        self._lock = threading.Lock()

    def note(self, call: Call) -> None:
        """Remember that a call was made."""
        with self._lock:
            self._calls.setdefault(call_id(call), call)

    def refuse(self, key: Digest, tactic: Value) -> None:
        """Never offer or choose a tactic that this rank's own runner does not list."""
        with self._lock:
            self._refused.add(pair_of(key, encode(tactic)))

    def is_refused(self, key: Digest, tactic: Value) -> bool:
        """Whether this rank's own runner does not list a tactic that others measured."""
        return bool(self._refused) and pair_of(key, encode(tactic)) in self._refused

    def settled(self, call: Call) -> Pair | None:
        """Return the pair that ranks settled for a call, now or in an earlier session; ``None`` where its records decide."""
        known = self._settled  # a refresh meanwhile leaves it behind
        if not known.pairs and self._has_nothing(known):
            return None
        name = call_id(call)
        if name not in known.pairs:
            found = None if self._store is None else self._store.get(Digest(name.hex()))
            pair = found.entry.pair if isinstance(found, Hit) else None
            return pair if len(known.pairs) >= _MAX_REMEMBERED else known.pairs.setdefault(name, pair)
        return known.pairs[name]

    def _has_nothing(self, known: _Settled) -> bool:
        is_empty = known.is_store_empty
        if is_empty is None:
            is_empty = known.is_store_empty = self._store is None or next(iter(self._store), None) is None
        return is_empty

    def refresh(self) -> None:
        """Forget that nothing was settled for a call."""
        with self._lock:
            self._settled = _Settled(self._settled.lasting())

    def options(self, name: CallId) -> list[Pair]:
        """Return what this rank can use for a call it made, best first: what was settled before, then by its records."""
        return self.options_of(self._calls[name])

    def options_of(self, call: Call) -> list[Pair]:
        """Return what this rank can use for any call, best first."""
        records = [(index, self._record(key)) for index, key in enumerate(call)]
        candidates = [Candidate(index, record) for index, record in records if record is not None]
        pairs = [pair_of(choice.record.digest, encode(choice.tactic)) for choice in preference(candidates)]
        usable = [pair for pair in pairs if pair not in self._refused]
        earlier = self.settled(call)
        if earlier is None or earlier not in (*usable, DEFAULT):
            return usable
        return [earlier, *(pair for pair in usable if pair != earlier)]

    def commit(self, group: Group, records: Store[Record] | None, stats: Any, unix_ns: int) -> tuple[Agreement, CacheStoreError | None]:
        """Agree with the other ranks and keep what was settled; return it, and what the file system said where it refused."""
        with self._lock:
            names = list(self._calls)
        firsts = {name: self.options(name) for name in names}
        agreement = group.commit({name: first_of(pairs) for name, pairs in firsts.items()}, firsts.__getitem__, records, stats)
        refusal: CacheStoreError | None = None
        for name, pair in agreement.settled.items():
            with self._lock:
                self._settled.pairs[name] = pair
            if self._store is None or not group.is_writer():
                continue
            try:
                self._store.publish(Settlement(Digest(name.hex()), pair, group.ranks.size, unix_ns))
            except CacheStoreError as error:
                refusal = error
        return agreement, refusal


def first_of(pairs: Sequence[Pair]) -> Pair:
    """Return the best of a rank's options, the default where it has none."""
    return pairs[0] if pairs else DEFAULT
