"""Packing beside readers, publishers, other packers and kills: no record is lost, and the first writer stays the first."""

import errno
import multiprocessing
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fi_cachestore.coordination.files import FileCoordinator
from fi_cachestore.coordination.packing import TURN, pack_in_turn
from fi_cachestore.errors import StoreIOError
from fi_cachestore.records.envelope import FORMAT_VERSION, seal
from fi_cachestore.store.fsck import LEFTOVER, verify
from fi_cachestore.store.loose import entry_path
from fi_cachestore.store.memory import MemoryStore
from fi_cachestore.store.pack import HEADER, INDEX_ROW, Pack
from fi_cachestore.store.pack_writer import Sealed
from fi_cachestore.store.packing import WORTHWHILE_COUNT, Packer
from fi_cachestore.store.port import Hit, Miss, Present, Published
from fi_cachestore.testing.faults import FaultyWriter, fail_at, kill_at
from fi_cachestore.testing.samples import sample_record

from .packs import FILES, loose_files, make_pack, pack, pack_files, packed_reader, packed_store, packer, sealed

RECORDS = [sample_record(number) for number in range(12)]
FORK = multiprocessing.get_context("fork")


def publish(root, records):
    store = packed_store(root)
    for record in records:
        store.publish(record)


def write_loose(root, record, generation=0, data=None):
    path = entry_path(root / "objects", record.digest, generation)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(seal(record.to_value()) if data is None else data)
    return path


def contents(root, records=RECORDS):
    """Return what a new process is served for each record."""
    store = packed_reader(root)
    return [answer.entry if isinstance(answer := store.get(record.digest), Hit) else answer.reason for record in records]


def meanwhile(monkeypatch, owner, name, what):
    """Have ``what`` happen once, right before a method of ``owner`` is called."""
    real = getattr(owner, name)

    def after(*args, **kwargs):
        monkeypatch.undo()
        what()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, after)


def test_a_record_that_is_packed_while_it_is_looked_up_is_found_though_another_thread_has_listed_its_pack(tmp_path, monkeypatch):
    publish(tmp_path, RECORDS[:1])
    store = packed_store(tmp_path)
    store.refresh()

    def packed_and_listed():
        pack(tmp_path)
        store.refresh()  # as another thread does that shares the store

    meanwhile(monkeypatch, store._loose, "serving", packed_and_listed)
    assert isinstance(store.get(RECORDS[0].digest), Hit)
    assert loose_files(tmp_path) == []


def test_the_first_writer_stays_the_first_though_another_thread_has_listed_its_pack(tmp_path, monkeypatch):
    first, second = (sample_record(1, times_ns={0: time_ns}) for time_ns in (1, 2))
    store = packed_store(tmp_path)
    store.refresh()

    def published_packed_and_listed():
        publish(tmp_path, [first])
        pack(tmp_path)
        store.refresh()

    meanwhile(monkeypatch, store._own, "publish", published_packed_and_listed)
    answer = store.publish(second)
    assert isinstance(answer, Present)
    assert answer.entry == first
    assert loose_files(tmp_path) == []


def test_packing_moves_every_loose_record_into_one_pack(tmp_path):
    publish(tmp_path, RECORDS)
    done = pack(tmp_path)
    assert (done.record_count, done.removed_count, done.merged, done.why_not) == (12, 12, [], "")
    assert loose_files(tmp_path) == []
    assert [str(path) for path in pack_files(tmp_path)] == [done.path]
    assert contents(tmp_path) == RECORDS
    Pack(Path(done.path), FILES).check()


def test_packing_nothing_makes_nothing(tmp_path):
    assert packer(tmp_path).plan().is_empty
    assert pack(tmp_path).path == ""
    assert list(tmp_path.iterdir()) == []
    publish(tmp_path, RECORDS)
    pack(tmp_path)
    before = pack_files(tmp_path)
    assert packer(tmp_path).plan().is_empty
    assert pack_files(tmp_path) == before


