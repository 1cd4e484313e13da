"""What the adapter leans on in FlashInfer, checked before anything is touched."""

from __future__ import annotations

import inspect
from functools import lru_cache
from itertools import repeat
from typing import Any, Final

from fi_cachestore.errors import UnsupportedFlashInferError

_NAMES: Final = ("AutoTuner", "TunableRunner", "TuningConfig", "autotune")
_METHODS: Final = {
    "choose_one": ("custom_op", "runners", "tuning_config", "inputs", "kwargs"),
    "search_cache": ("custom_op", "runners", "input_shapes", "tuning_config", "inputs"),
    "_profile_single_kernel": ("runner", "inputs", "tactic", "tuning_config"),
    "_generate_optimization_profiles": ("tuning_config", "inputs"),
    "_find_nearest_profile": ("shapes", "tuning_config"),
    "_apply_tuning_overrides": ("tuning_config",),
    "_get_override_stack": (),
    "_get_skip_ops_stack": (),
    "clear_cache": (),
    "get": (),
}
_PROPERTIES: Final = ("_effective_skip_ops", "_override_tuning_buckets", "_override_round_up")
_MEMBERS: Final = (*_METHODS, *_PROPERTIES)
_ATTRIBUTES: Final = ("_lock", "is_tuning_mode", "_active_tuning_contexts", "profiling_cache")
_CONFIG_FIELDS: Final = ("dynamic_tensor_specs", "constraint_specs", "use_cold_l2_cache", "use_cuda_graph")
_SUPPORTED: Final = ((0, 6, 13), (0, 8))


def check(autotuner: Any, version: str, tuner: Any = None) -> None:
    """Check FlashInfer's ``autotuner`` module (and a live tuner).

    Raises:
        UnsupportedFlashInferError: names everything that is missing or has another signature.
    """
    missing = _missing(autotuner, tuner)
    if not _is_supported(version):
        missing.append("a supported version (0.6.13 or later, before 0.8)")
    if missing:
        raise UnsupportedFlashInferError(version, tuple(missing))


def _missing(autotuner: Any, tuner: Any) -> list[str]:
    tuner_class = getattr(autotuner, "AutoTuner", None)
    found = [name for name in _NAMES if not hasattr(autotuner, name)]
    if tuner_class is None:
        return found
    members = tuple(map(getattr, repeat(tuner_class), _MEMBERS, repeat(None)))
    try:
        found += _unfit(members)
    except TypeError:  # something that has no hash has the name of a method
        found += _unfit.__wrapped__(members)
    config_class = getattr(autotuner, "TuningConfig", None)
    fields = getattr(config_class, "__dataclass_fields__", {})
    found += [f"TuningConfig.{name}" for name in _CONFIG_FIELDS if name not in fields]
    if tuner is not None:
        found += [f"AutoTuner().{name}" for name in _ATTRIBUTES if not hasattr(tuner, name)]
    return found


@lru_cache(maxsize=4)
def _unfit(members: tuple[Any, ...]) -> tuple[str, ...]:
    """Name the members of the tuner's class that are not as they must be.

    Remembered for these very objects, since signatures take longer to make than all the rest of attaching: one that was replaced is
    looked at anew.
    """
    found = []
    for name, member in zip(_MEMBERS, members, strict=True):
        parameters = _METHODS.get(name)
        if parameters is None and not isinstance(member, property):
            found.append(f"AutoTuner.{name}")
        elif parameters is not None and not _takes(member, parameters):
            found.append(f"AutoTuner.{name}({', '.join(parameters)})")
    return tuple(found)


def _takes(method: Any, parameters: tuple[str, ...]) -> bool:
    try:
        return set(parameters) <= set(inspect.signature(method).parameters)
    except (TypeError, ValueError):  # nothing that can be called, or nothing that says how
        return False


@lru_cache(maxsize=4)
def _is_supported(version: str) -> bool:
    parts = version.partition("+")[0].split(".")
    numbers = tuple(int(part) for part in parts[:3] if part.isdecimal())
    low, high = _SUPPORTED
    return not any(numbers) or (low <= numbers and numbers[: len(high)] < high)  # a development tree says 0.0.0
