"""Sessions without FlashInfer: what is to be measured, by whom, and what becomes of it."""

import dataclasses
import errno
import json
import logging
import threading

import pytest

from fi_cachestore.config import Mode
from fi_cachestore.coordination.files import FileCoordinator
from fi_cachestore.coordination.local import LocalCoordinator
from fi_cachestore.coordination.port import Busy, SystemClock, Unavailable
from fi_cachestore.errors import Gap
from fi_cachestore.records.record import Record
from fi_cachestore.records.rules import NO_RULE, Rule
from fi_cachestore.session import Ports, Session
from fi_cachestore.store.loose import LooseStore
from fi_cachestore.store.memory import MemoryStore
from fi_cachestore.store.port import Hit, Miss
from fi_cachestore.store.rules_log import RulesLog
from fi_cachestore.testing.faults import DISK_FULL, FaultyWriter, fail_at
from fi_cachestore.testing.samples import sample_key, sample_record
from fi_cachestore.validation.ledger import Ledger
from fi_cachestore.work import Answered, Elsewhere, Limits, Mine, Spent

DEVICE = {"device": "cpu"}


class ManualClock:
    """Time that passes only when somebody sleeps; ``during_sleep`` is what happens meanwhile."""

    def __init__(self, during_sleep=lambda: None):
        self.now_ns = 0
        self.during_sleep = during_sleep

    def monotonic_ns(self):
        return self.now_ns

    def unix_ns(self):
        return 10**18 + self.now_ns

    def sleep(self, seconds):
        self.now_ns += int(seconds * 1e9)
        self.during_sleep()


class World:
    """One store and one place for claims, and sessions on them as different processes would have."""

    def __init__(self):
        self.store = MemoryStore()
        self.coordinator = LocalCoordinator()
        self.clock = ManualClock()

    def session(self, mode=Mode.AUTO, max_wait_s=60.0, **ports):
        given = {"records": self.store, "rules": None, "coordinator": self.coordinator, "clock": self.clock, **ports}
        return Session(mode, Ports(**given), Limits(max_wait_s))


@pytest.fixture
def world():
    return World()


def is_free(world, number):
    return not isinstance(world.coordinator.claim(sample_key(number).digest, "op"), Busy)


def test_what_nobody_has_is_mine_once_and_then_answered(world):
    session = world.session()
    mine = session.begin(sample_key(1))
    assert isinstance(mine, Mine)
    assert session.finish(mine, sample_record(1)) == sample_record(1)
    assert session.begin(sample_key(1)) == Answered(sample_record(1))
    assert world.session().begin(sample_key(1)) == Answered(sample_record(1))


def test_what_another_process_measures_is_elsewhere_until_it_is_done(world):
    first, second = world.session(), world.session()
    mine = first.begin(sample_key(1))
    assert isinstance(second.begin(sample_key(1)), Elsewhere)
    first.finish(mine, sample_record(1))
    second.await_any([sample_key(1)])
    assert second.begin(sample_key(1)) == Answered(sample_record(1))
    assert second.report().waited_count == 1
    assert second.report().hit_count == 0


def test_a_record_published_between_look_up_and_claim_is_found(world):
    """The look-up misses, the other process publishes and frees its claim, and only then do we get the claim."""
    late = world.session()
    assert isinstance(late.find(sample_key(1).digest), Miss)
    world.store.publish(sample_record(1))
    assert late.begin(sample_key(1)) == Answered(sample_record(1))
    assert is_free(world, 1)


def test_the_claim_is_free_when_the_work_is_finished_or_cannot_be(world):
    session = world.session()
    session.finish(session.begin(sample_key(1)), sample_record(1))
    assert is_free(world, 1)
    broken = world.session(records=BrokenStore())
    with pytest.raises(ZeroDivisionError):
        broken.finish(broken.begin(sample_key(2)), sample_record(2))
    assert is_free(world, 2)


class BrokenStore(MemoryStore):
    """Fails in a way that no store should."""

    def publish(self, entry):
        raise ZeroDivisionError


def test_the_first_of_two_results_of_one_session_stays(world):
    session = world.session()
    first, second = (sample_record(1, times_ns={0: time_ns}) for time_ns in (1, 2))
    for record in (first, second):
        assert session.finish(Mine(None, share=False), record) == first
    assert session.find(first.digest).entry == first


def test_a_record_in_memory_stays_the_one_that_counts(world):
    session = world.session()
    own, theirs = (sample_record(1, times_ns={0: time_ns}) for time_ns in (1, 2))
    session.finish(Mine(None, share=False), own)
    world.store.publish(theirs)
    assert session.known.look(own.digest).entry == own
    session.refresh()
    assert session.find(own.digest).entry == own
    assert session.begin(sample_key(1)) == Answered(own)