def test_small_packs_are_merged_and_large_ones_kept(tmp_path):
    """Doubling: as many packs as the logarithm of the records, whatever the order of events."""
    for number in range(64):
        publish(tmp_path, [sample_record(number)])
        pack(tmp_path)
        counts = sorted(Pack(path, FILES).count for path in pack_files(tmp_path))
        assert sum(counts) == number + 1
        assert all(count > sum(counts[:at]) for at, count in enumerate(counts))
    records = [sample_record(number) for number in range(64)]
    assert contents(tmp_path, records) == records
    sequences = [Pack(path, FILES).sequence for path in pack_files(tmp_path)]
    assert max(sequences) == 64


def test_packs_over_the_limit_are_merged_by_hand_only(tmp_path):
    make_pack(tmp_path, RECORDS[:4], sequence=1)
    publish(tmp_path, RECORDS[4:])
    ours = packer(tmp_path)
    assert ours.plan(merged_count=3).merged == ()
    assert [pack.count for pack in ours.plan(merged_count=4).merged] == [4]
    make_pack(tmp_path, [sample_record(number) for number in range(20, 60)], sequence=2)
    assert [pack.count for pack in ours.plan().merged] == [4]
    plan = ours.plan_one_pack()
    assert sorted(pack.count for pack in plan.merged) == [4, 40]
    ours.pack(plan)
    assert [Pack(path, FILES).count for path in pack_files(tmp_path)] == [52]
    assert ours.plan_one_pack().is_empty


def test_every_generation_is_packed_and_the_highest_serves(tmp_path):
    versions = [sample_record(1, times_ns={0: number + 1}) for number in range(3)]
    for generation, record in enumerate(versions[:2]):
        write_loose(tmp_path, record, generation)
    done = pack(tmp_path)
    assert (done.record_count, loose_files(tmp_path)) == (2, [])
    write_loose(tmp_path, versions[2], 2)
    publish(tmp_path, RECORDS[2:5])
    assert contents(tmp_path, versions[:1]) == versions[2:]
    pack(tmp_path)
    assert len(pack_files(tmp_path)) == 1
    assert contents(tmp_path, versions[:1]) == versions[2:]
    (found,) = (Pack(path, FILES) for path in pack_files(tmp_path))
    assert [row.generation for row in found.find(versions[0].digest)] == [0, 1, 2]


def test_bad_loose_files_stay_where_they_are(tmp_path):
    publish(tmp_path, RECORDS[:3])
    bad = write_loose(tmp_path, RECORDS[5], data=b"bad")
    foreign = write_loose(tmp_path, RECORDS[6], data=seal(RECORDS[7].to_value()))
    done = pack(tmp_path)
    assert (done.record_count, done.removed_count) == (3, 3)
    assert loose_files(tmp_path) == sorted([bad, foreign])


def test_only_bad_files_make_no_pack(tmp_path):
    write_loose(tmp_path, RECORDS[5], data=b"bad")
    assert pack(tmp_path).path == ""
    assert pack_files(tmp_path) == []


def test_a_loose_file_that_lost_against_a_pack_is_neither_packed_nor_removed(tmp_path):
    first, second = (sample_record(1, times_ns={0: number}) for number in (1, 2))
    make_pack(tmp_path, [first, *RECORDS[2:]], sequence=1)
    path = write_loose(tmp_path, second)
    done = pack(tmp_path)
    assert (done.path, done.removed_count) == ("", 0)
    assert path.exists()
    assert contents(tmp_path, [first]) == [first]


def test_a_loose_file_whose_pack_was_made_by_somebody_who_died_is_removed(tmp_path):
    publish(tmp_path, RECORDS)
    make_pack(tmp_path, [*RECORDS, sample_record(50)])
    done = pack(tmp_path)
    assert (done.path, done.removed_count, loose_files(tmp_path)) == ("", 12, [])
    assert contents(tmp_path) == RECORDS


def test_of_packs_that_disagree_the_merged_one_says_what_was_served(tmp_path):
    old, new = (sample_record(1, times_ns={0: number}) for number in (1, 2))
    make_pack(tmp_path, [old], sequence=1)
    make_pack(tmp_path, [new], sequence=2)
    publish(tmp_path, RECORDS[2:])
    assert contents(tmp_path, [old]) == [new]
    assert len(pack(tmp_path).merged) == 2
    assert contents(tmp_path, [old]) == [new]


