"""Keys of the recipes' calls, under the contracts that ship."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from fi_cachestore.adapter.contracts import flashinfer_contracts
from fi_cachestore.adapter.introspect import Call, Introspector, RunnerView
from fi_cachestore.adapter.policy import resolved
from fi_cachestore.environment.identity import Environments
from fi_cachestore.keys.model import TuneKey
from tests.flashinfer_runners.case import RECIPES, Case, Recipe


@functools.cache
def introspector() -> Introspector:
    """Return what describes all calls here."""
    return Introspector(flashinfer_contracts(), Environments())


def view(case: Case) -> RunnerView:
    """Describe a case's runner as it is now."""
    config = case.config
    call = Call(introspector(), case.op, config, case.inputs, case.arguments, resolved(config, None))
    return RunnerView(call, case.runner)


def key(case: Case) -> TuneKey:
    """Return the first key of a case, which must be complete."""
    described = view(case)
    assert described.gaps == ()
    found = described.keys(described.call.bucket(), serving=True)[0]
    assert isinstance(found, TuneKey), found
    return found


@functools.cache
def digest(name: str, variant: str) -> str:
    """Return the digest of a recipe with the parameters of one of its variants, ``""`` for none."""
    recipe = RECIPES[name]
    with recipe.build(**variants(recipe)[variant]) as case:
        return key(case).digest


def variants(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    """Return the changed parameters of every variant of a recipe by name."""
    return {"": {}, **recipe.differs, **recipe.same}


def digests() -> dict[str, dict[str, str]]:
    """Return the digest of every recipe and variant, by their names."""
    return {name: {variant: digest(name, variant) for variant in variants(recipe)} for name, recipe in RECIPES.items()}
