"""Whatever lies in a cache directory is a miss with a reason: it never raises, hangs or is served."""

import errno
import os
import stat
import threading
import tracemalloc
from pathlib import Path

import pytest

from fi_cachestore.errors import DamagedError, StoreIOError
from fi_cachestore.keys.canonical import Named
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, MissReason, seal
from fi_cachestore.records.record import Record
from fi_cachestore.store import filesystem
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.fsck import LEFTOVER, STRAY, verify
from fi_cachestore.store.loose import LooseStore, entry_path
from fi_cachestore.store.port import Hit, Miss, Published
from fi_cachestore.testing.faults import FaultyWriter
from fi_cachestore.testing.samples import sample_key, sample_record

RECORD = sample_record(1)
SEALED = seal(RECORD.to_value())
OTHER = seal(sample_record(2).to_value())
FOREIGN_ENVIRONMENT = sample_record(key=sample_key(1, environment={"device": "cuda", "gpu_name": "Other GPU"}))


def sealed_measurements(count):
    value = RECORD.to_value()
    return seal(Named(value.kind, {**value.content, "measurements": [[0]] * count}))


def make_file(content):
    return lambda path: path.write_bytes(content)


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(10 << 30)


def make_dangling_link(path):
    path.symlink_to(path.parent / "nowhere")


def make_loop(path):
    path.symlink_to(path)


def make_link_to_device(path):
    path.symlink_to("/dev/zero")


def make_socket(path):
    os.mknod(path, stat.S_IFSOCK | 0o600)


DAMAGE = {
    "empty": (make_file(b""), "corrupt"),
    "random": (make_file(bytes(range(256)) * 4), "corrupt"),
    "truncated": (make_file(SEALED[:-1]), "corrupt"),
    "one bit": (make_file(SEALED[:60] + bytes([SEALED[60] ^ 4]) + SEALED[61:]), "corrupt"),
    "text": (make_file(b'{"key": 1}'), "corrupt"),
    "wrong types": (make_file(sealed_measurements(3)), "corrupt"),
    "another record": (make_file(OTHER), "foreign"),
    "another environment": (make_file(seal(FOREIGN_ENVIRONMENT.to_value())), "foreign"),
    "ten gigabytes": (make_sparse, "corrupt"),
    "directory": (Path.mkdir, "corrupt"),
    "fifo": (os.mkfifo, "corrupt"),
    "socket": (make_socket, "corrupt"),
    "dangling link": (make_dangling_link, "corrupt"),
    "link to itself": (make_loop, "corrupt"),
    "endless device": (make_link_to_device, "corrupt"),
}


@pytest.fixture
def place(tmp_path):
    path = entry_path(tmp_path / "objects", RECORD.digest, 0)
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def store(tmp_path):
    return LooseStore(tmp_path, "objects", Record)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_a_miss_in_bounded_memory(store, place, kind):
    make, reason = DAMAGE[kind]
    make(place)
    tracemalloc.start()
    try:
        answer = store.get(RECORD.digest)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(answer, Miss)
    assert answer.reason == reason
    assert answer.detail
    assert peak_bytes < 100 << 20


@pytest.mark.parametrize("kind", DAMAGE)
def test_publishing_moves_damage_aside_and_is_found(store, place, tmp_path, kind):
    make, _ = DAMAGE[kind]
    make(place)
    assert isinstance(store.publish(RECORD), Published)
    answer = store.get(RECORD.digest)
    assert isinstance(answer, Hit)
    assert answer.entry == RECORD
    assert len(list((tmp_path / "quarantine").iterdir())) == 1
    assert verify(tmp_path).findings == ()
    assert verify(tmp_path).quarantined_count == 1


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_finds_each_damaged_file(place, tmp_path, kind):
    make, reason = DAMAGE[kind]
    make(place)
    checked = verify(tmp_path)
    assert [(finding.path, finding.reason) for finding in checked.findings] == [(str(place), reason)]
    assert checked.record_count == 0


