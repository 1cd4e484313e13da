"""What a session believes of records that others measured: verdicts, the crash sentinel, and the schemas that are served by nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, Final

from fi_cachestore.keys.canonical import MAX_ITEMS, Named, Value
from fi_cachestore.keys.digest import Digest, is_digest
from fi_cachestore.records.envelope import seal
from fi_cachestore.records.record import Record
from fi_cachestore.validation.ledger import Ledger
from fi_cachestore.validation.sentinel import Sentinel

_KIND: Final = "fi_cachestore.validated/1"
_MAX_TOLD: Final = 4096
_MAX_WHY_CHARS: Final = 200


class Belief:
    """Thread-safe. Without a ledger everything is believed, and without a sentinel runs leave no marks."""

    def __init__(self, ledger: Ledger | None, sentinel: Sentinel | None = None) -> None:
        """Start with what the ledger knows."""
        self.ledger, self._sentinel = ledger, sentinel
        self._quarantined: dict[str, str] = {}
        self._lock = threading.Lock()

    def may_try(self, record: Record) -> bool:
        """Whether a record may be tried out, which a sentinel may forbid for good."""
        return self._sentinel is None or self._sentinel.may_run(record)

    def guard(self, record: Record, tactic: Value) -> AbstractContextManager[None]:
        """Return what is to be around the run of a tactic."""
        return nullcontext() if self._sentinel is None else self._sentinel.guard(record, tactic)

    def note_quarantined(self, schema: Digest, why: str) -> None:
        """Remember that a call met a schema that is not served."""
        with self._lock:
            if len(self._quarantined) < _MAX_TOLD:
                self._quarantined.setdefault(schema, why[:_MAX_WHY_CHARS])

    @property
    def quarantined(self) -> dict[str, str]:
        """The schemas that calls of this session met and that are not served, and why; after ``hear``, those of all ranks."""
        with self._lock:
            return dict(self._quarantined)

    @property
    def verified(self) -> list[tuple[Digest, Digest]]:
        """The schemas and left-out values that were verified here, for other ranks."""
        return [] if self.ledger is None else list(islice(self.ledger.agreed(), _MAX_TOLD))

    def hear(self, stats: Iterable[Any]) -> None:
        """Let what other ranks may not serve hold here too, and what they verified. ``stats`` is what each told, or anything else."""
        for told in stats:
            rows = told if isinstance(told, Mapping) else {}
            self._believe(rows.get("verified"))
            quarantined = rows.get("quarantined")
            for schema, why in quarantined.items() if isinstance(quarantined, Mapping) else ():
                if isinstance(schema, str) and is_digest(schema):
                    self.hold(Digest(schema), f"another rank: {why}"[:_MAX_WHY_CHARS])

    def _believe(self, rows: Any) -> None:
        for row in rows if isinstance(rows, list) else ():
            match row:
                case [str(schema), str(values)] if is_digest(schema) and is_digest(values) and self.ledger is not None:
                    self.ledger.take_in(Digest(schema), Digest(values))

    def hold(self, schema: Digest, why: str) -> None:
        """Serve no record of a schema in this process any more."""
        self.note_quarantined(schema, why)
        if self.ledger is not None and not self.ledger.banned_because(schema):
            self.ledger.hold(schema, why)

    def for_joiners(self) -> Iterator[bytes]:
        """Yield what is validated here, sealed, for ranks that join later."""
        found: list[Value] = [] if self.ledger is None else list(self.ledger.validated())
        for at in range(0, len(found), MAX_ITEMS):
            yield seal(Named(_KIND, found[at : at + MAX_ITEMS]))

    def take_in(self, value: Value) -> bool:
        """Believe what ranks that served before have left, if ``value`` is that; return whether it was."""
        if not isinstance(value, Named) or value.kind != _KIND or type(value.content) is not list:
            return False
        self._believe(value.content)
        return True

    def refresh(self) -> None:
        """Forget what was read of verdicts, so that what others wrote since is found."""
        if self.ledger is not None:
            self.ledger.refresh()

    def keep_overview(self) -> None:
        """Leave for later processes what this one had to read of verdicts file by file. Never raises."""
        if self.ledger is not None:
            self.ledger.keep_overview()