def test_a_pack_with_something_bad_goes_to_quarantine_and_its_sound_records_on(tmp_path):
    bad = sealed(RECORDS[0])
    made = make_pack(tmp_path, [Sealed(bad.digest, 0, bad.data[:-1] + b"?", ""), *RECORDS[1:3]])
    publish(tmp_path, RECORDS[3:])
    done = pack(tmp_path)
    assert (done.record_count, len(done.merged)) == (11, 1)
    assert contents(tmp_path) == ["absent", *RECORDS[1:]]
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == [f"{made.digest}.bad"]


def test_a_bad_record_in_a_newer_pack_gives_way_to_the_sound_one_in_an_older(tmp_path):
    bad = sealed(RECORDS[0])
    make_pack(tmp_path, [RECORDS[0]], sequence=1)
    make_pack(tmp_path, [Sealed(bad.digest, 0, seal(RECORDS[1].to_value()), "")], sequence=2)
    publish(tmp_path, RECORDS[2:])
    assert len(pack(tmp_path).merged) == 2
    assert contents(tmp_path, RECORDS[:1]) == RECORDS[:1]


def test_a_record_of_a_later_version_goes_along_unread(tmp_path):
    from fi_cachestore.records import envelope

    front = envelope._HEADER.pack(envelope.MAGIC, FORMAT_VERSION + 1, 7) + b"unknown"
    later = front + envelope._check(front)
    digest = sample_record(40).digest
    make_pack(tmp_path, [Sealed(digest, 0, later, "")])
    publish(tmp_path, RECORDS)
    assert len(pack(tmp_path).merged) == 1
    (made,) = (Pack(path, FILES) for path in pack_files(tmp_path))
    assert made.sealed(made.find(digest)[0]) == later
    assert contents(tmp_path, [sample_record(40)]) == ["future-format"]


def test_a_pack_whose_index_is_out_of_order_is_left_alone(tmp_path):
    made = make_pack(tmp_path, RECORDS[:3])
    data = made.path.read_bytes()
    offset = data.index(bytes.fromhex(min(record.digest for record in RECORDS[:3])), HEADER.size + 3 * 800)
    rows = [data[offset + at * INDEX_ROW.size :][: INDEX_ROW.size] for at in range(3)]
    made.path.write_bytes(data[:offset] + rows[0] + rows[2] + rows[1] + data[offset + 3 * INDEX_ROW.size :])
    publish(tmp_path, RECORDS[3:])
    before = [entry for entry in contents(tmp_path) if not isinstance(entry, str)]
    assert len(before) >= 9
    done = pack(tmp_path)
    assert done.merged == []
    assert made.path.exists()
    assert [entry for entry in contents(tmp_path) if entry in before] == before
    Pack(Path(done.path), FILES).check()


def test_packing_does_not_remove_what_took_a_files_place(tmp_path):
    """Between packing and removing, somebody deleted the file and another process published anew."""
    publish(tmp_path, RECORDS[:3])
    other = sample_record(0, times_ns={0: 77})

    def meanwhile(name, number):
        if name == "link":
            write_loose(tmp_path, other)

    done = pack(tmp_path, writer=FaultyWriter(meanwhile))
    assert (done.record_count, done.removed_count) == (3, 2)
    assert len(loose_files(tmp_path)) == 1
    assert contents(tmp_path, RECORDS[:3]) == RECORDS[:3]


def test_a_packer_gives_up_if_another_pack_appears_while_it_reads(tmp_path):
    """Its loose file may be one that its publisher is about to take back."""
    first, second = (sample_record(1, times_ns={0: number}) for number in (1, 2))
    write_loose(tmp_path, second)

    def meanwhile(name, number):
        if name == "open":
            make_pack(tmp_path, [first])

    done = pack(tmp_path, writer=FaultyWriter(meanwhile))
    assert done.path == ""
    assert "another process" in done.why_not
    assert contents(tmp_path, [first]) == [first]
    assert len(pack_files(tmp_path)) == 1
    assert [path for path in (tmp_path / "packs").iterdir() if path.suffix == ".tmp"] == []


# -- kills and failures at every step -------------------------------------------------------------------------------------------------------


def prepare(root):
    """Two packs, of which one is merged, and loose records of two generations."""
    make_pack(root, [sample_record(number) for number in range(100, 140)], sequence=1)
    make_pack(root, RECORDS[:2], sequence=2)
    publish(root, RECORDS[2:6])
    write_loose(root, sample_record(2, times_ns={0: 5}), 1)


