"""Buckets, rounding and sizes: what was tuned once is found at every size it was tuned for, by the same rule, and at no other."""

import os
import signal
import threading

import pytest
import torch
from flashinfer import autotune as flashinfer_autotune
from flashinfer.autotune_cache import MeasurementPolicy, autotune_v2
from flashinfer.autotuner import AutoTuner, TunableRunner

import fi_cachestore
from fi_cachestore.adapter import attach as attach_module
from fi_cachestore.adapter.contracts import Contract, flashinfer_contracts
from fi_cachestore.adapter.sources import implementation_digest, type_name
from tests.adapter.believing import believe
from tests.adapter.processes import fresh
from tests.adapter.runners import BUCKETS, PlainRunner, choose, config, matrix, no_measurement, timed, with_output

SIZES = (1, 15, 16, 17, 63, 64, 100, 255, 256, 300, 5000)


class BySizeRunner(PlainRunner):
    """The fastest tactic is the size it was measured at."""

    def get_valid_tactics(self, inputs, profile):
        return [0, inputs[0].shape[0]]

    def time_ms(self, tactic):
        return 10.0 if tactic in (-1, 0) else 1.0


def serve_sizes(sizes=SIZES, **given):
    return {size: choose("sizes", [BySizeRunner()], [matrix(size)], **given)[1] for size in sizes}


def floor(size, buckets=BUCKETS):
    return max((bucket for bucket in buckets if bucket <= size), default=buckets[0])


def ceil(size, buckets=BUCKETS):
    return min((bucket for bucket in buckets if bucket >= size), default=buckets[-1])


# -- after the context, in another thread, in another process ---------------------------------------------------------------------


def tune_with(root, **overrides):
    with timed(), fi_cachestore.autotune(root=root, **overrides):
        choose("sizes", [BySizeRunner()], [matrix(100)])
        inside = serve_sizes()
    after = serve_sizes()
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(serve_sizes()))
    thread.start()
    thread.join()
    return inside, after, elsewhere[0]


def attach_and_serve(root):
    fi_cachestore.attach(root=root)
    return serve_sizes()


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        ({}, floor),
        ({"tuning_buckets": (32, 512)}, lambda size: floor(size, (32, 512))),
        ({"tuning_buckets": (32, 512), "round_up": True}, lambda size: ceil(size, (32, 512))),
        ({"round_up": True}, ceil),
    ],
    ids=["own", "buckets", "buckets and round up", "round up"],
)
def test_one_rule_inside_after_in_a_thread_and_in_a_fresh_process(tmp_path, overrides, rule):
    expected = {size: rule(size) for size in SIZES}
    inside, after, elsewhere = fresh(tune_with, tmp_path, **overrides)
    assert inside == after == elsewhere == expected
    believe(tmp_path)
    assert fresh(attach_and_serve, tmp_path) == expected


def tune_in_inner_context(root, **overrides):
    with timed(), fi_cachestore.autotune(root=root), flashinfer_autotune(True, **overrides):
        choose("sizes", [BySizeRunner()], [matrix(100)])
    return serve_sizes()


def test_the_rule_of_an_inner_context_of_flashinfer_stays_in_force(tmp_path):
    expected = {size: ceil(size, (32, 512)) for size in SIZES}
    assert fresh(tune_in_inner_context, tmp_path, tuning_buckets=(32, 512), round_up=True) == expected
    believe(tmp_path)
    assert fresh(attach_and_serve, tmp_path) == expected


def two_rounds(root):
    with timed(), fi_cachestore.autotune(root=root):
        for buckets in ((1, 8, 32), (256, 1024)):
            with flashinfer_autotune(True, tuning_buckets=buckets, round_up=True):
                choose("sizes", [BySizeRunner()], [matrix(100)])
    return serve_sizes()


def test_two_rounds_with_different_buckets_cover_one_range(tmp_path):
    expected = {size: ceil(size, (1, 8, 32, 256, 1024)) for size in SIZES}
    assert fresh(two_rounds, tmp_path) == expected
    believe(tmp_path)
    assert fresh(attach_and_serve, tmp_path) == expected


