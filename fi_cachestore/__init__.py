"""fi_cachestore: the autotune store for FlashInfer that inference engines can trust."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fi_cachestore.adapter.api import tune_key
    from fi_cachestore.adapter.attach import SessionHandle, attach, autotune, detach
    from fi_cachestore.config import Mode
    from fi_cachestore.errors import CacheStoreError
    from fi_cachestore.keys.diff import diff
    from fi_cachestore.keys.model import TuneKey
    from fi_cachestore.records.record import Record
    from fi_cachestore.report import Report
    from fi_cachestore.store.open import open_store
    from fi_cachestore.store.port import Hit, Miss

__version__ = "0.1.0"

# Imported when first used: tools that only read a cache directory start without torch and flashinfer.
_HOMES = {
    "CacheStoreError": "fi_cachestore.errors",
    "Hit": "fi_cachestore.store.port",
    "Miss": "fi_cachestore.store.port",
    "Mode": "fi_cachestore.config",
    "Record": "fi_cachestore.records.record",
    "Report": "fi_cachestore.report",
    "SessionHandle": "fi_cachestore.adapter.attach",
    "TuneKey": "fi_cachestore.keys.model",
    "attach": "fi_cachestore.adapter.attach",
    "autotune": "fi_cachestore.adapter.attach",
    "detach": "fi_cachestore.adapter.attach",
    "diff": "fi_cachestore.keys.diff",
    "open_store": "fi_cachestore.store.open",
    "tune_key": "fi_cachestore.adapter.api",
}

__all__ = [
    "CacheStoreError",
    "Hit",
    "Miss",
    "Mode",
    "Record",
    "Report",
    "SessionHandle",
    "TuneKey",
    "__version__",
    "attach",
    "autotune",
    "detach",
    "diff",
    "open_store",
    "tune_key",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    found = globals()[name] = getattr(importlib.import_module(home), name)  # from now on an attribute like any other
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