ALL = [*RECORDS[:6], sample_record(100), sample_record(139)]
SERVED = [*RECORDS[:2], sample_record(2, times_ns={0: 5}), *ALL[3:]]


def steps_of_packing(tmp_path):
    prepare(tmp_path)
    writer = FaultyWriter(lambda name, number: None)
    pack(tmp_path, writer=writer)
    return writer.steps


STEPS = ["mkdir", "open", *["write"] * 6, "fsync", "link", "unlink", "fsync", "fsync", *["unlink"] * 5, "unlink"]


def test_the_steps_of_packing(tmp_path):
    assert steps_of_packing(tmp_path) == STEPS
    assert contents(tmp_path, ALL) == SERVED


def killed_pack(root, number):
    pack(root, writer=FaultyWriter(kill_at(number)))


@pytest.mark.parametrize("number", range(1, len(STEPS) + 1))
def test_a_kill_at_any_step_loses_nothing_and_the_next_packing_ends_the_work(tmp_path, number):
    prepare(tmp_path)
    process = FORK.Process(target=killed_pack, args=(tmp_path, number))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert contents(tmp_path, ALL) == SERVED
    assert {finding.reason for finding in verify(tmp_path).findings} <= {LEFTOVER}
    done = pack(tmp_path)
    assert contents(tmp_path, ALL) == SERVED
    assert loose_files(tmp_path) == [], done
    assert isinstance(packed_store(tmp_path).publish(sample_record(1, times_ns={0: 3})), Present)


FAILURES = [(step, code) for step in ("mkdir", "open", "write", "fsync", "link") for code in (errno.ENOSPC, errno.EROFS, errno.EIO)]


@pytest.mark.parametrize(("step", "code"), FAILURES)
def test_a_failing_step_is_reported_and_loses_nothing(tmp_path, step, code):
    prepare(tmp_path)
    with pytest.raises(StoreIOError):
        pack(tmp_path, writer=FaultyWriter(fail_at(step, code)))
    assert contents(tmp_path, ALL) == SERVED
    assert [path for path in (tmp_path / "packs").iterdir() if path.suffix == ".tmp"] == []
    assert pack(tmp_path).removed_count == 5


def test_files_that_cannot_be_removed_are_served_as_before(tmp_path):
    prepare(tmp_path)
    with pytest.raises(StoreIOError, match="merged"):
        pack(tmp_path, writer=FaultyWriter(fail_at("unlink", errno.EACCES)))
    assert contents(tmp_path, ALL) == SERVED
    pack(tmp_path)
    assert loose_files(tmp_path) == []


def test_loose_files_go_away_only_when_the_pack_is_on_the_medium(tmp_path):
    """The order that a power cut needs: content, its name, and only then the removal; also where publishing is not durable."""
    steps = steps_of_packing(tmp_path)
    linked = steps.index("link")
    assert "fsync" in steps[:linked]
    assert steps[linked + 1 : linked + 4] == ["unlink", "fsync", "fsync"]
    assert "fsync" not in steps[linked + 4 :]


# -- several at once ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [*STEPS[:2], "link", "unlink"])
def test_a_second_packer_at_any_step_is_harmless(tmp_path, at):
    prepare(tmp_path)
    ran = []

    def meanwhile(name, number):
        if name == at and not ran:
            ran.append(1)
            pack(tmp_path)

    pack(tmp_path, writer=FaultyWriter(meanwhile))
    assert ran
    assert contents(tmp_path, ALL) == SERVED
    pack(tmp_path)
    assert loose_files(tmp_path) == []
    assert verify(tmp_path).findings == ()


