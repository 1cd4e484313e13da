"""Attaching, detaching, and the contexts of FlashInfer around and inside ours."""

import contextlib
import functools
import logging
import os
import shutil
import threading
from typing import ClassVar

import pytest
import torch
from flashinfer import autotune as flashinfer_autotune
from flashinfer.autotune_cache import MeasurementPolicy, autotune_v2
from flashinfer.autotuner import AutoTuner, get_autotune_process_group, set_autotune_process_group

import fi_cachestore
from fi_cachestore import Mode
from fi_cachestore.adapter import attach as attach_module
from fi_cachestore.adapter import state as state_module
from fi_cachestore.adapter.symbols import check
from fi_cachestore.adapter.tuner import CacheStoreTuner
from fi_cachestore.environment.facets import Role
from fi_cachestore.environment.identity import Environments
from fi_cachestore.environment.probes import CPU_PROBES, Probe
from fi_cachestore.errors import ConfigError, UnsupportedFlashInferError
from tests.adapter.believing import believe
from tests.adapter.processes import fresh
from tests.adapter.runners import PlainRunner, choose, config, matrix, no_measurement, timed


def stored_count(root):
    return len(fi_cachestore.open_store(root, read_only=True))


def tune(op="op", rows=100, **kwargs):
    return choose(op, [PlainRunner()], [matrix(rows)], config(), **kwargs)


# -- attaching and detaching ------------------------------------------------------------------------------------------------------


def look(tuner):
    return {
        name: (id(value), repr(value)) for name, value in vars(tuner).items() if not name.startswith(("_lock", "_override_config_cache"))
    }


def attach_and_detach(root):
    tuner = AutoTuner.get()
    with timed(), flashinfer_autotune(True):
        tune("before")
    before, before_class, own = look(tuner), type(tuner), tune("before")
    with timed(), fi_cachestore.autotune(root=root) as session:
        assert type(tuner) is CacheStoreTuner
        assert AutoTuner.get() is tuner
        assert isinstance(tuner, AutoTuner)
        tune()
    assert session.is_attached
    assert tune() == (0, 2)
    session.detach()
    session.detach()
    assert not session.is_attached
    after = look(tuner)
    assert type(tuner) is before_class
    assert {name for name in before if before[name] != after.get(name)} <= {"stats"}
    assert set(after) == set(before)
    assert tune() == (0, -1)
    assert tune("before") == own == (0, 2)
    return session.report()


def test_detaching_restores_flashinfer_exactly(tmp_path):
    report = fresh(attach_and_detach, tmp_path)
    assert report.tuned_count == 3


def held_tuner(root):
    held = AutoTuner.get()
    session = fi_cachestore.attach("auto", root=root)
    with timed(), flashinfer_autotune(True):
        chosen = held.choose_one("op", [PlainRunner()], config(), [matrix(100)])
    fi_cachestore.detach()
    return chosen[1], session.report().tuned_count, type(held) is AutoTuner


def test_a_tuner_that_others_hold_keeps_working(tmp_path):
    assert fresh(held_tuner, tmp_path) == (2, 3, True)
    assert stored_count(tmp_path) == 3


class SubclassedTuner(AutoTuner):
    """An AutoTuner that somebody else has extended already."""

    def choose_one(self, custom_op, *args, **kwargs):
        self.seen_cache = custom_op
        return super().choose_one(custom_op, *args, **kwargs)


def subclassed(root):
    AutoTuner._instance = SubclassedTuner()
    with timed(), fi_cachestore.autotune(root=root) as session:
        tactic = tune()[1]
    fi_cachestore.detach()
    return tactic, session.report().tuned_count, type(AutoTuner.get()) is SubclassedTuner


def test_a_subclass_of_the_tuner_is_given_back_as_it_was(tmp_path):
    assert fresh(subclassed, tmp_path) == (2, 3, True)


