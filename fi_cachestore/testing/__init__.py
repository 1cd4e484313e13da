"""What others test with: helpers for authors of kernels, the reference GEMM, timing without a GPU, the store contract, injected faults."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fi_cachestore.testing.calls import TunedCall, listed_tactics, working_tactics
    from fi_cachestore.testing.collisions import (
        Collision,
        Shared,
        assert_keys_distinct,
        assert_legacy_keys_distinct,
        find_collisions,
    )
    from fi_cachestore.testing.guard import Conflict, KeyGuard
    from fi_cachestore.testing.sizes import assert_serves_every_size
    from fi_cachestore.testing.stability import assert_key_stable

# Imported when first used: pytest loads the plug-in beside this file into every run, and that must not cost torch.
_HOMES = {
    "Collision": "collisions",
    "Conflict": "guard",
    "KeyGuard": "guard",
    "Shared": "collisions",
    "TunedCall": "calls",
    "assert_key_stable": "stability",
    "assert_keys_distinct": "collisions",
    "assert_legacy_keys_distinct": "collisions",
    "assert_serves_every_size": "sizes",
    "find_collisions": "collisions",
    "listed_tactics": "calls",
    "working_tactics": "calls",
}

__all__ = [
    "Collision",
    "Conflict",
    "KeyGuard",
    "Shared",
    "TunedCall",
    "assert_key_stable",
    "assert_keys_distinct",
    "assert_legacy_keys_distinct",
    "assert_serves_every_size",
    "find_collisions",
    "listed_tactics",
    "working_tactics",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