@pytest.mark.parametrize("number", range(1, len(STEPS) + 1))
def test_a_publisher_at_any_step_is_told_who_was_first(tmp_path, number):
    """With an old listing and with a new one; what it publishes itself is not lost."""
    prepare(tmp_path)
    old = packed_store(tmp_path)
    old.get(RECORDS[0].digest)
    answers = []

    def meanwhile(name, count):
        if count == number:
            for store in (old, packed_store(tmp_path)):
                answers.extend(store.publish(sample_record(index, times_ns={0: 9})) for index in (1, 2, 3))
            answers.append(old.publish(sample_record(60 + number)))

    pack(tmp_path, writer=FaultyWriter(meanwhile))
    assert [type(answer) for answer in answers] == [*[Present] * 6, Published]
    assert [answer.entry for answer in answers[:3]] == [RECORDS[1], answers[1].entry, RECORDS[3]]
    assert contents(tmp_path, [*ALL, sample_record(60 + number)]) == [*SERVED, sample_record(60 + number)]


@pytest.mark.parametrize("number", range(1, len(STEPS) + 1))
def test_a_reader_with_an_old_listing_loses_nothing_at_any_step(tmp_path, number):
    prepare(tmp_path)
    old = packed_reader(tmp_path)
    old.get(RECORDS[0].digest)
    seen = []

    def meanwhile(name, count):
        if count == number:
            for store in (old, packed_reader(tmp_path)):
                seen.append([store.get(record.digest) for record in ALL])
                seen[-1][2] = store.get(RECORDS[3].digest)  # of two generations an old listing may show the first; see below

    pack(tmp_path, writer=FaultyWriter(meanwhile))
    assert len(seen) == 2
    for answers in seen:
        assert [answer.entry for answer in answers] == [*SERVED[:2], RECORDS[3], *SERVED[3:]]
    after = packed_reader(tmp_path)
    assert after.get(RECORDS[2].digest).entry == SERVED[2]
    old.refresh()
    assert old.get(RECORDS[2].digest).entry == SERVED[2]


def publish_some(root, first, count, ready, published):
    store = packed_store(root)
    ready.wait()
    for number in range(first, first + count):
        record = sample_record(number, times_ns={0: os.getpid()})
        answer = store.publish(record)
        published.put((number, os.getpid() if isinstance(answer, Published) else 0))


def pack_again_and_again(root, ready, stop):
    ready.wait()
    while not stop.is_set():
        pack(root)
    pack(root)


def read_what_was_published(root, count, ready, stop, lost):
    """Once seen, a record is there for good, and stays the same."""
    store, seen = packed_reader(root), {}
    ready.wait()
    while not stop.is_set():
        for number in range(count):
            answer = store.get(sample_record(number).digest)
            if isinstance(answer, Hit):
                if seen.setdefault(number, answer.entry) != answer.entry:
                    lost.put((number, "changed"))
            elif number in seen or answer.reason != "absent":
                lost.put((number, str(answer)))


def test_publishers_packers_and_readers_of_many_processes_lose_nothing(tmp_path):
    count, each = 120, 60
    ready, stop = FORK.Barrier(7), FORK.Event()
    published, lost = FORK.Queue(), FORK.Queue()
    publishers = [FORK.Process(target=publish_some, args=(tmp_path, first, each, ready, published)) for first in (0, 30, 60)]
    others = [FORK.Process(target=pack_again_and_again, args=(tmp_path, ready, stop)) for _ in range(2)]
    others += [FORK.Process(target=read_what_was_published, args=(tmp_path, count, ready, stop, lost)) for _ in range(2)]
    for process in (*publishers, *others):
        process.start()
    answers = [published.get(timeout=120) for _ in range(3 * each)]
    stop.set()
    for process in (*publishers, *others):
        process.join(60)
        assert process.exitcode == 0
    assert lost.empty(), lost.get()
    winners = {}
    for number, pid in answers:
        winners.setdefault(number, set()).add(pid)
    pack(tmp_path)
    store = packed_reader(tmp_path)
    for number in range(count):
        assert len(winners[number] - {0}) == 1, number  # one of them was first, and no other was told so
        (winner,) = winners[number] - {0}
        assert store.get(sample_record(number).digest).entry == sample_record(number, times_ns={0: winner})
    assert loose_files(tmp_path) == []
    assert verify(tmp_path).findings == ()


# -- in turn, at the end of a session --------------------------------------------------------------------------------------------------------


def test_a_few_records_are_not_packed(tmp_path):
    publish(tmp_path, RECORDS)
    assert pack_in_turn(packer(tmp_path), FileCoordinator(tmp_path / "claims")) is None
    assert len(loose_files(tmp_path)) == len(RECORDS)
    assert not (tmp_path / "claims").exists()


