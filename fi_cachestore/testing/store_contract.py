"""What every store must do, as a test class to inherit from: ``class TestMine(StoreContract): def make(self, tmp_path): ...``."""

from __future__ import annotations

import threading
from abc import abstractmethod
from pathlib import Path

import pytest

from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.record import Record
from fi_cachestore.store.port import Hit, Miss, Present, Published, Store
from fi_cachestore.testing.samples import sample_key, sample_record


class StoreContract:
    """The contract. ``make`` returns an empty store under ``tmp_path``; ``reopen`` another view of the same entries."""

    @abstractmethod
    def make(self, tmp_path: Path) -> Store[Record]:
        """Return an empty store."""

    def reopen(self, store: Store[Record], tmp_path: Path) -> Store[Record]:  # noqa: ARG002 - for stores that have a place
        """Return a second view of the same entries; a store without a place returns itself."""
        return store

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store[Record]:
        """An empty store."""
        return self.make(tmp_path)

    def test_absent_is_a_miss(self, store: Store[Record]) -> None:
        """A digest that nobody stored is absent."""
        assert store.get(Digest("0" * 64)) == Miss(MissReason.ABSENT)

    def test_published_is_found_unchanged(self, store: Store[Record], tmp_path: Path) -> None:
        """What was published comes back equal, also in another view."""
        record = sample_record(1)
        assert isinstance(store.publish(record), Published)
        for view in (store, self.reopen(store, tmp_path)):
            answer = view.get(record.digest)
            assert isinstance(answer, Hit)
            assert answer.entry == record

    def test_first_writer_wins(self, store: Store[Record]) -> None:
        """A second record for the key changes nothing, and the second writer is given the first's."""
        first, second = sample_record(1), sample_record(1, times_ns={0: 1})
        store.publish(first)
        answer = store.publish(second)
        assert isinstance(answer, Present)
        assert answer.entry == first
        found = store.get(first.digest)
        assert isinstance(found, Hit)
        assert found.entry == first

    def test_keys_do_not_touch_each_other(self, store: Store[Record]) -> None:
        """Every key has its own entry."""
        records = [sample_record(number, times_ns={number: number + 1}) for number in range(20)]
        for record in records:
            store.publish(record)
        answers = [store.get(record.digest) for record in records]
        assert [answer.entry for answer in answers if isinstance(answer, Hit)] == records
        assert len(store) == len(records)
        digests = sorted(record.digest for record in records)
        assert list(store) == digests
        for prefix in ("", *(digests[3][:length] for length in (1, 2, 3, 64)), "x"):
            assert list(store.starting_with(prefix)) == [digest for digest in digests if digest.startswith(prefix)]
        store.refresh()
        assert list(store) == digests

    def test_true_and_one_are_two_keys(self, store: Store[Record]) -> None:
        """Keys that Python takes for equal are told apart."""
        as_bool, as_int = (sample_record(key=sample_key(arguments={"flag": flag})) for flag in (True, 1))
        store.publish(as_bool)
        assert store.get(as_int.digest) == Miss(MissReason.ABSENT)

    def test_many_threads_have_one_winner(self, store: Store[Record]) -> None:
        """Of threads that publish one key at once, one is first, and all see its record."""
        count = 8
        barrier = threading.Barrier(count)
        answers: list[Published | Present[Record]] = []

        def publish(number: int) -> None:
            record = sample_record(1, times_ns={0: number + 1})
            barrier.wait()
            answers.append(store.publish(record))

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(isinstance(answer, Published) for answer in answers) == 1
        found = store.get(sample_record(1).digest)
        assert isinstance(found, Hit)
        assert all(answer.entry == found.entry for answer in answers if isinstance(answer, Present))
