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
    result.stdout.fnmatch_lines_random(
        [
            "FAILED *test_calls_with_other_tactics_have_other_keys*",
            "FAILED *test_flashinfers_own_keys_tell_them_apart_too*",
            "FAILED *test_the_op_works_in_both_layouts*",
            "*two calls share the key and have different tactics; they differ in use_8x4_sf_layout",
            "*use_8x4_sf_layout=False: (0, 2, 4)",
            "*use_8x4_sf_layout=True: (1, 3, 5)",
            "*left out of it: use_8x4_sf_layout (resource)",
        ]
    )
