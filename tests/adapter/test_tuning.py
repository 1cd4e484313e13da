"""Tuning through FlashInfer's own loop: who measures what, what is recorded, and what failing or dying in the middle costs."""

import contextlib
import fcntl
import math
import os
import shutil
import signal
import threading
from typing import ClassVar

import flashinfer.autotuner
import numpy as np
import pytest
import torch
from flashinfer.autotune_cache import MeasurementPolicy
from flashinfer.autotuner import AutoTuner, ConstraintSpec, TuningConfig

import fi_cachestore
from fi_cachestore.adapter import attach as attach_module
from fi_cachestore.adapter import cuda
from fi_cachestore.adapter.frames import OwnObjects
from fi_cachestore.adapter.tactics import find_in, is_default, tactic_value
from fi_cachestore.coordination.files import FileCoordinator
from fi_cachestore.coordination.port import Busy, SystemClock
from fi_cachestore.records.choosing import Candidate, preference
from fi_cachestore.records.record import TacticSpace
from tests.adapter.believing import believe
from tests.adapter.processes import CONTEXT, Fresh, fresh
from tests.adapter.runners import TACTICS, Kind, PlainRunner, TacticRunner, Tile, choose, config, matrix, timed
from tests.adapter.test_sizes import with_contract

has_ranking = pytest.mark.skipif(not hasattr(flashinfer.autotuner.AutoTuner, "rank_tactics"), reason="FlashInfer 0.6.14 and later")

MANY = tuple(1 << power for power in range(12))


def records(root):
    store = fi_cachestore.open_store(root)
    return [store.get(digest).entry for digest in store]


# -- one measurement for all ------------------------------------------------------------------------------------------------------


class SlowRunner(PlainRunner):
    """Takes its time, so that processes really meet."""

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        total = 0
        for number in range(30_000):
            total += number
        return inputs[0]


def tune_many(root, ready=None, go=None):
    if ready is not None:
        ready.release()
        go.wait(60)
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        chosen = [choose(op, [SlowRunner()], [matrix(3000)], config(MANY)) for op in ("first", "second")]
    return len(measured), session.report().tuned_count, chosen


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_on_one_empty_store_measure_every_profile_once_in_total(tmp_path, process_count):
    ready, go = CONTEXT.Semaphore(0), CONTEXT.Event()
    processes = [Fresh(tune_many, tmp_path, ready, go) for _ in range(process_count)]
    for _ in processes:
        assert ready.acquire(timeout=60)
    go.set()
    results = [process.result() for process in processes]
    assert sum(tuned for _, tuned, _ in results) == 2 * len(MANY)
    assert sum(measured for measured, _, _ in results) == 2 * len(MANY) * 4
    assert {str(chosen) for _, _, chosen in results} == {"[(0, 2), (0, 2)]"}
    assert len(records(tmp_path)) == 2 * len(MANY)


def test_a_second_start_measures_nothing(tmp_path):
    assert fresh(tune_many, tmp_path)[:2] == (2 * len(MANY) * 4, 2 * len(MANY))
    assert fresh(tune_many, tmp_path)[:2] == (0, 0)


class DyingRunner(PlainRunner):
    """Dies when it is measured at one size."""

    def __init__(self, size):
        self.size_rank = size

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        if inputs[0].shape[0] == self.size_rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return inputs[0]


def tune_dying(root, size):
    with timed() as measured, fi_cachestore.autotune(root=root):
        choose("dying", [DyingRunner(size)], [matrix(3000)], config(MANY))
    return len(measured)


def test_a_kill_after_k_profiles_loses_nothing_of_those_k(tmp_path):
    with pytest.raises(ChildProcessError, match="-9"):
        fresh(tune_dying, tmp_path, 64)
    assert len(records(tmp_path)) == MANY.index(64)
    assert fresh(tune_dying, tmp_path, None) == 4 * (len(MANY) - MANY.index(64))
    assert len(records(tmp_path)) == len(MANY)


def hold_claim(root, digest, ready, go):
    claim = FileCoordinator(root / "claims").claim(digest, "op")
    ready.set()
    go.wait(60)
    claim.release()


def tune_two(root, wait_s=None):
    if wait_s is not None:
        os.environ["FI_CACHESTORE_MAX_WAIT_S"] = wait_s
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        chosen = choose("two", [PlainRunner()], [matrix(3000)], config((64, 256)))
    return [tactic for _, tactic in measured], session.report(), chosen


