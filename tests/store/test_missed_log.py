"""Kept misses: bounds, hostile files, and file systems that refuse."""

import errno
import os
from dataclasses import replace

import pytest

from fi_cachestore.coordination.port import SystemClock
from fi_cachestore.errors import DamagedError, Gap, StoreIOError
from fi_cachestore.keys.canonical import MAX_BYTES, Named
from fi_cachestore.missed import MAX_COUNT, MAX_ROWS_BYTES, MissCollector
from fi_cachestore.records.envelope import MAGIC, seal, unseal
from fi_cachestore.records.missed import Beyond, InMemory, Missed, MissedSession
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.missed_log import KEPT_COUNT, MissedLog
from fi_cachestore.testing.samples import sample_key, sample_record

SESSION = MissedSession(
    library="fi_cachestore 1",
    host="host",
    pid=7,
    mode="replay",
    roots=("/a", "/b"),
    started_unix_ns=1,
    ended_unix_ns=2,
    decided_count=3,
    dropped_count=4,
    missed=(Missed(sample_key().canonical, "absent", "", 2, is_covered=False),),
    in_memory=(InMemory("op", "incomplete key", ("one", "two"), 1),),
    beyond=(Beyond("op", 0, 256, 1000, 5),),
)


def collector(log):
    return MissCollector(log, SystemClock(), "fi_cachestore 1")


def written(log, made):
    made.write("auto", [], lambda digest: False)
    return next(log.latest())


def test_a_session_comes_back_as_it_was(tmp_path):
    log = MissedLog(tmp_path)
    log.append(SESSION)
    log.append(replace(SESSION, pid=8))
    assert list(log.latest()) == [replace(SESSION, pid=8), SESSION]


# -- bounds -----------------------------------------------------------------------------------------------------------------------


def test_more_misses_than_the_limit_are_counted(tmp_path):
    log = MissedLog(tmp_path)
    made = collector(log)
    for number in range(MAX_COUNT + 5):
        made.missed(sample_key(number), "absent", "", is_covered=False)
        made.in_memory(f"op{number}", "incomplete key", ())
        made.beyond(f"op{number}", 0, 256, 1000)
    kept = written(log, made)
    assert (len(kept.missed), len(kept.in_memory), len(kept.beyond)) == (MAX_COUNT,) * 3
    assert kept.dropped_count == 15
    made.missed(sample_key(0), "corrupt", "", is_covered=False)
    assert written(log, made).missed[0].reason == "corrupt"