def test_a_claim_whose_holder_gives_up_is_ours_after_waiting(world):
    first, second = world.session(), world.session()
    mine = first.begin(sample_key(1))
    assert isinstance(second.begin(sample_key(1)), Elsewhere)
    world.clock.during_sleep = lambda: first.abandon(mine)
    second.await_any([sample_key(1)])
    assert isinstance(second.begin(sample_key(1)), Mine)


def test_waiting_ends_after_the_limit_and_the_result_stays_in_memory(world, caplog):
    first, second = world.session(), world.session(max_wait_s=5.0)
    mine = first.begin(sample_key(1))
    second.begin(sample_key(1))
    with caplog.at_level(logging.WARNING):
        second.await_any([sample_key(1)])
    assert 5e9 < world.clock.now_ns < 6e9
    assert "measuring here, for memory only" in caplog.text
    alone = second.begin(sample_key(1))
    assert alone == Mine(None, share=False)
    second.finish(alone, sample_record(1, times_ns={0: 7}))
    assert second.report().unshared_count == 1
    assert world.store.get(sample_key(1).digest) == Miss("absent")
    first.finish(mine, sample_record(1))
    assert second.begin(sample_key(1)) == Answered(sample_record(1, times_ns={0: 7}))


def test_the_limit_counts_from_the_first_wait(world):
    holder, waiter = world.session(), world.session(max_wait_s=5.0)
    keys = [sample_key(number) for number in range(2)]
    claims = [holder.begin(key) for key in keys]
    for key in keys:
        assert isinstance(waiter.begin(key), Elsewhere)

    def done_after_three_seconds():
        if world.clock.now_ns > 3e9 and isinstance(world.store.get(keys[1].digest), Miss):
            holder.finish(claims[1], sample_record(1))

    world.clock.during_sleep = done_after_three_seconds
    waiter.await_any(keys)
    assert isinstance(waiter.begin(keys[1]), Answered)
    waiter.await_any(keys[:1])
    assert 5e9 < world.clock.now_ns < 6e9
    assert waiter.begin(keys[0]) == Mine(None, share=False)


def test_waiting_takes_whichever_key_is_ready_first(world):
    holder, waiter = world.session(), world.session()
    claims = [holder.begin(sample_key(number)) for number in range(3)]
    keys = [sample_key(number) for number in range(3)]
    for key in keys:
        assert isinstance(waiter.begin(key), Elsewhere)
    world.clock.during_sleep = lambda: holder.finish(claims[2], sample_record(2))
    waiter.await_any(keys)
    assert isinstance(waiter.begin(keys[2]), Answered)
    assert isinstance(waiter.begin(keys[0]), Elsewhere)


def test_a_claim_taken_while_waiting_is_freed_if_it_is_not_used(world):
    first, second = world.session(), world.session()
    mine = first.begin(sample_key(1))
    second.begin(sample_key(1))
    first.abandon(mine)
    second.await_any([sample_key(1)])
    assert isinstance(world.session().begin(sample_key(1)), Elsewhere)
    second.drop([sample_key(1)])
    assert isinstance(world.session().begin(sample_key(1)), Mine)


def test_what_ran_out_of_memory_is_not_tried_again_in_the_session_and_publishes_nothing(world):
    session = world.session()
    session.give_up(session.begin(sample_key(1)), sample_key(1), counted_as="out_of_memory_count")
    assert session.begin(sample_key(1)) == Spent()
    assert session.report().out_of_memory_count == 1
    assert len(world.store) == 0
    assert isinstance(world.session().begin(sample_key(1)), Mine)


def test_a_record_without_a_working_tactic_is_kept(world):
    session = world.session()
    session.finish(session.begin(sample_key(1)), sample_record(1, times_ns={0: None}))
    assert session.report().failed_count == 1
    assert isinstance(world.session().begin(sample_key(1)), Answered)


def test_the_first_writer_wins_also_over_our_own_measurement(world):
    session = world.session(coordinator=NoClaims())
    mine = session.begin(sample_key(1))
    world.store.publish(sample_record(1, times_ns={0: 3}))
    assert session.finish(mine, sample_record(1)) == sample_record(1, times_ns={0: 3})
    assert session.find(sample_key(1).digest).entry == sample_record(1, times_ns={0: 3})


class NoClaims:
    def claim(self, digest, purpose):
        return Unavailable("no flock here")