def twice(root):
    with timed() as measured, fi_cachestore.autotune(root=root) as outer, fi_cachestore.autotune(root=root) as inner:
        tune("inner")
    with timed(), fi_cachestore.autotune(root=root) as again:
        tune("inner")
        tune("again")
    assert not AutoTuner.get().is_tuning_mode
    counts = [session.report().tuned_count for session in (outer, inner, again)]
    served = tune("inner"), tune("again")
    for session in (outer, inner, again):
        session.detach()
    return len(measured), counts, served, type(AutoTuner.get()) is AutoTuner


def test_entering_twice_and_again(tmp_path):
    assert fresh(twice, tmp_path) == (12, [0, 3, 3], ((0, 2), (0, 2)), True)


def inner_over(root):
    with timed(), fi_cachestore.autotune(root=root) as outer:
        with fi_cachestore.autotune(root=root) as inner:
            tune("inner")
        tune("outer")
    return outer.report().tuned_count, inner.report().tuned_count, tune("inner"), tune("outer")


def two_threads(root):
    """One thread opens a session, then another one its own; the first then tunes, and after it a thread that has none."""
    opened, done = threading.Event(), threading.Event()

    def other():
        with fi_cachestore.autotune(root=root / "other"):
            opened.set()
            done.wait(60)

    with timed(), fi_cachestore.autotune(root=root / "own"):
        threads = [threading.Thread(target=other)]
        threads[0].start()
        opened.wait(60)
        tune("mine")
        threads.append(threading.Thread(target=lambda: tune("nobody's")))
        threads[1].start()
        threads[1].join()
        done.set()
        threads[0].join()
    return {name: {record.key.op for record in records_of(root / name)} for name in ("own", "other")}


def records_of(root):
    store = fi_cachestore.open_store(root, read_only=True)
    return [store.get(digest).entry for digest in store]


def test_a_call_belongs_to_the_session_of_its_thread_and_where_that_has_none_to_the_newest(tmp_path):
    assert fresh(two_threads, tmp_path) == {"own": {"mine"}, "other": {"nobody's"}}


def test_an_inner_session_that_is_over_leaves_the_outer_one_tuning(tmp_path):
    assert fresh(inner_over, tmp_path) == (3, 3, (0, 2), (0, 2))


def two_roots(root):
    for name in ("target", "draft"):
        with timed(), fi_cachestore.autotune(root=root / name):
            tune(name)
    fi_cachestore.detach()
    target, draft = (fi_cachestore.attach(root=root / name) for name in ("target", "draft"))
    both = tune("target"), tune("draft")
    draft.detach()
    left = tune("target"), tune("draft")
    target.detach()
    return both, left


def test_attaching_a_second_store_adds_and_detaching_it_leaves_the_first(tmp_path):
    assert fresh(two_roots, tmp_path) == (((0, 2), (0, 2)), ((0, 2), (0, -1)))


def ephemeral_beside(root):
    with timed(), fi_cachestore.autotune(root=root):
        tune("recorded")
    with timed(), fi_cachestore.autotune(root=root, mode="ephemeral") as session:
        tune("in memory")
    served = tune("recorded"), tune("in memory")
    session.detach()
    return served, tune("recorded")


def test_an_ephemeral_session_hides_no_records_and_what_it_tuned_is_served(tmp_path):
    assert fresh(ephemeral_beside, tmp_path) == (((0, 2), (0, 2)), (0, 2))


def one_op_in_two_roots(root):
    counts = []
    for name in ("first", "second"):
        with timed() as measured, fi_cachestore.autotune(root=root / name):
            tune()
            tune()
        counts.append(len(measured))
    return counts


def test_what_was_tuned_into_one_root_is_tuned_into_another_too(tmp_path):
    assert fresh(one_op_in_two_roots, tmp_path) == [12, 12]
    assert stored_count(tmp_path / "first") == stored_count(tmp_path / "second") == 3


def miss_and_attach_more(root):
    with timed(), fi_cachestore.autotune(root=root / "full"):
        tune()
    fi_cachestore.detach()
    fi_cachestore.attach(root=root / "empty")
    missed = tune()
    full = fi_cachestore.attach(root=root / "full")
    found = tune()
    full.detach()
    return missed, found, tune()


def test_attaching_and_detaching_forget_what_was_answered_without(tmp_path):
    assert fresh(miss_and_attach_more, tmp_path) == ((0, -1), (0, 2), (0, -1))


