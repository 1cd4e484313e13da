"""Serving one pinned bundle: what it has, the default for the rest or an error, and never anything that is measured here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flashinfer.autotuner import TunableRunner, TuningConfig

from fi_cachestore.adapter import serve
from fi_cachestore.adapter.serve import Description
from fi_cachestore.adapter.sources import type_name
from fi_cachestore.adapter.state import Attached, Pin
from fi_cachestore.config import Mode, Settings
from fi_cachestore.errors import CacheStoreError, PinnedMissError
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.records.record import DEFAULT_TACTIC
from fi_cachestore.store.open import open_nothing
from fi_cachestore.store.roots import OpenRoot

if TYPE_CHECKING:
    from fi_cachestore.adapter.tuner import CacheStoreTuner

logger: Final = logging.getLogger("fi_cachestore")

_NO_KEY: Final = "incomplete key"


def choose(
    tuner: CacheStoreTuner,
    pin: Pin,
    op: str,
    runners: list[TunableRunner],
    config: TuningConfig,
    inputs: list[Any],
    kwargs: Mapping[str, Any],
) -> tuple[TunableRunner, Any]:
    """Answer ``choose_one``, while tuning too.

    Ops whose runners communicate are served by the default: what other ranks have pinned cannot be known here, and all must do the same.

    Raises:
        PinnedMissError: the bundle does not answer the call, and ``pin`` is strict.
    """
    if serve.communicates(tuner.state, op, runners):
        return runners[0], DEFAULT_TACTIC
    memo, asked = tuner.state.memo, (tuner, op, runners, config, inputs, kwargs)
    before = memo.begin(*asked)
    described = serve.describe(tuner, op, runners, serve.configs_in_force(tuner, config, inputs), inputs, kwargs)
    gaps = described.gaps if isinstance(described, Description) else described
    if gaps or not isinstance(described, Description):
        tuner.state.current.session.recorder.ephemeral(_NO_KEY, gaps)
        tuner.state.missed.in_memory(op, _NO_KEY, gaps)
        return _missed(pin, op, runners, "", "; ".join(map(str, gaps)))
    decision = serve.answer(tuner, described)
    if not decision.is_hit:
        return _missed(pin, op, runners, _digest(described), "no record that may be served")
    memo.keep(before, (decision.runner_index, decision.tactic), *asked)
    return runners[decision.runner_index], decision.tactic


def _missed(pin: Pin, op: str, runners: list[TunableRunner], digest: str, why: str) -> tuple[TunableRunner, Any]:
    if pin.strict:
        raise PinnedMissError(op, type_name(type(runners[0])), digest, pin.digest, why)
    return runners[0], DEFAULT_TACTIC


def _digest(described: Description) -> str:
    """Return the key that the call's first runner would be tuned under, as far as it has one."""
    keys = described.view(0, 0).keys(described.calls[0].bucket(), serving=True)
    return next((key.digest for key in keys if isinstance(key, TuneKey)), "")


def mark(attached: Attached, settings: Settings) -> None:
    """Have a session know what it has pinned, if that is its mode; sessions with other bundles share no memory."""
    if settings.mode.value is Mode.PIN:
        attached.pin = Pin(settings.pin.value or "", strict=settings.strict.value)
        attached.identity = (*attached.identity, attached.pin.digest)


def instead(settings: Settings, error: CacheStoreError) -> OpenRoot:
    """Return what is served where the pinned bundle cannot be: nothing, said once, so that every call gets its default.

    Raises:
        CacheStoreError: ``error``, where the settings are strict.
    """
    if settings.strict.value:
        raise error
    logger.warning("%s; every call is served by its default", error)
    return open_nothing(settings.root.value or Path("(none)"))
