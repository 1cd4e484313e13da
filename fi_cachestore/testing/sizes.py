"""Whether what is tuned at the buckets can be served at every size in between."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from flashinfer.autotuner import AutoTuner, TunableRunner, TuningConfig

from fi_cachestore.adapter import attach
from fi_cachestore.adapter.tactics import is_default, own_list, tactic_value
from fi_cachestore.adapter.tuner import CacheStoreTuner
from fi_cachestore.config import Mode
from fi_cachestore.keys.canonical import Value, encode
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.render import render
from fi_cachestore.records.record import Record
from fi_cachestore.store.open import open_store
from fi_cachestore.store.port import Hit, Store
from fi_cachestore.testing.calls import TunedCall
from fi_cachestore.testing.cpu_timing import cpu_timing, wall_clock_ms

Size: TypeAlias = int | tuple[int, ...]
"""The size of the dynamic dim, or of each where there are several."""

Inputs: TypeAlias = Callable[[Size], Sequence[Any]] | Sequence[Any]

_MAX_SHOWN: Final = 10


def assert_serves_every_size(
    runner: TunableRunner,
    config: TuningConfig,
    sizes: Iterable[Size],
    *,
    inputs: Inputs,
    arguments: Mapping[str, Any] | None = None,
    op: str = "call_under_test",
) -> None:
    """Tune at the buckets of ``config``, then check every size: it is answered from a record, and by a tactic that is legal at that size.

    Which tactic is the fastest does not decide the outcome: of a runner without ``validate_tactic``, every tactic that works at the bucket
    must be in the runner's own list at the size. What is served is run once. ``inputs`` gives the inputs of a size; a list of inputs
    stands for fresh contiguous tensors of the same kind, resized by ``config``. CPU tensors are timed by the wall clock. No other session
    may be attached, since its records would answer too. Nothing is left on disk.

    Raises:
        AssertionError: names the sizes, and what is wrong at each.
    """
    __tracebackhide__ = True
    if isinstance(AutoTuner.get(), CacheStoreTuner):
        raise AssertionError("a session is attached, whose records would answer too; detach() it first")  # noqa: TRY004 - no argument is wrong
    calls = {size: _call(runner, config, size, inputs, arguments or {}, op) for size in sizes}
    if not calls:
        raise AssertionError("there are no sizes to serve")
    with tempfile.TemporaryDirectory(prefix="fi_cachestore_") as root, _tuned(root, calls[max(calls, key=_as_tuple)]) as gaps:
        if gaps:
            raise AssertionError("the call has no key: " + "; ".join(map(str, gaps)))
        store = open_store(root, read_only=True)
        wrong = [f"size {size}: {reason}" for size, call in calls.items() if (reason := _wrong(store, call)) is not None]
    if wrong:
        more = [f"and {len(wrong) - _MAX_SHOWN} more"] if len(wrong) > _MAX_SHOWN else []
        raise AssertionError("\n".join([f"{len(wrong)} of {len(calls)} sizes are not served", *wrong[:_MAX_SHOWN], *more]))


def _call(runner: TunableRunner, config: TuningConfig, size: Size, inputs: Inputs, arguments: Mapping[str, Any], op: str) -> TunedCall:
    made = inputs(size) if callable(inputs) else _resized(config, inputs, _as_tuple(size))
    return TunedCall(runner, list(made), config, arguments, op)


def _as_tuple(size: Size) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else tuple(size)


def _resized(config: TuningConfig, inputs: Sequence[Any], sizes: tuple[int, ...]) -> list[Any]:
    shapes = [list(item.shape) if isinstance(item, torch.Tensor) else [0] for item in inputs]
    for spec, size in zip(config.dynamic_tensor_specs, sizes, strict=True):
        for index, dim in zip(spec.input_idx, spec.dim_idx, strict=True):
            shapes[index][dim] = size
    for rule in config.constraint_specs:
        shapes[rule.input_idx][rule.dim_idx] = rule.infer_shape(tuple(map(tuple, shapes)))
    initializers = dict(config.tensor_initializers)
    return [
        initializers.get(i, _zeros)(tuple(shape), item.dtype, item.device)
        if isinstance(item, torch.Tensor) and list(item.shape) != shape
        else item
        for i, (item, shape) in enumerate(zip(inputs, shapes, strict=True))
    ]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


@contextlib.contextmanager
def _tuned(root: str, call: TunedCall) -> Iterator[tuple[Any, ...]]:
    """Tune the profiles of a call into ``root`` and serve from there inside the block; gives what the call lacks for a key."""
    on_cpu = not any(isinstance(item, torch.Tensor) and item.is_cuda for item in call.inputs)
    with contextlib.ExitStack() as leaving:
        timing = cpu_timing(functools.partial(wall_clock_ms, repeat=1)) if on_cpu else contextlib.nullcontext()
        with timing, attach.autotune(root=root, mode=Mode.AUTO) as session:
            leaving.callback(session.detach)
            AutoTuner.get().choose_one(call.op, [call.runner], call.config, list(call.inputs), **call.arguments)
        yield session.report().gaps


def _wrong(store: Store[Record], call: TunedCall) -> str | None:
    """Return what is wrong with serving a call, ``None`` if nothing is."""
    view = call.describe()
    keys = view.keys(view.call.bucket(), serving=True)
    if not isinstance(keys[0], TuneKey):
        return "; ".join(map(str, keys))
    answers = [store.get(key.digest) for key in keys if isinstance(key, TuneKey)]
    record = next((answer.entry for answer in answers if isinstance(answer, Hit)), None)
    if record is None:
        return f"no record for bucket {view.call.bucket().dims}; the buckets of the config do not cover it, or its key differs from theirs"
    return _illegal(call, record) or _unserved(call, record)


def _illegal(call: TunedCall, record: Record) -> str | None:
    if hasattr(call.runner, "validate_tactic"):  # asked at every service
        return None
    shapes = [tuple(item.shape) if isinstance(item, torch.Tensor) else (0,) for item in call.inputs]
    own = own_list(call.runner, call.inputs, shapes)
    if own is None:
        return "the runner cannot list its tactics"
    legal = {encode(tactic_value(tactic, position)) for position, tactic in enumerate(own)}
    illegal = [made.tactic for made in record.usable if not is_default(made.tactic) and encode(made.tactic) not in legal]
    return f"not in the runner's own list: {_shown(illegal)}; give the runner validate_tactic" if illegal else None


def _unserved(call: TunedCall, record: Record) -> str | None:
    runner, tactic = AutoTuner.get().choose_one(call.op, [call.runner], call.config, list(call.inputs), **call.arguments)
    if encode(tactic_value(tactic, 0)) not in {encode(made.tactic) for made in record.usable}:
        return f"none of {_shown([made.tactic for made in record.usable])} is served, the default is"
    try:
        runner(list(call.inputs), tactic=tactic, **call.arguments)
    except Exception as error:  # noqa: BLE001 - a runner's code
        return f"tactic {tactic!r:.60} fails: {type(error).__name__}: {error}"
    return None


def _shown(tactics: Sequence[Value]) -> str:
    return ", ".join(map(render, tactics[:_MAX_SHOWN])) + (", …" if len(tactics) > _MAX_SHOWN else "")