def test_one_flipped_bit_anywhere_in_a_stored_file_is_a_miss(store, place):
    reasons = set()
    for position in range(0, len(SEALED) * 8, 7):
        changed = bytearray(SEALED)
        changed[position // 8] ^= 1 << position % 8
        place.write_bytes(changed)
        answer = store.get(RECORD.digest)
        assert isinstance(answer, Miss)
        reasons.add(answer.reason)
    assert reasons == {MissReason.CORRUPT}


def test_a_file_of_a_later_version_is_left_alone(store, place):
    import struct
    from hashlib import blake2b

    front = struct.pack(">8sII", SEALED[:8], 2, 3) + b"new"
    later = front + blake2b(front, digest_size=16, person=b"fi_cachestore/e1").digest()
    place.write_bytes(later)
    answer = store.get(RECORD.digest)
    assert isinstance(answer, Miss)
    assert answer.reason == "future-format"
    with pytest.raises(Exception, match="future-format"):
        store.publish(RECORD)
    assert place.read_bytes() == later


@pytest.mark.parametrize("read_bytes", [0, 1, 7, 65535, 65536, 65537, 200_000])
@pytest.mark.parametrize("size_bytes", [0, 1, 7, 65535, 65536, 65537, 200_000])
def test_a_file_is_read_to_its_end_whatever_its_size_was_when_it_was_opened(tmp_path, monkeypatch, size_bytes, read_bytes):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(read_bytes))
    opened = filesystem._opened
    monkeypatch.setattr(filesystem, "_opened", lambda name: (opened(name)[0], size_bytes))
    assert OsFileSystem().read(path, MAX_SEALED_BYTES) == path.read_bytes()


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "grows"
    path.write_bytes(b"x" * 100)
    real_read = os.read

    def read(fd, count):
        with path.open("ab") as file:
            file.write(b"x" * 100)
        return real_read(fd, count)

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(DamagedError, match="grew"):
        OsFileSystem().read(path, 150)