def miss_and_tune(root):
    session = fi_cachestore.attach("auto", root=root)
    missed = tune()
    with timed(), flashinfer_autotune(True):
        found = tune()
    return missed, found, tune(), session.report().tuned_count


def test_tuning_forgets_what_was_missed_before(tmp_path):
    assert fresh(miss_and_tune, tmp_path) == ((0, -1), (0, 2), (0, 2), 3)


def rounding_of_the_tuner(root):
    """What a runner gets that asks FlashInfer for a mapper to hold, without a call at hand."""

    def rounded():
        return AutoTuner.get().get_effective_map_to_tuning_buckets(config())(100)

    fi_cachestore.attach(root=root)
    before = rounded()
    with timed(), fi_cachestore.autotune(root=root, tuning_buckets=(32, 512), round_up=True):
        tune()
        inside = rounded()
    after = rounded()
    fi_cachestore.detach()
    return before, inside, after, rounded()


def test_runners_that_ask_for_a_mapper_get_the_one_in_force(tmp_path):
    assert fresh(rounding_of_the_tuner, tmp_path) == (64, 512, 512, 64)


def one_root_two_layers(root):
    for name in ("first", "second"):
        with timed(), fi_cachestore.autotune(root=root / name):
            tune(name)
    fi_cachestore.detach()
    for name in ("first", "second"):
        os.environ["FI_CACHESTORE_PATH"] = str(root / name)
        fi_cachestore.attach(root=root / "own")
    return tune("first"), tune("second")


def device_questions(root):
    """Count how often the device is asked for by code that asks for mappers, as FlashInfer's cuDNN runner does in each call."""
    asked, plain = [], state_module.default_device

    def counting():
        asked.append(1)
        return plain()

    state_module.default_device = counting
    fi_cachestore.attach(root=root)
    for _ in range(5):
        AutoTuner.get().get_effective_map_to_tuning_buckets(config())
    first = len(asked)
    with timed(), fi_cachestore.autotune(root=root, tuning_buckets=(32, 512)):
        tune()
    mapper = AutoTuner.get().get_effective_map_to_tuning_buckets(config())
    return first, mapper(100)


def test_the_device_is_not_asked_for_again_while_no_rule_changes(tmp_path):
    """On a GPU the question costs more than a look-up."""
    assert fresh(device_questions, tmp_path) == (1, 32)


def test_one_root_with_other_layers_is_another_session(tmp_path):
    assert fresh(one_root_two_layers, tmp_path) == ((0, 2), (0, 2))


def many_entries(root):
    for _ in range(30):
        with timed(), fi_cachestore.autotune(root=root):
            tune()
    return len(AutoTuner.get().state.attached)


def test_entering_again_and_again_keeps_one_session(tmp_path):
    assert fresh(many_entries, tmp_path) == 1


def broken_block(root):
    with contextlib.suppress(ZeroDivisionError), timed(), fi_cachestore.autotune(root=root, tuning_buckets=(8, 32, 512)):
        tune()
        raise ZeroDivisionError
    assert not AutoTuner.get().is_tuning_mode
    return tune()


def serve_attached(root):
    fi_cachestore.attach(root=root)
    return tune()


def test_an_exception_in_the_block_loses_nothing(tmp_path):
    assert fresh(broken_block, tmp_path) == (0, 2)
    assert stored_count(tmp_path) == 3
    believe(tmp_path)
    assert fresh(serve_attached, tmp_path) == (0, 2)  # the rule was kept too


def attach_miss_publish_refresh(root):
    session = fi_cachestore.attach(root=root)
    missed = tune()
    other = fi_cachestore.attach("auto", root=root / ".." / root.name)  # the same directory by another name: another session
    with timed(), flashinfer_autotune(True):
        found = tune()
    other.detach()
    still = tune()
    session.refresh()
    return missed, found, still, tune()


def test_what_others_publish_is_found_after_refresh(tmp_path):
    assert fresh(attach_miss_publish_refresh, tmp_path) == ((0, -1), (0, 2), (0, -1), (0, 2))