def test_a_profile_claimed_elsewhere_is_left_for_last_and_measured_when_its_holder_is_gone(tmp_path):
    ready, go = CONTEXT.Event(), CONTEXT.Event()
    key = fi_cachestore.tune_key("two", PlainRunner(), [matrix(64)], tuning_config=config((64, 256)))
    holder = Fresh(hold_claim, tmp_path, key.digest, ready, go)
    assert ready.wait(60)
    tuner = Fresh(tune_two, tmp_path)
    while len(records(tmp_path)) < 1:  # the other profile is measured first
        assert tuner.process.is_alive()
    (done,) = records(tmp_path)
    assert done.key.profile[0]["bucket"] == 256
    holder.process.kill()
    measured, report, chosen = tuner.result()
    assert measured == [-1, 0, 1, 2] * 2
    assert report.tuned_count == 2
    assert chosen == (0, 2)


def test_waiting_has_an_end_and_the_result_is_for_memory_only(tmp_path):
    ready, go = CONTEXT.Event(), CONTEXT.Event()
    key = fi_cachestore.tune_key("two", PlainRunner(), [matrix(64)], tuning_config=config((64, 256)))
    holder = Fresh(hold_claim, tmp_path, key.digest, ready, go)
    assert ready.wait(60)
    measured, report, chosen = fresh(tune_two, tmp_path, "0.2")
    assert measured == [-1, 0, 1, 2] * 2
    assert (report.tuned_count, report.unshared_count) == (2, 1)
    assert chosen == (0, 2)
    assert len(records(tmp_path)) == 1
    go.set()
    holder.result()


