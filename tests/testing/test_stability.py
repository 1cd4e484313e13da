"""A key that differs between processes is found, with the field that differs."""

import os
from pathlib import Path

import pytest

from fi_cachestore.testing import TunedCall, assert_key_stable
from tests.adapter.runners import PlainRunner, config, matrix


def call(**attributes):
    runner = PlainRunner()
    vars(runner).update(attributes)
    return TunedCall(runner, [matrix(50)], config())


def stable():
    return call(names=frozenset({"a", "b", "c"}), layout="8x4", tp_rank=int(os.environ.get("RANK", "7")))


def by_hash_seed_and_rank():
    return call(order=tuple(set("abcdefgh")), world=os.environ.get("RANK"))


def by_directory():
    return call(place=str(Path.cwd()))


def described_here_only():
    return call(handle=object() if "MASTER_PORT" in os.environ else None)


def without_a_key():
    return call(handle=object())


def not_a_call():
    return PlainRunner()


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch):
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_what_processes_may_differ_in_is_in_no_key():
    assert_key_stable(stable)


def test_a_key_that_depends_on_the_hash_seed_or_the_rank_is_found():
    with pytest.raises(AssertionError, match="by_hash_seed_and_rank has another key") as error:
        assert_key_stable(f"{__name__}:by_hash_seed_and_rank")
    assert "params.order" in str(error.value)
    assert "params.world: None | '0'" in str(error.value)
    assert "PYTHONHASHSEED=1" in str(error.value)


def test_a_key_that_depends_on_the_working_directory_is_found():
    with pytest.raises(AssertionError, match=r"params\.place: "):
        assert_key_stable(by_directory)


def test_a_call_that_has_a_key_here_only_is_found():
    with pytest.raises(AssertionError, match=r"has a key in this process and none in another.*handle"):
        assert_key_stable(described_here_only)


def test_a_call_without_a_key_is_not_stable():
    with pytest.raises(AssertionError, match=r"without_a_key: .*handle"):
        assert_key_stable(without_a_key)


@pytest.mark.parametrize("wrong", [lambda: call(layout=1), "stable", ":stable", "module:"])
def test_what_no_other_process_can_import_is_refused(wrong):
    with pytest.raises(ValueError, match=r"top of a module|module:name"):
        assert_key_stable(wrong)


def test_what_gives_no_call_is_refused():
    with pytest.raises(TypeError, match="gives a PlainRunner, not a TunedCall"):
        assert_key_stable(not_a_call)