def tune_other_model(root):
    with timed(), fi_cachestore.autotune(root=root, tuning_buckets=(7, 77)):
        choose("other op", [BySizeRunner()], [matrix(50)])


def test_another_engine_on_the_same_root_does_not_hide_the_rule(tmp_path):
    fresh(tune_with, tmp_path, tuning_buckets=(32, 512), round_up=True)
    fresh(tune_other_model, tmp_path)
    believe(tmp_path)
    assert fresh(attach_and_serve, tmp_path) == {size: ceil(size, (32, 512)) for size in SIZES}


def attach_both(root):
    for name in ("target", "draft"):
        fi_cachestore.attach(root=root / name)
    return serve_sizes(), choose("other op", [BySizeRunner()], [matrix(50)])[1]


def test_the_rules_of_every_attached_root_are_tried(tmp_path):
    fresh(tune_with, tmp_path / "target", tuning_buckets=(32, 512), round_up=True)
    fresh(tune_other_model, tmp_path / "draft")
    believe(tmp_path / "target", tmp_path / "draft")
    assert fresh(attach_both, tmp_path) == ({size: ceil(size, (32, 512)) for size in SIZES}, 7)


def tune_and_die(root):
    with timed(), fi_cachestore.autotune(root=root):
        choose("sizes", [BySizeRunner()], [matrix(100)])
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_found_under_each_ops_own_buckets(tmp_path):
    with pytest.raises(ChildProcessError, match="-9"):
        fresh(tune_and_die, tmp_path)
    fresh(tune_other_model, tmp_path)
    believe(tmp_path)
    assert fresh(attach_and_serve, tmp_path) == {size: floor(size) for size in SIZES}


def floor_then_ceil(root):
    with timed(), fi_cachestore.autotune(root=root):
        choose("sizes", [BySizeRunner()], [matrix(100)])
    with flashinfer_autotune(False, round_up=True):
        return serve_sizes()


def test_a_record_tuned_for_floor_is_never_served_to_ceil(tmp_path):
    assert set(fresh(floor_then_ceil, tmp_path).values()) == {-1}


def a_longer_list(root):
    with timed(), fi_cachestore.autotune(root=root):
        choose("sizes", [BySizeRunner()], [matrix(100)])
    with timed() as measured, fi_cachestore.autotune(root=root):
        choose("sizes", [BySizeRunner()], [matrix(100)], config((*BUCKETS, 1024)))
    return measured


def a_longer_list_at_once(root):
    with timed() as measured, fi_cachestore.autotune(root=root):
        for buckets in (BUCKETS, (*BUCKETS, 1024)):
            choose("sizes", [BySizeRunner()], [matrix(100)], config(buckets))
    return [tactic for _, tactic in measured]


def test_a_longer_list_in_one_context_is_tuned_too(tmp_path):
    assert fresh(a_longer_list_at_once, tmp_path) == [-1, 0, 16, -1, 0, 64, -1, 0, 256, -1, 0, 1024]


def test_a_longer_list_of_buckets_orphans_nothing(tmp_path):
    assert [tactic for _, tactic in fresh(a_longer_list, tmp_path)] == [-1, 0, 1024]


def under_policy(root, execution_mode):
    policy = MeasurementPolicy(execution_mode=execution_mode)
    with timed() as measured, fi_cachestore.autotune(root=root, policy=policy):
        choose("sizes", [BySizeRunner()], [matrix(100)])
    return len(measured), serve_sizes()


def test_a_policy_has_its_own_records_and_stays_in_force(tmp_path):
    expected = {size: floor(size) for size in SIZES}
    for execution_mode in ("eager", "auto"):
        assert fresh(under_policy, tmp_path, execution_mode) == (9, expected)
        assert fresh(under_policy, tmp_path, execution_mode) == (0, expected)
        assert fresh(attach_and_serve, tmp_path) == expected