def tune_interrupted(root):
    given = config((64, 256), constraint_specs=(ConstraintSpec(1, 0, lambda shapes: shapes[0][0] // (1 - len(released))),))
    released = []
    inputs = [matrix(3000), matrix(3000)]
    key = fi_cachestore.tune_key("two", PlainRunner(), [matrix(64), matrix(64)], tuning_config=given)
    coordinator = FileCoordinator(root / "claims")
    claim = coordinator.claim(key.digest, "op")

    class Clock(SystemClock):
        """While somebody sleeps, the claim that is waited for becomes free, and the next look at the call's shapes fails."""

        def sleep(self, seconds):
            claim.release()
            released.append(True)

    attach_module.SystemClock = Clock
    with timed(), fi_cachestore.autotune(root=root), pytest.raises(ZeroDivisionError) as caught:
        choose("two", [PlainRunner()], inputs, given)
    return len(released), caught.tb is not None and isinstance(coordinator.claim(key.digest, "op"), Busy)


def test_a_claim_taken_while_waiting_is_free_when_the_loop_ends_before_it_is_used(tmp_path):
    assert fresh(tune_interrupted, tmp_path) == (1, False)
    assert [record.key.profile[0]["bucket"] for record in records(tmp_path)] == [256]


# -- what a record holds ----------------------------------------------------------------------------------------------------------


def test_a_record_holds_every_tactic_with_its_time_and_the_default(tmp_path):
    fresh(tune_two, tmp_path)
    for record in records(tmp_path):
        times = {m.tactic: m.time_ns for m in record.measurements}
        assert times == {-1: 10_000_000, 0: 5_000_000, 1: 4_000_000, 2: 3_000_000}
        assert record.default_time_ns == 10_000_000
        assert record.default_raced
        assert record.space.count == 3
        assert record.provenance.host
        assert record.provenance.tuning_ns > 0


class OwnDefaultRunner(PlainRunner):
    def get_valid_tactics(self, inputs, profile):
        return [-1, 0]


def tune_own_default(root):
    with timed() as measured, fi_cachestore.autotune(root=root):
        choose("own default", [OwnDefaultRunner()], [matrix(20)], config((16,)))
    return [tactic for _, tactic in measured]


def test_a_default_in_the_runners_own_list_is_measured_once(tmp_path):
    assert fresh(tune_own_default, tmp_path) == [-1, 0]
    (record,) = records(tmp_path)
    assert not record.default_raced
    assert record.space.count == 2


# -- tactics of every kind --------------------------------------------------------------------------------------------------------


def tune_tactic(root, kind):
    with timed() as measured, fi_cachestore.autotune(root=root):
        choose("tactic", [TacticRunner(kind)], [matrix(100)], config((64,)))
    return len(measured)


def serve_tactic(root, kind):
    fi_cachestore.attach(root=root)
    runner = TacticRunner(kind)
    wanted = runner.get_valid_tactics([], None)[1]
    _, tactic = choose("tactic", [runner], [matrix(100)], config((64,)))
    return type(tactic) is type(wanted) and (list(tactic) == list(wanted) if kind == "tvm array" else tactic == wanted), repr(tactic)


@pytest.mark.parametrize("kind", TACTICS)
def test_tactics_come_back_equal_and_of_the_runners_own_type(tmp_path, kind):
    assert fresh(tune_tactic, tmp_path, kind) == 3
    assert fresh(tune_tactic, tmp_path, kind) == 0
    equal, text = fresh(serve_tactic, tmp_path, kind)
    assert equal, text


def test_a_tactic_is_found_by_its_bytes_wherever_it_stands():
    offered = [Tile(True), Kind.SLOW, Tile(2), Tile(1, 1), Tile(1), np.int32(1), Kind.FAST, np.int64(1), OpaqueTactic()]
    for tactic in offered[:-1]:
        assert find_in(offered, tactic_value(tactic, 0)) is tactic
    for tactic in (Tile(3), np.int16(1), OpaqueTactic(), offered[-1]):
        with pytest.raises(LookupError):
            find_in(offered, tactic_value(tactic, len(offered) - 1))


def test_only_the_integer_is_the_default():
    assert is_default(-1)
    assert not any(map(is_default, [-1.0, np.int64(-1), (-1,), True, None]))


class ChangedTacticRunner(TacticRunner):
    """The same class and parameters later offer another object."""

    def __init__(self, kind):
        super().__init__(kind)
        self.offers_rank = True

    def get_valid_tactics(self, inputs, profile):
        return super().get_valid_tactics(inputs, profile) if self.offers_rank else [0]


def tune_changed(root):
    with timed(), fi_cachestore.autotune(root=root):
        choose("changed", [ChangedTacticRunner("enum")], [matrix(100)], config((64,)))


def serve_changed(root):
    session = fi_cachestore.attach(root=root)
    runner = ChangedTacticRunner("enum")
    runner.offers_rank = False
    return choose("changed", [runner], [matrix(100)], config((64,))), session.report().refused_count


def test_an_object_that_the_runner_no_longer_lists_is_not_served(tmp_path):
    fresh(tune_changed, tmp_path)
    believe(tmp_path)
    assert fresh(serve_changed, tmp_path) == ((0, 0), 1)  # the next best of the record, which is plain data


def rank_changed(root, *, offers):
    runner = ChangedTacticRunner("enum")
    with timed() as measured, fi_cachestore.autotune(root=root):
        runner.offers_rank = offers
        return AutoTuner.get().rank_tactics("changed", [runner], config((64,)), [matrix(100)], k=3), len(measured)


@has_ranking
def test_a_ranking_leaves_out_what_the_runner_no_longer_lists(tmp_path):
    assert fresh(rank_changed, tmp_path, offers=True) == ([Kind.FAST, 0], 2)
    believe(tmp_path)
    assert fresh(rank_changed, tmp_path, offers=True) == ([Kind.FAST, 0], 0)
    assert fresh(rank_changed, tmp_path, offers=False) == ([0], 0)


class OpaqueTactic:
    pass


OFFERED = {"OpaqueTacticRunner": OpaqueTactic(), "OtherOpaqueRunner": OpaqueTactic()}


class OpaqueTacticRunner(PlainRunner):
    """At one size it offers a tactic of a type that nobody can store, and that it does not hold itself."""

    @property
    def offered(self):
        return OFFERED[type(self).__name__]

    def get_valid_tactics(self, inputs, profile):
        return [0, self.offered] if inputs[0].shape[0] == 64 else [0, 1]

    def time_ms(self, tactic):
        return 1.0 if tactic is self.offered else 10.0 - (tactic if tactic != -1 else 0)


def tune_opaque(root):
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        inside = choose("opaque", [OpaqueTacticRunner()], [matrix(64)])
    after = choose("opaque", [OpaqueTacticRunner()], [matrix(64)])
    return (
        len(measured),
        inside[1] is OFFERED["OpaqueTacticRunner"],
        after[1] is OFFERED["OpaqueTacticRunner"],
        session.report().unshared_count,
    )


def test_a_tactic_that_nobody_can_store_stays_in_memory_and_costs_no_other_record(tmp_path):
    assert fresh(tune_opaque, tmp_path) == (9, True, True, 1)
    assert sorted(record.key.profile[0]["bucket"] for record in records(tmp_path)) == [16, 256]
    assert fresh(tune_opaque, tmp_path) == (3, True, True, 1)


def enter_again_with_opaque(root):
    counts = []
    for _ in range(2):
        with timed() as measured, fi_cachestore.autotune(root=root):
            chosen = choose("opaque", [OpaqueTacticRunner()], [matrix(64)])
        counts.append((len(measured), chosen[1] is OFFERED["OpaqueTacticRunner"]))
    return counts, choose("opaque", [OpaqueTacticRunner()], [matrix(64)])[1] is OFFERED["OpaqueTacticRunner"]


def test_what_stays_in_memory_is_known_to_the_next_session_of_the_process(tmp_path):
    assert fresh(enter_again_with_opaque, tmp_path) == ([(9, True), (0, True)], True)


class OtherOpaqueRunner(OpaqueTacticRunner):
    pass


def serve_two_opaque(root):
    runners = [OpaqueTacticRunner(), OtherOpaqueRunner()]
    with timed(), fi_cachestore.autotune(root=root):
        for runner in runners:
            choose("opaque", [runner], [matrix(64)], config((64,)))
    return [choose("opaque", [runner], [matrix(64)], config((64,)))[1] is runner.offered for runner in runners]


def test_an_object_in_memory_belongs_to_its_record(tmp_path):
    assert fresh(serve_two_opaque, tmp_path) == [True, True]


def test_objects_in_memory_are_bounded():
    objects = OwnObjects(limit_count=3)
    for number in range(10):
        objects.remember(str(number), {b"a": number, b"b": number})
    assert [number for number in range(10) if objects.get(str(number), b"a")[0]] == [9]


# -- tactics that fail ------------------------------------------------------------------------------------------------------------


class FailingRunner(PlainRunner):
    """Tactics that fail with the given errors; size 64 only, where ``sizes`` says so."""

    def __init__(self, errors, sizes=None):
        self.errors_cache, self.sizes_cache = errors, sizes

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        if not do_preparation and (self.sizes_cache is None or inputs[0].shape[0] in self.sizes_cache) and tactic in self.errors_cache:
            raise self.errors_cache[tactic]
        return inputs[0]


def tune_failing(root, errors, sizes=None):
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        _, tactic = choose("failing", [FailingRunner(errors, sizes)], [matrix(70)])
    claims = [FileCoordinator(root / "claims").claim(record.digest, "op") for record in records(root)]
    assert not any(isinstance(claim, Busy) for claim in claims)
    return [tried for _, tried in measured], tactic, session.report()


def test_failing_tactics_are_recorded_with_what_they_raised(tmp_path):
    measured, tactic, report = fresh(tune_failing, tmp_path, {2: ValueError("no"), -1: RuntimeError("no")})
    assert measured == [-1, 0, 1, 2] * 3
    assert tactic == 1
    assert report.tuned_count == 3
    failures = [{m.tactic: m.failure for m in record.measurements if m.failure} for record in records(tmp_path)]
    assert failures == [{2: "ValueError", -1: "RuntimeError"}] * 3


def test_a_profile_whose_tactics_all_fail_is_recorded_and_not_tried_again(tmp_path):
    errors = {tactic: RuntimeError("no") for tactic in (-1, 0, 1, 2)}
    measured, tactic, report = fresh(tune_failing, tmp_path, errors, (64,))
    assert measured == [-1, 0, 1, 2] * 3
    assert tactic == -1
    assert (report.tuned_count, report.failed_count) == (2, 1)
    assert [record.usable for record in records(tmp_path) if record.key.profile[0]["bucket"] == 64] == [()]
    measured, tactic, _ = fresh(tune_failing, tmp_path, errors, (64,))
    assert (measured, tactic) == ([], -1)


def tune_without_a_timer(root, *, is_dead):
    """Tune where measuring fails before the runner is run, or on a device on which nothing works any more; then where it works."""

    def broken(*_, **__):
        raise RuntimeError("the delay kernel cannot be built")

    waits = []

    def dying(_):
        waits.append(1)
        if len(waits) > 1:  # the first is before anything runs
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    errors = {tactic: RuntimeError("no") for tactic in (-1, 0, 1, 2)} if is_dead else {}
    with fi_cachestore.autotune(root=root) as session, timed(), pytest.MonkeyPatch.context() as patch:
        if is_dead:
            patch.setattr(cuda, "synchronize", dying)
        else:
            patch.setattr(AutoTuner, "_profile_single_kernel", broken)
        _, tactic = choose("failing", [FailingRunner(errors)], [matrix(70)])
    return tactic, session.report()


@pytest.mark.parametrize("is_dead", [False, True], ids=["no timer", "dead device"])
def test_where_measuring_itself_fails_nothing_is_stored_and_the_next_start_measures(tmp_path, is_dead):
    tactic, report = fresh(tune_without_a_timer, tmp_path, is_dead=is_dead)
    assert tactic == -1
    assert (report.unmeasured_count, report.failed_count, report.tuned_count) == (3, 0, 0)
    assert records(tmp_path) == []
    _, tactic, report = fresh(tune_failing, tmp_path, {})
    assert (tactic, report.tuned_count) == (2, 3)


OUT_OF_MEMORY = [MemoryError("full"), torch.cuda.OutOfMemoryError("full")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["host", "device"])
@pytest.mark.parametrize("failing", [-1, 0, 2])
def test_after_out_of_memory_the_other_profiles_are_measured_and_that_one_is_not_published(tmp_path, error, failing):
    measured, tactic, report = fresh(tune_failing, tmp_path, {failing: error}, (64,))
    assert tactic == -1
    assert (report.tuned_count, report.out_of_memory_count) == (2, 1)
    assert sorted(record.key.profile[0]["bucket"] for record in records(tmp_path)) == [16, 256]
    assert measured == [-1, 0, 1, 2, *range(-1, failing + 1), -1, 0, 1, 2]
    _, tactic, report = fresh(tune_failing, tmp_path, {})
    assert (report.hit_count, report.tuned_count, tactic) == (2, 1, 2)


class StrangeTimesRunner(PlainRunner):
    """What its timer says of the first three tactics is no time."""

    def get_valid_tactics(self, inputs, profile):
        return [0, 1, 2, 3]

    def time_ms(self, tactic):
        return {-1: 10.0, 0: math.nan, 1: -1.0, 2: math.inf, 3: 4.0}[tactic]


def tune_strange_times(root):
    with timed(), fi_cachestore.autotune(root=root):
        return choose("strange times", [StrangeTimesRunner()], [matrix(70)], config((64,)))[1]


def test_what_is_no_time_is_a_failure(tmp_path):
    assert fresh(tune_strange_times, tmp_path) == 3
    (record,) = records(tmp_path)
    assert {m.tactic: (m.time_ns, m.failure) for m in record.measurements} == {
        -1: (10_000_000, None),
        **dict.fromkeys((0, 1, 2), (None, "NotATime")),
        3: (4_000_000, None),
    }


class PreparationRunner(PlainRunner):
    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        if do_preparation and inputs[0].shape[0] == 64:
            raise torch.cuda.OutOfMemoryError  # a host's MemoryError here gets out of FlashInfer before 0.7.1
        return inputs[0]


def tune_preparation(root):
    with timed(), fi_cachestore.autotune(root=root) as session:
        choose("preparation", [PreparationRunner()], [matrix(70)])
    return session.report()


def test_out_of_memory_in_preparation_is_no_different(tmp_path):
    report = fresh(tune_preparation, tmp_path)
    assert (report.tuned_count, report.out_of_memory_count) == (2, 1)
    assert len(records(tmp_path)) == 2


class RaisingRunner(PlainRunner):
    def get_valid_tactics(self, inputs, profile):
        if inputs[0].shape[0] == 64:
            message = "this runner is broken"
            raise ZeroDivisionError(message)
        return [0]


def tune_raising(root):
    with timed(), fi_cachestore.autotune(root=root):
        with pytest.raises(ZeroDivisionError) as caught:
            choose("raising", [RaisingRunner()], [matrix(70)])
        assert caught.tb is not None  # keeps the frames, and what they hold, alive: freeing must not be left to the collector
        key = fi_cachestore.tune_key("raising", RaisingRunner(), [matrix(64)], tuning_config=config())
        claim = FileCoordinator(root / "claims").claim(key.digest, "op")
        assert not isinstance(claim, Busy)
        claim.release()
        return choose("after", [PlainRunner()], [matrix(70)])


def test_an_error_that_flashinfer_lets_through_frees_the_claim_and_nothing_is_stuck(tmp_path):
    assert fresh(tune_raising, tmp_path) == (0, 2)
    assert sorted((record.key.op, record.key.profile[0]["bucket"]) for record in records(tmp_path) if record.key.op == "raising") == [
        ("raising", 16)
    ]


class EmptyRunner(PlainRunner):
    """Serves no size: running its default there would be an error."""

    def get_valid_tactics(self, inputs, profile):
        return []

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        message = "never run where nothing is listed"
        raise AssertionError(message)


def tune_empty(root):
    with timed() as measured, fi_cachestore.autotune(root=root):
        chosen = choose("empty", [PlainRunner(), EmptyRunner()], [matrix(70)])
    return chosen, {name for name, _ in measured}


def test_a_runner_that_lists_nothing_is_not_run_at_all(tmp_path):
    assert fresh(tune_empty, tmp_path) == ((0, 2), {"PlainRunner"})
    assert len(records(tmp_path)) == 6


class OvertakenRunner(PlainRunner):
    """While it is measured, somebody else's record of the same profile appears."""

    theirs_cache = (None,)
    order_cache = (2, 1, 0)

    def time_ms(self, tactic):
        return 10.0 if tactic == -1 else 1.0 + self.order_cache[0][tactic]

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        source, target = self.theirs_cache[0] or (None, None)
        if source is not None:
            shutil.copytree(source / "objects", target / "objects", dirs_exist_ok=True)
        return inputs[0]


def tune_overtaken(root, order, theirs=None, *, ranks=False):
    fcntl.flock = lambda fd, operation: None  # claims that hold nobody back
    OvertakenRunner.theirs_cache = [theirs and (theirs, root)]
    OvertakenRunner.order_cache = [order]
    runner, given = OvertakenRunner(), config((64,))
    with timed(), fi_cachestore.autotune(root=root):
        if ranks:
            return AutoTuner.get().rank_tactics("overtaken", [runner], given, [matrix(70)], k=3)
        return choose("overtaken", [runner], [matrix(70)], given)[1]


@pytest.mark.parametrize("ranks", [False, pytest.param(True, marks=has_ranking)])
def test_who_publishes_first_wins_over_what_was_measured_here(tmp_path, ranks):
    first, second = tmp_path / "first", tmp_path / "second"
    theirs = fresh(tune_overtaken, first, (5, 3, 1), ranks=ranks)
    assert theirs == ([2, 1, 0] if ranks else 2)
    assert fresh(tune_overtaken, tmp_path / "alone", (1, 3, 5), ranks=ranks) == ([0, 1, 2] if ranks else 0)
    assert fresh(tune_overtaken, second, (1, 3, 5), first, ranks=ranks) == theirs
    assert [record.provenance for record in records(second)] == [record.provenance for record in records(first)]


# -- several runners --------------------------------------------------------------------------------------------------------------


class FastRunner(PlainRunner):
    def time_ms(self, tactic):
        return 0.5 * super().time_ms(tactic)


def tune_backends(root, names):
    made = {"A": FastRunner, "B": PlainRunner}
    with timed() as measured, fi_cachestore.autotune(root=root):
        index, tactic = choose("backends", [made[name]() for name in names], [matrix(70)])
    return names[index], tactic, sorted({name for name, _ in measured})


@pytest.mark.parametrize("together", ["AB", "BA"])
def test_tuning_one_backend_first_never_hides_a_faster_one(tmp_path, together):
    assert fresh(tune_backends, tmp_path, "B") == ("B", 2, ["PlainRunner"])
    assert fresh(tune_backends, tmp_path, together) == ("A", 2, ["FastRunner"])
    assert fresh(tune_backends, tmp_path, together) == ("A", 2, [])


def serve_empty_root(root):
    fi_cachestore.attach(root=root)
    return choose("backends", [PlainRunner(), FastRunner()], [matrix(70)])


def test_without_records_the_first_runner_serves_with_its_default(tmp_path):
    assert fresh(serve_empty_root, tmp_path) == (0, -1)


# -- collective ops ---------------------------------------------------------------------------------------------------------------


class CollectiveRunner(PlainRunner):
    """Stands for one that communicates with other ranks; its contract says whether it does."""


def tune_collective(root, *, is_collective, ranks=False):
    with_contract(attach_module, CollectiveRunner, collective=is_collective)
    runners = [PlainRunner(), CollectiveRunner()]
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        if ranks:
            AutoTuner.get().rank_tactics("collective", runners[1:], config(), [matrix(70)], k=2)
        else:
            choose("collective", runners, [matrix(70)])
    return len(measured), choose("collective", runners, [matrix(70)]), session.report()


def serve_collective(root, *, is_collective):
    with_contract(attach_module, CollectiveRunner, collective=is_collective)
    fi_cachestore.attach(root=root)
    return choose("collective", [PlainRunner(), CollectiveRunner()], [matrix(70)])


def test_a_collective_op_is_left_to_flashinfer(tmp_path):
    measured, served, report = fresh(tune_collective, tmp_path, is_collective=True)
    assert (measured, served) == (2 * 3 * 3, (0, 2))
    assert report.ephemeral == {"collective op without a group": 1}
    assert report.tuned_count == 0
    assert records(tmp_path) == []
    assert not (tmp_path / "claims").exists()


@has_ranking
def test_a_ranking_of_a_collective_op_is_left_to_flashinfer(tmp_path):
    assert fresh(tune_collective, tmp_path, is_collective=True, ranks=True)[0] == 3
    assert records(tmp_path) == []
    assert not (tmp_path / "claims").exists()


def test_a_collective_op_is_not_served_alone(tmp_path):
    assert fresh(tune_collective, tmp_path, is_collective=False)[0] == 2 * 3 * 4
    believe(tmp_path)
    assert fresh(serve_collective, tmp_path, is_collective=False) == (0, 2)
    assert fresh(serve_collective, tmp_path, is_collective=True) == (0, -1)


# -- FlashInfer inside FlashInfer -------------------------------------------------------------------------------------------------


class StageRunner(PlainRunner):
    def __init__(self, stage):
        self.stage = stage

    def get_valid_tactics(self, inputs, profile):
        return [100 * self.stage + tactic for tactic in range(3)]

    def time_ms(self, tactic):
        return 10.0 if tactic == -1 else 5.0 - tactic % 100


class ProbingRunner(PlainRunner):
    """Times another runner, and has its tactics filtered, while it lists its own."""

    def get_valid_tactics(self, inputs, profile):
        tuner = AutoTuner.get()
        tuner._blocklist.filter("other", StageRunner(7), [700, 701])
        tuner._profile_single_kernel(StageRunner(7), inputs, 700, TuningConfig())
        return [0, 1, 2]

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        AutoTuner.get()._blocklist.filter("other", StageRunner(7), [700, 701])
        AutoTuner.get()._profile_single_kernel(StageRunner(7), inputs, 701, TuningConfig())
        return inputs[0]


def tune_probing(root):
    with timed(), fi_cachestore.autotune(root=root):
        return choose("probing", [ProbingRunner()], [matrix(70)], config((64,)))


def test_what_is_timed_meanwhile_is_no_part_of_the_record(tmp_path):
    assert fresh(tune_probing, tmp_path) == (0, 2)
    (record,) = records(tmp_path)
    assert [m.tactic for m in record.measurements] == [-1, 0, 1, 2]
    assert record.space == TacticSpace.of([0, 1, 2])


class NoticingLock:
    """The tuner's lock, which tells when another thread wants it."""

    def __init__(self, inner):
        self.inner, self.owner, self.is_wanted = inner, threading.current_thread(), threading.Event()

    def __enter__(self):
        if threading.current_thread() is not self.owner:
            self.is_wanted.set()
        return self.inner.__enter__()

    def __exit__(self, *error):
        return self.inner.__exit__(*error)


class VisitedRunner(PlainRunner):
    """While it is measured, another thread asks for an op that stays in memory, and has to wait."""

    visits_cache: ClassVar = []

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        if not self.visits_cache:
            self.visits_cache.append(threading.Thread(target=ask_for_undescribed))
            self.visits_cache[0].start()
            assert AutoTuner.get()._lock.is_wanted.wait(60)
        return inputs[0]


class UndescribedRunner(PlainRunner):
    def __init__(self):
        self.thing = object()


def ask_for_undescribed():
    choose("undescribed", [UndescribedRunner()], [matrix(70)])


def tune_visited(root):
    tuner = AutoTuner.get()
    tuner._lock = NoticingLock(tuner._lock)
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        chosen = choose("visited", [VisitedRunner()], [matrix(70)])
        VisitedRunner.visits_cache[0].join(60)
    return chosen, [name for name, _ in measured].count("VisitedRunner"), session.report().tuned_count


def test_a_thread_that_asks_meanwhile_disturbs_no_measurement(tmp_path):
    assert fresh(tune_visited, tmp_path) == ((0, 2), 12, 3)
    assert len(records(tmp_path)) == 3


class TwoStageRunner(PlainRunner):
    """Ranks the tactics of its stages while it lists its own, as FlashInfer's CUTLASS MoE runner does."""

    def __init__(self):
        self.claims_cache = []

    def get_valid_tactics(self, inputs, profile):
        tuner = AutoTuner.get()
        ranked = [tuner.rank_tactics(f"stage{n}", [StageRunner(n)], TuningConfig(), [inputs[0]], k=2) for n in (1, 2)]
        one = tuner.choose_one("chosen inside", [StageRunner(3)], TuningConfig(), [inputs[0]])[1]
        return [(first, second, one) for first in ranked[0] for second in ranked[1]]

    def time_ms(self, tactic):
        return 10.0 if tactic == -1 else 5.0 - sum(part % 100 for part in tactic) / 2


def tune_nested(root):
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        chosen = choose("outer", [TwoStageRunner()], [matrix(70)], config((16, 64)))
    return chosen, [name for name, _ in measured], session.report()


@has_ranking
def test_a_ranking_inside_neither_releases_nor_steals_the_outer_claim(tmp_path):
    chosen, measured, report = fresh(tune_nested, tmp_path)
    assert chosen == (0, (102, 202, 302))
    outer, stages = measured.count("TwoStageRunner"), measured.count("StageRunner")
    assert (outer, stages) == (2 * 5, 2 * (3 + 3 + 4))  # the ranked stages without a raced default
    assert report.tuned_count == 2 + 2 * 3
    assert report.gaps == ()
    found = {(record.key.op, len(record.measurements), record.default_raced) for record in records(tmp_path)}
    assert found == {("outer", 5, True), ("stage1", 3, False), ("stage2", 3, False), ("chosen inside", 4, True)}
    assert all(choice.tactic != -1 for record in records(tmp_path) for choice in [next(preference([Candidate(0, record)]))])
    chosen, measured, _ = fresh(tune_nested, tmp_path)
    assert (chosen, measured) == ((0, (102, 202, 302)), [])


def rank(root, k, errors=None):
    runner = FailingRunner(errors or {})
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        ranked = AutoTuner.get().rank_tactics("ranked", [runner], config(), [matrix(70)], k=k)
    return ranked, [tactic for _, tactic in measured], session.report()


@has_ranking
def test_a_ranking_is_answered_from_its_record(tmp_path):
    assert fresh(rank, tmp_path, 2)[:2] == ([2, 1], [0, 1, 2])
    assert fresh(rank, tmp_path, 3)[:2] == ([2, 1, 0], [])
    assert fresh(rank, tmp_path, 1)[:2] == ([2], [-1, 0, 1, 2] * 2)  # a choice, which tunes every bucket; 64 is there


def rank_under_policy(root):
    with timed(), fi_cachestore.autotune(root=root, policy=MeasurementPolicy("cuda_graph")):
        AutoTuner.get().rank_tactics("ranked", [PlainRunner()], config((64,)), [matrix(70)], k=2)
        choose("chosen", [PlainRunner()], [matrix(70)], config((64,)))


@has_ranking
def test_a_ranking_is_recorded_as_flashinfer_times_it(tmp_path):
    fresh(rank_under_policy, tmp_path)
    assert {record.key.op: record.key.policy["execution"] for record in records(tmp_path)} == {"ranked": "eager", "chosen": "cuda graph"}


def rank_raising(root):
    with timed(), fi_cachestore.autotune(root=root):
        with pytest.raises(ZeroDivisionError) as caught:
            AutoTuner.get().rank_tactics("raising", [RaisingRunner()], config(), [matrix(64)], k=2)
        key = fi_cachestore.tune_key("raising", RaisingRunner(), [matrix(64)], tuning_config=config())
        return caught.tb is not None and isinstance(FileCoordinator(root / "claims").claim(key.digest, "op"), Busy)


@has_ranking
def test_a_ranking_that_raises_frees_its_claim(tmp_path):
    assert fresh(rank_raising, tmp_path) is False


def rank_replayed(root):
    fi_cachestore.attach("replay", root=root)
    with timed() as measured, flashinfer.autotuner.autotune(True):
        ranked = AutoTuner.get().rank_tactics("ranked", [FailingRunner({})], config(), [matrix(70)], k=2)
    return ranked, len(measured)


@has_ranking
def test_a_ranking_in_replay_is_served_and_never_measured(tmp_path):
    assert fresh(rank_replayed, tmp_path) == ([-1], 0)
    fresh(rank, tmp_path, 2)
    believe(tmp_path)
    assert fresh(rank_replayed, tmp_path) == ([2], 0)


def rank_blocked(root):
    AutoTuner.get()._blocklist._invalid["ranked::FailingRunner"] = {2}
    return rank(root, 3)[:2]


@has_ranking
def test_a_blocklist_is_honoured_in_rankings_from_records(tmp_path):
    fresh(rank, tmp_path, 2)
    assert fresh(rank_blocked, tmp_path) == ([1, 0], [])


@has_ranking
def test_a_ranking_where_everything_fails_is_the_default_and_not_tried_again(tmp_path):
    errors = {tactic: RuntimeError("no") for tactic in (0, 1, 2)}
    assert fresh(rank, tmp_path, 2, errors)[:2] == ([-1], [0, 1, 2])
    assert fresh(rank, tmp_path, 2, errors)[:2] == ([-1], [])


def rank_preparation(root):
    with timed(), fi_cachestore.autotune(root=root) as session, contextlib.suppress(torch.cuda.OutOfMemoryError):
        AutoTuner.get().rank_tactics("preparation", [PreparationRunner()], config(), [matrix(70)], k=2)
    return session.report()


@has_ranking
def test_a_ranking_that_runs_out_of_memory_in_preparation_publishes_nothing(tmp_path):
    report = fresh(rank_preparation, tmp_path)
    assert (report.tuned_count, report.failed_count) == (0, 0)
    assert records(tmp_path) == []


@has_ranking
def test_a_ranking_that_runs_out_of_memory_publishes_nothing(tmp_path):
    ranked, measured, report = fresh(rank, tmp_path, 2, {1: MemoryError("full")})
    assert (ranked, measured) == ([2, 0], [0, 1, 2])
    assert report.out_of_memory_count == 1
    assert records(tmp_path) == []
    assert fresh(rank, tmp_path, 2)[:2] == ([2, 1], [0, 1, 2])
