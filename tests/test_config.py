import os
import subprocess
import sys
from pathlib import Path

import pytest

from fi_cachestore.config import Mode, load
from fi_cachestore.errors import ConfigError

HOME = {"HOME": "/home/me"}


@pytest.mark.parametrize(
    ("argument", "environ", "root", "source"),
    [
        ("/a", {"FI_CACHESTORE_DIR": "/b", "XDG_CACHE_HOME": "/c", **HOME}, "/a", "argument"),
        (None, {"FI_CACHESTORE_DIR": "/b", "XDG_CACHE_HOME": "/c", **HOME}, "/b", "FI_CACHESTORE_DIR"),
        (None, {"XDG_CACHE_HOME": "/c", **HOME}, "/c/fi_cachestore", "XDG_CACHE_HOME"),
        (None, HOME, "/home/me/.cache/fi_cachestore", "default"),
        (None, {"FI_CACHESTORE_DIR": "", "XDG_CACHE_HOME": "", **HOME}, "/home/me/.cache/fi_cachestore", "default"),
    ],
)
def test_where_the_root_comes_from(argument, environ, root, source):
    found = load(root=argument, environ=environ).root
    assert (found.value, found.source) == (Path(root), source)


@pytest.mark.parametrize(
    ("environ", "state", "source"),
    [
        ({"FI_CACHESTORE_STATE_DIR": "/a", "XDG_STATE_HOME": "/b", **HOME}, "/a", "FI_CACHESTORE_STATE_DIR"),
        ({"XDG_STATE_HOME": "/b", **HOME}, "/b/fi_cachestore", "XDG_STATE_HOME"),
        ({"FI_CACHESTORE_STATE_DIR": "", "XDG_STATE_HOME": "", **HOME}, "/home/me/.local/state/fi_cachestore", "default"),
    ],
)
def test_where_misses_are_kept(environ, state, source):
    found = load(environ=environ).state
    assert (found.value, found.source) == (Path(state), source)


def test_without_home_the_password_database_is_asked(monkeypatch):
    import pwd
    from types import SimpleNamespace

    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_dir="/home/of/user"))
    assert load(environ={"HOME": ""}).root.value == Path("/home/of/user/.cache/fi_cachestore")


def test_without_home_and_entry_there_is_no_root(monkeypatch):
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    for found in (load(environ={}).root, load(environ={}).state):
        assert found.value is None
        assert "no HOME" in found.source


def test_defaults():
    rows = load(environ=HOME).rows()
    assert {name: row["value"] for name, row in rows.items()} == {
        "root": "/home/me/.cache/fi_cachestore",
        "path": [],
        "trusted": [],
        "mode": "auto",
        "pin": None,
        "strict": False,
        "durable": True,
        "max_wait_s": 600.0,
        "stall_s": 120.0,
        "dead_after_s": 15.0,
        "address": None,
        "state": "/home/me/.local/state/fi_cachestore",
        "max_values": 256,
        "max_keys": 16384,
    }
    assert {row["source"] for row in rows.values()} == {"default"}


def test_empty_variables_count_as_unset():
    names = ("DIR", "PATH", "TRUST", "MODE", "PIN", "STRICT", "DURABLE", "MAX_WAIT_S", "STALL_S", "DEAD_AFTER_S", "ADDRESS")
    names += ("MAX_VALUES", "MAX_KEYS")
    assert load(environ={**{f"FI_CACHESTORE_{name}": "" for name in names}, **HOME}).rows() == load(environ=HOME).rows()


