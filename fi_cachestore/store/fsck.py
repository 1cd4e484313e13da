"""Checking a root file by file: envelope, content, and name against content."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.digest import Digest, is_digest
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, MissReason
from fi_cachestore.records.record import Record
from fi_cachestore.records.settlement import Settlement
from fi_cachestore.store.filesystem import OsFileSystem, Reader
from fi_cachestore.store.loose import QUARANTINE, LooseReader
from fi_cachestore.store.marks import MarkFolder
from fi_cachestore.store.numbered import NUMBERED_NAME
from fi_cachestore.store.pack import PACK_NAME, PACKS_FOLDER, Pack, Row
from fi_cachestore.store.publish import TEMPORARY_SUFFIX
from fi_cachestore.store.roots import RECORDS_FOLDER, SETTLED_FOLDER
from fi_cachestore.store.rules_log import RulesLog
from fi_cachestore.store.verdicts import VerdictFolder

STRAY: Final = "stray"
LEFTOVER: Final = "leftover"


@dataclass(frozen=True, slots=True)
class Finding:
    """One file that is not as it should be: a miss reason, ``stray`` (a name no entry has) or ``leftover`` (of a killed writer)."""

    path: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked. ``quarantined_count`` files were moved aside earlier and are not findings, nor are ``mark_count`` sound marks."""

    root: str
    record_count: int
    pack_count: int
    packed_record_count: int
    rules_count: int
    settlement_count: int
    verdict_count: int
    mark_count: int
    quarantined_count: int
    findings: tuple[Finding, ...]


def verify(root: Path, *, reader: Reader | None = None) -> Verification:
    """Check every file under ``root``. Reads only, and never raises for what it finds there."""
    files: Reader = OsFileSystem() if reader is None else reader
    loose = LooseReader(root, RECORDS_FOLDER, Record, reader=files)
    records = [*_entries("record", loose, files), *_packs(root, loose, files)]
    settled = _entries("settlement", LooseReader(root, SETTLED_FOLDER, Settlement, reader=files), files)
    found = [*records, *settled, *_rules(root, files), *_verdicts(root, files), *_marks(root, files)]
    sound = Counter(kind for kind, finding in found if finding is None)
    return Verification(
        root=str(root),
        record_count=sound["record"],
        pack_count=sound["pack"],
        packed_record_count=sound["packed record"],
        rules_count=sound["rules"],
        settlement_count=sound["settlement"],
        verdict_count=sound["verdict"],
        mark_count=sound["mark"],
        quarantined_count=sum(1 for _ in files.names(root / QUARANTINE)),
        findings=tuple(finding for _, finding in found if finding is not None),
    )


def _entries(kind: str, entries: LooseReader[Any], files: Reader) -> Iterator[tuple[str, Finding | None]]:
    for path, digest, _ in entries.files():
        if digest is None:
            yield kind, _stray(path)
        else:
            yield from _checked(kind, path, _read_entry, entries, files, path, digest)


def _packs(root: Path, loose: LooseReader[Any], files: Reader) -> Iterator[tuple[str, Finding | None]]:
    """Check packs as wholes, and every record in them as look-ups do. Records that are also loose are no finding."""
    folder = root / PACKS_FOLDER
    for name in sorted(files.names(folder)):
        path = folder / name
        if PACK_NAME.fullmatch(name) is None:
            yield "pack", _stray(path)
            continue
        try:
            pack = Pack(path, files)
        except FileNotFoundError:
            continue  # merged while we looked
        except DamagedError as damage:
            yield "pack", Finding(str(path), damage.reason, damage.detail)
            continue
        yield from _checked("pack", path, pack.check)
        with contextlib.suppress(DamagedError):  # the pack's own finding says so
            for row in pack.rows():
                yield from _checked("packed record", Path(f"{path}#{row.digest}.{row.generation}"), _read_packed, loose, pack, row)


def _read_packed(loose: LooseReader[Any], pack: Pack, row: Row) -> None:
    loose.check(pack.sealed(row), row.digest)


def _rules(root: Path, files: Reader) -> Iterator[tuple[str, Finding | None]]:
    log = RulesLog(root, reader=files)
    for device in sorted(files.names(log.folder)):
        for name in sorted(files.names(log.folder / device)):
            path = log.folder / device / name
            if not is_digest(device) or NUMBERED_NAME.fullmatch(name) is None:
                yield "rules", _stray(path)
            else:
                yield from _checked("rules", path, log.load, path, Digest(device))


def _verdicts(root: Path, files: Reader) -> Iterator[tuple[str, Finding | None]]:
    folder = VerdictFolder(root, reader=files)
    for path, place in folder.files():
        if place is None:
            yield "verdict", _stray(path)
        else:
            yield from _checked("verdict", path, folder.load, *place)
    for name in sorted(files.names(folder.overviews.folder)):
        path = folder.overviews.folder / name
        if NUMBERED_NAME.fullmatch(name) is None:
            yield "overview", _stray(path)
        else:
            yield from _checked("overview", path, folder.overviews.load, path)


def _marks(root: Path, files: Reader) -> Iterator[tuple[str, Finding | None]]:
    folder = MarkFolder(root, reader=files)
    for path, names in folder.files():
        if names is None:
            yield "mark", _stray(path)
        else:
            yield from _checked("mark", path, folder.load, path)


def _read_entry(entries: LooseReader[Any], files: Reader, path: Path, digest: Digest) -> None:
    entries.check(files.read(path, MAX_SEALED_BYTES), digest)


def _checked(kind: str, path: Path, load: Callable[..., object], *arguments: object) -> Iterator[tuple[str, Finding | None]]:
    try:
        load(*arguments)
    except DamagedError as damage:
        yield kind, Finding(str(path), damage.reason, damage.detail)
    except FileNotFoundError:
        return  # removed while we looked
    else:
        yield kind, None


def _stray(path: Path) -> Finding:
    if path.name.endswith(TEMPORARY_SUFFIX):
        return Finding(str(path), LEFTOVER, "a writer was killed while it held this file; safe to delete once that process is gone")
    return Finding(str(path), STRAY, "no entry has such a name")


__all__ = ["LEFTOVER", "STRAY", "Finding", "MissReason", "Verification", "verify"]
