"""The plug-in: what it costs to load it, whom it fails, and over which span it looks."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from flashinfer.autotuner import AutoTuner

from fi_cachestore.testing import KeyGuard
from fi_cachestore.testing.calls import legacy_key

pytest_plugins = ["pytester"]
PLUGIN = "fi_cachestore.testing.plugin"
ROOT = Path(__file__).parents[2]
_ = torch, legacy_key  # a run inside this process forgets the modules it imports; torch bears that once only

CALLS = """
    import pytest
    import torch
    from flashinfer.autotuner import AutoTuner, TunableRunner, TuningConfig

    class Runner(TunableRunner):
        def __init__(self, layout, **seen):
            self.layout_cache = [layout]
            vars(self).update(seen)

        def get_valid_tactics(self, inputs, profile):
            return self.layout_cache

        def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
            return inputs[0]

    def call(layout, **seen):
        AutoTuner.get().choose_one("op", [Runner(layout, **seen)], TuningConfig(), [torch.zeros(2, 2)])
"""


@pytest.fixture
def run(pytester):
    def run(tests, *arguments):
        pytester.makepyfile(f"{CALLS}\n{tests}")
        return pytester.runpytest_inprocess("-p", PLUGIN, "-p", "no:cacheprovider", *arguments)

    return run


def test_loading_the_plugin_imports_nothing_that_costs():
    code = f"import sys, {PLUGIN}; print(sorted({{'torch', 'flashinfer', 'hypothesis', 'numpy'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_everything_but_the_strategies_works_without_hypothesis():
    code = """
import sys
sys.modules["hypothesis"] = None
import fi_cachestore.testing as testing
assert all(callable(getattr(testing, name)) for name in testing.__all__)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_entry_point_has_the_name_of_its_module_so_that_naming_it_loads_it_once():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert points == {PLUGIN: PLUGIN}
    assert import_module(PLUGIN).key_guard


def test_a_guarded_test_fails_for_its_own_calls_only(run):
    result = run(
        """
    def test_first(key_guard):
        call(1)

    def test_second(key_guard):
        call(2)
        call(2)
        assert key_guard.call_count == 2

    def test_both(key_guard):
        call(1)
        call(2)

    def test_not_guarded():
        call(1)
        call(2)
    """
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        ["*_ test_both _*", "two calls share a key and have different tactics", "*test_a_guarded*py:*in call, *py:* in test_both: (1,)"]
    )


def test_a_collision_can_be_expected(run):
    run(
        """
    @pytest.mark.xfail(strict=True)
    def test_both(key_guard):
        call(1)
        call(2)
    """
    ).assert_outcomes(xfailed=1)


def test_calls_of_fixtures_and_of_failing_tests_count(run):
    result = run(
        """
    @pytest.fixture
    def late(key_guard):
        yield
        call(1)
        call(2)

    def test_in_teardown(late):
        pass

    def test_that_fails(key_guard):
        call(1)
        call(2)
        assert False, "for itself"
    """
    )
    result.assert_outcomes(passed=1, failed=1, errors=2)
    result.stdout.fnmatch_lines_random(["ERROR *test_in_teardown*", "ERROR *test_that_fails*", "E *AssertionError: for itself"])


def test_flashinfers_own_keys_have_a_fixture(run):
    run(
        """
    def test_ours(key_guard):
        call(1, seen=1)
        call(2, seen=2)

    def test_theirs(legacy_key_guard):
        call(1, seen=1)
        call(2, seen=2)
    """
    ).assert_outcomes(passed=1, failed=1)


ACROSS = """
    def test_first():
        call(1)

    def test_second():
        call(2)

    def test_third(key_guard):
        call(1)

    def test_fourth(key_guard):
        call(1)
        call(2)

    def test_fifth():
        for number in range(10):
            call(2 + number)
"""


@pytest.mark.parametrize("how", ["option", "setting"])
def test_a_whole_run_is_guarded_across_its_tests(run, pytester, how):
    if how == "setting":
        pytester.makeini("[pytest]\nkey_guard = true")
    before = {name: vars(AutoTuner)[name] for name in ("choose_one", "rank_tactics")}
    result = run(ACROSS, *(["--key-guard"] if how == "option" else []))
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines_random(["FAILED *test_second*", "FAILED *test_fourth*", "FAILED *test_fifth*", "and 5 more"])
    assert {name: vars(AutoTuner)[name] for name in before} == before


def test_a_run_that_did_not_ask_is_not_guarded(run):
    run(ACROSS).assert_outcomes(passed=4, failed=1)


def test_collecting_starts_no_guard(run, monkeypatch):
    monkeypatch.setattr(KeyGuard, "__enter__", lambda self: pytest.exit("started"))
    assert run(ACROSS, "--key-guard", "--collect-only").ret == 0