# -- modes ------------------------------------------------------------------------------------------------------------------------


def in_mode(root, mode):
    with timed() as measured, fi_cachestore.autotune(root=root, mode=mode) as session:
        inside = tune()
    after = tune()
    counts = session.report().tuned_count, session.report().hit_count
    is_attached = session.is_attached
    fi_cachestore.detach()
    return len(measured), inside, after, counts, is_attached, sorted(session.report().ephemeral)


def test_ephemeral_tunes_in_memory_and_touches_no_directory(tmp_path):
    assert fresh(in_mode, tmp_path / "root", "ephemeral") == (9, (0, 2), (0, 2), (0, 0), True, ["mode ephemeral"])
    assert not (tmp_path / "root").exists()
    fresh(in_mode, tmp_path / "root", "auto")
    before = sorted((tmp_path / "root").rglob("*"))
    assert fresh(in_mode, tmp_path / "root", "ephemeral")[0] == 9
    assert sorted((tmp_path / "root").rglob("*")) == before


def test_replay_never_tunes_and_never_writes(tmp_path):
    assert fresh(in_mode, tmp_path / "root", "replay") == (0, (0, -1), (0, -1), (0, 0), True, [])
    assert not (tmp_path / "root").exists()
    fresh(in_mode, tmp_path / "root", "auto")
    believe(tmp_path / "root")
    assert fresh(in_mode, tmp_path / "root", "replay")[:3] == (0, (0, 2), (0, 2))


def test_off_leaves_flashinfer_alone(tmp_path):
    assert fresh(in_mode, tmp_path / "root", "off") == (9, (0, 2), (0, 2), (0, 0), False, [])
    assert not (tmp_path / "root").exists()


def test_auto_counts_what_it_did(tmp_path):
    assert fresh(in_mode, tmp_path, "auto") == (12, (0, 2), (0, 2), (3, 0), True, [])
    assert fresh(in_mode, tmp_path, "auto") == (0, (0, 2), (0, 2), (0, 3), True, [])


def test_an_unknown_mode_is_an_error_of_the_caller():
    with pytest.raises(ConfigError), fi_cachestore.autotune(mode="fast"):
        pass
    with pytest.raises(ConfigError):
        fi_cachestore.attach("fast")
    assert type(AutoTuner.get()) is AutoTuner


def bad_variable(root):
    os.environ["FI_CACHESTORE_MODE"] = "fast"
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        tune()
    return len(measured), session.mode


def test_an_unknown_mode_in_the_environment_is_a_warning_and_ephemeral(tmp_path):
    assert fresh(bad_variable, tmp_path / "root") == (9, Mode.EPHEMERAL)
    assert not (tmp_path / "root").exists()


def without_tuning(root):
    with no_measurement(), fi_cachestore.autotune(False, root=root, tuning_buckets=(16,)):
        return tune()


def test_tune_mode_false_measures_nothing(tmp_path):
    assert fresh(without_tuning, tmp_path) == (0, -1)
    fresh(in_mode, tmp_path, "auto")
    believe(tmp_path)
    assert fresh(without_tuning, tmp_path) == (0, 2)


# -- FlashInfer's contexts --------------------------------------------------------------------------------------------------------


def nest_as_sglang(root):
    with timed() as measured, fi_cachestore.autotune(root=root) as session, flashinfer_autotune(True):
        with autotune_v2(mode="tune", persistent_cache=False):
            tune("decode")
        with autotune_v2(mode="tune", persistent_cache=False):
            tune("extend", rows=300)
    assert session.report().gaps == ()
    return len(measured), tune("decode"), tune("extend")


def nest_as_vllm(root):
    policy = MeasurementPolicy(execution_mode="cuda_graph")
    with timed() as measured, fi_cachestore.autotune(root=root), autotune_v2(persistent_cache=False, measurement_policy=policy):
        for buckets in ((1, 2, 4), (256, 512)):
            with flashinfer_autotune(tuning_buckets=buckets, round_up=True):
                tune()
    return len(measured), tune(rows=3), tune(rows=300), tune(rows=5000)


