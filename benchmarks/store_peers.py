"""The peers of the store: FlashInfer's v1 file and v2 store with as many entries, and three databases that hold our records' very bytes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flashinfer.autotune_cache import ManagedAutotuneCache, _encode_key_fields
from store_records import Records

from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import body_of
from fi_cachestore.records.record import Record

MANIFEST = {"gpu": "none"}
POLICY = ("eager", "hot", 1, "events")
Lookup = Callable[[Digest], object]


def fields(number: int) -> tuple[Any, ...]:
    """Return what FlashInfer's key of such a call has: op, runner, shapes, extras."""
    shapes = ((256, 2048), (2048, 1024 + number % 4096), (256, 512), (512, 1024), (1,), (256, 1024), (33554432,), (0,))
    return ("bench_op", "Runner", shapes, (number, 128, True))


def write_v1(path: Path, count: int) -> None:
    path.write_text(json.dumps({str(fields(number)): ["Runner", 1, list(POLICY)] for number in range(count)}))


def write_v2(root: Path, count: int) -> None:
    """Write the entries as ``publish`` does, without its temporary files."""
    store = ManagedAutotuneCache(MANIFEST, root=root)
    store.entries_dir.mkdir(parents=True)
    for number in range(count):
        key = str(fields(number))
        entry = {
            "key": key,
            "runner": "Runner",
            "tactic": 1,
            "profiling_policy": list(POLICY),
            "key_fields": _encode_key_fields(fields(number)),
        }
        store._entry_path(key).write_text(json.dumps(entry, indent=2, sort_keys=True))  # noqa: SLF001 - no public way


def rows_in_order(count: int) -> Iterator[tuple[bytes, bytes]]:
    for entry in Records().in_order(range(count)):
        yield bytes.fromhex(entry.digest), entry.data


def write_sqlite(path: Path, count: int) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA synchronous=OFF")
        database.execute("CREATE TABLE records (digest BLOB PRIMARY KEY, data BLOB) WITHOUT ROWID")
        database.executemany("INSERT INTO records VALUES (?, ?)", rows_in_order(count))


def write_lmdb(path: Path, count: int) -> None:
    import lmdb

    with lmdb.open(str(path), map_size=count * 4096 + (1 << 22), sync=False) as environment, environment.begin(write=True) as transaction:
        for digest, data in rows_in_order(count):
            transaction.put(digest, data, append=True)


def write_diskcache(path: Path, count: int) -> None:
    import diskcache

    with diskcache.Cache(str(path), eviction_policy="none", sqlite_synchronous=0) as cache, cache.transact():
        for digest, data in rows_in_order(count):
            cache.set(digest, data)


def checked(data: bytes, digest: Digest) -> Record:
    """Do what our look-up does with the bytes it has found."""
    record = Record.from_body(body_of(data))
    if record.digest != digest:
        raise SystemExit("another record")
    return record


def open_sqlite(path: Path) -> Lookup:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    query = "SELECT data FROM records WHERE digest = ?"
    return lambda digest: checked(database.execute(query, (bytes.fromhex(digest),)).fetchone()[0], digest)


def open_lmdb(path: Path) -> Lookup:
    import lmdb

    transaction = lmdb.open(str(path), readonly=True, lock=False).begin()
    return lambda digest: checked(transaction.get(bytes.fromhex(digest)), digest)


def open_diskcache(path: Path) -> Lookup:
    import diskcache

    cache = diskcache.Cache(str(path))
    return lambda digest: checked(cache[bytes.fromhex(digest)], digest)


WRITERS: dict[str, Callable[[Path, int], None]] = {"sqlite": write_sqlite, "lmdb": write_lmdb, "diskcache": write_diskcache}
OPENERS: dict[str, Callable[[Path], Lookup]] = {"sqlite": open_sqlite, "lmdb": open_lmdb, "diskcache": open_diskcache}
