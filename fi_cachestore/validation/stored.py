"""What the verdicts of a root and its layers say of schemas, as they were read. The ledger weighs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.overview import Glance
from fi_cachestore.records.verdict import REFUSED, VALIDATION, Override, Quarantine, Verdict, Word
from fi_cachestore.store.verdicts import VerdictFolder

_READ_SINGLY: Final = 3
_MAX_AHEAD: Final = 128
_MAX_OVERVIEW: Final = 256
_FEW_FILES, _MANY_FILES = 4, 64
_MOMENT_NS: Final = 1_000_000_000
"""How long what was compared with the file system counts, so that a start compares once and not between all its other work."""


@dataclass(slots=True)
class Said:
    """What folders say of one schema. ``word`` is the operator's; the reasons are empty where there is none to ban or to trust.

    ``stems`` has what each folder has files for, ``validated`` the stems of validations that are known to be sound.
    """

    word: Word | None = None
    banned_because: str = ""
    trusted_because: str = ""
    stems: list[tuple[VerdictFolder, frozenset[str]]] = field(default_factory=list)
    validated: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Rows:
    """What is known of a folder's schemas without listing them, and when all of it was last compared with the file system, if it was."""

    glances: dict[Digest, Glance]
    compared_unix_ns: int = 0
    is_looked_through: bool = False


