"""One call of ``choose_one`` for a test: its key, FlashInfer's own key, and what its runner offers for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from flashinfer.autotuner import AutoTuner, OptimizationProfile, StaticDim, TunableRunner, TuningConfig

from fi_cachestore.adapter import api
from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.adapter.tactics import tactic_value
from fi_cachestore.keys.canonical import Named, Value, encode
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.schema import LeftOut


@dataclass(frozen=True, eq=False)
class TunedCall:
    """One call of ``choose_one`` with one runner: what a factory gives.

    It stands for ``AutoTuner.get().choose_one(op, [runner], config, inputs, **arguments)``.
    """

    runner: TunableRunner
    inputs: Sequence[Any]
    config: TuningConfig = field(default_factory=TuningConfig)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    op: str = "call_under_test"

    def describe(self) -> RunnerView:
        """Return what the key is made of, and what it leaves out."""
        return api.describe(self.op, self.runner, self.inputs, tuning_config=self.config, arguments=self.arguments)

    def key(self) -> TuneKey:
        """Return the key of the call.

        Raises:
            IncompleteKeyError: it has none.
        """
        return api.key_of(self.describe())


Behaviour: TypeAlias = Callable[[TunedCall], Value]
"""What two calls with one key must have in common. ``None`` says that the call tells nothing."""


def legacy_key(view: RunnerView) -> str | None:
    """Return the key under which FlashInfer itself would store the call, ``None`` where it has none."""
    call = view.call
    try:
        extras = view.runner.get_cache_key_extras(call.inputs)
        return str(AutoTuner._get_cache_key(call.op, view.runner, call.shapes, call.config, extras).file_key)  # noqa: SLF001
    except Exception:  # noqa: BLE001 - a runner's code: FlashInfer has no key then either
        return None


def listed_tactics(call: TunedCall) -> Value:
    """Return the runner's own list for the call's bucket, on inputs as FlashInfer's tuner makes them.

    ``None`` where two lists differ or the contract says that the list comes from timing: then another list proves nothing.
    """
    return listed(call.describe(), twice=True)


def working_tactics(call: TunedCall) -> Value:
    """Return the runner's own list with what became of each tactic when it ran once: ``None``, or the type of the exception.

    For runners whose list is longer than what works. Needs inputs that the runner can run on.
    """
    view = call.describe()
    with undisturbed(view):
        inputs, profile = at_bucket(view)
        try:
            tactics = list(view.runner.get_valid_tactics(inputs, profile))
            prepare(view, inputs)
        except Exception as error:  # noqa: BLE001 - a runner's code
            return Named("raises", type(error).__name__)
        return tuple(
            (tactic_value(tactic, position), outcome(view, inputs, tactic)) for position, tactic in enumerate([-1, *tactics], start=-1)
        )


def listed(view: RunnerView, *, twice: bool) -> Value:
    """Return the runner's list for the described call, ``None`` where it tells nothing; ``twice`` finds out about lists that vary."""
    if view.contract.space == "measured":
        return None
    with undisturbed(view):
        first = _listed(view)
        return first if not twice or encode(first) == encode(_listed(view)) else None


def _listed(view: RunnerView) -> Value:
    try:
        return tuple(tactic_value(tactic, i) for i, tactic in enumerate(view.runner.get_valid_tactics(*at_bucket(view))))
    except Exception as error:  # noqa: BLE001 - a runner's code: offering nothing at all is a behaviour too
        return Named("raises", type(error).__name__)


def told_apart_by(left: LeftOut, right: LeftOut) -> tuple[str, ...]:
    """Return what no key holds and that has two values: before a record goes from the one to the other, it is tried out."""
    return tuple(path for path in sorted({*left, *right}) if left.get(path) != right.get(path))


def trust_in(apart: Sequence[str]) -> str:
    """Return what becomes of records that two calls with one key share, by what tells them ``apart``."""
    if apart:
        return f"only what is left out tells them apart: {', '.join(apart)}; a record is tried out before it goes from one to the other"
    return "nothing that is left out tells them apart either: the one is served what was measured for the other"


def at_bucket(view: RunnerView) -> tuple[list[Any], OptimizationProfile]:
    """Return inputs and profile as the tuner makes them for the bucket of the call; its own where the tuner has no such bucket."""
    call, tuner = view.call, AutoTuner.get()
    wanted = call.bucket().shapes
    profiles = tuner._generate_optimization_profiles(call.config, call.inputs)  # noqa: SLF001
    profile = next((profile for profile in profiles if profile.get_opt_shapes() == wanted), None)
    if profile is None:
        own = OptimizationProfile([[StaticDim(size) for size in shape] for shape in call.shapes], [None] * len(call.shapes))
        return list(call.inputs), own
    tensors = list(tuner._prepare_input_tensors(profile, call.inputs))  # noqa: SLF001
    hook = call.config.inputs_pre_hook
    return (tensors if hook is None else list(hook(tensors))), profile


def undisturbed(view: RunnerView) -> Any:
    """Return a context in which drawing random inputs leaves no trace: a test's own random numbers stay what they were."""
    devices = {item.device for item in view.call.inputs if isinstance(item, torch.Tensor) and item.is_cuda}
    return torch.random.fork_rng(devices=sorted(devices, key=str))


def prepare(view: RunnerView, inputs: list[Any]) -> None:
    """Let the runner prepare itself, as FlashInfer does before it measures."""
    if "do_preparation" in inspect.signature(view.runner.forward).parameters:
        view.runner(inputs, tactic=-1, do_preparation=True, **view.call.arguments)


def outcome(view: RunnerView, inputs: list[Any], tactic: Any) -> str | None:
    """Run a tactic once; return the type of what it raised."""
    try:
        view.runner(inputs, tactic=tactic, **view.call.arguments)
        if any(isinstance(item, torch.Tensor) and item.is_cuda for item in inputs):
            torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - a runner's code
        return type(error).__name__
    return None