def inner_policy(root):
    with timed(), fi_cachestore.autotune(root=root), autotune_v2(persistent_cache=False, measurement_policy=MeasurementPolicy("eager")):
        choose("sizes", [BySizeRunner()], [matrix(100)])
    return serve_sizes()


def test_the_policy_of_an_inner_context_stays_in_force(tmp_path):
    expected = {size: floor(size) for size in SIZES}
    assert fresh(inner_policy, tmp_path) == expected
    believe(tmp_path)
    assert fresh(attach_and_serve, tmp_path) == expected


# -- extras -----------------------------------------------------------------------------------------------------------------------


class LeakyRunner(BySizeRunner):
    """Its extras hold the raw dynamic dim, as those of FlashInfer's cuBLASLt runner do."""

    def get_cache_key_extras(self, inputs):
        return (inputs[0].shape[0], inputs[0].shape[1], "constant")


class BranchingRunner(BySizeRunner):
    """Its extras say on which side of a limit the size is; tactics of one side are no good on the other."""

    def get_cache_key_extras(self, inputs):
        return (inputs[0].shape[0] > 20,)


class NumberingRunner(BySizeRunner):
    """As before, by numbers that are no dims."""

    def get_cache_key_extras(self, inputs):
        return (2 if inputs[0].shape[0] > 20 else 1,)


class PeekingAboveRunner(BySizeRunner):
    """Its extras need content at large sizes only."""

    def get_cache_key_extras(self, inputs):
        return (float(inputs[0].sum()) if inputs[0].shape[0] > 200 else 0.0,)


class StorageRunner(BySizeRunner):
    def get_cache_key_extras(self, inputs):
        return (inputs[0].untyped_storage().nbytes() > 0,)


class DescribingRunner(BySizeRunner):
    """Its extras look at everything that a stand-in has: device, dtype, layout, and the parts of a list."""

    def get_cache_key_extras(self, inputs):
        first, listed = inputs[0], inputs[1]
        return (first.is_cuda, first.device.type, first.dtype, first.stride(-1) == 1, first.is_contiguous(), listed[0].T.shape, len(listed))


class PeekingIntoListRunner(BySizeRunner):
    def get_cache_key_extras(self, inputs):
        return (float(inputs[1][0].sum()),)


class PeekingRunner(BySizeRunner):
    def get_cache_key_extras(self, inputs):
        return (float(inputs[0].sum()),)


class PointerRunner(BySizeRunner):
    def get_cache_key_extras(self, inputs):
        return (inputs[0].data_ptr() % 256,)


class CountingRunner(BySizeRunner):
    """Its extras change from call to call."""

    calls_cache = 0

    def get_cache_key_extras(self, inputs):
        CountingRunner.calls_cache += 1
        return (CountingRunner.calls_cache,)


def tune_extras(root, runner_class):
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        choose("extras", [runner_class()], [matrix(100)])
    return len(measured), [str(gap) for gap in session.report().gaps]


def serve_extras(root, runner_class):
    fi_cachestore.attach(root=root)
    return {size: choose("extras", [runner_class()], [matrix(size)])[1] for size in SIZES}


def test_extras_with_the_raw_dim_are_served_at_every_size(tmp_path):
    assert fresh(tune_extras, tmp_path, LeakyRunner) == (9, [])
    believe(tmp_path)
    assert fresh(serve_extras, tmp_path, LeakyRunner) == {size: floor(size) for size in SIZES}
    assert fresh(tune_extras, tmp_path, LeakyRunner) == (0, [])


@pytest.mark.parametrize("runner_class", [BranchingRunner, NumberingRunner])
def test_extras_that_tell_a_size_from_its_bucket_are_a_miss_there(tmp_path, runner_class):
    fresh(tune_extras, tmp_path, runner_class)
    believe(tmp_path)
    served = fresh(serve_extras, tmp_path, runner_class)
    assert served == {size: floor(size) if (size > 20) == (floor(size) > 20) else -1 for size in SIZES}
    assert -1 in served.values()