@pytest.mark.parametrize(("nest", "count"), [(nest_as_sglang, 24), (nest_as_vllm, 20)])
def test_what_the_engines_nest(tmp_path, nest, count):
    first = fresh(nest, tmp_path)
    assert first[0] == count
    assert set(first[1:]) == {(0, 2)}
    assert fresh(nest, tmp_path) == (0, *first[1:])


class EmptyRunner(PlainRunner):
    """Serves no size."""

    def get_valid_tactics(self, inputs, profile):
        return []


def default_in_v2(root):
    with timed() as measured, fi_cachestore.autotune(root=root), autotune_v2(persistent_cache=False):
        choose("op", [PlainRunner(), EmptyRunner()], [matrix(100)], config((64,)))
    return list(measured)


def test_the_default_is_raced_once_inside_flashinfers_second_kind_of_context_too(tmp_path):
    assert fresh(default_in_v2, tmp_path) == [("PlainRunner", tactic) for tactic in (-1, 0, 1, 2)]
    store = fi_cachestore.open_store(tmp_path)
    found = [store.get(digest).entry for digest in store]
    assert sorted((len(record.measurements), record.default_raced, record.space.count) for record in found) == [(0, False, 0), (4, True, 3)]


def nest_outside(root):
    with timed() as measured, flashinfer_autotune(True), fi_cachestore.autotune(root=root):
        tune()
    return len(measured), tune()


def test_ours_inside_theirs(tmp_path):
    assert fresh(nest_outside, tmp_path) == (12, (0, 2))
    assert fresh(nest_outside, tmp_path) == (0, (0, 2))


def persistent_v2_inside(root):
    with timed() as measured, fi_cachestore.autotune(root=root / "ours"), autotune_v2(cache_root=root / "theirs"):
        tune()
    return len(measured), sorted(str(path.relative_to(root)) for path in (root / "theirs").rglob("entries/*"))


def test_a_persistent_context_of_flashinfer_inside_gets_nothing_and_gives_nothing(tmp_path):
    assert fresh(persistent_v2_inside, tmp_path) == (12, [])
    assert stored_count(tmp_path / "ours") == 3


class UndescribedRunner(PlainRunner):
    """Has no complete key."""

    def __init__(self):
        self.thing = object()


def file_of_flashinfer(root, runner_class, mode):
    def look():
        return choose("op", [runner_class()], [matrix(100)], config())

    path = root / "configs.json"
    with timed(), flashinfer_autotune(True, cache=str(path)):
        look()
    AutoTuner.get().clear_cache()
    with no_measurement(), fi_cachestore.autotune(False, root=root / "ours", mode=mode), flashinfer_autotune(False, cache=str(path)):
        ours = look()
    fi_cachestore.detach()
    with flashinfer_autotune(False, cache=str(path)):
        return ours, look()


@pytest.mark.parametrize(("runner_class", "mode"), [(PlainRunner, "auto"), (UndescribedRunner, "auto"), (PlainRunner, "ephemeral")])
def test_files_of_flashinfer_are_not_served_while_attached(tmp_path, runner_class, mode):
    assert fresh(file_of_flashinfer, tmp_path, runner_class, mode) == ((0, -1), (0, 2))


def store_of_flashinfer(root, runner_class, mode):
    def look():
        return choose("op", [runner_class()], [matrix(100)], config())

    with timed(), autotune_v2(cache_root=root / "theirs"):
        look()
    AutoTuner.get().clear_cache()
    with no_measurement(), fi_cachestore.autotune(False, root=root / "ours", mode=mode):
        ours = look()
    fi_cachestore.detach()
    return ours, look()


@pytest.mark.parametrize(("runner_class", "mode"), [(PlainRunner, "auto"), (UndescribedRunner, "auto"), (PlainRunner, "ephemeral")])
def test_a_store_of_flashinfer_is_not_served_while_attached(tmp_path, runner_class, mode):
    assert fresh(store_of_flashinfer, tmp_path, runner_class, mode) == ((0, -1), (0, 2))


