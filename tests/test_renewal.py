"""Mode refresh, without FlashInfer: everything is measured again, and the better one of two measurements counts."""

from dataclasses import replace

import pytest

from fi_cachestore.config import Mode
from fi_cachestore.coordination.local import LocalCoordinator
from fi_cachestore.session import Ports, Session
from fi_cachestore.store.port import Hit
from fi_cachestore.store.roots import open_root
from fi_cachestore.testing.faults import DISK_FULL, FaultyWriter, fail_at
from fi_cachestore.testing.samples import sample_key, sample_record
from fi_cachestore.work import Answered, Elsewhere, Limits, Mine
from tests.test_session import ManualClock

OLD = sample_record(1, times_ns={0: 100, 1: 200})
KEY = sample_key(1)


def today(times_ns, clock):
    record = sample_record(1, times_ns=times_ns)
    return replace(record, provenance=replace(record.provenance, measured_unix_ns=clock.unix_ns()))


class World:
    def __init__(self, root, **changes):
        self.root, self.changes = root, changes
        self.clock, self.coordinator = ManualClock(), LocalCoordinator()
        self.clock.now_ns = OLD.provenance.measured_unix_ns  # later than the records that are there
        open_root(root, durable=False).records.publish(OLD)

    def session(self, mode=Mode.REFRESH, **ports):
        opened = open_root(self.root, durable=False, **self.changes)
        given = {"rules": None, "coordinator": self.coordinator, "clock": self.clock, "successors": opened.successors, **ports}
        return Session(mode, Ports(opened.records, **given), Limits(60))

    def stored(self):
        return open_root(self.root).records.get(KEY.digest).entry


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def measure(session, record):
    mine = session.begin(KEY)
    assert isinstance(mine, Mine)
    return session.finish(mine, record)


def test_what_is_stored_is_measured_again_once(world):
    session = world.session()
    assert session.answered([KEY]) is None
    kept = measure(session, today({0: 100, 1: 200}, world.clock))
    assert kept == OLD
    assert session.begin(KEY) == Answered(OLD)
    assert session.answered([KEY]) == OLD
    assert session.report().renewed_count == 0
    assert isinstance(world.session().begin(KEY), Mine)  # the next session that refreshes


def test_it_serves_meanwhile(world):
    session = world.session()
    assert session.find(KEY.digest).entry == OLD


def test_a_better_measurement_takes_its_place(world):
    session = world.session()
    better = today({0: 100, 1: 50}, world.clock)
    assert measure(session, better) == better
    assert session.find(KEY.digest).entry == better
    assert session.begin(KEY) == Answered(better)
    assert world.stored() == better
    assert session.report().renewed_count == 1
    assert world.session(Mode.AUTO).begin(KEY) == Answered(better)


def test_one_within_the_tie_band_does_not(world):
    session = world.session()
    assert measure(session, today({0: 100, 1: 99}, world.clock)) == OLD
    assert session.find(KEY.digest).entry == OLD
    assert world.stored() == OLD


def test_what_is_new_is_published_as_ever(world):
    session = world.session()
    record = sample_record(7)
    assert session.finish(session.begin(record.key), record) == record
    assert open_root(world.root).records.get(record.digest).entry == record


def test_of_two_that_refresh_at_once_the_second_serves_what_the_first_renewed(world):
    first, second = world.session(), world.session()
    second.find(KEY.digest)  # the old one is in its memory
    mine = first.begin(KEY)
    assert isinstance(second.begin(KEY), Elsewhere)
    better = today({0: 100, 1: 50}, world.clock)
    first.finish(mine, better)
    second.await_any([KEY])
    assert second.begin(KEY) == Answered(better)
    assert second.find(KEY.digest).entry == better


def test_of_two_that_refresh_at_once_the_second_measures_what_the_first_left(world):
    first, second = world.session(), world.session()
    mine = first.begin(KEY)
    assert isinstance(second.begin(KEY), Elsewhere)
    first.finish(mine, today({0: 100, 1: 200}, world.clock))
    second.await_any([KEY])
    assert isinstance(second.begin(KEY), Mine)


def test_somebody_elses_successor_counts(world):
    """Claims do not work here: two sessions measure the same key, and the first one that publishes wins."""
    first, second = world.session(coordinator=LocalCoordinator()), world.session(coordinator=LocalCoordinator())
    mine, theirs = first.begin(KEY), second.begin(KEY)
    better, best = today({0: 100, 1: 50}, world.clock), today({0: 100, 1: 20}, world.clock)
    assert first.finish(mine, better) == better
    assert second.finish(theirs, best) == better
    assert world.stored() == better


def test_what_somebody_else_renewed_counts_also_where_our_own_measurement_is_no_better(world):
    first, second = world.session(coordinator=LocalCoordinator()), world.session(coordinator=LocalCoordinator())
    second.find(KEY.digest)
    mine, theirs = first.begin(KEY), second.begin(KEY)
    better = today({0: 100, 1: 50}, world.clock)
    first.finish(mine, better)
    assert second.finish(theirs, today({0: 50, 1: 50}, world.clock)) == better
    assert second.find(KEY.digest).entry == better


def test_what_may_not_be_shared_counts_in_memory(world):
    session = world.session()
    better = today({0: 100, 1: 50}, world.clock)
    assert session.finish(replace(session.begin(KEY), share=False), better) == better
    assert session.find(KEY.digest).entry == better
    assert world.stored() == OLD
    assert list(session.known.held()) == []
    assert session.report().unshared_count == 1


def test_a_full_disk_costs_a_warning(tmp_path, caplog):
    World(tmp_path)
    world = World(tmp_path, writer=FaultyWriter(fail_at("write", DISK_FULL)))
    session = world.session()
    better = today({0: 100, 1: 50}, world.clock)
    assert measure(session, better) == better
    assert "stay in memory" in caplog.text
    assert world.stored() == OLD


def test_other_modes_do_not_measure_again(world):
    assert world.session(Mode.AUTO).begin(KEY) == Answered(OLD)
    assert isinstance(world.session(Mode.REPLAY).find(KEY.digest), Hit)
