"""What the verdicts of a root and its layers say of schemas, as they were read. The ledger weighs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.verdict import REFUSED, VALIDATION, Override, Quarantine, Verdict, Word
from fi_cachestore.store.verdicts import Glance, VerdictFolder

_READ_SINGLY: Final = 3
_MAX_AHEAD: Final = 128


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


class Stored:
    """Reads when it is asked, and remembers listings until ``forget``. Not thread-safe: the ledger's lock is around it.

    A process that asks for a few schemas is about to ask for more, in between other work, which makes each of them cost four times of
    what it does in one go. So with a clock, the fourth question has the folders looked through (unless they have very many schemas), and
    a later one is answered by that as long as the schema's folder has not changed since.
    """

    def __init__(self, folders: Sequence[VerdictFolder], own: VerdictFolder | None, now_unix_ns: Callable[[], int] | None) -> None:
        """Read ``folders``, of which ``own`` is the writable one."""
        self._all, self._own, self._now_unix_ns = folders, own, now_unix_ns
        self.damaged: Counter[str] = Counter()
        self.forget()

    def forget(self) -> None:
        """Forget what was read."""
        self._names: dict[VerdictFolder, frozenset[str]] = {}
        self._glances: dict[VerdictFolder, dict[str, Glance]] = {}
        self._refusals: dict[Digest, dict[Digest, VerdictFolder]] | None = None
        self._asked_count = 0

    def said_of(self, schema: Digest) -> Said:
        """Return what is said of a schema, overrides and quarantines applied; validations are listed, and read by ``is_validated``."""
        self._asked_count += 1
        found = Said()
        for folder in self._all:
            if schema in self._listed(folder):
                self._list(folder, schema, found)
        if not all(stem.startswith(VALIDATION) for _, stems in found.stems for stem in stems):
            self._apply_words(schema, found)
        return found

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
                for stem in folder.stems(REFUSED) if REFUSED in self._listed(folder) else ():
                    key, _, content = stem.partition("-")
                    self._refusals.setdefault(Digest(key), {})[Digest(content)] = folder
        return self._refusals

    def get(self, folder: VerdictFolder, name: str, stem: str) -> Verdict | None:
        """Return a verdict by its name."""
        damaged: list[DamagedError] = []
        found = folder.get(name, stem, damaged)
        self._note(damaged)
        return found

    def _listed(self, folder: VerdictFolder) -> frozenset[str]:
        if folder not in self._names:
            self._names[folder] = folder.folders()
        return self._names[folder]

    def _list(self, folder: VerdictFolder, schema: Digest, found: Said) -> None:
        glance = self._glances_at(folder).get(schema)
        if glance is None or not folder.is_as_seen(schema, glance):
            found.stems.append((folder, folder.stems(schema)))
            return
        found.stems.append((folder, glance.stems))
        found.validated |= glance.validated

    def _glances_at(self, folder: VerdictFolder) -> dict[str, Glance]:
        if self._now_unix_ns is None or self._asked_count <= _READ_SINGLY:
            return {}
        if folder not in self._glances:
            schemas = self._listed(folder) - {REFUSED}
            self._glances[folder] = folder.glances(schemas, self._now_unix_ns()) if len(schemas) <= _MAX_AHEAD else {}
        return self._glances[folder]

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


def _said(word: Override) -> str:
    return f"{word.word} by {word.who}: {word.why}"
