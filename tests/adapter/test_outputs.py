"""Comparing what two tactics give: wide bounds, no copies that stay, and nothing of a caller's that is left changed."""

import gc
import weakref

import pytest
import torch

from fi_cachestore.adapter.outputs import Watch, compare
from fi_cachestore.records.observation import Output

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def rows(seed=0, dtype=torch.float32):
    return torch.randn(64, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_is_no_difference_and_another_result_is(dtype):
    expected = rows(dtype=dtype)
    rounded = (expected.double() * (1 + 2e-8 if dtype is torch.float64 else 1 + 1e-3)).to(dtype)
    assert compare([expected], [expected], [rounded]) is Output.EQUAL
    assert compare([expected], [expected], [rows(1, dtype)]) is Output.DIFFERS
    wrong = expected.clone()
    wrong[0, :4] = torch.tensor(100.0).to(dtype)
    assert compare([expected], [expected], [wrong]) is Output.DIFFERS


def test_numbers_that_are_lost_are_seen_where_the_default_has_them():
    expected, lost = rows(), rows()
    lost[3, 4] = float("nan")
    assert compare([expected], [expected], [lost]) is Output.NOT_FINITE
    assert compare([lost], [lost], [lost]) is Output.EQUAL
    assert compare([lost], [lost], [expected]) is Output.EQUAL


def test_a_default_that_does_not_repeat_itself_proves_nothing_but_lost_numbers():
    assert compare([rows(0)], [rows(1)], [rows(2)]) is Output.NOT_COMPARED
    once, again, tried = rows(), rows(), rows(3)
    once[0], again[0] = 5.0, 7.0
    assert compare([once], [again], [tried]) is Output.NOT_COMPARED
    tried[1] = float("inf")
    assert compare([once], [again], [tried]) is Output.NOT_FINITE
    assert compare([], [], [rows()]) is Output.NOT_COMPARED
    assert compare([rows()], [rows().half()], [rows()]) is Output.NOT_COMPARED


def test_other_shapes_dtypes_and_counts_differ():
    for tried in ([rows()[1:]], [rows().half()], [], [rows(), rows()]):
        assert compare([rows()], [rows()], tried) is Output.DIFFERS


def test_few_other_integers_are_no_difference():
    expected = torch.arange(64, dtype=torch.uint8)
    few, many = expected.clone(), expected.clone()
    few[:4] += 1
    many[:40] += 1
    assert compare([expected], [expected], [few]) is Output.EQUAL
    assert compare([expected], [expected], [many]) is Output.DIFFERS
    assert compare([expected[:0]], [expected[:0]], [expected[:0]]) is Output.EQUAL


def test_what_is_returned_counts_else_what_was_changed():
    out, weights, workspace = torch.zeros(4), torch.ones(4), torch.zeros(4, dtype=torch.uint8)
    with Watch([[out, weights], {"workspace": workspace}]) as watch:
        assert [item.tolist() for item in watch.outputs((weights + 1, [weights + 2]))] == [[2.0] * 4, [3.0] * 4]
        assert watch.outputs(None) == []
        workspace.fill_(7)
        assert [item.dtype for item in watch.outputs(None)] == [torch.uint8]
        out.fill_(5)
        assert [item.tolist() for item in watch.outputs(None)] == [[5.0] * 4]
        assert out.tolist() == [0.0] * 4, "wiped, for the next run"
        assert watch.outputs(None)[0].dtype is torch.uint8, "a run that writes nothing has other results"
        out.fill_(6)
        watch.outputs(out)
    assert out.tolist() == [5.0] * 4
    assert weights.tolist() == [1.0] * 4
    assert workspace.tolist() == [7] * 4


def test_an_input_that_is_given_back_is_not_wiped():
    given = rows()
    with Watch([given]) as watch:
        (copy,) = watch.outputs(given)
    assert torch.equal(given, rows())
    assert copy.data_ptr() != given.data_ptr()


def test_nothing_is_kept():
    made = rows()
    gone = weakref.ref(made)
    with Watch([]) as watch:
        watch.outputs(made)
    del made
    gc.collect()
    assert gone() is None
    assert watch is not None
