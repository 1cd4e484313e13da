"""Cache roots: which directories are believed, how a new one is laid out, and how they are opened as one store."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fi_cachestore.errors import DamagedError, RootRefusedError, StoreIOError
from fi_cachestore.records.record import Record
from fi_cachestore.records.settlement import Settlement
from fi_cachestore.store.filesystem import OsFileSystem, Reader, Writer
from fi_cachestore.store.layers import Layered, ReadOnly
from fi_cachestore.store.loose import LooseReader, LooseStore
from fi_cachestore.store.marks import MARKS_FOLDER, MarkFolder
from fi_cachestore.store.pack import PACKS_FOLDER
from fi_cachestore.store.packed import PackedReader, PackedStore, PackSet
from fi_cachestore.store.packing import Packer
from fi_cachestore.store.port import Store, Successors
from fi_cachestore.store.publish import create_once
from fi_cachestore.store.rules_log import RulesLog
from fi_cachestore.store.verdicts import VERDICTS_FOLDER, VerdictFolder, Verdicts

LAYOUT_VERSION: Final = 1
RECORDS_FOLDER: Final = "objects"
SETTLED_FOLDER: Final = "settled"
CLAIMS_FOLDER: Final = "claims"
MANIFESTS_FOLDER: Final = "manifests"
_BELIEVED_FOLDERS: Final = (RECORDS_FOLDER, PACKS_FOLDER, SETTLED_FOLDER, "sessions", VERDICTS_FOLDER, MARKS_FOLDER)
_CACHEDIR_TAG: Final = b"""Signature: 8a477f597d28d172789f06886806bc55
# This directory holds measured kernel choices of FlashInfer, kept by fi_cachestore. It can be deleted; it is then measured anew.
# For information about cache directory tags, see https://bford.info/cachedir/
"""
_FORMAT: Final = b"fi_cachestore %d\n" % LAYOUT_VERSION
_FORMAT_LINE: Final = re.compile(rb"fi_cachestore ([0-9]{1,9})\n", re.ASCII)
_SMALL_FILE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class OpenRoot:
    """An opened root: its records (read-only layers included), its rules, what ranks settled, verdicts, marks, and where claims are made.

    ``verdicts`` is ``None`` where every record is believed; ``marks``, ``packer`` and ``successors`` where nothing is ever written.
    ``layers`` are the read-only roots, in the order of search.
    """

    path: Path
    records: Store[Record]
    rules: RulesLog
    settled: Store[Settlement]
    verdicts: Verdicts | None
    marks: MarkFolder | None = None
    packer: Packer[Record] | None = None
    successors: Successors[Record] | None = None
    layers: tuple[Path, ...] = ()

    @property
    def claims(self) -> Path:
        """The directory of the lock files."""
        return self.path / CLAIMS_FOLDER


def check_root(root: Path, *, trusted: Collection[Path] = (), reader: Reader | None = None) -> None:
    """Refuse a directory whose content somebody else could have planted, or whose layout is from a later version.

    Roots of the superuser are accepted: who can write there can change this library as well.

    Raises:
        RootRefusedError: not a directory, owned by somebody else, writable by everyone (also its first level), or a later layout.
    """
    place, is_trusted = str(root), root in trusted
    for name in ("", *_BELIEVED_FOLDERS):
        try:
            status = os.stat(f"{place}/{name}" if name else place)  # noqa: PTH116 - joining paths takes longer than all the looks
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RootRefusedError(place, error.strerror or "unreadable", "check permissions") from error
        if not stat.S_ISDIR(status.st_mode):
            raise RootRefusedError(place, f"{name or root.name} is not a directory", "choose another directory")
        if not is_trusted:
            _check_owner(root, status)
    _check_layout(root, OsFileSystem() if reader is None else reader)


def _check_owner(root: Path, status: os.stat_result) -> None:
    advice = "name it in FI_CACHESTORE_TRUST if that is intended"
    if status.st_uid not in (os.geteuid(), 0):
        raise RootRefusedError(str(root), f"it belongs to user {status.st_uid}, this process is user {os.geteuid()}", advice)
    if status.st_mode & stat.S_IWOTH:
        raise RootRefusedError(str(root), "everyone may write to it", f"remove that permission (chmod o-w) or {advice}")


def _check_layout(root: Path, reader: Reader) -> None:
    try:
        found = _FORMAT_LINE.fullmatch(reader.read(f"{root}/FORMAT", _SMALL_FILE_BYTES))
    except (DamagedError, FileNotFoundError):
        return
    if found and int(found[1]) > LAYOUT_VERSION:
        reason = f"its layout is version {int(found[1])}, this version knows {LAYOUT_VERSION}"
        raise RootRefusedError(str(root), reason, "upgrade fi_cachestore or choose another directory")


def root_name(paths: Sequence[Path], boot_id: str) -> str:
    """Return a name for directories that is equal for two processes only if they are the very same on one host; ``""`` for none."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append(f"{status.st_dev}:{status.st_ino}")
    return f"{boot_id} {' '.join(found)}" if len(found) == len(paths) and found else ""