def skipping(root, **given):
    with timed() as measured, fi_cachestore.autotune(root=root, **given):
        inside = tune("a"), tune("b")
        with flashinfer_autotune(True, skip_ops={"c"}):
            inner = tune("c"), tune("b")
        threads = []
        thread = threading.Thread(target=lambda: threads.append(tune("a")))
        thread.start()
        thread.join()
    return len(measured), inside, inner, threads, tune("a")


def test_skipped_ops_are_neither_tuned_nor_served_inside(tmp_path):
    expected = (12, ((0, -1), (0, 2)), ((0, -1), (0, 2)), [(0, -1)], (0, -1))
    assert fresh(skipping, tmp_path, skip_ops={"a"}) == expected
    assert fresh(skipping, tmp_path, skip_ops="a") == (0, *expected[1:])
    assert fresh(skipping, tmp_path)[-1] == (0, 2)
    believe(tmp_path)
    recorded = (0, (0, -1), *expected[2:-1], (0, 2))  # what a record answers is skipped inside like everything else
    measured, inside, inner, threads, after = fresh(skipping, tmp_path, skip_ops={"a"})
    assert (measured, inside[0], inner, threads, after) == recorded


def refused_arguments(root):
    for given in ({"tuning_buckets": ()}, {"cuda_graph_profile_replays": 0}):
        with pytest.raises(ValueError, match="at least one"), fi_cachestore.autotune(root=root, **given):
            pass
    return AutoTuner.get().is_tuning_mode


def test_what_flashinfer_refuses_is_refused(tmp_path):
    assert fresh(refused_arguments, tmp_path) is False


def clear(root):
    with timed(), fi_cachestore.autotune(root=root):
        tune()
    assert tune() == (0, 2)
    AutoTuner.get().clear_cache()
    return tune()


def test_clearing_flashinfers_cache_keeps_the_records(tmp_path):
    assert fresh(clear, tmp_path) == (0, 2)


def clear_after_others(root, theirs):
    fi_cachestore.attach(root=root)
    missed = tune()
    for folder in ("objects", "verdicts"):
        shutil.copytree(theirs / folder, root / folder)
    still = tune()
    AutoTuner.get().clear_cache()
    return missed, still, tune()


def test_clearing_flashinfers_cache_forgets_misses_too(tmp_path):
    fresh(clear, tmp_path / "theirs")
    believe(tmp_path / "theirs")
    assert fresh(clear_after_others, tmp_path / "ours", tmp_path / "theirs") == ((0, -1), (0, -1), (0, 2))


class ValidatingRunner(PlainRunner):
    asked: ClassVar = []

    def validate_tactic(self, inputs, tactic):
        self.asked.append((inputs[0].shape[0], tactic))
        if tactic == 2 and inputs[0].shape[0] == 70:
            raise RuntimeError
        return tactic != 2 or inputs[0].shape[0] != 65


def validating(root):
    with timed(), fi_cachestore.autotune(root=root):
        choose("validated", [ValidatingRunner()], [matrix(64)])
    ValidatingRunner.asked.clear()
    served = [choose("validated", [ValidatingRunner()], [matrix(rows)])[1] for rows in (64, 65, 70, 64, 65, 64)]
    return served, ValidatingRunner.asked


def test_a_hit_honours_validate_tactic_once_per_shape(tmp_path):
    served, asked = fresh(validating, tmp_path)
    assert served == [2, 1, 1, 2, 1, 2]
    assert asked == [(64, 2), (65, 2), (65, 1), (70, 2), (70, 1)]


def blocked(root):
    with timed(), fi_cachestore.autotune(root=root):
        tune()
    before = tune()
    AutoTuner.get()._blocklist._invalid["op::PlainRunner"] = {2}
    AutoTuner.get().clear_cache()
    return before, tune()


def test_a_blocklist_is_honoured_on_look_up(tmp_path):
    assert fresh(blocked, tmp_path) == ((0, 2), (0, 1))


def blocked_while_tuning(root):
    AutoTuner.get()._blocklist._invalid["op::PlainRunner"] = {2}
    with timed() as measured, fi_cachestore.autotune(root=root):
        chosen = tune()
    store = fi_cachestore.open_store(root)
    return chosen, len(measured), {store.get(digest).entry.space.count for digest in store}


