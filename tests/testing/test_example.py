"""The example of the documentation: red for the runner with the bug, green for the mended one."""

from pathlib import Path

import pytest
import torch
from flashinfer.autotuner import AutoTuner

from fi_cachestore.testing import KeyGuard, assert_key_stable, assert_serves_every_size, find_collisions, strategies

pytest_plugins = ["pytester"]
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
# A run inside this process forgets the modules it imports; torch bears that once only.
_ = torch, AutoTuner, KeyGuard, assert_key_stable, assert_serves_every_size, find_collisions, strategies


@pytest.fixture
def run(pytester):
    def run(variant, *arguments):
        for source in (EXAMPLES / "test_block_scaled.py", EXAMPLES / variant / "block_scaled.py"):
            (pytester.path / source.name).write_text(source.read_text())
        pytester.syspathinsert()
        return pytester.runpytest_inprocess("-p", "fi_cachestore.testing.plugin", "-p", "no:cacheprovider", *arguments)

    return run


def test_the_mended_runner_passes(run):
    run("mended").assert_outcomes(passed=7)


def test_the_runner_with_the_bug_fails_where_the_layout_counts(run):
    result = run("with_bug", "-k", "not every_process")
    result.assert_outcomes(failed=3, passed=3, deselected=1)
    names = ("calls_with_other_tactics_have_other_keys", "flashinfers_own_keys_tell_them_apart_too", "the_op_works_in_both_layouts")
    result.stdout.fnmatch_lines_random([f"FAILED *test_{name}*" for name in names])
    said = iter([line.removeprefix("E").strip() for line in result.outlines])
    for line in (EXAMPLES / "with_bug" / "output.txt").read_text().splitlines():
        assert line == "..." or line.strip() in said  # in this order
