import pytest
import torch
from block_scaled import BUCKETS, CONFIG, block_scaled_gemm, make_inputs, runner_for
from hypothesis import given, settings

from fi_cachestore.testing import (
    TunedCall,
    assert_key_stable,
    assert_keys_distinct,
    assert_legacy_keys_distinct,
    assert_serves_every_size,
)
from fi_cachestore.testing.strategies import points

GRID = {"use_8x4_sf_layout": [False, True], "rows": [1, 16, 300], "dtype": [torch.float32, torch.bfloat16]}


def call(use_8x4_sf_layout=False, rows=16, dtype=torch.float32):
    return TunedCall(runner_for(use_8x4_sf_layout), make_inputs(rows, dtype), CONFIG, op="block_scaled_gemm")


def test_calls_with_other_tactics_have_other_keys():
    assert_keys_distinct(call, GRID)


def test_flashinfers_own_keys_tell_them_apart_too():
    assert_legacy_keys_distinct(call, GRID)


def test_the_key_is_the_same_in_every_process():
    assert_key_stable(call)


@pytest.mark.parametrize("use_8x4_sf_layout", [False, True])
def test_every_size_is_served(use_8x4_sf_layout):
    assert_serves_every_size(runner_for(use_8x4_sf_layout), CONFIG, range(1, 400, 7), inputs=make_inputs)


def test_the_op_works_in_both_layouts(key_guard):
    for use_8x4_sf_layout in (False, True):
        for rows in BUCKETS:
            assert block_scaled_gemm(*make_inputs(rows), use_8x4_sf_layout=use_8x4_sf_layout).shape == (rows, 64)


@settings(max_examples=20, deadline=None)
@given(points(GRID))
def test_a_call_described_twice_has_one_key(point):
    assert call(**point).key() == call(**point).key()
