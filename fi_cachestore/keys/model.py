"""The key: everything that can change which tactic is valid or fastest for one runner on one profile."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Final

from fi_cachestore.errors import NotCanonicalError
from fi_cachestore.keys.canonical import Value, decode_field, encode, encode_field
from fi_cachestore.keys.digest import Digest, key_digest, part_digest
from fi_cachestore.keys.fields import SHARED_BYTES, SHARED_COUNT, Layout, join_fields, shared, split_tuple
from fi_cachestore.keys.render import render

_KIND: Final = "fi_cachestore.key/1"
_LAYOUT: Final = Layout(_KIND, ("op", "runner", "params", "inputs", "arguments", "profile", "policy", "extras", "environment"))
_TYPES: Final[dict[str, type]] = {
    "op": str,
    "runner": str,
    "params": dict,
    "inputs": tuple,
    "arguments": dict,
    "profile": tuple,
    "policy": dict,
    "environment": dict,
}
_PART_DEPTH: Final = 2


@dataclass(frozen=True, slots=True)
class RunnerIdentity:
    """Which runner: ``type`` is ``"module:qualname"``, ``params`` what was found in its attributes, class and closures."""

    type: str
    params: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a key: its name, its value, and a digest of that value alone, so that two machines can be compared by eye."""

    name: str
    value: Value
    digest: Digest

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.name:<12} {self.digest[:12]}  {render(self.value)}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """A key taken apart. ``str()`` gives one line per part."""

    digest: Digest
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        """Return the digest and one line per part."""
        return "\n".join([f"key          {self.digest}", *map(str, self.parts)])


@dataclass(frozen=True, eq=False)
class TuneKey:
    """A complete key. Two keys are equal when their canonical bytes are; instances are never changed and safe to share between threads.

    ``inputs`` has one entry per input: tensor (dtype, shape with the dynamic dims as symbols, layout, device type), value or ``None``.
    ``profile`` has, per dynamic dim, the bucket and how sizes are rounded to it. ``policy`` is how the times were taken.
    """

    environment: dict[str, Value]
    op: str
    runner: RunnerIdentity
    inputs: tuple[Value, ...]
    arguments: dict[str, Value]
    profile: tuple[Value, ...]
    policy: dict[str, Value]
    extras: Value

    def parts(self) -> dict[str, Value]:
        """Return the parts in the order people read them; the runner counts as two."""
        return {
            "op": self.op,
            "runner": self.runner.type,
            "params": self.runner.params,
            "inputs": self.inputs,
            "arguments": self.arguments,
            "profile": self.profile,
            "policy": self.policy,
            "extras": self.extras,
            "environment": self.environment,
        }

    @cached_property
    def canonical(self) -> bytes:
        """The canonical bytes.

        Raises:
            UnsupportedValueError: a part holds something that has no canonical form.
        """
        return join_fields(_KIND, self._encoded)

    @cached_property
    def _encoded(self) -> dict[str, bytes]:
        return {name: encode_field(value, name) for name, value in self.parts().items()}

    def sharing(self, other: TuneKey) -> TuneKey:
        """Return this key, told that ``other`` may hold the very same parts, which then need not be encoded again."""
        if "_encoded" in vars(other):
            theirs = other.parts()
            vars(self)["_encoded"] = {
                name: other._encoded[name] if value is theirs[name] else encode_field(value, name) for name, value in self.parts().items()
            }
        return self

    @cached_property
    def digest(self) -> Digest:
        """The name of this key's record."""
        return key_digest(self.canonical)

    def explain(self) -> Explanation:
        """Return every part with its own digest; ``str()`` of it has one line per part."""
        parts = tuple(Part(name, value, part_digest(encode(value))) for name, value in self.parts().items())
        return Explanation(self.digest, parts)

    @classmethod
    def from_canonical(cls, data: bytes) -> TuneKey:
        """Return the key whose canonical bytes are ``data``.

        Raises:
            NotCanonicalError: the bytes are not those of a key of this format.
        """
        try:
            parts = _parts(_LAYOUT.cut(data))
        except NotCanonicalError:  # the name of a part may stand inside another one
            parts = _parts(_LAYOUT.split(data))
        identity = RunnerIdentity(parts.pop("runner"), parts.pop("params"))
        key = cls(runner=identity, **parts)
        vars(key)["canonical"] = data  # splitting and decoding have shown that encoding gives these bytes
        return key

    def __eq__(self, other: object) -> bool:
        """Compare canonical bytes."""
        return isinstance(other, TuneKey) and self.canonical == other.canonical

    def __hash__(self) -> int:
        """Hash the canonical bytes."""
        return hash(self.canonical)


def _parts(encoded: dict[str, bytes]) -> dict[str, Any]:
    return {name: _part(name, part) for name, part in encoded.items()}


def _part(name: str, data: bytes) -> Value:
    """Return a part of a key, of the type that it has there. Most parts are the same in many keys: such are decoded and checked once.

    They are shared, as keys are never changed.

    Raises:
        NotCanonicalError: the bytes are not those of such a part.
    """
    return _decoded_part(name, data) if len(data) > SHARED_BYTES else _shared_part(name, data)


@lru_cache(maxsize=SHARED_COUNT)
def _shared_part(name: str, data: bytes) -> Value:
    return _decoded_part(name, data)


def _decoded_part(name: str, data: bytes) -> Value:
    value = _inputs(data) if name == "inputs" else decode_field(data, _PART_DEPTH)
    wanted = _TYPES.get(name)
    if (wanted is not None and type(value) is not wanted) or (type(value) is dict and wanted is dict and not _is_by_name(value)):
        raise NotCanonicalError(f"a key whose {name} has another type", len(data))
    return value


def _inputs(data: bytes) -> Value:
    """Return the inputs of a call: the tensors of one call are those of another in other company."""
    items = split_tuple(data)
    return decode_field(data, _PART_DEPTH) if items is None else tuple(map(_input, items))


@shared
def _input(data: bytes) -> Value:
    return decode_field(data, _PART_DEPTH + 1)


def _is_by_name(value: dict[Any, Value]) -> bool:
    return all(type(name) is str for name in value)