def test_without_claims_everybody_measures_and_one_warning_says_so(world, caplog):
    sessions = [world.session(coordinator=NoClaims()) for _ in range(2)]
    with caplog.at_level(logging.WARNING):
        for session in sessions:
            for number in range(3):
                assert isinstance(session.begin(sample_key(number)), Mine)
    assert caplog.text.count("no flock here") == 2  # one per session


def test_other_keys_may_answer(world):
    world.store.publish(sample_record(2))
    session = world.session()
    assert session.begin(sample_key(1), [sample_key(2)]) == Answered(sample_record(2))
    assert session.answered([sample_key(3), sample_key(2)]) == sample_record(2)
    assert session.answered([sample_key(3)]) is None


def test_misses_are_remembered_until_refresh(world):
    session = world.session(mode=Mode.REPLAY)
    assert isinstance(session.find(sample_key(1).digest), Miss)
    world.store.publish(sample_record(1))
    assert isinstance(session.find(sample_key(1).digest), Miss)
    session.refresh()
    assert isinstance(session.find(sample_key(1).digest), Hit)
    assert session.report().misses == {"absent": 1}


def test_hits_are_counted_once_with_what_they_saved(world):
    world.store.publish(sample_record(1))
    session = world.session()
    for _ in range(3):
        session.begin(sample_key(1))
    assert session.report().hit_count == 1
    assert session.report().saved_ns == sample_record(1).provenance.tuning_ns


@pytest.mark.parametrize("step", ["open", "write", "fsync", "link"])
def test_a_full_disk_costs_one_warning_and_results_stay_in_memory(world, tmp_path, caplog, step):
    full = LooseStore(tmp_path, "objects", Record, writer=FaultyWriter(fail_at(step, DISK_FULL)))
    session = world.session(records=full)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            session.finish(session.begin(sample_key(number)), sample_record(number))
    assert caplog.text.count("No space left on device") == 1
    assert [session.find(sample_key(number).digest).entry for number in range(3)] == [sample_record(number) for number in range(3)]
    assert session.report().unshared_count == 3


def test_a_record_that_is_too_large_stays_in_memory(world, tmp_path, caplog):
    session = world.session(records=LooseStore(tmp_path, "objects", Record))
    large = sample_record(1, times_ns={(number, "x" * 200): number for number in range(4000)})
    with caplog.at_level(logging.WARNING):
        session.finish(session.begin(sample_key(1)), large)
        session.finish(session.begin(sample_key(2)), sample_record(2))
    assert "more than the" in caplog.text
    assert session.begin(sample_key(1)) == Answered(large)
    assert list(LooseStore(tmp_path, "objects", Record)) == [sample_key(2).digest]


def test_a_session_without_a_store_keeps_everything_in_memory(world):
    session = world.session(mode=Mode.EPHEMERAL, records=None)
    session.finish(session.begin(sample_key(1)), sample_record(1))
    assert session.begin(sample_key(1)) == Answered(sample_record(1))
    assert session.report().unshared_count == 1


def test_a_later_session_starts_with_what_an_earlier_one_keeps_in_memory(world):
    earlier = world.session(records=None)
    earlier.finish(earlier.begin(sample_key(1)), sample_record(1))
    later = Session(Mode.AUTO, Ports(None, None, world.coordinator, world.clock), Limits(1), earlier=earlier)
    assert later.begin(sample_key(1)) == Answered(sample_record(1))
    assert later.report().tuned_count == 0


def test_rules_last_from_session_to_session(world, tmp_path):
    log = RulesLog(tmp_path)
    session = world.session(rules=log)
    assert session.rules_in_force(DEVICE) == (NO_RULE,)
    rounds = [Rule((1, 2), round_up=True), Rule((64, 128), round_up=True), Rule((1, 2), round_up=True)]
    for rule in rounds:
        session.note_rule(DEVICE, rule)
    united = Rule((1, 2, 64, 128), round_up=True)
    expected = (united, Rule((1, 2), round_up=True), Rule((64, 128), round_up=True), NO_RULE)
    assert session.rules_in_force(DEVICE) == expected
    assert world.session(rules=log).rules_in_force(DEVICE) == (NO_RULE,)
    session.commit()
    assert world.session(rules=log).rules_in_force(DEVICE) == expected
    assert world.session(rules=log).rules_in_force({"device": "cuda"}) == (NO_RULE,)


def test_the_last_session_comes_first_and_earlier_ones_are_still_tried(world, tmp_path):
    log = RulesLog(tmp_path)
    for buckets in ((1, 2), (8, 16)):
        session = world.session(rules=log)
        session.note_rule(DEVICE, Rule(buckets))
        session.commit()
    assert world.session(rules=log).rules_in_force(DEVICE) == (Rule((8, 16)), Rule((1, 2)), NO_RULE)