def test_a_blocklist_filters_tuning_and_not_the_recorded_space(tmp_path):
    assert fresh(blocked_while_tuning, tmp_path) == ((0, 1), 9, {3})


# -- ephemeral calls --------------------------------------------------------------------------------------------------------------


class ObjectRunner(PlainRunner):
    def __init__(self):
        self.thing = object()
        self.nested = {"inner": [lambda: None, object()]}


def incomplete(root):
    runner = ObjectRunner()
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        first, second = (choose("incomplete", [runner], [matrix(100)]) for _ in range(2))
        tune("complete")
    served = choose("incomplete", [runner], [matrix(100)])
    return len(measured), first, second, served, session.report()


def test_an_object_of_no_known_kind_makes_the_op_ephemeral_and_is_named(tmp_path):
    measured, first, second, served, report = fresh(incomplete, tmp_path)
    assert measured == 3 * 3 + 3 * 4
    assert first == second == served == (0, 2)
    gaps = {(gap.subject, gap.field, gap.type_name) for gap in report.gaps}
    assert gaps == {
        ("tests.adapter.test_contexts:ObjectRunner", "thing", "builtins:object"),
        ("tests.adapter.test_contexts:ObjectRunner", "nested['inner'][1]", "builtins:object"),
    }
    assert report.ephemeral == {"incomplete key": 3}
    store = fi_cachestore.open_store(tmp_path)
    assert {store.get(digest).entry.key.op for digest in store} == {"complete"}
    with pytest.raises(fi_cachestore.CacheStoreError, match="thing"):
        fi_cachestore.tune_key("incomplete", ObjectRunner(), [matrix(100)], tuning_config=config())


def with_probes(**values):
    """This machine, except that a GPU's facets are asked for, and some cannot be determined."""

    def probes_for(device):
        extra = [Probe(name, role, lambda _, v=value: v) for name, (role, value) in values.items()]
        return (*CPU_PROBES, *extra)

    attach_module.Environments = lambda: Environments(probes_for)


def unknown_facet(root, name, value):
    with_probes(**{name: (Role.VALIDITY if name == "gpu_name" else Role.BACKEND, value)})
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        chosen = tune()
    return len(measured), chosen, [(gap.subject, gap.field) for gap in session.report().gaps], tune()


@pytest.mark.parametrize("name", ["gpu_name", "cudnn"])
def test_an_indeterminate_facet_makes_everything_ephemeral_and_is_named(tmp_path, name):
    assert fresh(unknown_facet, tmp_path, name, None) == (9, (0, 2), [("environment", name)], (0, 2))
    assert stored_count(tmp_path) == 0
    assert fresh(unknown_facet, tmp_path, name, "known") == (12, (0, 2), [], (0, 2))
    assert fresh(unknown_facet, tmp_path, name, "known")[0] == 0
    assert fresh(unknown_facet, tmp_path, name, "other")[0] == 12


class SingleGroup:
    """Stands for a process group; FlashInfer only asks whether there is one before it communicates."""


def with_process_group(root):
    import flashinfer.autotuner.autotuner as module

    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        tune("before")
        set_autotune_process_group(SingleGroup())
        module._sync_oom_across_tune_group = lambda local: local
        inside = tune("grouped")
        assert isinstance(get_autotune_process_group(), SingleGroup)
    set_autotune_process_group(None)
    return len(measured), inside, tune("grouped"), tune("before"), sorted(session.report().ephemeral)


def test_timings_averaged_over_ranks_are_left_to_flashinfer(tmp_path, caplog):
    why = "FlashInfer averages its timings over a process group"
    assert fresh(with_process_group, tmp_path) == (12 + 9, (0, 2), (0, 2), (0, -1), [why])
    assert stored_count(tmp_path) == 3


def with_group_argument(root):
    with timed() as measured, fi_cachestore.autotune(root=root, group=SingleGroup()) as session:
        tune()
    return len(measured), session.mode


