import os
from pathlib import Path

import pytest

from fi_cachestore.config import load
from fi_cachestore.errors import RootRefusedError, StoreIOError
from fi_cachestore.records.record import Record
from fi_cachestore.store.layers import ReadOnly
from fi_cachestore.store.loose import LooseReader, LooseStore
from fi_cachestore.store.open import open_session_root, open_store
from fi_cachestore.store.port import Hit, Miss, Present, Published
from fi_cachestore.store.roots import check_root
from fi_cachestore.testing.samples import sample_record

IS_ROOT = os.geteuid() == 0


def settings(**variables):
    return load(environ={f"FI_CACHESTORE_{name}": str(value) for name, value in variables.items()})


def test_a_new_root_has_its_marks(tmp_path):
    open_store(tmp_path / "root")
    assert (tmp_path / "root" / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    assert (tmp_path / "root" / "FORMAT").read_text() == "fi_cachestore 1\n"


def test_opening_a_root_twice_changes_nothing(tmp_path):
    open_store(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    open_store(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_opening_to_read_creates_nothing(tmp_path):
    store = open_store(tmp_path / "root", read_only=True)
    assert len(store) == 0
    assert not (tmp_path / "root").exists()
    with pytest.raises(StoreIOError, match="read-only"):
        store.publish(sample_record())


def test_a_world_writable_root_is_refused_unless_trusted(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(RootRefusedError, match="everyone may write"):
        open_store(root)
    with pytest.raises(RootRefusedError, match="everyone may write"):
        open_session_root(settings(DIR=root))
    with pytest.raises(RootRefusedError, match="everyone may write"):
        open_session_root(settings(DIR=root, TRUST=tmp_path / "other"))
    open_store(root, trusted=True)
    open_session_root(settings(DIR=root, TRUST=root))


@pytest.mark.parametrize("folder", ["objects", "sessions", "settled", "verdicts", "marks"])
def test_a_world_writable_folder_is_refused(tmp_path, folder):
    (tmp_path / folder).mkdir()
    open_store(tmp_path)
    (tmp_path / folder).chmod(0o777)
    with pytest.raises(RootRefusedError):
        open_store(tmp_path)


@pytest.mark.skipif(not IS_ROOT, reason="gives a directory away")
def test_a_root_of_somebody_else_is_refused_unless_trusted(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    os.chown(root, 54321, 54321)
    with pytest.raises(RootRefusedError, match="belongs to user 54321"):
        open_store(root)
    open_store(root, trusted=True)


def test_the_superusers_root_is_accepted(tmp_path, monkeypatch):
    open_store(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    if tmp_path.stat().st_uid == 0:
        check_root(tmp_path)
    else:
        with pytest.raises(RootRefusedError):
            check_root(tmp_path)


def test_a_file_in_the_place_of_the_root_is_refused(tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(RootRefusedError, match="not a directory"):
        open_store(tmp_path / "root")


def test_a_root_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RootRefusedError):
        open_store(tmp_path / "file" / "root")
    with pytest.raises(RootRefusedError, match="cannot be written"):
        open_store("/proc/fi_cachestore")


def test_a_linked_root_works(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    open_store(tmp_path / "link").publish(sample_record())
    assert isinstance(open_store(tmp_path / "real").get(sample_record().digest), Hit)


def test_a_layout_of_a_later_version_is_refused(tmp_path):
    open_store(tmp_path)
    (tmp_path / "FORMAT").write_text("fi_cachestore 2\n")
    with pytest.raises(RootRefusedError, match="version 2"):
        open_store(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", ["bytes", "fifo", "directory", "link"])
def test_damaged_marks_do_not_matter(tmp_path, damage):
    open_store(tmp_path)
    mark = tmp_path / "FORMAT"
    mark.unlink()
    {"bytes": lambda: mark.write_bytes(b"\xff" * 10_000), "fifo": lambda: os.mkfifo(mark), "directory": mark.mkdir}.get(
        damage, lambda: mark.symlink_to("nowhere")
    )()
    assert isinstance(open_store(tmp_path).publish(sample_record()), Published)


def test_a_missing_root_is_made_again(tmp_path):
    import shutil

    store = open_store(tmp_path / "root")
    store.publish(sample_record(1))
    shutil.rmtree(tmp_path / "root")
    assert isinstance(store.get(sample_record(1).digest), Miss)
    assert isinstance(store.publish(sample_record(2)), Published)
    assert isinstance(store.get(sample_record(2).digest), Hit)


def layered(tmp_path, path_setting):
    image, own = tmp_path / "image", tmp_path / "own"
    baked = open_store(image)
    baked.publish(sample_record(1, times_ns={0: 1}))
    LooseStore(own, "objects", Record).publish(sample_record(1, times_ns={0: 2}))
    return open_session_root(settings(DIR=own, PATH=path_setting.format(image=image))).records


@pytest.mark.parametrize(("path_setting", "time_ns"), [("{image}", 2), ("@:{image}", 2), ("{image}:@", 1)])
def test_layers_are_searched_in_the_order_named(tmp_path, path_setting, time_ns):
    answer = layered(tmp_path, path_setting).get(sample_record(1).digest)
    assert isinstance(answer, Hit)
    assert answer.entry.measurements[0].time_ns == time_ns


def test_what_two_layers_hold_counts_once(tmp_path):
    records = layered(tmp_path, "{image}")
    records.publish(sample_record(2))
    assert len(records) == 2
    assert sorted(records) == sorted(sample_record(number).digest for number in (1, 2))


@pytest.mark.parametrize(("setting", "is_synced"), [("", True), ("1", True), ("0", False)])
def test_the_setting_says_whether_a_record_survives_a_power_cut(tmp_path, monkeypatch, setting, is_synced):
    opened = open_session_root(settings(DIR=tmp_path / "own", DURABLE=setting))
    synced, real_fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real_fsync(fd)))
    opened.records.publish(sample_record())
    assert bool(synced) == is_synced


def test_read_only_layers_are_never_written(tmp_path):
    image = tmp_path / "image"
    open_store(image).publish(sample_record(1))
    before = sorted((path, path.stat().st_mtime_ns) for path in image.rglob("*"))
    opened = open_session_root(settings(DIR=tmp_path / "own", PATH=f"{image}:@"))
    assert isinstance(opened.records.publish(sample_record(2)), Published)
    assert isinstance(opened.records.get(sample_record(1).digest), Hit)
    assert len(opened.records) == 2
    assert sorted((path, path.stat().st_mtime_ns) for path in image.rglob("*")) == before
    assert isinstance(LooseReader(tmp_path / "own", "objects", Record).get(sample_record(2).digest), Hit)


def test_a_damaged_layer_is_passed_over_and_told(tmp_path):
    image = tmp_path / "image"
    record = sample_record(1)
    open_store(image).publish(record)
    (file,) = image.rglob("*.rec")
    file.write_bytes(b"bad")
    opened = open_session_root(settings(DIR=tmp_path / "own", PATH=f"{image}:@"))
    answer = opened.records.get(record.digest)
    assert isinstance(answer, Miss)
    assert answer.reason == "corrupt"
    opened.records.publish(record)
    assert isinstance(opened.records.get(record.digest), Hit)
    assert file.read_bytes() == b"bad"


def test_a_refused_layer_refuses_the_session(tmp_path):
    image = tmp_path / "image"
    image.mkdir()
    image.chmod(0o777)
    for trusted in ("", tmp_path / "own"):
        with pytest.raises(RootRefusedError):
            open_session_root(settings(DIR=tmp_path / "own", PATH=image, TRUST=trusted))


def test_a_moved_root_keeps_all_its_records(tmp_path):
    store = open_store(tmp_path / "a")
    for number in range(5):
        store.publish(sample_record(number))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = open_store(tmp_path / "b", read_only=True)
    assert all(isinstance(moved.get(sample_record(number).digest), Hit) for number in range(5))


def test_replay_neither_creates_nor_writes(tmp_path):
    opened = open_session_root(settings(DIR=tmp_path / "root", MODE="replay"))
    assert not (tmp_path / "root").exists()
    with pytest.raises(StoreIOError):
        opened.records.publish(sample_record())
    open_store(tmp_path / "root").publish(sample_record())
    opened = open_session_root(settings(DIR=tmp_path / "root", MODE="replay"))
    assert isinstance(opened.records.get(sample_record().digest), Hit)


def test_a_read_only_store_names_who_was_first(tmp_path):
    open_store(tmp_path).publish(sample_record(1))
    store = ReadOnly(LooseReader(tmp_path, "objects", Record))
    answer = store.publish(sample_record(1, times_ns={0: 5}))
    assert isinstance(answer, Present)
    assert answer.entry == sample_record(1)


def test_no_root_at_all_is_refused_with_the_reason(monkeypatch):
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(RootRefusedError, match="no HOME and no entry"):
        open_session_root(load(environ={}))


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = open_session_root(load(root="relative", environ={}))
    monkeypatch.chdir("/")
    opened.records.publish(sample_record())
    assert Path(tmp_path / "relative" / "objects").is_dir()
