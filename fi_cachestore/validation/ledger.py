"""The ledger: which schemas and records may be served, by the verdicts of a root and its layers and by what this process has seen."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from fi_cachestore.errors import CacheStoreError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.schema import KeySchema, LeftOut, left_out_digest
from fi_cachestore.records.observation import Observation, Sample, Side
from fi_cachestore.records.record import Record
from fi_cachestore.records.verdict import REFUSED, VALIDATION, Override, Quarantine, Refusal, Validation, Verdict, Word
from fi_cachestore.store.verdicts import Verdicts
from fi_cachestore.validation.evidence import Contradiction
from fi_cachestore.validation.stored import Said, Stored

logger: Final = logging.getLogger("fi_cachestore")

MAX_VALIDATIONS: Final = 1024
"""Sets of left-out values per schema; where more are seen, something is left out that ought to be in the key."""
_MAX_REMEMBERED: Final = 65536


class Standing(StrEnum):
    """What may be done with the records of a schema, for one set of left-out values."""

    UNPROVEN = "unproven"
    VALIDATED = "validated"
    QUARANTINED = "quarantined"


class Ledger:
    """Thread-safe. Looking up only reads, and remembers what it found (also that there is nothing) until ``refresh``.

    In order of weight: the root's own override; a quarantine, in any layer or told by another rank; an override of a read-only layer,
    which beats that layer's own quarantine; a validation in any layer. A layer or file that cannot be read counts as empty, but for the
    file of a quarantine: in doubt nothing is served.
    """

    def __init__(self, verdicts: Verdicts | None, now_unix_ns: Callable[[], int] | None = None) -> None:
        """Start with what ``verdicts`` has, read when it is asked for; ``None`` keeps everything in memory.

        With a clock, what is about to be asked for is read ahead; see ``Stored``.
        """
        self._verdicts = verdicts
        self._stored = Stored(tuple(verdicts or ()), None if verdicts is None else verdicts.own, now_unix_ns)
        self._lock = threading.RLock()
        self._schemas: dict[Digest, Said] = {}
        self._standings: dict[tuple[Digest, Digest], Standing] = {}
        self._held: dict[Digest, str] = {}
        self._agreed: dict[Digest, set[Digest]] = {}
        self._asked: dict[tuple[Digest, Digest], None] = {}
        self._refused: set[tuple[Digest, Digest]] = set()
        self._warned: set[str] = set()

    # -- look-ups ---------------------------------------------------------------------------------------------------------------

    def standing(self, schema: Digest, left_out: Digest) -> Standing:
        """Return how a schema stands for one set of left-out values, overrides applied. Never raises, never writes."""
        found = self._standings.get((schema, left_out))
        if found is not None:
            return found
        with self._lock:
            found = self._weigh(schema, self._said(schema), left_out)
            if len(self._standings) >= _MAX_REMEMBERED:
                self._standings.clear()
            self._standings[schema, left_out] = found
            if len(self._asked) < _MAX_REMEMBERED:
                self._asked[schema, left_out] = None
        return found

    def banned_because(self, schema: Digest) -> str:
        """Return why a schema is not served, whatever the left-out values; empty if it may be."""
        said = self._schemas.get(schema)
        if said is None:
            with self._lock:
                said = self._said(schema)
        if said.word is Word.TRUSTED:
            return ""
        return said.banned_because or self._held.get(schema, "")

    def trusted_because(self, schema: Digest) -> str:
        """Return whose word makes a schema served, whatever the left-out values; empty if it is nobody's."""
        with self._lock:
            said = self._said(schema)
            is_banned = said.word is not Word.TRUSTED and (said.banned_because or schema in self._held)
            return "" if is_banned else said.trusted_because

    def refuses_nothing(self) -> bool:
        """Whether no record at all is refused: then none needs to be asked for."""
        with self._lock:
            return not self._stored.refusals() and not self._refused

    def is_refused(self, record: Record) -> bool:
        """Whether this very record, not another measurement of the same key, is never to be served."""
        with self._lock:
            refusals = self._stored.refusals()
            contents = refusals.get(record.digest) if refusals else None
            if contents is None and not self._refused:
                return False
            content = record.content
            if (record.digest, content) in self._refused:
                return True
            folder = (contents or {}).pop(content, None)
            if folder is None or not isinstance(self._stored.get(folder, REFUSED, f"{record.digest}-{content}"), Refusal):
                return False
            self._refused.add((record.digest, content))
            return True

    def damaged(self) -> dict[str, int]:
        """Return how many files counted as absent, by miss reason."""
        with self._lock:
            return dict(self._stored.damaged)

    def entries(self) -> Iterator[tuple[Path, Verdict]]:
        """Yield every sound verdict of the root and its layers, for people."""
        for folder in self._verdicts or ():
            for path, place in folder.files():
                if place is not None and (found := self._stored.get(folder, *place[:2])) is not None:
                    yield path, found

    def refresh(self) -> None:
        """Forget what was read, so that what others wrote since is found; what this process has seen stays."""
        with self._lock:
            self._schemas.clear()
            self._standings.clear()
            self._stored.forget()

    def keep_overview(self) -> None:
        """Leave for later processes what this one had to read file by file. Never raises: it saves time alone."""
        with self._lock:
            keep = self._stored.to_keep()
        if keep is not None:
            with contextlib.suppress(CacheStoreError):
                keep()

    # -- verdicts ---------------------------------------------------------------------------------------------------------------

    def promote(
        self,
        schema: KeySchema,
        writer: Side,
        reader: Side,
        samples: Sequence[tuple[Record, Observation]],
        unix_ns: int,
        *,
        also_seen: Iterable[LeftOut] = (),
    ) -> bool:
        """Validate ``schema`` for the left-out values of both sides, and others that the reader had meanwhile; return whether it stands.

        Not written where a quarantine is known, and for no more than ``MAX_VALIDATIONS`` sets of values. Never raises: what cannot be
        stored holds in this process.
        """
        rows = tuple(Sample(record.space, seen) for record, seen in samples)
        stands = True
        for values in (writer.left_out, reader.left_out, *also_seen):
            digest = left_out_digest(values)
            with self._lock:
                standing = self.standing(schema.digest, digest)
                if standing is Standing.UNPROVEN and self._has_room(schema.digest):
                    self._agreed.setdefault(schema.digest, set()).add(digest)
                    self._standings[schema.digest, digest] = standing = Standing.VALIDATED
                    self._store(Validation(schema, values, writer, reader, rows, unix_ns))
            stands = stands and standing is Standing.VALIDATED
        return stands

    def quarantine(
        self,
        schema: KeySchema,
        writer: Side,
        reader: Side,
        record: Record,
        seen: Observation,
        contradiction: Contradiction,
        unix_ns: int,
    ) -> None:
        """Ban ``schema``, whatever validates it. Never raises: what cannot be stored holds in this process."""
        reason, detail = contradiction.reason.value, contradiction.detail
        self.hold(schema.digest, f"{reason} ({detail})")
        self._store(Quarantine(schema.digest, schema, reason, detail, writer, reader, Sample(record.space, seen), unix_ns))

    def validated(self) -> Iterator[tuple[Digest, Digest]]:
        """Yield the schemas and left-out values that were asked for here and are validated, for processes that join this one."""
        with self._lock:
            asked = list(self._asked)
        yield from (row for row in asked if self.standing(*row) is Standing.VALIDATED)

    def agreed(self) -> Iterator[tuple[Digest, Digest]]:
        """Yield the schemas and left-out values that this process has verified, or was told."""
        with self._lock:
            yield from [(schema, values) for schema, found in self._agreed.items() for values in found]

    def take_in(self, schema: Digest, left_out: Digest) -> None:
        """Believe what another rank has verified, in this process only; a quarantine that is known here still counts."""
        with self._lock:
            self._agreed.setdefault(schema, set()).add(left_out)
            self._standings.pop((schema, left_out), None)

    def hold(self, schema: Digest, why: str) -> None:
        """Ban a schema in this process only: another rank has seen a contradiction."""
        with self._lock:
            self._held.setdefault(schema, why)
            self._forget_standings(schema)

    def refuse(self, record: Record, why: str, unix_ns: int) -> None:
        """Never serve this very record again. Never raises: what cannot be stored holds in this process."""
        with self._lock:
            self._refused.add((record.digest, record.content))
        self._store(Refusal(record.digest, record.content, why, unix_ns))

    def override(self, schema: Digest, word: Word, who: str, why: str, unix_ns: int) -> Override:
        """Let an operator's word on a schema count from now on; return what is kept.

        Raises:
            StoreIOError: the file system refused, or the root is only read.
        """
        if self._verdicts is None:
            raise ValueError(schema)
        kept = self._verdicts.own.append(Override(schema, 0, word, who, why, unix_ns))
        with self._lock:
            self._stored.forget()
            self._schemas.pop(schema, None)
            self._forget_standings(schema)
        return kept

    # -- inside -----------------------------------------------------------------------------------------------------------------

    def _weigh(self, schema: Digest, said: Said, left_out: Digest) -> Standing:
        if said.word is Word.TRUSTED:
            return Standing.VALIDATED
        if said.banned_because or schema in self._held:
            return Standing.QUARANTINED
        if said.trusted_because or left_out in self._agreed.get(schema, ()) or self._stored.is_validated(said, schema, left_out):
            return Standing.VALIDATED
        return Standing.UNPROVEN

    def _said(self, schema: Digest) -> Said:
        said = self._schemas.get(schema)
        if said is None:
            if len(self._schemas) >= _MAX_REMEMBERED:
                self._schemas.clear()
            said = self._schemas[schema] = self._stored.said_of(schema)
        return said

    def _forget_standings(self, schema: Digest) -> None:
        for known in [known for known in self._standings if known[0] == schema]:
            del self._standings[known]

    def _has_room(self, schema: Digest) -> bool:
        own = next((stems for folder, stems in self._said(schema).stems if self._verdicts and folder is self._verdicts.own), frozenset())
        stored = {stem.removeprefix(VALIDATION) for stem in own if stem.startswith(VALIDATION)}
        count = len(stored | self._agreed.get(schema, set()))
        if count >= MAX_VALIDATIONS:
            self._warn(
                schema, "schema %s was seen with more than %d sets of left-out values; it stays in memory", schema[:12], MAX_VALIDATIONS
            )
        return count < MAX_VALIDATIONS

    def _store(self, verdict: Verdict) -> None:
        if self._verdicts is None:
            return
        try:
            self._verdicts.own.create(verdict)
        except CacheStoreError as error:
            if isinstance(verdict, Quarantine) and verdict.sample is not None:
                self._store(verdict.trimmed())
            else:
                self._warn(type(error).__name__, "%s; a verdict that cannot be stored holds in this process only", error)

    def _warn(self, topic: str, message: str, *values: object) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning(message, *values)
