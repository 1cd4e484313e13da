import pytest

from fi_cachestore import config


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch, tmp_path):
    """No test reads or writes the cache or the state of whoever runs it."""
    for name in config._NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg-state"))
    assert config.load().state.value == tmp_path / "xdg-state" / "fi_cachestore"
    assert config.load().root.value == tmp_path / "xdg" / "fi_cachestore"