@pytest.mark.parametrize(
    ("runner_class", "why"),
    [(PeekingRunner, "content"), (PointerRunner, "address"), (StorageRunner, "address"), (CountingRunner, "content or address")],
)
def test_extras_that_need_more_than_a_shape_make_the_key_incomplete(tmp_path, runner_class, why):
    measured, gaps = fresh(tune_extras, tmp_path, runner_class)
    assert measured > 0
    assert len(gaps) == 1
    assert runner_class.__name__ in gaps[0]
    assert "extras" in gaps[0]
    assert why in gaps[0]
    assert set(fresh(serve_extras, tmp_path, runner_class).values()) == {-1}
    assert len(fi_cachestore.open_store(tmp_path)) == 0


def test_a_profile_whose_extras_cannot_be_known_is_left_alone_and_costs_no_other(tmp_path):
    assert fresh(tune_extras, tmp_path, PeekingAboveRunner)[0] == 6
    store = fi_cachestore.open_store(tmp_path)
    assert sorted(store.get(digest).entry.key.profile[0]["bucket"] for digest in store) == [16, 64]
    believe(tmp_path)
    assert fresh(serve_extras, tmp_path, PeekingAboveRunner) == {size: floor(size) if size < 200 else -1 for size in SIZES}


def look_at_lists(root, runner_class):
    inputs = [torch.zeros(32, 100).T, [matrix(3, 4), matrix(5)]]
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        choose("lists", [runner_class()], inputs)
    inputs[0] = torch.zeros(32, 70).T
    return len(measured), [gap.field for gap in session.report().gaps], choose("lists", [runner_class()], inputs)[1]


def test_extras_may_look_at_all_that_a_tensor_says_of_itself(tmp_path):
    assert fresh(look_at_lists, tmp_path, DescribingRunner) == (9, [], 64)
    assert fresh(look_at_lists, tmp_path, DescribingRunner) == (0, [], 64)


def test_extras_may_not_look_into_tensors_of_a_list(tmp_path):
    assert fresh(look_at_lists, tmp_path, PeekingIntoListRunner)[1] == ["extras"]


# -- contracts that look at the size ----------------------------------------------------------------------------------------------


class PerSizeListRunner(PlainRunner):
    """Its tactics are positions in a list made for one exact size."""

    def get_valid_tactics(self, inputs, profile):
        return list(range(3 if inputs[0].shape[0] % 2 == 0 else 2))


class AlignedRunner(BySizeRunner):
    def get_cache_key_extras(self, inputs):
        address = inputs[1].data_ptr()
        return (min(address & -address, 256),)


def with_contract(monkeypatch_target, runner_class, **terms):
    """Give a runner class of these tests a contract."""
    digest = implementation_digest(runner_class, TunableRunner)
    contract = Contract(type=type_name(runner_class), fingerprint=digest[:16], **terms)
    monkeypatch_target.flashinfer_contracts = lambda: {**flashinfer_contracts(), contract.type: contract}


def tune_per_size(root, *, has_contract):
    if has_contract:
        with_contract(attach_module, PerSizeListRunner, checks_size=True)
    with timed() as measured, fi_cachestore.autotune(root=root):
        choose("per size", [PerSizeListRunner()], [matrix(64)])
    return len(measured)


def serve_per_size(root, *, has_contract):
    if has_contract:
        with_contract(attach_module, PerSizeListRunner, checks_size=True)
    session = fi_cachestore.attach(root=root)
    served = {size: choose("per size", [PerSizeListRunner()], [matrix(size)])[1] for size in (16, 17, 64, 65, 100, 101, 17, 64)}
    report = session.report()
    return served, (report.size_check_count, report.size_misfit_count)


