import os
from pathlib import Path

import pytest

from fi_cachestore.records.envelope import body_of
from fi_cachestore.records.record import Record
from fi_cachestore.store.layers import Layered, ReadOnly
from fi_cachestore.store.loose import LooseReader, LooseStore
from fi_cachestore.store.memory import MemoryStore
from fi_cachestore.store.open import open_store
from fi_cachestore.store.packed import PackedStore
from fi_cachestore.testing.samples import sample_record
from fi_cachestore.testing.store_contract import StoreContract

from .packs import loose_files, pack, packed_reader, packed_store


class TestMemory(StoreContract):
    def make(self, tmp_path):
        return MemoryStore()


class TestLoose(StoreContract):
    def make(self, tmp_path):
        return LooseStore(tmp_path, "objects", Record)

    def reopen(self, store, tmp_path):
        return LooseReader(tmp_path, "objects", Record)


class TestLooseWithoutFsync(TestLoose):
    def make(self, tmp_path):
        return LooseStore(tmp_path, "objects", Record, durable=False)


class TestOpened(StoreContract):
    def make(self, tmp_path):
        return open_store(tmp_path / "root")

    def reopen(self, store, tmp_path):
        return open_store(tmp_path / "root", read_only=True)


class TestLayered(StoreContract):
    def make(self, tmp_path):
        image = LooseReader(tmp_path / "image", "objects", Record)
        own = LooseStore(tmp_path / "own", "objects", Record)
        return Layered([ReadOnly(image), own], own)

    def reopen(self, store, tmp_path):
        return LooseReader(tmp_path / "own", "objects", Record)


class TestPacked(StoreContract):
    """Another view sees everything in packs, one pack per time that it is opened."""

    def make(self, tmp_path):
        return packed_store(tmp_path)

    def reopen(self, store, tmp_path):
        pack(tmp_path)
        assert loose_files(tmp_path) == []
        return packed_reader(tmp_path)


class PacksAtOnce(PackedStore):
    """Whatever is published goes into a pack before anybody looks."""

    def publish(self, entry):
        answer = super().publish(entry)
        pack(self.root)
        return answer


class TestPackedAtOnce(StoreContract):
    def make(self, tmp_path):
        store = packed_store(tmp_path)
        return PacksAtOnce(store._own, store._packs)

    def reopen(self, store, tmp_path):
        return packed_reader(tmp_path)


class TestLayeredPacks(StoreContract):
    def make(self, tmp_path):
        own = packed_store(tmp_path / "own")
        return Layered([ReadOnly(packed_reader(tmp_path / "image")), own], own)

    def reopen(self, store, tmp_path):
        pack(tmp_path / "own")
        return packed_reader(tmp_path / "own")


def test_the_file_holds_what_was_published_and_has_the_name_of_its_key(tmp_path):
    record = sample_record(3)
    LooseStore(tmp_path, "objects", Record).publish(record)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file == tmp_path / "objects" / record.digest[:2] / f"{record.digest}.0.rec"
    assert Record.from_body(body_of(file.read_bytes())) == record


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_modes_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        store = open_store(tmp_path / "root")
        store.publish(sample_record())
    finally:
        os.umask(before)
    for path in Path(tmp_path / "root").rglob("*"):
        wanted = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == wanted & ~mask, path