def test_a_sessions_own_rules_come_before_those_it_found(world, tmp_path):
    log = RulesLog(tmp_path)
    earlier = world.session(rules=log)
    earlier.note_rule(DEVICE, Rule((1, 2)))
    earlier.commit()
    session = world.session(rules=log)
    session.note_rule(DEVICE, Rule((8, 16)))
    assert session.rules_in_force(DEVICE) == (Rule((8, 16)), Rule((1, 2)), NO_RULE)


def test_rules_of_others_are_found_after_refresh(world, tmp_path):
    log = RulesLog(tmp_path)
    session, other = world.session(rules=log), world.session(rules=log)
    assert session.rules_in_force(DEVICE) == (NO_RULE,)
    other.note_rule(DEVICE, Rule((1, 2)))
    other.commit()
    assert session.rules_in_force(DEVICE) == (NO_RULE,)
    session.refresh()
    assert session.rules_in_force(DEVICE) == (Rule((1, 2)), NO_RULE)


def test_a_session_under_every_ops_own_buckets_comes_before_earlier_rules(world, tmp_path):
    log = RulesLog(tmp_path)
    for rule in (Rule((1, 2)), NO_RULE):
        session = world.session(rules=log)
        session.note_rule(DEVICE, rule)
        session.commit()
    assert world.session(rules=log).rules_in_force(DEVICE) == (NO_RULE, Rule((1, 2)))


@pytest.mark.parametrize("mode", [Mode.REPLAY, Mode.EPHEMERAL])
def test_other_modes_keep_no_rules(world, tmp_path, mode):
    session = world.session(mode=mode, rules=RulesLog(tmp_path))
    session.note_rule(DEVICE, Rule((1,)))
    session.commit()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", Mode)
def test_only_a_session_that_publishes_leaves_an_overview_of_verdicts(world, mode, monkeypatch):
    kept = []
    monkeypatch.setattr(Ledger, "keep_overview", lambda *own: kept.extend(own))
    session = world.session(mode=mode, ledger=(ledger := Ledger(None)))
    assert kept == []
    session.commit()
    assert kept == ([ledger] if mode in (Mode.AUTO, Mode.REFRESH) else [])
    world.session(mode=mode).commit()
    world.session(mode=mode, ledger=ledger).leave()
    assert len(kept) <= 1


def test_rules_that_cannot_be_kept_cost_one_warning(world, tmp_path, caplog):
    session = world.session(rules=RulesLog(tmp_path, writer=FaultyWriter(fail_at("open", errno.EROFS))))
    session.note_rule(DEVICE, Rule((1,)))
    with caplog.at_level(logging.WARNING):
        session.commit()
        session.commit()
    assert caplog.text.count("Read-only file system") == 1


def test_a_report_for_programs_has_every_number_and_every_gap(world):
    session = world.session()
    session.finish(session.begin(sample_key(1)), sample_record(1))
    session.recorder.ephemeral("incomplete key", (Gap("module:Runner", "field", "builtins:object", "why"),))
    report = session.report()
    document = json.loads(json.dumps(report.to_json()))
    assert document["schema"] == "fi_cachestore.report/1"
    assert set(document) == {"schema", *(field.name for field in dataclasses.fields(report))}
    assert document["tuned_count"] == 1
    assert document["spent_ns"] == sample_record(1).provenance.tuning_ns
    assert document["ephemeral"] == {"incomplete key": 1}
    assert document["gaps"] == [{"subject": "module:Runner", "field": "field", "type": "builtins:object", "why": "why"}]


def test_threads_of_one_session_share_the_work(tmp_path):
    session = Session(
        Mode.AUTO,
        Ports(LooseStore(tmp_path, "objects", Record, durable=False), None, FileCoordinator(tmp_path / "claims"), SystemClock()),
        Limits(30),
    )
    count, keys = 4, [sample_key(number) for number in range(12)]
    barrier, measured = threading.Barrier(count), []

    def work():
        barrier.wait()
        pending = list(keys)
        while pending:
            elsewhere = []
            for key in pending:
                match session.begin(key):
                    case Mine() as mine:
                        measured.append(key.digest)
                        session.finish(mine, sample_record(keys.index(key)))
                    case Elsewhere():
                        elsewhere.append(key)
            if elsewhere:
                session.await_any(elsewhere)
            pending = elsewhere

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(measured) == sorted(key.digest for key in keys)