def test_nothing_of_a_file_over_the_limit_is_read(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(b"x" * 151)
    monkeypatch.setattr(os, "read", lambda fd, count: pytest.fail("read"))
    with pytest.raises(DamagedError, match="the limit is 150"):
        OsFileSystem().read(path, 150)


def test_nothing_is_taken_from_a_pipe_that_holds_a_record(store, place):
    os.mkfifo(place)
    pipe = os.open(place, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(pipe, SEALED)
        answer = store.get(RECORD.digest)
        assert isinstance(answer, Miss)
        assert answer.reason == "corrupt"
        assert os.read(pipe, len(SEALED)) == SEALED
    finally:
        os.close(pipe)


@pytest.mark.parametrize(("stale_count", "outcome"), [(2, SEALED), (3, "stale")])
def test_a_file_replaced_on_its_server_is_opened_anew_a_few_times(tmp_path, monkeypatch, stale_count, outcome):
    path = tmp_path / "stale"
    path.write_bytes(SEALED)
    left, real_read = [errno.ESTALE] * stale_count, os.read

    def read(fd, count):
        if left:
            raise OSError(left.pop(), "Stale file handle")
        return real_read(fd, count)

    monkeypatch.setattr(os, "read", read)
    if outcome == SEALED:
        assert OsFileSystem().read(path, MAX_SEALED_BYTES) == SEALED
    else:
        with pytest.raises(DamagedError, match="unreadable: stale"):
            OsFileSystem().read(path, MAX_SEALED_BYTES)


def test_a_file_that_appears_after_it_was_looked_for_was_absent_and_is_not_damaged(tmp_path, monkeypatch):
    real_open = os.open

    def open_too_early(path, *args, **kwargs):
        try:
            return real_open(path, *args, **kwargs)
        finally:
            monkeypatch.undo()
            store.publish(RECORD)

    store = LooseStore(tmp_path, "objects", Record, durable=False)
    monkeypatch.setattr(os, "open", open_too_early)
    assert store.get(RECORD.digest) == Miss(MissReason.ABSENT)
    assert isinstance(store.get(RECORD.digest), Hit)


class CountingReader(OsFileSystem):
    """Keeps the names that were read."""

    def __init__(self):
        self.names_read = []

    def read(self, path, limit_bytes):
        self.names_read.append(Path(path).name)
        return super().read(path, limit_bytes)


def test_a_look_up_stops_at_the_first_generation_that_is_not_there(tmp_path):
    reader = CountingReader()
    store = LooseStore(tmp_path, "objects", Record, reader=reader)
    assert store.get(RECORD.digest) == Miss(MissReason.ABSENT)
    assert reader.names_read == [f"{RECORD.digest}.0.rec"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_file_of_somebody_else_is_unreadable_and_stays(tmp_path, what):
    store = LooseStore(tmp_path, "objects", Record)
    store.publish(RECORD)
    place = entry_path(tmp_path / "objects", RECORD.digest, 0)
    closed = place if what == "file" else place.parent
    closed.chmod(0)
    for directory in [tmp_path, *tmp_path.parents]:
        if directory != Path("/") and str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(54321)
        answer = store.get(RECORD.digest)
        os.write(write_end, f"{type(answer).__name__} {getattr(answer, 'reason', '')}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read_end, 100) == b"Miss unreadable"
    closed.chmod(0o755)
    assert isinstance(store.get(RECORD.digest), Hit)


def test_reading_changes_nothing_on_disk(store, place, tmp_path):
    place.write_bytes(b"damage")
    store.publish(sample_record(2))
    before = {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in tmp_path.rglob("*")}
    for digest in (RECORD.digest, sample_record(2).digest, sample_record(3).digest):
        store.get(digest)
    list(store)
    verify(tmp_path)
    assert {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in tmp_path.rglob("*")} == before


def test_strange_names_are_found_and_never_listed(store, tmp_path):
    store.publish(RECORD)
    folder = entry_path(tmp_path / "objects", RECORD.digest, 0).parent
    for name in (
        "readme",
        "x" * 64 + ".0.rec",
        RECORD.digest + ".00.rec",
        RECORD.digest + ".0.rec.bak",
        ".host-1-ab.tmp",
        "A" * 64 + ".0.rec",
    ):
        (folder / name).write_bytes(SEALED)
    (tmp_path / "objects" / "not-hex").mkdir()
    (tmp_path / "objects" / ("00" if not RECORD.digest.startswith("00") else "01")).mkdir()
    assert list(store) == [RECORD.digest]
    assert len(store) == 1
    reasons = sorted(finding.reason for finding in verify(tmp_path).findings)
    assert reasons == [LEFTOVER] + [STRAY] * 6


def test_a_record_in_the_folder_of_other_digests_is_a_stray(store, tmp_path):
    store.publish(RECORD)
    wrong = tmp_path / "objects" / ("ff" if not RECORD.digest.startswith("ff") else "fe")
    wrong.mkdir()
    entry_path(tmp_path / "objects", RECORD.digest, 0).rename(wrong / f"{RECORD.digest}.0.rec")
    assert store.get(RECORD.digest) == Miss(MissReason.ABSENT)
    assert [finding.reason for finding in verify(tmp_path).findings] == [STRAY]


def test_a_higher_generation_serves_if_it_is_valid(store, tmp_path):
    store.publish(RECORD)
    better = sample_record(1, times_ns={0: 1})
    path = entry_path(tmp_path / "objects", RECORD.digest, 1)
    path.write_bytes(seal(better.to_value()))
    answer = store.get(RECORD.digest)
    assert isinstance(answer, Hit)
    assert answer.entry == better
    path.write_bytes(SEALED[:-1])
    answer = store.get(RECORD.digest)
    assert isinstance(answer, Hit)
    assert answer.entry == RECORD
    entry_path(tmp_path / "objects", RECORD.digest, 0).write_bytes(b"")
    path.write_bytes(seal(better.to_value()))
    answer = store.get(RECORD.digest)
    assert isinstance(answer, Hit)
    assert answer.entry == better


def test_the_highest_of_many_generations_serves(store, tmp_path):
    store.publish(RECORD)
    for generation in range(1, 12):
        path = entry_path(tmp_path / "objects", RECORD.digest, generation)
        path.write_bytes(seal(sample_record(1, times_ns={0: generation}).to_value()))
    answer = store.get(RECORD.digest)
    assert isinstance(answer, Hit)
    assert answer.entry == sample_record(1, times_ns={0: 11})


def test_mtimes_do_not_matter(store, tmp_path):
    store.publish(RECORD)
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))
    assert isinstance(store.get(RECORD.digest), Hit)


def test_a_good_file_that_took_a_bad_ones_place_is_not_quarantined(tmp_path, monkeypatch):
    """Two processes find the same bad file; by the time the second moves it aside, the first has put a good one there."""
    store = LooseStore(tmp_path, "objects", Record)
    place = entry_path(tmp_path / "objects", RECORD.digest, 0)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"bad")
    theirs = sample_record(1, times_ns={0: 7})
    found_bad, replaced = threading.Event(), threading.Event()
    real_quarantine = LooseStore._quarantine

    def late(self, path, digest):
        found_bad.set()
        assert replaced.wait(10)
        real_quarantine(self, path, digest)

    answers = []
    slow = LooseStore(tmp_path, "objects", Record)
    monkeypatch.setattr(slow, "_quarantine", late.__get__(slow))
    thread = threading.Thread(target=lambda: answers.append(slow.publish(RECORD)))
    thread.start()
    assert found_bad.wait(10)
    assert isinstance(store.publish(theirs), Published)
    replaced.set()
    thread.join(10)
    (answer,) = answers
    assert answer.entry == theirs
    assert store.get(RECORD.digest).entry == theirs
    assert len(SEALED) < MAX_SEALED_BYTES


def test_a_good_file_that_goes_back_replaces_nothing(tmp_path):
    """It was moved aside by mistake, and by the time it goes back a third process has published: what is there stays."""
    place = entry_path(tmp_path / "objects", RECORD.digest, 0)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"bad")
    others = LooseStore(tmp_path, "objects", Record)
    second, third = (sample_record(1, times_ns={0: time_ns}) for time_ns in (2, 3))
    published = []

    def meanwhile(name, number):
        if name == "rename" and not published:
            place.unlink()
            published.append(others.publish(second))
        elif len(published) == 1:
            published.append(others.publish(third))

    answer = LooseStore(tmp_path, "objects", Record, writer=FaultyWriter(meanwhile)).publish(RECORD)
    assert [type(row) for row in published] == [Published, Published]
    assert answer.entry == third
    assert others.get(RECORD.digest).entry == third
    assert list((tmp_path / "quarantine").iterdir()) == []


def test_every_bad_file_is_kept_in_quarantine(store, place, tmp_path):
    for content in (b"one", b"another", b"one"):
        place.unlink(missing_ok=True)
        place.write_bytes(content)
        assert isinstance(store.publish(RECORD), Published)
    assert sorted(path.read_bytes() for path in (tmp_path / "quarantine").iterdir()) == [b"another", b"one"]


class RefusingReader(OsFileSystem):
    """A disk that does not give one file's content."""

    def read(self, path, limit_bytes):
        raise DamagedError(MissReason.UNREADABLE, "Input/output error")


def test_a_file_that_cannot_be_read_is_not_moved_aside(store, place, tmp_path):
    store.publish(RECORD)
    refusing = LooseStore(tmp_path, "objects", Record, reader=RefusingReader())
    with pytest.raises(StoreIOError, match="unreadable"):
        refusing.publish(sample_record(1, times_ns={0: 1}))
    assert place.read_bytes() == SEALED
    assert not (tmp_path / "quarantine").exists()
