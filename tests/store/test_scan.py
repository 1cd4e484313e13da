"""Looking through a root for keys: packs, files and layers, and whatever else lies there."""

import os

import pytest

from fi_cachestore.keys.canonical import Named
from fi_cachestore.records.envelope import MAGIC, seal
from fi_cachestore.store.loose import entry_path
from fi_cachestore.store.open import open_store
from fi_cachestore.store.scan import key_in, stored_keys
from fi_cachestore.testing.samples import sample_key, sample_record

from .packs import make_pack

KEYS = [sample_key(number).canonical for number in range(9)]


def test_keys_of_packs_files_and_layers_are_found(tmp_path):
    for number in range(3):
        open_store(tmp_path / "loose").publish(sample_record(number))
    make_pack(tmp_path / "packed", [sample_record(number) for number in range(3, 6)])
    open_store(tmp_path / "packed").publish(sample_record(6))
    found = list(stored_keys([tmp_path / "loose", tmp_path / "missing", tmp_path / "packed"]))
    assert sorted(found) == sorted(KEYS[:7])


def test_what_is_no_record_is_passed_over(tmp_path):
    store = open_store(tmp_path)
    for number in range(6):
        store.publish(sample_record(number))
    paths = [entry_path(tmp_path / "objects", sample_record(number).digest, 0) for number in range(5)]
    paths[0].write_bytes(b"bad")
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    paths[2].unlink()
    paths[2].symlink_to("/dev/zero")
    paths[3].unlink()
    os.mkfifo(paths[3])
    paths[4].unlink()
    pack = make_pack(tmp_path / "other", [sample_record(7)])
    pack.path.write_bytes(pack.path.read_bytes()[:-1])
    assert list(stored_keys([tmp_path, tmp_path / "other"])) == [KEYS[5]]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        seal(7),
        seal(Named("fi_cachestore.record/1", {})),
        seal(Named("fi_cachestore.record/1", {"key": 7})),
        seal(Named("fi_cachestore.record/1", {"other": "key"})),
        seal(Named("fi_cachestore.record/1", [b"key"])),
        seal({"key": KEYS[0]})[:-40],
    ],
)
def test_what_has_no_key_has_none(data):
    assert key_in(data) is None


def test_the_key_of_a_record_is_what_it_was_published_under():
    assert key_in(seal(sample_record(2).to_value())) == KEYS[2]
