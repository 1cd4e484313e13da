"""From a live call to its keys: op, runners, inputs, tuning config and keyword arguments in, ``TuneKey`` per runner and bucket out.

Everything is read once, when the call is described, and frozen for all its profiles: FlashInfer's runners fill attributes while they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
from flashinfer.autotuner import AutoTuner, TunableRunner, TuningConfig

from fi_cachestore.adapter import leftout
from fi_cachestore.adapter.contracts import Contract
from fi_cachestore.adapter.layout import DERIVED, dynamic_dim, readings, tensor_value
from fi_cachestore.adapter.leftout import Parameter, parameter
from fi_cachestore.adapter.roles import Role
from fi_cachestore.adapter.sources import implementation_digest, type_name
from fi_cachestore.adapter.standins import Extras, alignment, at, extras_on, without
from fi_cachestore.adapter.values import bytes_of, expand, frozen, one_of, raw_tensor, same_but
from fi_cachestore.adapter.walker import Walker
from fi_cachestore.environment.facets import Device
from fi_cachestore.environment.identity import Environments
from fi_cachestore.errors import Gap, UnsupportedValueError
from fi_cachestore.keys.canonical import Named, Value
from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.model import RunnerIdentity, TuneKey
from fi_cachestore.keys.schema import KeySchema, LeftOut, SchemaDigests

Shapes = tuple[tuple[int, ...], ...]

_OUTPUT_NAMES: Final = frozenset({"out", "output", "outputs", "lse", "out_lse", "routing_replay_out"})
_NO_CONTRACT: Final = Contract(type="", fingerprint="")


@dataclass(frozen=True, slots=True)
class Introspector:
    """What describing calls needs: the reviewed contracts, the environments, and whether performance facets are compared."""

    contracts: Mapping[str, Contract]
    environments: Environments
    strict: bool = False
    schemas: SchemaDigests = field(default_factory=SchemaDigests)

    def contract(self, runner: TunableRunner) -> Contract:
        """Return the runner's contract, or an empty one where there is none or the class is not the one that was reviewed."""
        found = self.contracts.get(type_name(type(runner)))
        if found is None:
            return _NO_CONTRACT
        digest = implementation_digest(type(runner), TunableRunner)
        return found if digest is not None and digest.startswith(found.fingerprint) else _NO_CONTRACT

    def roles(self, runner: TunableRunner) -> Mapping[str, Role]:
        """Return the roles that a runner's contract gives, for runners inside runners too."""
        contract = self.contract(runner)
        return contract.roles_of(contract.roles)


@dataclass(frozen=True, slots=True)
class Bucket:
    """One profile of a call: ``dims`` has the bucket of every dynamic dim, ``shapes`` the inputs' shapes in it."""

    dims: tuple[int, ...]
    shapes: Shapes