def test_lists_made_per_size_are_served_only_where_they_are_the_recorded_one(tmp_path):
    fresh(tune_per_size, tmp_path, has_contract=True)
    believe(tmp_path)
    served, counts = fresh(serve_per_size, tmp_path, has_contract=True)
    assert served == {16: 2, 17: -1, 64: 2, 65: -1, 100: 2, 101: -1}
    assert counts[1] == 3 * 4, "every tactic of the record, at each of three sizes, once"
    assert counts[0] == 3 + 3 * 4
    assert fresh(tune_per_size, tmp_path, has_contract=False) == 0
    assert fresh(serve_per_size, tmp_path, has_contract=False) == (dict.fromkeys((16, 17, 64, 65, 100, 101), 2), (0, 0))


class EquallyLongListRunner(PlainRunner):
    """Its lists have one length; what stands in which place depends on the size. For some sizes there is none."""

    def get_valid_tactics(self, inputs, profile):
        return {0: [0, 1, 2], 1: [0, 1, 3], 2: [2, 1, 0]}[inputs[0].shape[0] % 4]


def serve_equally_long(root):
    with_contract(attach_module, EquallyLongListRunner, checks_size=True)
    with timed(), fi_cachestore.autotune(root=root):
        choose("equally long", [EquallyLongListRunner()], [matrix(64)], config((64,)))
    return [choose("equally long", [EquallyLongListRunner()], [matrix(size)], config((64,)))[1] for size in (64, 65, 66, 67, 68)]


def test_a_list_of_equal_length_or_one_that_cannot_be_made_is_not_the_recorded_one(tmp_path):
    assert fresh(serve_equally_long, tmp_path) == [2, -1, -1, -1, 2]


class WorkspaceRunner(PlainRunner):
    """Has one kernel, called -1, while its workspace is large enough, and none above."""

    def get_valid_tactics(self, inputs, profile):
        return [-1] if inputs[0].shape[0] <= 100 else []

    def time_ms(self, tactic):
        return 1.0

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        if inputs[0].shape[0] > 100 and not do_preparation:
            raise MemoryError
        return inputs[0]


def tune_workspace(root):
    with_contract(attach_module, WorkspaceRunner, checks_size=True)
    with timed(), fi_cachestore.autotune(root=root):
        choose("workspace", [PlainRunner(), WorkspaceRunner()], [matrix(64)], config((64,)))


def serve_workspace(root):
    with_contract(attach_module, WorkspaceRunner, checks_size=True)
    fi_cachestore.attach(root=root)
    runners = [PlainRunner(), WorkspaceRunner()]
    return {size: choose("workspace", runners, [matrix(size)], config((64,))) for size in (64, 100, 101, 255)}


def test_a_default_that_won_is_not_served_where_its_runner_lists_nothing(tmp_path):
    fresh(tune_workspace, tmp_path)
    believe(tmp_path)
    assert fresh(serve_workspace, tmp_path) == {64: (1, -1), 100: (1, -1), 101: (0, 2), 255: (0, 2)}


def aligned(offset):
    storage = torch.zeros(4096, dtype=torch.uint8)
    start = -storage.data_ptr() % 256
    return storage[start + offset : start + offset + 64]


def tune_aligned(root, offset):
    with_contract(attach_module, AlignedRunner, pointer_alignment={1: 256})
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        choose("aligned", [AlignedRunner()], [matrix(100), aligned(offset)])
    assert session.report().gaps == ()
    return len(measured)


def test_an_alignment_that_a_contract_allows_is_part_of_the_key(tmp_path):
    assert fresh(tune_aligned, tmp_path, 0) == 9
    assert fresh(tune_aligned, tmp_path, 0) == 0
    assert fresh(tune_aligned, tmp_path, 16) == 9
    assert fresh(tune_aligned, tmp_path, 48) == 0


class QuietAlignedRunner(BySizeRunner):
    """Looks at an address, and its extras say nothing of it."""