def prepare_root(root: Path, *, durable: bool, writer: Writer) -> None:
    """Create ``root`` with its two marker files, where missing. Safe to run from many processes at once.

    Raises:
        RootRefusedError: the directory cannot be created or written.
    """
    try:
        writer.make_dirs(root)
        for name, content in (("CACHEDIR.TAG", _CACHEDIR_TAG), ("FORMAT", _FORMAT)):
            if not (root / name).exists():
                create_once(writer, root / name, content, durable=durable)
    except (OSError, StoreIOError) as error:
        reason = error.reason if isinstance(error, StoreIOError) else error.strerror
        raise RootRefusedError(str(root), f"it cannot be written ({reason})", "set FI_CACHESTORE_DIR to a writable directory") from error


def write_manifest(root: Path, name: str, content: bytes, *, writer: Writer | None = None) -> None:
    """Put an environment's description under ``manifests``, for people. Best effort: nothing depends on it."""
    with contextlib.suppress(StoreIOError):
        create_once(OsFileSystem() if writer is None else writer, root / MANIFESTS_FOLDER / name, content, durable=False)


def open_layers(read_only: Sequence[Path]) -> list[Store[Record]]:
    """Return read-only roots as stores, in order."""
    return [ReadOnly(packed_reader(path)) for path in read_only]


def packed_reader(root: Path, *, reader: Reader | None = None) -> PackedReader[Record]:
    """Return the records of a root, packed and loose, to be read."""
    reader = OsFileSystem() if reader is None else reader
    return PackedReader(LooseReader(root, RECORDS_FOLDER, Record, reader=reader), PackSet(root, reader))


def packer_of(root: Path) -> Packer[Record]:
    """Return what packs a root. Nothing is created before it packs something."""
    files = OsFileSystem()
    return Packer(LooseReader(root, RECORDS_FOLDER, Record, reader=files), reader=files, writer=files)


def open_root(
    root: Path,
    *,
    before: Sequence[Path] = (),
    after: Sequence[Path] = (),
    durable: bool = True,
    reader: Reader | None = None,
    writer: Writer | None = None,
) -> OpenRoot:
    """Return a writable root with its read-only layers. The directories are not checked here; see ``check_root``.

    Raises:
        RootRefusedError: the root cannot be created or written.
    """
    writer = OsFileSystem() if writer is None else writer
    prepare_root(root, durable=durable, writer=writer)
    reader = OsFileSystem() if reader is None else reader
    loose = LooseStore(root, RECORDS_FOLDER, Record, durable=durable, reader=reader, writer=writer)
    own = PackedStore(loose, PackSet(root, reader))
    layers: list[Store[Record]] = [*open_layers(before), own, *open_layers(after)]
    records = Layered(layers, own) if len(layers) > 1 else own
    settled: Store[Settlement] = LooseStore(root, SETTLED_FOLDER, Settlement, durable=durable, reader=reader, writer=writer)
    verdicts = Verdicts(VerdictFolder(root, durable=durable, reader=reader, writer=writer), [*map(VerdictFolder, (*before, *after))])
    rules = RulesLog(root, durable=durable, reader=reader, writer=writer)
    packer = Packer(loose, reader=reader, writer=writer)
    marks = MarkFolder(root, reader=reader, writer=writer)
    return OpenRoot(root, records, rules, settled, verdicts, marks, packer, own, (*before, *after))


def open_read_only(root: Path, *, before: Sequence[Path] = (), after: Sequence[Path] = (), reader: Reader | None = None) -> OpenRoot:
    """Return a root as it is, with its layers. Nothing is created, now or later."""
    own: Store[Record] = ReadOnly(packed_reader(root, reader=reader))
    layers = [*open_layers(before), own, *open_layers(after)]
    settled: Store[Settlement] = ReadOnly(LooseReader(root, SETTLED_FOLDER, Settlement, reader=reader))
    records = Layered(layers, own) if len(layers) > 1 else own
    verdicts = Verdicts(VerdictFolder(root, reader=reader), [*map(VerdictFolder, (*before, *after))])
    return OpenRoot(root, records, RulesLog(root, reader=reader), settled, verdicts, layers=(*before, *after))