class Call:
    """One call of ``choose_one``: its inputs and arguments, described once. Not shared between threads."""

    def __init__(
        self,
        introspector: Introspector,
        op: str,
        config: TuningConfig,
        inputs: Sequence[Any],
        arguments: Mapping[str, Any],
        policy: Mapping[str, Value],
    ) -> None:
        """``config`` is the effective one: overrides and measurement policy applied. ``policy`` is how times are taken, resolved."""
        self.op, self.config, self.inputs, self.arguments = op, config, list(inputs), dict(arguments)
        self.introspector = introspector
        self.policy = dict(policy)
        self.shapes: Shapes = tuple(tuple(item.shape) if isinstance(item, torch.Tensor) else (0,) for item in self.inputs)
        self.device = device_of(self.inputs)
        self._symbols = _symbols(config, self.shapes)
        self._input_values: dict[tuple[tuple[bool, ...], ...], tuple[Any, ...]] = {}
        specs = config.dynamic_tensor_specs
        self.raw_dims = tuple(self.shapes[spec.input_idx[0]][spec.dim_idx[0]] for spec in specs)
        self.mappers: tuple[Callable[[int], int], ...] = tuple(spec.map_to_tuning_buckets for spec in specs)

    def walker(self, subject: str) -> Walker:
        """Return a walker that knows the call's dynamic dims and mappers."""
        dims: dict[int, Value] = {}
        for position, size in enumerate(self.raw_dims):
            dims.setdefault(size, dynamic_dim(position))
        return Walker(subject, self.introspector.roles, dims, self.mappers)

    def bucket(self, shapes: Shapes | None = None) -> Bucket:
        """Return the bucket of the call's own shapes, or of a profile's."""
        nearest = AutoTuner._find_nearest_profile(shapes or self.shapes, self.config)
        dims = tuple(nearest[spec.input_idx[0]][spec.dim_idx[0]] for spec in self.config.dynamic_tensor_specs)
        made = [list(shape) for shape in (shapes or self.shapes)]
        for spec, size in zip(self.config.dynamic_tensor_specs, dims, strict=True):
            for index, dim in zip(spec.input_idx, spec.dim_idx, strict=True):
                made[index][dim] = size
        for rule in self.config.constraint_specs:
            made[rule.input_idx][rule.dim_idx] = rule.infer_shape(tuple(map(tuple, made)))
        return Bucket(dims, tuple(map(tuple, made)))

    @cached_property
    def roundings(self) -> tuple[Value, ...]:
        """How each dynamic dim is rounded; gaps go to ``common_gaps``."""
        return tuple(self._common.rounding(mapper, f"rounding[{i}]") for i, mapper in enumerate(self.mappers))

    @cached_property
    def _common(self) -> Walker:
        return self.walker(self.op)

    @cached_property
    def values(self) -> tuple[Any, ...]:
        """The inputs that are not tensors, as values; ``None`` in the place of tensors."""
        walker = self._common
        return tuple(None if isinstance(item, torch.Tensor) else walker.value(item, f"inputs[{i}]") for i, item in enumerate(self.inputs))

    @property
    def met(self) -> tuple[Parameter, ...]:
        """The parameters inside inputs that are not tensors, and inside mappers."""
        _ = self.values, self.roundings
        return tuple(self._common.met)

    def common_gaps(self) -> tuple[Gap, ...]:
        """Return what the inputs and mappers lack for a complete key."""
        _ = self.values, self.roundings
        gaps = list(self._common.gaps)
        if self.device is None:
            gaps.append(Gap(self.op, "inputs", "tensor", "they lie on more than one CUDA device"))
        gaps += [
            Gap(self.op, f"inputs[{i}]", type_name(type(item)), "a tensor without strides")
            for i, item in enumerate(self.inputs)
            if isinstance(item, torch.Tensor) and raw_tensor(item) is None
        ]
        return tuple(gaps)

    def input_values(self, bucket: Bucket) -> tuple[Any, ...]:
        """Return the inputs as they stand in a key for ``bucket``; they may hold alternatives. Buckets that look alike share one tuple."""
        pattern = tuple(tuple(size == 1 for size in shape) for shape in bucket.shapes)  # nothing else of a bucket is in a layout
        if pattern not in self._input_values:
            self._input_values[pattern] = tuple(self._input_value(index, bucket) for index in range(len(self.inputs)))
        return self._input_values[pattern]

    def _input_value(self, index: int, bucket: Bucket) -> Any:
        item = self.inputs[index]
        raw = raw_tensor(item) if isinstance(item, torch.Tensor) else None
        if raw is None:
            return self.values[index]
        symbols = {dim: symbol for (i, dim), symbol in self._symbols.items() if i == index}
        shape = [symbols.get(dim, size) for dim, size in enumerate(raw.sizes)]
        return tensor_value(raw, shape, one_of(readings(raw, bucket.shapes[index], symbols)))

    def profile_value(self, bucket: Bucket) -> tuple[Value, ...]:
        """Return the profile part of a key."""
        rows = zip(bucket.dims, self.roundings, strict=True)
        return tuple({"bucket": size, "rounding": rounding} for size, rounding in rows)

    def dynamic_dims(self) -> list[Value]:
        """Return which dims of which inputs are dynamic or derived, for remembering the call's answer."""
        return [(index, dim, symbol.content) for (index, dim), symbol in self._symbols.items()]

    def raw_inputs(self) -> list[Value]:
        """Return the inputs as they are in this very call, for remembering its answer."""
        rows: list[Value] = []
        for index, item in enumerate(self.inputs):
            if isinstance(item, torch.Tensor):
                rows.append((str(item.dtype), tuple(item.shape), tuple(item.stride()), str(item.device)))
            else:
                rows.append([frozen(self.values[index])])
        return rows


