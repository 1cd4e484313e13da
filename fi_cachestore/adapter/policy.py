"""How a measurement is taken, resolved: what "inherited" means is decided before a key is made."""

from __future__ import annotations

from typing import Any

from flashinfer.autotuner import AutoTuner, TuningConfig

from fi_cachestore.keys.canonical import Value
from fi_cachestore.records.rules import Rule


def resolved(config: TuningConfig, measure_policy: Any, *, cupti_works: bool = True) -> dict[str, Value]:
    """Return the policy part of a key. ``config`` has the context's overrides applied, ``measure_policy`` is FlashInfer's or ``None``."""
    graph = bool(config.use_cuda_graph)
    timer = "events" if measure_policy is None else str(measure_policy.timer)
    if timer == "cupti" and not cupti_works:
        timer = "events"
    return {
        "execution": "cuda graph" if graph else "eager",
        "l2": "cold" if config.use_cold_l2_cache else "hot",
        "l2_flushed_after_first_replay": graph and bool(getattr(config, "use_cold_l2_graph_replay", False)),
        "replays": int(getattr(config, "cuda_graph_profile_replays", 1)) if graph else 1,
        "timer": timer,
    }


def apply(tuner: AutoTuner, config: TuningConfig, measure_policy: Any) -> TuningConfig:
    """Return ``config`` with a measurement policy applied, as ``choose_one`` does."""
    if measure_policy is None:
        return config
    changed: TuningConfig = tuner._apply_measure_policy(config, measure_policy)
    return changed


def rule_fields(measure_policy: Any) -> dict[str, Any]:
    """Return the parts of a session rule that a measurement policy determines."""
    if measure_policy is None:
        return {}
    timer = getattr(measure_policy, "_timer", "auto")
    return {"execution": measure_policy.execution_mode, "cold_l2": measure_policy.cold_l2, "timer": timer}


def from_rule(rule: Rule) -> Any:
    """Return FlashInfer's measurement policy for a session rule, ``None`` where everything is inherited or there is no such thing."""
    if rule.execution is None and rule.cold_l2 is None and rule.timer is None:
        return None
    try:
        from flashinfer.autotune_cache import MeasurementPolicy
    except ImportError:
        return None
    return MeasurementPolicy(execution_mode=rule.execution or "auto", cold_l2=rule.cold_l2, _timer=rule.timer or "auto")
