import pytest

from fi_cachestore.config import load


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch, tmp_path):
    """No test reads or writes the cache of whoever runs it."""
    for name in ("DIR", "PATH", "TRUST", "MODE", "DURABLE", "MAX_WAIT_S"):
        monkeypatch.delenv(f"FI_CACHESTORE_{name}", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert load().root.value == tmp_path / "xdg" / "fi_cachestore"