def test_keys_of_any_length_stay_below_the_limit(tmp_path):
    log = MissedLog(tmp_path)
    made = collector(log)
    for number in range(64):
        made.missed(sample_key(number, arguments={"text": "x" * (MAX_ROWS_BYTES // 8)}), "absent", "y" * MAX_BYTES, is_covered=False)
    kept = written(log, made)
    assert len(kept.missed) == 7
    assert kept.dropped_count == 57
    assert sum(len(missed.canonical) for missed in kept.missed) <= MAX_ROWS_BYTES


def test_texts_of_any_kind_are_kept(tmp_path):
    log = MissedLog(tmp_path)
    made = collector(log)
    made.missed(sample_key(), "corrupt", "/a/\udcff/b", is_covered=True)
    made.in_memory("op\udcff", "incomplete key", tuple(Gap("runner", f"field{n}", "type", "\ud800" * 10_000) for n in range(100)))
    kept = written(log, made)
    assert kept.missed[0].detail == "/a/\\udcff/b"
    assert len(kept.in_memory[0].gaps) == 8


def test_what_is_kept_in_full_fits_the_format(tmp_path):
    log = MissedLog(tmp_path)
    made = collector(log)
    for number in range(2 * MAX_COUNT):
        made.missed(sample_key(number), "absent", "\udcff" * 1000, is_covered=False)
        made.in_memory(f"op{number}", "x" * 1000, tuple(Gap("runner", f"field{n}", "type", "\udcff" * 1000) for n in range(8)))
        made.beyond(f"{number}" + "\udcff" * 1000, 0, 256, 1000)
    assert len(written(log, made).missed) > 0


# -- hostile files ----------------------------------------------------------------------------------------------------------------


def content(**changes):
    return {**SESSION.to_value().content, **changes}


HOSTILE = {
    "empty": b"",
    "text": b"not ours",
    "magic": MAGIC,
    "cut": seal(SESSION.to_value())[:-1],
    "record": seal(sample_record().to_value()),
    "other kind": seal(Named("fi_cachestore.missed/2", content())),
    "no dict": seal(Named("fi_cachestore.missed/1", [1])),
    "missing field": seal(Named("fi_cachestore.missed/1", {"pid": 1})),
    "field of another type": seal(Named("fi_cachestore.missed/1", content(pid="7"))),
    "bool for int": seal(Named("fi_cachestore.missed/1", content(pid=True))),
    "root that is no text": seal(Named("fi_cachestore.missed/1", content(roots=(1,)))),
    "gap that is no text": seal(Named("fi_cachestore.missed/1", content(in_memory=[("op", "why", (b"gap",), 1)]))),
    "row too short": seal(Named("fi_cachestore.missed/1", content(missed=[(b"key",)]))),
    "row too long": seal(Named("fi_cachestore.missed/1", content(beyond=[("op", 0, 1, 2, 3, 4)]))),
    "row of another type": seal(Named("fi_cachestore.missed/1", content(beyond=[["op", 0, 1, 2, 3]]))),
    "key that is none": seal(Named("fi_cachestore.missed/1", content(missed=[(b"key", "absent", "", 1, False)]))),
    "nothing but rows": seal(Named("fi_cachestore.missed/1", content(missed=7))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_files_count_as_absent(tmp_path, name):
    log = MissedLog(tmp_path)
    log.append(SESSION)
    (log.folder / "00000001.rec").write_bytes(HOSTILE[name])
    assert list(log.latest()) == [SESSION]
    with pytest.raises(DamagedError):
        MissedSession.from_value(unseal(HOSTILE[name]))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)])
def test_names_that_are_no_files_are_passed_over(tmp_path, make):
    log = MissedLog(tmp_path)
    log.append(SESSION)
    make(log.folder / "00000001.rec")
    (log.folder / "00000002.rec").write_bytes(bytes(2 * MAX_BYTES))
    (log.folder / "readme").write_text("other")
    assert list(log.latest()) == [SESSION]
    log.append(replace(SESSION, pid=9))
    assert next(log.latest()).pid == 9


def test_the_highest_number_ends_in_nothing_kept_and_nothing_raised(tmp_path):
    log = MissedLog(tmp_path)
    log.folder.mkdir(parents=True)
    (log.folder / "99999999.rec").write_bytes(b"")
    made = collector(log)
    for number in range(3):
        made.missed(sample_key(number), "absent", "", is_covered=False)
        made.write("auto", [], lambda digest: False)
    assert list(log.latest()) == []


# -- file systems that refuse -----------------------------------------------------------------------------------------------------


class Refusing(OsFileSystem):
    def __init__(self, number):
        self.number = number

    def create(self, path, data, *, durable):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_file_system_that_refuses_is_not_the_engines_business(tmp_path, number):
    log = MissedLog(tmp_path, writer=Refusing(number))
    with pytest.raises(StoreIOError):
        log.append(SESSION)
    made = collector(log)
    made.missed(sample_key(), "absent", "", is_covered=False)
    made.write("auto", [], lambda digest: False)
    assert list(log.latest()) == []


def test_a_fork_leaves_the_file_of_its_parent(tmp_path):
    log = MissedLog(tmp_path)
    made = collector(log)
    made.missed(sample_key(), "absent", "", is_covered=False)
    made.write("auto", [], lambda digest: False)
    child = os.fork()
    if child == 0:
        made.missed(sample_key(1), "absent", "", is_covered=False)
        made.write("auto", [], lambda digest: False)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert [len(session.missed) for session in log.latest()] == [2, 1]
    assert KEPT_COUNT > 2
