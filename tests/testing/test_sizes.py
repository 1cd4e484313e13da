"""What is tuned at the buckets is served at every size, or the sizes are named."""

import pytest
import torch
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TuningConfig

import fi_cachestore
from fi_cachestore.testing import assert_serves_every_size, reference_gemm
from tests.adapter.runners import BUCKETS, PlainRunner, config, matrix

SIZES = (16, 17, 32, 63, 64, 100, 300)


class WholeTilesRunner(PlainRunner):
    """Tactic 2 works on whole tiles of 16 rows only; all buckets are."""

    def get_valid_tactics(self, inputs, profile):
        return [0, 1, 2] if inputs[0].shape[0] % 16 == 0 else [0, 1]

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        if tactic == 2 and inputs[0].shape[0] % 16:
            raise RuntimeError
        return inputs[0]


class CheckingRunner(WholeTilesRunner):
    def validate_tactic(self, inputs, tactic):
        return tactic != 2 or inputs[0].shape[0] % 16 == 0


def test_a_runner_without_limits_serves_every_size():
    assert_serves_every_size(PlainRunner(), config(), SIZES, inputs=lambda rows: [matrix(rows)])


@pytest.mark.parametrize("as_list", [False, True])
def test_inputs_are_made_for_each_size_or_resized(as_list):
    def make(rows):
        return reference_gemm.make_inputs(rows, 32, 64, use_8x4_sf_layout=True)

    runner = reference_gemm.ReferenceGemmRunner(use_8x4_sf_layout=True)
    assert_serves_every_size(
        runner, reference_gemm.tuning_config(use_8x4_sf_layout=True), (8, 9, 40, 128, 130), inputs=make(20) if as_list else make
    )


def test_a_tactic_that_is_legal_at_the_bucket_only_is_named_whichever_is_the_fastest():
    with pytest.raises(AssertionError) as error:
        assert_serves_every_size(WholeTilesRunner(), config(), SIZES, inputs=[matrix(20)])
    assert str(error.value).splitlines() == [
        "4 of 7 sizes are not served",
        *(f"size {size}: not in the runner's own list: 2; give the runner validate_tactic" for size in (17, 63, 100, 300)),
    ]


def test_a_runner_that_checks_for_itself_is_served_what_it_accepts():
    assert_serves_every_size(CheckingRunner(), config(), SIZES, inputs=[matrix(20)])


def test_a_runner_that_accepts_nothing_is_served_the_default_and_that_is_said():
    class Runner(PlainRunner):
        def validate_tactic(self, inputs, tactic):
            return False

        def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
            if tactic == -1 and not do_preparation:
                raise RuntimeError
            return inputs[0]

    with pytest.raises(AssertionError, match=r"size 17: none of [012], [012], [012] is served, the default is"):
        assert_serves_every_size(Runner(), config(), [17], inputs=[matrix(20)])


def test_a_served_tactic_that_fails_is_named():
    class Runner(PlainRunner):
        def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
            if inputs[0].shape[0] == 17:
                message = "not this size"
                raise RuntimeError(message)
            return inputs[0]

    with pytest.raises(AssertionError, match=r"size 17: tactic -?\d fails: RuntimeError: not this size"):
        assert_serves_every_size(Runner(), config(), [16, 17, 64], inputs=[matrix(20)])


def test_a_size_that_no_bucket_covers_is_named():
    spec = DynamicTensorSpec((0,), (0,), BUCKETS, lambda rows: rows)
    with pytest.raises(AssertionError, match=r"1 of 2 sizes are not served\nsize 17: no record for bucket \(17,\)"):
        assert_serves_every_size(PlainRunner(), TuningConfig(dynamic_tensor_specs=(spec,)), [16, 17], inputs=[matrix(20)])


def test_a_size_that_the_extras_tell_from_its_bucket_is_named():
    class Runner(PlainRunner):
        def get_cache_key_extras(self, inputs):
            return (inputs[0].shape[0] % 2 == 0,)

    with pytest.raises(AssertionError, match=r"1 of 2 sizes are not served\nsize 17: .*extras.*they tell this size from bucket"):
        assert_serves_every_size(Runner(), config(), [16, 17], inputs=[matrix(20)])


def test_a_call_without_a_key_is_named():
    runner = PlainRunner()
    runner.handle = object()
    with pytest.raises(AssertionError, match=r"the call has no key: .*handle"):
        assert_serves_every_size(runner, config(), [16], inputs=[matrix(20)])


def test_sizes_of_several_dims_are_tuples():
    specs = tuple(DynamicTensorSpec((i,), (0,), BUCKETS, config().dynamic_tensor_specs[0].map_to_tuning_buckets) for i in range(2))
    tuning_config = TuningConfig(dynamic_tensor_specs=specs)
    assert_serves_every_size(PlainRunner(), tuning_config, [(16, 300), (100, 17)], inputs=[matrix(20), matrix(20)])


def test_buckets_that_depend_on_the_size_are_those_of_the_largest():
    spec = config().dynamic_tensor_specs[0]
    buckets = DynamicTensorSpec((0,), (0,), lambda rows: [size for size in BUCKETS if size <= rows], spec.map_to_tuning_buckets)
    assert_serves_every_size(PlainRunner(), TuningConfig(dynamic_tensor_specs=(buckets,)), SIZES[::-1], inputs=[matrix(20)])
    assert_serves_every_size(PlainRunner(), TuningConfig(dynamic_tensor_specs=(buckets,)), SIZES, inputs=[matrix(20)])


def test_no_sizes_are_no_success():
    with pytest.raises(AssertionError, match="no sizes"):
        assert_serves_every_size(PlainRunner(), config(), [], inputs=[matrix(20)])


def test_flashinfer_is_left_as_it_was(tmp_path):
    tuner = AutoTuner.get()
    before = (type(tuner), set(vars(tuner)), AutoTuner._profile_single_kernel, torch.cuda.is_current_stream_capturing)
    with pytest.raises(AssertionError):
        assert_serves_every_size(WholeTilesRunner(), config(), SIZES, inputs=[matrix(20)])
    assert (type(tuner), set(vars(tuner)), AutoTuner._profile_single_kernel, torch.cuda.is_current_stream_capturing) == before
    session = fi_cachestore.attach(root=tmp_path, mode="auto")
    try:
        with pytest.raises(AssertionError, match="detach"):
            assert_serves_every_size(PlainRunner(), config(), SIZES, inputs=[matrix(20)])
        assert session.is_attached
    finally:
        session.detach()