def two_alignments(root):
    with_contract(attach_module, QuietAlignedRunner, pointer_alignment={1: 256})
    with timed(), fi_cachestore.autotune(root=root):
        choose("quiet", [QuietAlignedRunner()], [matrix(100), aligned(0)])
    return [choose("quiet", [QuietAlignedRunner()], [matrix(100), aligned(offset)])[1] for offset in (0, 16, 48, 0)]


def test_an_alignment_counts_where_the_extras_do_not_show_it_also_for_remembered_answers(tmp_path):
    assert fresh(two_alignments, tmp_path) == [64, -1, -1, 64]


# -- a mapper of the runner's own -------------------------------------------------------------------------------------------------


class MapperRunner(BySizeRunner):
    """Rounds for itself, with the mapper that was in force when it was made, as FlashInfer's cuDNN runners do."""

    def __init__(self, tuning_config):
        self._m_bucket_mapper = AutoTuner.get().get_effective_map_to_tuning_buckets(tuning_config)


def tune_mapper(root, **overrides):
    with timed(), fi_cachestore.autotune(root=root, **overrides) as session:
        choose("mapper", [MapperRunner(config())], [matrix(100)])
    assert session.report().gaps == ()


def serve_mapper(root, buckets=None):
    fi_cachestore.attach(root=root)
    given = config() if buckets is None else config(buckets)
    return {size: choose("mapper", [MapperRunner(given)], [matrix(size)])[1] for size in SIZES}


@pytest.mark.parametrize("overrides", [{}, {"tuning_buckets": (32, 512), "round_up": True}], ids=["own", "buckets"])
def test_a_runner_that_rounds_for_itself_is_served_where_it_agrees(tmp_path, overrides):
    fresh(tune_mapper, tmp_path, **overrides)
    believe(tmp_path)
    rule = (lambda size: ceil(size, (32, 512))) if overrides else floor
    assert fresh(serve_mapper, tmp_path) == {size: rule(size) for size in SIZES}


def test_a_runner_that_rounds_elsewhere_is_not_served(tmp_path):
    fresh(tune_mapper, tmp_path)
    believe(tmp_path)
    served = fresh(serve_mapper, tmp_path, (8, 64, 256))
    assert served == {size: floor(size) if floor(size) == floor(size, (8, 64, 256)) else -1 for size in SIZES}
    assert -1 in served.values()


def two_mappers(root):
    with timed(), fi_cachestore.autotune(root=root):
        choose("mapper", [MapperRunner(config())], [matrix(10)])
    return [choose("mapper", [MapperRunner(config(buckets))], [matrix(10)])[1] for buckets in (BUCKETS, (8, 64, 256), BUCKETS)]


def test_a_remembered_answer_is_not_that_of_a_runner_that_rounds_elsewhere(tmp_path):
    assert fresh(two_mappers, tmp_path) == [16, -1, 16]


# -- which dims are dynamic -------------------------------------------------------------------------------------------------------


def two_dynamic_dims(root):
    with timed(), fi_cachestore.autotune(root=root):
        choose("dims", [PlainRunner()], [matrix(64, 64)], config(dims=(0,)))
    return [choose("dims", [PlainRunner()], [matrix(64, 64)], config(dims=(dim,)))[1] for dim in (0, 1, 0)]


def test_a_remembered_answer_is_not_that_of_a_call_whose_other_dim_is_dynamic(tmp_path):
    assert fresh(two_dynamic_dims, tmp_path) == [2, -1, 2]


def two_derived_dims(root):
    derived = config(constraint_specs=with_output(1))
    with timed(), fi_cachestore.autotune(root=root):
        choose("derived", [PlainRunner()], [matrix(64), matrix(64)], derived)
    return [choose("derived", [PlainRunner()], [matrix(64), matrix(64)], given)[1] for given in (derived, config(), derived)]


def test_a_remembered_answer_is_not_that_of_a_call_whose_dim_only_has_the_same_size(tmp_path):
    assert fresh(two_derived_dims, tmp_path) == [2, -1, 2]


