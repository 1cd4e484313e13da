"""A writer that is killed, or a file system that fails, at every step of a publish."""

import errno
import multiprocessing
import os
import signal
import stat

import pytest

from fi_cachestore.errors import StoreIOError
from fi_cachestore.records.envelope import seal
from fi_cachestore.records.record import Record
from fi_cachestore.records.rules import Rule, SessionRules
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.fsck import LEFTOVER, verify
from fi_cachestore.store.loose import LooseStore, entry_path
from fi_cachestore.store.port import Hit, Miss, Present, Published
from fi_cachestore.store.rules_log import RulesLog
from fi_cachestore.testing.faults import FaultyWriter, fail_at, kill_at
from fi_cachestore.testing.samples import sample_record

RECORD = sample_record(1)
RULES = SessionRules({"device": "cpu"}, (Rule((1, 2)),))


def no_fault(name, number):
    pass


def prepare(root, situation):
    """Nothing there, a bad file in the place, or another record that was first."""
    place = entry_path(root / "objects", RECORD.digest, 0)
    if situation == "bad file":
        place.parent.mkdir(parents=True)
        place.write_bytes(b"bad")
    if situation == "taken":
        LooseStore(root, "objects", Record).publish(sample_record(1, times_ns={0: 7}))


def steps_of(root, situation):
    writer = FaultyWriter(no_fault)
    prepare(root, situation)
    LooseStore(root, "objects", Record, writer=writer).publish(RECORD)
    return writer.steps


EXPECTED_STEPS = {
    "empty": ["open", "mkdir", "fsync", "open", "write", "write", "fsync", "link", "unlink", "fsync"],
    "taken": ["open", "write", "write", "fsync", "link", "unlink"],
    "bad file": ["open", "write", "write", "fsync", "link", "unlink", "mkdir", "rename", "rename"]
    + ["open", "write", "write", "fsync", "link", "unlink", "fsync"],
}


@pytest.mark.parametrize("situation", EXPECTED_STEPS)
def test_the_steps_of_a_publish(tmp_path, situation):
    assert steps_of(tmp_path, situation) == EXPECTED_STEPS[situation]


def killed_publish(root, number):
    LooseStore(root, "objects", Record, writer=FaultyWriter(kill_at(number))).publish(RECORD)


CRASHES = [(situation, number) for situation, steps in EXPECTED_STEPS.items() for number in range(1, len(steps) + 1)]


@pytest.mark.parametrize(("situation", "number"), CRASHES)
def test_a_kill_at_any_step_leaves_a_state_that_readers_handle(tmp_path, situation, number):
    prepare(tmp_path, situation)
    process = multiprocessing.get_context("fork").Process(target=killed_publish, args=(tmp_path, number))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    store = LooseStore(tmp_path, "objects", Record)
    first = sample_record(1, times_ns={0: 7})
    answer = store.get(RECORD.digest)
    if situation == "taken":
        assert isinstance(answer, Hit)
        assert answer.entry == first
    else:
        assert isinstance(answer, Miss) or answer.entry == RECORD
    assert {finding.reason for finding in verify(tmp_path).findings} <= {LEFTOVER, "corrupt"}
    again = store.publish(RECORD)  # the next start
    winner = first if situation == "taken" else RECORD
    assert isinstance(again, Published) or again.entry == winner
    found = store.get(RECORD.digest)
    assert isinstance(found, Hit)
    assert found.entry == winner
    assert list(store) == [RECORD.digest]


FAILURES = [
    (step, code) for step in ("open", "write", "fsync", "link", "mkdir") for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
]


@pytest.mark.parametrize(("step", "code"), [*FAILURES, ("link", errno.EPERM), ("link", errno.EOPNOTSUPP), ("open", errno.EACCES)])
def test_a_failing_step_is_reported_and_leaves_no_litter(tmp_path, step, code):
    store = LooseStore(tmp_path, "objects", Record, writer=FaultyWriter(fail_at(step, code)))
    with pytest.raises(StoreIOError) as caught:
        store.publish(RECORD)
    assert os.strerror(code) in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert isinstance(LooseStore(tmp_path, "objects", Record).get(RECORD.digest), Miss)


def test_a_failing_unlink_costs_a_leftover_and_nothing_else(tmp_path):
    store = LooseStore(tmp_path, "objects", Record, writer=FaultyWriter(fail_at("unlink", errno.EIO)))
    assert isinstance(store.publish(RECORD), Published)
    assert isinstance(store.get(RECORD.digest), Hit)
    assert [finding.reason for finding in verify(tmp_path).findings] == [LEFTOVER]


def test_an_interrupt_leaves_no_litter(tmp_path):
    def interrupt(name, number):
        if name == "fsync":
            raise KeyboardInterrupt

    place = entry_path(tmp_path / "objects", RECORD.digest, 0)
    place.parent.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        LooseStore(tmp_path, "objects", Record, writer=FaultyWriter(interrupt)).publish(RECORD)
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize("step", ["rename", "mkdir"])
def test_a_bad_file_that_cannot_be_moved_is_reported(tmp_path, step):
    prepare(tmp_path, "bad file")
    store = LooseStore(tmp_path, "objects", Record, writer=FaultyWriter(fail_at(step, errno.EACCES)))
    with pytest.raises(StoreIOError):
        store.publish(RECORD)
    assert isinstance(store.get(RECORD.digest), Miss)