class Stored:
    """Reads when it is asked, and remembers listings until ``forget``. Not thread-safe: the ledger's lock is around it.

    With a clock, a schema is answered by the overview that an earlier process has left, as long as its folder has not changed since. A
    process that asks for a few is about to ask for more, in between other work, which makes each of them cost far more than it
    does in one go. So at the fourth question all rows are compared with the file system at once, and what they say is made ready; this
    counts for a second, and later each is compared for itself. The fourth question that an overview leaves open has all folders looked
    through (unless they have very many schemas), and ``to_keep`` makes an overview for later processes.
    """

    def __init__(self, folders: Sequence[VerdictFolder], own: VerdictFolder | None, now_unix_ns: Callable[[], int] | None) -> None:
        """Read ``folders``, of which ``own`` is the writable one."""
        self._all, self._own, self._now_unix_ns = folders, own, now_unix_ns
        self.damaged: Counter[str] = Counter()
        self.forget()

    def forget(self) -> None:
        """Forget what was read."""
        self._names: dict[VerdictFolder, frozenset[Digest]] = {}
        self._rows: dict[VerdictFolder, _Rows] = {}
        self._open_count: Counter[VerdictFolder] = Counter()
        self._refusals: dict[Digest, dict[Digest, VerdictFolder]] | None = None
        self._asked: set[Digest] = set()
        self._ready: dict[Digest, Said] = {}
        self._compared_unix_ns = 0

    def said_of(self, schema: Digest) -> Said:
        """Return what is said of a schema, overrides and quarantines applied; validations are listed, and read by ``is_validated``."""
        if len(self._asked) < _MAX_OVERVIEW:
            self._asked.add(schema)
        now_unix_ns = 0 if self._now_unix_ns is None else self._now_unix_ns()
        if now_unix_ns and not self._compared_unix_ns and len(self._asked) > _READ_SINGLY:
            self._compare(now_unix_ns)
        ready = self._ready.get(schema)
        if ready is not None and 0 <= now_unix_ns - self._compared_unix_ns <= _MOMENT_NS:
            return ready
        return self._gathered(schema, now_unix_ns)

    def is_validated(self, said: Said, schema: Digest, left_out: Digest) -> bool:
        """Whether any folder has a sound validation for a schema and left-out values."""
        stem = f"{VALIDATION}{left_out}"
        if stem in said.validated:
            return True
        damaged: list[DamagedError] = []
        found = any(stem in stems and folder.is_validated(schema, left_out, damaged) for folder, stems in said.stems)
        self._note(damaged)
        return found

    def refusals(self) -> dict[Digest, dict[Digest, VerdictFolder]]:
        """Return where refusals of single records are, by key and content; that they are sound is not known."""
        if self._refusals is None:
            self._refusals = {}
            for folder in self._all:
                for stem in folder.stems(REFUSED):
                    key, _, content = stem.partition("-")
                    self._refusals.setdefault(Digest(key), {})[Digest(content)] = folder
        return self._refusals

    def get(self, folder: VerdictFolder, name: str, stem: str) -> Verdict | None:
        """Return a verdict by its name."""
        damaged: list[DamagedError] = []
        found = folder.get(name, stem, damaged)
        self._note(damaged)
        return found

    def to_keep(self) -> Callable[[], None] | None:
        """Return what leaves an overview of the root itself for later processes; ``None`` if this one did not have to look into folders.

        What is returned reads and writes files, and needs no lock. It does nothing where nothing is new, and raises what
        ``Overviews.append`` does.
        """
        if self._own is None or self._now_unix_ns is None or not self._open_count[self._own]:
            return None
        del self._open_count[self._own]
        return partial(_keep_overview, self._own, frozenset(self._asked), self._now_unix_ns())

    def _listed(self, folder: VerdictFolder) -> frozenset[Digest]:
        if folder not in self._names:
            self._names[folder] = folder.schemas()
        return self._names[folder]

    def _rows_of(self, folder: VerdictFolder) -> _Rows:
        if folder not in self._rows:
            self._rows[folder] = _Rows(folder.overviews.newest())
        return self._rows[folder]

    def _compare(self, now_unix_ns: int) -> None:
        """Compare all rows with the file system; make ready what is said of schemas that have validations and nothing else."""
        self._compared_unix_ns = now_unix_ns
        for folder in self._all:
            rows = self._rows_of(folder)
            if len(rows.glances) <= _MAX_AHEAD:
                rows.glances = {name: glance for name, glance in rows.glances.items() if folder.is_as_seen(name, glance)}
                rows.compared_unix_ns = now_unix_ns
        for schema in {name for rows in self._rows.values() for name in rows.glances}:
            if all(self._has_validations_alone(folder, schema) for folder in self._all):
                self._ready[schema] = self._gathered(schema, now_unix_ns)

    def _has_validations_alone(self, folder: VerdictFolder, schema: Digest) -> bool:
        """Whether a folder has nothing but sound validations, by a row that was compared, or nothing at all on a schema."""
        rows = self._rows[folder]
        glance = rows.glances.get(schema)
        if glance is None:
            return schema not in self._listed(folder)
        return glance.stems == glance.validated and rows.compared_unix_ns > 0

    def _gathered(self, schema: Digest, now_unix_ns: int) -> Said:
        """Return what is said of a schema, put together folder by folder."""
        found, are_validations = Said(), True
        for folder in self._all:
            glance = self._glance(folder, schema, now_unix_ns)
            if glance is not None:
                stems = glance.stems
                found.validated |= glance.validated
                are_validations &= stems == glance.validated
            elif schema in self._listed(folder):
                stems = folder.stems(schema)
                are_validations &= all(stem.startswith(VALIDATION) for stem in stems)
            else:
                continue
            found.stems.append((folder, stems))
        if not are_validations:
            self._apply_words(schema, found)
        return found

    def _glance(self, folder: VerdictFolder, schema: Digest, now_unix_ns: int) -> Glance | None:
        """Return what is known of a schema's folder without listing it, if the folder is as it was now or a moment ago."""
        if not now_unix_ns:
            return None
        rows = self._rows_of(folder)
        glance = rows.glances.get(schema)
        if glance is not None and (0 <= now_unix_ns - rows.compared_unix_ns <= _MOMENT_NS or folder.is_as_seen(schema, glance)):
            return glance
        return self._looked_through(folder, rows, now_unix_ns).get(schema) if schema in self._listed(folder) else None

    def _looked_through(self, folder: VerdictFolder, rows: _Rows, now_unix_ns: int) -> dict[Digest, Glance]:
        """Return what a look through all folders has found, when the fourth schema has to be looked up; else nothing."""
        self._open_count[folder] += 1
        schemas = self._listed(folder)
        if rows.is_looked_through or self._open_count[folder] <= _READ_SINGLY or len(schemas) > _MAX_AHEAD:
            return {}
        rows.glances = folder.glances(schemas, now_unix_ns, rows.glances, most=_FEW_FILES)
        rows.compared_unix_ns, rows.is_looked_through = now_unix_ns, True
        return rows.glances

    def _apply_words(self, schema: Digest, found: Said) -> None:
        words = {folder: self._word(folder, schema, stems) for folder, stems in found.stems}
        own = None if self._own is None else words.pop(self._own, None)
        found.word = None if own is None else own.word
        if own is not None and own.word is Word.DISTRUSTED:
            found.banned_because = _said(own)
        elif own is not None and own.word is Word.TRUSTED:
            found.trusted_because = _said(own)
        for folder, stems in found.stems:
            word = words.get(folder) if found.word is not Word.EVIDENCE else None
            if word is not None and word.word is Word.TRUSTED:
                found.trusted_because = found.trusted_because or _said(word)
            elif word is not None and word.word is Word.DISTRUSTED:
                found.banned_because = found.banned_because or _said(word)
            elif "quarantine" in stems:
                found.banned_because = found.banned_because or self._ban(folder, schema)

    def _ban(self, folder: VerdictFolder, schema: Digest) -> str:
        """Return why a folder's quarantine bans a schema. One that cannot be read bans too: somebody had a reason to write it."""
        damaged: list[DamagedError] = []
        found = folder.get(schema, "quarantine", damaged)
        self._note(damaged)
        if isinstance(found, Quarantine):
            return f"{found.reason} ({found.detail})"
        return f"its quarantine cannot be read ({damaged[0].reason}: {damaged[0].detail})" if damaged else ""

    def _word(self, folder: VerdictFolder, schema: Digest, stems: frozenset[str]) -> Override | None:
        damaged: list[DamagedError] = []
        found = folder.latest_override(schema, stems, damaged)
        self._note(damaged)
        return found

    def _note(self, damaged: Sequence[DamagedError]) -> None:
        if damaged:
            self.damaged.update(damage.reason for damage in damaged)


def _keep_overview(folder: VerdictFolder, asked: frozenset[Digest], now_unix_ns: int) -> None:
    """Leave an overview of what was asked for and, if there is room, of what the last one had: a root may serve several machines."""
    kept = folder.overviews.newest()
    schemas = asked | kept.keys()
    glances = folder.glances(asked if len(schemas) > _MAX_OVERVIEW else schemas, now_unix_ns, kept, most=_MANY_FILES)
    if glances != kept:
        folder.overviews.append(glances)


def _said(word: Override) -> str:
    return f"{word.word} by {word.who}: {word.why}"