def test_many_records_are_packed_by_whoever_is_first(tmp_path):
    records = [sample_record(number) for number in range(WORTHWHILE_COUNT)]
    publish(tmp_path, records)
    turns = FileCoordinator(tmp_path / "claims")
    other = turns.claim(TURN, "packing")
    assert pack_in_turn(packer(tmp_path), turns) is None
    other.release()
    assert pack_in_turn(packer(tmp_path), turns).removed_count == WORTHWHILE_COUNT
    assert contents(tmp_path, records) == records
    turns.claim(TURN, "packing").release()  # it was given back


def test_packing_in_turn_never_raises(tmp_path):
    records = [sample_record(number) for number in range(WORTHWHILE_COUNT)]
    publish(tmp_path, records)
    for step in ("mkdir", "open", "write", "fsync", "link"):
        refused = packer(tmp_path, writer=FaultyWriter(fail_at(step, errno.ENOSPC)))
        assert pack_in_turn(refused, FileCoordinator(tmp_path / "claims")) is None
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    assert isinstance(pack_in_turn(packer(tmp_path), FileCoordinator(blocked)).path, str)  # no claims here: it is packed all the same
    assert contents(tmp_path, records) == records


# -- any order of events against a model -----------------------------------------------------------------------------------------------------


class PackingMachine(RuleBasedStateMachine):
    """Publish, look up, pack, refresh, delete, from views that listed long ago and from new ones."""

    @initialize()
    def open(self):
        self.root = Path(tempfile.mkdtemp())
        self.model = MemoryStore()
        self.views = [packed_store(self.root) for _ in range(3)]

    def teardown(self):
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    @rule(number=st.integers(0, 7), time_ns=st.integers(1, 3), view=st.integers(0, 2))
    def publish(self, number, time_ns, view):
        record = sample_record(number, times_ns={0: time_ns})
        expected, answer = self.model.publish(record), self.views[view].publish(record)
        assert type(answer) is type(expected)
        if isinstance(answer, Present):
            assert answer.entry == expected.entry

    @rule()
    def pack(self):
        pack(self.root)

    @rule()
    def pack_into_one(self):
        ours = packer(self.root)
        ours.pack(ours.plan_one_pack())

    @rule(number=st.integers(0, 7), view=st.integers(0, 2))
    def pack_while_somebody_publishes(self, number, view):
        def meanwhile(name, count):
            if name == "open":
                self.publish(number=number, time_ns=2, view=view)

        pack(self.root, writer=FaultyWriter(meanwhile))

    @rule(view=st.integers(0, 2))
    def refresh(self, view):
        self.views[view].refresh()

    @rule(view=st.integers(0, 2))
    def reopen(self, view):
        self.views[view] = packed_store(self.root)

    @rule(number=st.integers(0, 7))
    def delete_loose(self, number):
        digest = sample_record(number).digest
        path = entry_path(self.root / "objects", digest, 0)
        if path.exists():
            path.unlink()
            self.model._entries.pop(digest)

    @rule()
    def delete_packs(self):
        """Views that have them open go on to serve them; only new ones are asked from then on."""
        shutil.rmtree(self.root / "packs", ignore_errors=True)
        loose = {path.name[:64] for path in loose_files(self.root)}
        for digest in set(self.model) - loose:
            self.model._entries.pop(digest)
        self.views = [packed_store(self.root) for _ in range(3)]

    @invariant()
    def every_view_answers_as_the_model(self):
        if not hasattr(self, "root"):
            return
        for view in (*self.views, packed_store(self.root)):
            for number in range(8):
                digest = sample_record(number).digest
                expected, answer = self.model.get(digest), view.get(digest)
                if isinstance(expected, Hit):
                    assert answer.entry == expected.entry
                else:
                    assert answer == Miss("absent")
            assert list(view) == sorted(self.model)


TestPackingMachine = PackingMachine.TestCase
TestPackingMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_a_packer_class_is_what_a_writable_root_has_and_a_read_one_has_not(tmp_path):
    from fi_cachestore.store.roots import open_read_only, open_root

    assert isinstance(open_root(tmp_path).packer, Packer)
    assert open_read_only(tmp_path).packer is None