def test_variables_are_read_and_named():
    environ = {
        "FI_CACHESTORE_PATH": "/ro1:@:/ro2",
        "FI_CACHESTORE_TRUST": "/t1:/t2",
        "FI_CACHESTORE_MODE": "replay",
        "FI_CACHESTORE_PIN": "ab" * 32,
        "FI_CACHESTORE_STRICT": "1",
        "FI_CACHESTORE_DURABLE": "0",
        "FI_CACHESTORE_MAX_WAIT_S": "2.5",
        "FI_CACHESTORE_STALL_S": "3",
        "FI_CACHESTORE_DEAD_AFTER_S": "4",
        "FI_CACHESTORE_ADDRESS": "10.0.0.7",
        "FI_CACHESTORE_STATE_DIR": "/state",
        "FI_CACHESTORE_MAX_VALUES": "7",
        "FI_CACHESTORE_MAX_KEYS": "8",
        **HOME,
    }
    found = load(environ=environ)
    assert found.path.value == ("/ro1", "@", "/ro2")
    assert found.trusted.value == (Path("/t1"), Path("/t2"))
    assert found.mode.value is Mode.REPLAY
    assert (found.pin.value, found.strict.value) == ("ab" * 32, True)
    assert found.durable.value is False
    assert (found.max_wait_s.value, found.stall_s.value, found.dead_after_s.value) == (2.5, 3.0, 4.0)
    assert found.address.value == "10.0.0.7"
    assert (found.max_values.value, found.max_keys.value) == (7, 8)
    sources = {name: row["source"] for name, row in found.rows().items()}
    assert sources == {
        "root": "default",
        "path": "FI_CACHESTORE_PATH",
        "trusted": "FI_CACHESTORE_TRUST",
        "mode": "FI_CACHESTORE_MODE",
        "pin": "FI_CACHESTORE_PIN",
        "strict": "FI_CACHESTORE_STRICT",
        "durable": "FI_CACHESTORE_DURABLE",
        "max_wait_s": "FI_CACHESTORE_MAX_WAIT_S",
        "stall_s": "FI_CACHESTORE_STALL_S",
        "dead_after_s": "FI_CACHESTORE_DEAD_AFTER_S",
        "address": "FI_CACHESTORE_ADDRESS",
        "state": "FI_CACHESTORE_STATE_DIR",
        "max_values": "FI_CACHESTORE_MAX_VALUES",
        "max_keys": "FI_CACHESTORE_MAX_KEYS",
    }


def test_an_argument_beats_the_variable():
    assert load(mode="off", environ={"FI_CACHESTORE_MODE": "replay", **HOME}).mode.value is Mode.OFF


def test_what_is_pinned_can_be_an_argument():
    found = load(pin="cd" * 32, strict=False, environ={"FI_CACHESTORE_PIN": "ab" * 32, "FI_CACHESTORE_STRICT": "1", **HOME})
    assert (found.pin.value, found.pin.source) == ("cd" * 32, "argument")
    assert (found.strict.value, found.strict.source) == (False, "argument")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODE", "fast"),
        ("DURABLE", "yes"),
        ("STRICT", "yes"),
        ("MAX_WAIT_S", "soon"),
        ("MAX_WAIT_S", "-1"),
        ("MAX_WAIT_S", "nan"),
        ("MAX_WAIT_S", "inf"),
        ("STALL_S", "-2"),
        ("DEAD_AFTER_S", "never"),
        ("PATH", "@:@"),
        ("MAX_VALUES", "0"),
        ("MAX_VALUES", "-1"),
        ("MAX_KEYS", "2.5"),
        ("MAX_KEYS", "many"),
    ],
)
def test_what_cannot_be_understood_is_an_error_that_says_where(name, value):
    with pytest.raises(ConfigError) as caught:
        load(environ={f"FI_CACHESTORE_{name}": value, **HOME})
    assert caught.value.exit_code == 10
    assert value in str(caught.value)


def test_a_wrong_argument_is_an_error():
    with pytest.raises(ConfigError) as caught:
        load(mode="fast", environ=HOME)
    assert caught.value.source == "argument"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_user_without_entry_and_home_gets_no_exception():
    code = "import os, pwd; from fi_cachestore.config import load; os.setuid(54321); print(load().root.value, load().root.source)"
    result = subprocess.run([sys.executable, "-c", code], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("None default (no HOME")