class RunnerView:
    """One runner of a call: its identity and parameters, described once, and its keys per bucket."""

    def __init__(self, call: Call, runner: TunableRunner) -> None:
        """Describe ``runner`` as it is now."""
        self.call, self.runner = call, runner
        self.contract = call.introspector.contract(runner)
        walker = call.walker(type_name(type(runner)))
        self.type = walker.type_identity(type(runner), "type", TunableRunner)
        self.params = walker.runner(runner, "")
        self.arguments = self._arguments(walker)
        self.held_mappers = tuple(walker.held_mappers)
        self.parameters: tuple[Parameter, ...] = (*walker.met, *call.met)
        self._walker = walker
        self.environment, environment_gaps = self._environment()
        self._pointers = {
            index: alignment(call.inputs[index], limit)
            for index, limit in self.contract.pointer_alignment.items()
            if index < len(call.inputs)
        }
        self.parameters += self._places_in_extras()
        self._actual_extras = self._extras(call.shapes)
        self._last_key: TuneKey | None = None
        self.gaps: tuple[Gap, ...] = (*call.common_gaps(), *walker.gaps, *environment_gaps, *self._extras_gaps())

    def _arguments(self, walker: Walker) -> dict[str, Value]:
        outputs = {name: item for name, item in self.call.arguments.items() if _is_output(name, item)}
        rest = {name: item for name, item in self.call.arguments.items() if name not in outputs}
        found = walker.arguments(rest, self.contract.roles_of(self.contract.arguments, "arguments."))
        return found | {name: Named("output", str(item.dtype)) for name, item in outputs.items()}

    def _environment(self) -> tuple[dict[str, Value], tuple[Gap, ...]]:
        if self.call.device is None:
            return {}, ()
        backends = None if self.contract is _NO_CONTRACT else self.contract.backends
        found = self.call.introspector.environments.for_key(self.call.device, backends, strict=self.call.introspector.strict)
        return (found, ()) if isinstance(found, dict) else ({}, found)

    # -- trust ------------------------------------------------------------------------------------------------------------------

    @cached_property
    def schema(self) -> KeySchema:
        """What trust in this runner's keys is kept under."""
        return KeySchema(self.call.op, str(self.type), leftout.rows(self.parameters), self.contract.digest, self.environment)

    @cached_property
    def schema_digest(self) -> Digest:
        """The name of ``schema``, which itself is only asked for to be kept."""
        rows = leftout.rows(self.parameters)
        return self.call.introspector.schemas.of(self.call.op, str(self.type), rows, self.contract.digest, self.environment)

    @cached_property
    def left_out(self) -> tuple[tuple[str, Role], ...]:
        """What the key leaves out, and what it is for."""
        return tuple((found.path, found.role) for found in self.parameters if found.is_left_out and found.value is not leftout.ABSENT)

    @cached_property
    def left_out_values(self) -> LeftOut:
        """Digests of the values that are not in the key, as they were when the runner was described."""
        return leftout.left_out(self.parameters)

    # -- extras -----------------------------------------------------------------------------------------------------------------

    def _extras(self, shapes: Shapes) -> Extras:
        return without(extras_on(self.runner, self.call.inputs, shapes, self._pointers), self.contract.extras)

    def _places_in_extras(self) -> tuple[Parameter, ...]:
        """Return what the contract leaves out of the extras."""
        if not self.contract.extras:
            return ()
        found = extras_on(self.runner, self.call.inputs, self.call.shapes, self._pointers).value
        places = ((".".join(map(str, position)), role, at(found, position)) for position, role in self.contract.extras.items())
        return tuple(parameter(f"extras.{where}", role, item) for where, role, item in places)

    def _extras_gaps(self) -> tuple[Gap, ...]:
        """Compare the extras of this very call with those on stand-ins of its shapes: only what a stand-in has may count."""
        why = self._actual_extras.why
        if why is None:
            own = without(Extras(self.runner.get_cache_key_extras(self.call.inputs)), self.contract.extras)
            real = self._walker.value(own.value, "extras")
            pretended = self._walker.value(self._actual_extras.value, "extras")
            if bytes_of(real) != bytes_of(pretended):
                why = "its key extras depend on the content or address of an input"
        return () if why is None else (Gap(type_name(type(self.runner)), "extras", "tuple", why),)

    def _extras_fit(self, here: Value, there: Value, bucket: Bucket) -> bool:
        """Whether the extras in a bucket are those of this call but for dynamic dims that they repeat."""
        pairs = {(a, b) for raw, made in zip(self.call.shapes, bucket.shapes, strict=True) for a, b in zip(raw, made, strict=True)}
        return same_but(here, there, pairs)

    # -- keys -------------------------------------------------------------------------------------------------------------------

    def keys(self, bucket: Bucket, *, serving: bool) -> tuple[TuneKey, ...] | tuple[Gap, ...]:
        """Return the keys under which a record for ``bucket`` may lie, the one to tune under first; or why there is none.

        With ``serving``, the call itself must belong to the bucket: extras that say otherwise, or a mapper of the runner's own that
        rounds this size elsewhere, mean that the bucket's tactic was not tuned for such a call.
        """
        if self.gaps:
            return self.gaps
        made = self._extras(bucket.shapes)
        if made.why is not None:
            return (self._gap("extras", made.why),)
        value = self._walker.value(made.value, "extras")
        if serving and not self._extras_fit(self._walker.value(self._actual_extras.value, "extras"), value, bucket):
            return (self._gap("extras", f"they tell this size from bucket {bucket.dims}"),)
        sizes = self.call.raw_dims if serving else bucket.dims
        if self.held_mappers and sizes and any(mapper(sizes[0]) != bucket.dims[0] for mapper in self.held_mappers):
            return (self._gap("rounding", f"the runner's own mapper takes {sizes[0]} to another bucket than {bucket.dims[0]}"),)
        return self._assemble(bucket, value)

    def _assemble(self, bucket: Bucket, extras: Value) -> tuple[TuneKey, ...] | tuple[Gap, ...]:
        parts = (self.params, self.call.input_values(bucket), self.arguments, self.call.profile_value(bucket), extras)
        if self._pointers:
            parts = (*parts[:4], (extras, Named("alignment", dict(self._pointers))))
        found = []
        try:
            for params, inputs, arguments, profile, extra in expand(parts):
                identity = RunnerIdentity(str(self.type), params)
                key = TuneKey(self.environment, self.call.op, identity, inputs, arguments, profile, self.call.policy, extra)
                self._last_key = key if self._last_key is None else key.sharing(self._last_key)
                _ = key.digest
                found.append(key)
        except UnsupportedValueError as error:
            return (self._gap(error.path, error.why or error.type_name),)
        return tuple(dict.fromkeys(found))

    def _gap(self, field: str, why: str) -> Gap:
        return Gap(type_name(type(self.runner)), field, "value", why)

    def fingerprint(self) -> bytes:
        """Return everything about this runner in this very call, for remembering the answer. Only for a complete view."""
        extras = self._walker.value(self._actual_extras.value, "extras")
        rounded = [mapper(size) for mapper in self.held_mappers for size in self.call.raw_dims[:1]]
        left_out = leftout.raw_values(self.parameters)
        return bytes_of([self.type, self.params, self.arguments, self.environment, extras, dict(self._pointers), rounded, left_out])


def device_of(inputs: Sequence[Any]) -> Device | None:
    """Return the device that holds the tensors: the one CUDA device, else the CPU; ``None`` for several CUDA devices."""
    found = {(item.device.type, item.device.index) for item in inputs if isinstance(item, torch.Tensor)}
    accelerators = {device for device in found if device[0] != "cpu"}
    if not accelerators:
        return Device("cpu")
    return Device(*accelerators.pop()) if len(accelerators) == 1 else None


def _symbols(config: TuningConfig, shapes: Shapes) -> dict[tuple[int, int], Named]:
    """Return which dims of which inputs are dynamic or derived."""
    found: dict[tuple[int, int], Named] = {}
    for position, spec in enumerate(config.dynamic_tensor_specs):
        for index, dim in zip(spec.input_idx, spec.dim_idx, strict=True):
            found[index, dim % max(len(shapes[index]), 1)] = dynamic_dim(position)
    for rule in config.constraint_specs:
        found[rule.input_idx, rule.dim_idx % max(len(shapes[rule.input_idx]), 1)] = DERIVED
    return found


def _is_output(name: str, item: object) -> bool:
    return name in _OUTPUT_NAMES and isinstance(item, torch.Tensor)