def test_without_durability_nothing_is_synced(tmp_path):
    writer = FaultyWriter(no_fault)
    LooseStore(tmp_path, "objects", Record, durable=False, writer=writer).publish(RECORD)
    assert writer.steps == ["open", "mkdir", "open", "write", "write", "link", "unlink"]


def test_with_durability_content_is_synced_before_the_name_and_the_name_last(tmp_path):
    steps = steps_of(tmp_path, "empty")
    assert "fsync" in steps[steps.index("write") : steps.index("link")]
    assert steps[-1] == "fsync"


def test_the_real_file_system_syncs_the_new_folder_the_content_and_the_name(tmp_path, monkeypatch):
    synced, real_fsync = [], os.fsync

    def fsync(fd):
        status = os.fstat(fd)
        synced.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    LooseStore(tmp_path, "objects", Record).publish(RECORD)
    assert synced == ["folder", len(seal(RECORD.to_value())), "folder"]
    synced.clear()
    LooseStore(tmp_path, "objects", Record, durable=False).publish(sample_record(2))
    assert synced == []


def test_a_file_system_that_takes_a_few_bytes_at_a_time_gets_all(tmp_path, monkeypatch):
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, data[:100]))
    store = LooseStore(tmp_path, "objects", Record)
    assert isinstance(store.publish(RECORD), Published)
    answer = store.get(RECORD.digest)
    assert isinstance(answer, Hit)
    assert answer.entry == RECORD


def test_creating_touches_no_file_that_is_there(tmp_path):
    path = tmp_path / "taken"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        OsFileSystem().create(path, [b"new"], durable=False)
    assert path.read_bytes() == b"precious"


def publish_many(root, own_count, barrier, results):
    store = LooseStore(root, "objects", Record, durable=False)
    barrier.wait()
    outcomes = [type(store.publish(sample_record(number, times_ns={0: os.getpid()}))).__name__ for number in range(own_count)]
    results.put((os.getpid(), outcomes))


def test_many_processes_publishing_the_same_keys_have_one_winner_each(tmp_path):
    context = multiprocessing.get_context("fork")
    process_count, key_count = 6, 40
    barrier, results = context.Barrier(process_count), context.Queue()
    processes = [context.Process(target=publish_many, args=(tmp_path, key_count, barrier, results)) for _ in range(process_count)]
    for process in processes:
        process.start()
    outcomes = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
    store = LooseStore(tmp_path, "objects", Record)
    for number in range(key_count):
        winners = [pid for pid, rows in outcomes.items() if rows[number] == Published.__name__]
        assert len(winners) == 1
        assert store.get(sample_record(number).digest).entry == sample_record(number, times_ns={0: winners[0]})
    assert {row for rows in outcomes.values() for row in rows} == {Published.__name__, Present.__name__}
    assert verify(tmp_path).findings == ()


def killed_append(root, number):
    RulesLog(root, writer=FaultyWriter(kill_at(number))).append(RULES)


@pytest.mark.parametrize("number", range(1, 11))
def test_a_kill_while_rules_are_written_leaves_the_old_or_the_new(tmp_path, number):
    old = SessionRules({"device": "cpu"}, (Rule((8,)),))
    RulesLog(tmp_path).append(old)
    process = multiprocessing.get_context("fork").Process(target=killed_append, args=(tmp_path, number))
    process.start()
    process.join(30)
    assert process.exitcode in (0, -signal.SIGKILL)
    log = RulesLog(tmp_path)
    assert log.latest(RULES.digest) in ((old,), (RULES, old))
    log.append(RULES)
    assert log.latest(RULES.digest) == (RULES, old)


def test_rules_that_two_processes_write_at_once_are_both_kept(tmp_path):
    theirs = SessionRules({"device": "cpu"}, (Rule((8,)),))

    def meanwhile(name, number):
        if name == "link":
            RulesLog(tmp_path).append(theirs)

    log = RulesLog(tmp_path, writer=FaultyWriter(meanwhile))
    log.append(RULES)
    assert log.latest(RULES.digest) == (RULES, theirs)


def test_rules_keep_the_last_few_newest_first(tmp_path):
    log = RulesLog(tmp_path)
    made = [SessionRules({"device": "cpu"}, (Rule((size,)),)) for size in range(1, 21)]
    for rules in made:
        log.append(rules)
        log.append(rules)  # the same again changes nothing
    assert log.latest(RULES.digest) == tuple(reversed(made[-8:]))
    assert len(list((tmp_path / "sessions" / RULES.digest).iterdir())) == 8


def test_bad_rules_count_as_absent(tmp_path):
    log = RulesLog(tmp_path)
    log.append(RULES)
    folder = tmp_path / "sessions" / RULES.digest
    (folder / "00000001.rec").write_bytes(b"bad")
    (folder / "00000002.rec").mkdir()
    os.mkfifo(folder / "00000003.rec")
    (folder / "00000004.rec").write_bytes(seal(SessionRules({"device": "cuda"}, ()).to_value()))
    (folder / "notes.txt").write_text("hello")
    assert log.latest(RULES.digest) == (RULES,)
    newer = SessionRules({"device": "cpu"}, (Rule((3,)),))
    log.append(newer)
    assert log.latest(RULES.digest) == (newer, RULES)
    assert sorted(finding.reason for finding in verify(tmp_path).findings) == ["corrupt", "corrupt", "corrupt", "foreign", "stray"]
