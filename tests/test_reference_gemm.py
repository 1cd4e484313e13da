import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_cachestore.testing import reference_gemm as gemm
from fi_cachestore.testing.cpu_timing import wall_clock_ms

LAYOUTS = [True, False]


@pytest.mark.parametrize("use_8x4_sf_layout", LAYOUTS)
@given(rows=st.integers(1, 300), columns=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_every_scale_has_a_place_of_its_own_inside_the_buffer(use_8x4_sf_layout, rows, columns):
    offsets = gemm.sf_offsets(rows, columns, use_8x4_sf_layout=use_8x4_sf_layout)
    assert offsets.unique().numel() == rows * columns
    assert offsets.min() >= 0
    assert offsets.max() < gemm.sf_numel(rows, columns, use_8x4_sf_layout=use_8x4_sf_layout)


def test_the_layouts_are_those_of_the_formulas():
    """Some offsets worked out by hand from TensorRT-LLM's formulas, for 8 columns of scales (two tiles a row)."""
    wide, narrow = (gemm.sf_offsets(256, 8, use_8x4_sf_layout=layout) for layout in (False, True))
    assert [wide[m, k].item() for m, k in ((0, 0), (0, 3), (0, 4), (1, 0), (32, 0), (96, 2), (128, 0))] == [0, 3, 512, 16, 4, 14, 1024]
    assert [narrow[m, k].item() for m, k in ((0, 0), (0, 3), (0, 4), (1, 0), (7, 3), (8, 0), (9, 5))] == [0, 3, 32, 4, 31, 64, 64 + 32 + 5]


@pytest.mark.parametrize("use_8x4_sf_layout", LAYOUTS)
@pytest.mark.parametrize("rows", [1, 7, 64, 130])
def test_every_tactic_computes_the_plain_product(use_8x4_sf_layout, rows):
    runner = gemm.ReferenceGemmRunner(use_8x4_sf_layout=use_8x4_sf_layout)
    inputs = gemm.make_inputs(rows, 24, 96, use_8x4_sf_layout=use_8x4_sf_layout, seed=rows)
    expected = gemm.plain_result(inputs, use_8x4_sf_layout=use_8x4_sf_layout)
    for tactic in [-1, *runner.get_valid_tactics(inputs, None)]:
        inputs[4].fill_(float("nan"))
        torch.testing.assert_close(runner(inputs, tactic=tactic).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_scales_really_depend_on_the_layout():
    inputs = gemm.make_inputs(64, 16, 64, use_8x4_sf_layout=True)
    right, wrong = (
        gemm.plain_result([*inputs[:2], torch.cat([inputs[2], torch.zeros(4096)]), *inputs[3:]], use_8x4_sf_layout=layout)
        for layout in LAYOUTS
    )
    assert not torch.allclose(right, wrong)


@pytest.mark.parametrize("use_8x4_sf_layout", LAYOUTS)
def test_a_tactic_of_the_other_layout_raises(use_8x4_sf_layout):
    runner = gemm.ReferenceGemmRunner(use_8x4_sf_layout=use_8x4_sf_layout)
    other = gemm.ReferenceGemmRunner(use_8x4_sf_layout=not use_8x4_sf_layout)
    inputs = gemm.make_inputs(8, 8, 64, use_8x4_sf_layout=use_8x4_sf_layout)
    own, others = (made.get_valid_tactics(inputs, None) for made in (runner, other))
    assert not set(own) & set(others)
    for tactic in others:
        with pytest.raises(RuntimeError, match="Invalid sf layout in run"):
            runner(inputs, tactic=tactic)


def test_tactics_differ_in_how_much_they_do_at_once():
    """Counted, not timed: smaller chunks mean more matrix products."""
    runner = gemm.ReferenceGemmRunner(use_8x4_sf_layout=False)
    inputs = gemm.make_inputs(128, 8, 64, use_8x4_sf_layout=False)
    counts = []
    for tactic in runner.get_valid_tactics(inputs, None):
        with torch.profiler.profile() as profile:
            runner(inputs, tactic=tactic)
        counts.append(sum(event.count for event in profile.key_averages() if event.key == "aten::mm"))
    assert counts == [1, 2, 8, 32]


def test_the_wall_clock_runs_what_it_times():
    calls = []
    assert wall_clock_ms(lambda: calls.append(1), None, 0, repeat=3) >= 0
    assert len(calls) == 4
