"""Looking through all records of a root for their keys, without checking them: for people, never for serving."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from fi_cachestore.errors import DamagedError, NotCanonicalError
from fi_cachestore.keys.canonical import skim
from fi_cachestore.records.envelope import HEADER_BYTES, MAGIC, MAX_SEALED_BYTES
from fi_cachestore.records.record import Record
from fi_cachestore.store.filesystem import OsFileSystem, Reader
from fi_cachestore.store.loose import LooseReader
from fi_cachestore.store.packed import PackSet
from fi_cachestore.store.roots import RECORDS_FOLDER


def stored_keys(roots: Sequence[Path], reader: Reader | None = None) -> Iterator[bytes]:
    """Yield the canonical bytes of every record's key, as they are in packs and files. Never raises for what it finds."""
    files: Reader = OsFileSystem() if reader is None else reader
    for root in roots:
        for data in _sealed(root, files):
            if (key := key_in(data)) is not None:
                yield key


def _sealed(root: Path, files: Reader) -> Iterator[bytes]:
    for pack in PackSet(root, files).current():
        with contextlib.suppress(DamagedError):
            for row in pack.rows():
                yield pack.sealed(row)
    for path, digest, _ in LooseReader(root, RECORDS_FOLDER, Record, reader=files).files():
        if digest is not None:
            with contextlib.suppress(DamagedError, FileNotFoundError):
                yield files.read(path, MAX_SEALED_BYTES)


def key_in(sealed: bytes) -> bytes | None:
    """Return the canonical bytes of the key in a sealed record, unchecked; ``None`` for anything else."""
    if not sealed.startswith(MAGIC):
        return None
    try:
        _, _, [_, *flat] = skim(sealed[HEADER_BYTES : HEADER_BYTES + int.from_bytes(sealed[HEADER_BYTES - 4 : HEADER_BYTES], "big")])
        key = flat[flat.index("key") + 1]
    except (NotCanonicalError, TypeError, ValueError, IndexError):
        return None
    return key if type(key) is bytes else None
