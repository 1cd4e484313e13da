"""What is known about a key that was asked for: what a session missed, what is stored now, its verdict, and the nearest stored keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Final

from fi_cachestore.config import Mode
from fi_cachestore.errors import NoSuchRecordError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.nearest import Near, nearest
from fi_cachestore.keys.schema import left_out_digest
from fi_cachestore.records.missed import Missed, MissedSession
from fi_cachestore.records.record import Record
from fi_cachestore.store.missed_log import MissedLog
from fi_cachestore.store.port import Hit, Miss, Store
from fi_cachestore.store.roots import OpenRoot
from fi_cachestore.store.scan import stored_keys
from fi_cachestore.validation.ledger import Ledger, Standing

MAX_COMPARED: Final = 200_000
"""Stored keys that are compared: some seconds."""
_SHORTEST_PREFIX: Final = 4
_NAMED_MATCHES: Final = 8


class NotServed(StrEnum):
    """Why a record that is stored is not served."""

    UNPROVEN = "unproven"
    QUARANTINED = "quarantined"
    REFUSED = "refused"
    NOT_PINNED = "not-pinned"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the schema of a stored record stands, for the values that its writer had for what is left out of the key."""

    schema: Digest
    standing: Standing
    why: str
    is_refused: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """A key to be explained, as far as it is known, and the session that missed it."""

    digest: Digest
    key: TuneKey | None = None
    missed: Missed | None = None
    session: MissedSession | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """A key, what is stored under it now, and what is like it."""

    asked: Asked
    now: Hit[Record] | Miss
    verdict: Verdict | None
    nearest: tuple[Near, ...]

    @property
    def key(self) -> TuneKey | None:
        """The key, from the record or from those who asked for it."""
        return self.now.entry.key if isinstance(self.now, Hit) else self.asked.key

    @property
    def reason(self) -> str | None:
        """Why it is not served now; ``None`` where nothing speaks against it."""
        if isinstance(self.now, Miss):
            return self.now.reason.value
        if self.asked.session is not None and self.asked.session.mode == Mode.PIN:
            return NotServed.NOT_PINNED
        if self.verdict is not None and self.verdict.is_refused:
            return NotServed.REFUSED
        if self.verdict is not None and self.verdict.standing is Standing.QUARANTINED:
            return NotServed.QUARANTINED
        if self.asked.missed is not None and self.asked.missed.reason in tuple(NotServed):
            return self.asked.missed.reason
        return NotServed.UNPROVEN if self.verdict is not None and self.verdict.standing is Standing.UNPROVEN else None

    @property
    def detail(self) -> str:
        """One clause about the reason."""
        if isinstance(self.now, Miss):
            return self.now.detail
        if self.verdict is not None and self.verdict.why:
            return self.verdict.why
        return "" if self.asked.missed is None else self.asked.missed.detail


def find_asked(log: MissedLog | None, records: Store[Record], prefix: str) -> Asked:
    """Return the one key, missed or stored, whose digest starts with ``prefix``.

    Raises:
        NoSuchRecordError: there is none, or more than one.
    """
    if len(prefix) < _SHORTEST_PREFIX:
        raise NoSuchRecordError(prefix, (), f"at least {_SHORTEST_PREFIX} digits are needed")
    prefix = prefix.lower()
    kept = {asked.digest: asked for asked in reversed(list(_kept(log))) if asked.digest.startswith(prefix)}
    matches = sorted({*kept, *islice(records.starting_with(prefix), _NAMED_MATCHES)})
    if len(matches) != 1:
        raise NoSuchRecordError(prefix, tuple(matches), "nor a miss of the last sessions")
    return kept.get(matches[0], Asked(matches[0]))


def _kept(log: MissedLog | None) -> Iterator[Asked]:
    for session in log.latest() if log is not None else ():
        yield from asked_by(session)


def asked_by(session: MissedSession) -> list[Asked]:
    """Return what a session missed."""
    return [Asked(missed.digest, missed.key, missed, session) for missed in session.missed]


def explain(asked: Sequence[Asked], opened: OpenRoot, directories: Sequence[Path], limit: int) -> tuple[list[Explained], int]:
    """Explain keys by what the directories of a root hold; return also with how many stored keys they were compared. Reads only."""
    ledger = Ledger(opened.verdicts)
    found = [opened.records.get(one.digest) for one in asked]
    keys = [answer.entry.key if isinstance(answer, Hit) else one.key for one, answer in zip(asked, found, strict=True)]
    compared = Counter(stored_keys(directories))
    near = iter(nearest([key for key in keys if key is not None], compared, limit))
    explained = [
        Explained(one, answer, verdict_of(answer.entry, ledger) if isinstance(answer, Hit) else None, () if key is None else next(near))
        for one, answer, key in zip(asked, found, keys, strict=True)
    ]
    return explained, compared.count


class Counter:
    """Yields up to ``MAX_COMPARED`` keys and counts them."""

    def __init__(self, keys: Iterator[bytes]) -> None:
        """Count what comes of ``keys``."""
        self.count = 0
        self._keys = keys

    def __iter__(self) -> Iterator[bytes]:
        """Yield them."""
        for key in islice(self._keys, MAX_COMPARED):
            self.count += 1
            yield key


def verdict_of(record: Record, ledger: Ledger) -> Verdict:
    """Return how a stored record stands."""
    evidence = record.evidence
    standing = ledger.standing(evidence.schema, left_out_digest(evidence.left_out))
    return Verdict(evidence.schema, standing, ledger.banned_because(evidence.schema), ledger.is_refused(record))