def tune_listed_tensors(root):
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        inputs = [matrix(100), [matrix(100), matrix(3)]]
        choose("listed tensors", [PlainRunner()], inputs)
    return len(measured), session.report().gaps, choose("listed tensors", [PlainRunner()], [matrix(70), [matrix(70), matrix(3)]])


def test_a_list_of_tensors_as_an_input_may_hold_the_dynamic_dim(tmp_path):
    assert fresh(tune_listed_tensors, tmp_path) == (12, (), (0, 2))
    assert fresh(tune_listed_tensors, tmp_path) == (0, (), (0, 2))


# -- what a first call leaves behind ----------------------------------------------------------------------------------------------


class LazyRunner(PlainRunner):
    """Fills attributes while it runs, as FlashInfer's runners do."""

    def __init__(self):
        self._multi_ctas_kv_counter_buffer = None
        self._workspace_num_tokens = 0
        self._plans = {}

    def __hash__(self):  # FlashInfer's loop keeps runners in a dict while they change
        return hash(type(self))

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        self._multi_ctas_kv_counter_buffer = torch.zeros(inputs[0].shape[0])
        self._workspace_num_tokens = max(self._workspace_num_tokens, inputs[0].shape[0])
        self._plans[inputs[0].shape[0]] = tactic
        self._out = inputs[0]
        return inputs[0]


def column_major(rows, columns):
    return torch.zeros(columns, rows).T


def tune_states(root, rows):
    runner = LazyRunner()
    runner([matrix(3)])
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        kwargs = {"routing": matrix(rows, 4), "scale": torch.zeros(1)}
        choose("states", [runner], [matrix(rows), column_major(rows, 8)], config(inputs=(0, 1), dims=(0, 0)), **kwargs)
    assert session.report().gaps == ()
    return len(measured)


def serve_states(root):
    fi_cachestore.attach(root=root)
    runner = LazyRunner()
    served = {}
    for rows in (1, 16, 40, 64, 100, 300):
        kwargs = {"routing": matrix(rows, 4), "scale": torch.zeros(1)}
        inputs = [matrix(rows), column_major(rows, 8)]
        _, served[rows] = choose("states", [runner], inputs, config(inputs=(0, 1), dims=(0, 0)), **kwargs)
        runner(inputs, tactic=served[rows])
    return served


def test_filled_attributes_dynamic_arguments_and_column_major_scales_hit_after_a_restart(tmp_path):
    assert fresh(tune_states, tmp_path, 100) == 12
    believe(tmp_path)
    assert set(fresh(serve_states, tmp_path).values()) == {2}
    assert fresh(tune_states, tmp_path, 1) == 0
    assert fresh(tune_states, tmp_path, 16) == 0


def tune_row_major(root):
    with timed() as measured, fi_cachestore.autotune(root=root):
        kwargs = {"routing": matrix(100, 4), "scale": torch.zeros(1)}
        choose("states", [LazyRunner()], [matrix(100), matrix(100, 8)], config(inputs=(0, 1), dims=(0, 0)), **kwargs)
    return len(measured)


def test_the_other_layout_is_not_served_where_it_can_be_told(tmp_path):
    fresh(tune_states, tmp_path, 100)
    assert fresh(tune_row_major, tmp_path) == 12


def tune_outputs(root, is_transposed):
    out = torch.zeros(64, 100).T if is_transposed else torch.zeros(100, 64)
    with timed() as measured, fi_cachestore.autotune(root=root):
        choose("outputs", [PlainRunner()], [matrix(100)], config(), out=out)
    with no_measurement(), fi_cachestore.autotune(root=root):
        choose("outputs", [PlainRunner()], [matrix(70)], config(), out=torch.zeros(70, 64))
    return len(measured)


def test_outputs_passed_by_keyword_count_by_presence_and_dtype(tmp_path):
    assert fresh(tune_outputs, tmp_path, is_transposed=False) == 12
    assert fresh(tune_outputs, tmp_path, is_transposed=True) == 0
    assert with_output(1)[0].input_idx == 1
