"""Keys for people: the key of a call without attaching anything."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from flashinfer.autotuner import AutoTuner, TunableRunner, TuningConfig

from fi_cachestore.adapter import policy as policies
from fi_cachestore.adapter.contracts import flashinfer_contracts
from fi_cachestore.adapter.introspect import Call, Introspector, RunnerView
from fi_cachestore.environment.identity import Environments
from fi_cachestore.errors import Gap, IncompleteKeyError
from fi_cachestore.keys.model import TuneKey


def tune_key(
    op: str,
    runner: TunableRunner,
    inputs: Sequence[Any],
    *,
    tuning_config: TuningConfig | None = None,
    arguments: Mapping[str, Any] | None = None,
    policy: Any = None,
) -> TuneKey:
    """Return the key of one runner for one call: what ``choose_one(op, [runner], tuning_config, inputs, **arguments)`` is known by.

    ``policy`` is FlashInfer's ``MeasurementPolicy`` or ``None``. Open contexts do not count: pass a config with their buckets instead.

    Raises:
        IncompleteKeyError: the call cannot be described completely; names runner, field and type.
    """
    return key_of(describe(op, runner, inputs, tuning_config=tuning_config, arguments=arguments, policy=policy))


def describe(
    op: str,
    runner: TunableRunner,
    inputs: Sequence[Any],
    *,
    tuning_config: TuningConfig | None = None,
    arguments: Mapping[str, Any] | None = None,
    policy: Any = None,
) -> RunnerView:
    """Return what ``tune_key`` makes its key of: also what it leaves out, and why there is no key."""
    config = policies.apply(AutoTuner.get(), tuning_config or TuningConfig(), policy)
    call = Call(introspector(), op, config, inputs, arguments or {}, policies.resolved(config, policy))
    return RunnerView(call, runner)


def key_of(view: RunnerView) -> TuneKey:
    """Return the first key under which the described call is looked up.

    Raises:
        IncompleteKeyError: it has none.
    """
    found = view.keys(view.call.bucket(), serving=True)
    first = found[0]
    if isinstance(first, TuneKey):
        return first
    raise IncompleteKeyError(view.call.op, tuple(gap for gap in found if isinstance(gap, Gap)))


@functools.cache
def introspector() -> Introspector:
    """Return the introspector with the contracts of this version and this process's environments."""
    return Introspector(flashinfer_contracts(), Environments())
