"""Better measurements of what is stored: new generations, the first writer of each wins, and the highest sound one serves."""

import multiprocessing
from pathlib import Path

import pytest

from fi_cachestore.errors import StoreIOError
from fi_cachestore.records.record import Record
from fi_cachestore.store.fsck import verify
from fi_cachestore.store.loose import MAX_GENERATIONS, LooseStore, entry_path
from fi_cachestore.store.open import open_store
from fi_cachestore.store.port import Hit, Present, Published
from fi_cachestore.store.roots import open_root
from fi_cachestore.testing.faults import DISK_FULL, FaultyWriter, fail_at
from fi_cachestore.testing.samples import sample_record

from .packs import pack, packed_store

FORK = multiprocessing.get_context("fork")


def timed(time_ns):
    return sample_record(1, times_ns={0: time_ns})


DIGEST = timed(1).digest


@pytest.fixture
def root(tmp_path):
    store = packed_store(tmp_path)
    store.publish(timed(50))
    return tmp_path


def place(root, generation):
    return entry_path(root / "objects", DIGEST, generation)


def served(root):
    return open_store(root).get(DIGEST).entry


def test_the_next_generation_serves_and_the_one_before_stays(root):
    store = packed_store(root)
    before = place(root, 0).read_bytes()
    for number, time_ns in enumerate((40, 30, 20), 1):
        assert store.supersede(timed(time_ns), timed(time_ns + 10)) == Published(str(place(root, number)))
        assert served(root) == store.get(DIGEST).entry == timed(time_ns)
    assert place(root, 0).read_bytes() == before
    assert verify(root).findings == ()


def test_a_successor_of_what_does_not_serve_any_more_is_too_late(root):
    store = packed_store(root)
    store.supersede(timed(40), timed(50))
    answer = packed_store(root).supersede(timed(10), timed(50))
    assert (type(answer), answer.entry) == (Present, timed(40))
    assert served(root) == timed(40)


def test_the_first_writer_of_a_generation_wins(root):
    """Another process is first between our look and our file."""

    class Late(LooseStore):
        def publish_after(self, entry, generation):
            packed_store(root).supersede(timed(40), timed(50))
            return super().publish_after(entry, generation)

    store = packed_store(root)
    store._own = Late(root, "objects", Record, durable=False)
    answer = store.supersede(timed(10), timed(50))
    assert (type(answer), answer.entry) == (Present, timed(40))
    assert served(root) == timed(40)


def test_a_generation_that_was_packed_meanwhile_counts_and_ours_is_taken_back(root):
    class Late(LooseStore):
        def publish_after(self, entry, generation):
            other = packed_store(root)
            other.supersede(timed(40), timed(50))
            pack(root)
            return super().publish_after(entry, generation)

    store = packed_store(root)
    store._own = Late(root, "objects", Record, durable=False)
    answer = store.supersede(timed(10), timed(50))
    assert (type(answer), answer.entry) == (Present, timed(40))
    assert not place(root, 1).exists()
    assert served(root) == timed(40)


def test_generations_go_on_after_packing(root):
    packed_store(root).supersede(timed(40), timed(50))
    pack(root)
    assert not place(root, 0).exists()
    assert packed_store(root).supersede(timed(30), timed(40)) == Published(str(place(root, 2)))
    assert served(root) == timed(30)
    pack(root)
    assert served(root) == timed(30)
    assert verify(root).findings == ()


def test_a_bad_file_in_the_place_is_passed_over(root):
    place(root, 1).write_bytes(b"bad")
    assert packed_store(root).supersede(timed(40), timed(50)) == Published(str(place(root, 2)))
    assert served(root) == timed(40)


def test_where_nothing_serves_a_successor_is_the_first_generation(tmp_path):
    store = packed_store(tmp_path)
    assert store.supersede(timed(40), timed(50)) == Published(str(place(tmp_path, 0)))
    assert served(tmp_path) == timed(40)


def test_a_root_over_a_read_only_layer_gets_its_own(root, tmp_path):
    own = tmp_path / "own"
    opened = open_root(own, after=[root], durable=False)
    assert opened.records.get(DIGEST).entry == timed(50)
    assert isinstance(opened.successors.supersede(timed(40), timed(50)), Published)
    assert open_root(own, after=[root]).records.get(DIGEST).entry == timed(40)
    assert served(root) == timed(50)


def test_generations_run_out(root):
    store = packed_store(root)
    for number in range(1, MAX_GENERATIONS):
        assert isinstance(store.supersede(timed(1000 - number), store.get(DIGEST).entry), Published)
    with pytest.raises(StoreIOError, match="no generation left"):
        store.supersede(timed(1), store.get(DIGEST).entry)
    assert isinstance(store.get(DIGEST), Hit)


def test_a_full_disk_is_an_error_and_the_old_one_serves(root):
    open_root(root)
    opened = open_root(root, writer=FaultyWriter(fail_at("write", DISK_FULL)))
    with pytest.raises(StoreIOError):
        opened.successors.supersede(timed(40), timed(50))
    assert served(root) == timed(50)


def race(root, number, start, results):
    store = open_root(Path(root), durable=False).successors
    start.wait(60)
    answer = store.supersede(timed(number + 1), timed(50))
    results.put((type(answer) is Published, timed(number + 1) if type(answer) is Published else answer.entry))


@pytest.mark.parametrize("attempt", range(3))
def test_of_eight_processes_one_wins_and_all_know_it(root, attempt):
    start, results = FORK.Barrier(8), FORK.Queue()
    processes = [FORK.Process(target=race, args=(str(root), number, start, results)) for number in range(8)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum(published for published, _ in answers) == 1
    assert {record.digest for _, record in answers} == {DIGEST}
    assert [record for _, record in answers] == [served(root)] * 8