def test_a_group_whose_ranks_do_not_meet_makes_the_session_ephemeral(tmp_path):
    assert fresh(with_group_argument, tmp_path) == (9, Mode.EPHEMERAL)
    assert stored_count(tmp_path) == 0


def test_tensors_on_meta_and_cpu_have_one_device(tmp_path):
    from fi_cachestore.adapter.introspect import device_of
    from fi_cachestore.environment.facets import Device

    assert device_of([torch.zeros(1), None, 3]) == Device("cpu")
    assert device_of([torch.zeros(1), torch.zeros(1, device="meta")]) == Device("meta", None)


# -- a FlashInfer that is not what we know ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["search_cache", "_profile_single_kernel", "_generate_optimization_profiles", "_apply_tuning_overrides", "_effective_skip_ops"]
)
def test_a_missing_or_changed_symbol_is_named(monkeypatch, name):
    import flashinfer.autotuner as module

    monkeypatch.delattr(module.AutoTuner, name)
    with pytest.raises(UnsupportedFlashInferError) as caught:
        check(module, "0.7.2")
    assert name in str(caught.value)


def test_a_missing_part_of_the_tuner_or_its_config_is_named(monkeypatch):
    import flashinfer.autotuner as module

    monkeypatch.setattr(module.AutoTuner, "_override_round_up", False)
    monkeypatch.delitem(module.TuningConfig.__dataclass_fields__, "use_cuda_graph")
    tuner = AutoTuner()
    del tuner.profiling_cache
    with pytest.raises(UnsupportedFlashInferError) as caught:
        check(module, "0.7.2", tuner)
    assert sorted(caught.value.missing) == [
        "AutoTuner().profiling_cache",
        "AutoTuner._override_round_up",
        "TuningConfig.use_cuda_graph",
    ]


@pytest.mark.parametrize("version", ["0.6.12", "0.8.0", "1.0"])
def test_other_versions_are_not_touched(version):
    import flashinfer.autotuner as module

    with pytest.raises(UnsupportedFlashInferError):
        check(module, version)


@pytest.mark.parametrize("version", ["0.6.13", "0.7.2.post1", "0.0.0+unknown"])
def test_known_versions_pass(version):
    import flashinfer.autotuner as module

    check(module, version, AutoTuner.get())


def without_symbol(root):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("fi_cachestore").addHandler(handler)
    real = AutoTuner.search_cache

    def changed(self, op, candidates, shapes, settings):
        return real(self, op, candidates, shapes, settings)

    AutoTuner.search_cache = changed
    with fi_cachestore.autotune(root=root) as session:
        attached = session.is_attached, type(AutoTuner.get()) is AutoTuner, AutoTuner.get().is_tuning_mode
    session = fi_cachestore.attach(root=root)
    return attached, session.is_attached, len(records)


def other_signature(self, op, runners, config, inputs):
    raise NotImplementedError


def its_wrapper(*args, **kwargs):
    return other_signature(*args, **kwargs)


REPLACED = {
    "signature": ("choose_one", other_signature),
    "wrapped": ("search_cache", functools.wraps(other_signature)(its_wrapper)),
    "nothing": ("clear_cache", None),
    "no hash": ("_get_override_stack", []),
    "no signature": ("_find_nearest_profile", iter),
    "no property": ("_override_round_up", other_signature),
}


def between_attaches(root, case):
    """Whether attaching works before a member of the tuner's class is replaced, after it, and when it is put back."""
    name, changed = REPLACED[case]
    real = vars(AutoTuner)[name]
    found = []
    for member in (real, changed, real):
        setattr(AutoTuner, name, member)
        session = fi_cachestore.attach(root=root)
        found.append(session.is_attached)
        session.detach()
    return found


@pytest.mark.parametrize("case", REPLACED)
def test_what_is_replaced_between_two_attaches_is_seen_at_the_second(tmp_path, case):
    assert fresh(between_attaches, tmp_path, case) == [True, False, True]


def test_with_a_changed_symbol_flashinfer_is_untouched_after_one_warning_per_session(tmp_path):
    assert fresh(without_symbol, tmp_path / "root") == ((False, True, True), False, 2)
    assert not (tmp_path / "root").exists()
