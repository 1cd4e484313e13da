"""Packs for tests, written through the writer or by hand."""

from collections import Counter
from pathlib import Path

from fi_cachestore.records.envelope import seal
from fi_cachestore.records.record import Record
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.loose import LooseReader, LooseStore
from fi_cachestore.store.pack import PACKS_FOLDER
from fi_cachestore.store.pack_writer import Sealed, write_pack
from fi_cachestore.store.packed import PackedReader, PackedStore, PackSet
from fi_cachestore.store.packing import Packer

FILES = OsFileSystem()


def sealed(record, generation=0):
    return Sealed(record.digest, generation, seal(record.to_value()), "test")


def make_pack(root, records, *, sequence=0, generation=0):
    """Write a pack of records (or of ``Sealed`` entries) into a root."""
    entries = [entry if isinstance(entry, Sealed) else sealed(entry, generation) for entry in records]
    entries.sort(key=lambda entry: (entry.digest, entry.generation))
    return write_pack(Path(root) / PACKS_FOLDER, entries, sequence, reader=FILES, writer=FILES)


def packed_store(root, *, reader=FILES, writer=FILES):
    loose = LooseStore(Path(root), "objects", Record, durable=False, reader=reader, writer=writer)
    return PackedStore(loose, PackSet(Path(root), reader))


def packed_reader(root, *, reader=FILES):
    return PackedReader(LooseReader(Path(root), "objects", Record, reader=reader), PackSet(Path(root), reader))


class CountingReader:
    """The real file system, counting what is done."""

    def __init__(self):
        self.counts = Counter()

    def read(self, path, limit_bytes):
        self.counts["read"] += 1
        return FILES.read(path, limit_bytes)

    def exists(self, path):
        self.counts["ask"] += 1
        return FILES.exists(path)

    def changed_unix_ns(self, directory):
        self.counts["time"] += 1
        return FILES.changed_unix_ns(directory)

    def names(self, directory):
        self.counts["list"] += 1
        return FILES.names(directory)

    def open(self, path):
        self.counts["open"] += 1
        return _CountingFile(FILES.open(path), self.counts)


class _CountingFile:
    def __init__(self, inner, counts):
        self.inner, self.counts, self.size_bytes = inner, counts, inner.size_bytes

    def read_at(self, offset, size_bytes):
        self.counts["read_at"] += 1
        return self.inner.read_at(offset, size_bytes)


def packer(root, *, reader=FILES, writer=FILES):
    return Packer(LooseReader(Path(root), "objects", Record, reader=reader), reader=reader, writer=writer)


def pack(root, **files):
    """Pack what is there now."""
    ours = packer(root, **files)
    return ours.pack(ours.plan())


def loose_files(root):
    return sorted((Path(root) / "objects").rglob("*.rec"))


def pack_files(root):
    return sorted((Path(root) / PACKS_FOLDER).glob("*.pack"))
