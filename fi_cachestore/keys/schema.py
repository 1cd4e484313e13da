"""The schema of a key: which parameters its runner has and what each is for, without their values; and the values that are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, TypeAlias

from fi_cachestore.errors import NotCanonicalError
from fi_cachestore.keys.canonical import Named, Value, encode
from fi_cachestore.keys.digest import Digest, is_digest, left_out_digest_of, schema_digest
from fi_cachestore.keys.fields import Layout, encode_each, join_fields, list_items, shared

_KIND: Final = "fi_cachestore.schema/1"
_FIELDS: Final = ("op", "runner", "parameters", "contract", "environment")
_LAYOUT: Final = Layout(_KIND, _FIELDS)
_KIND_BYTES, _NO_OP = encode(_KIND), encode("")
_BEFORE_RUNNER: Final = encode("runner")
_BEFORE_OP: Final = join_fields(_KIND, dict.fromkeys(_FIELDS, b"")).partition(_BEFORE_RUNNER)[0]
_REMEMBERED: Final = frozenset({type(None), bool, int, str})
_PARAMETER_PARTS: Final = 3
_MAX_REMEMBERED: Final = 256

Parameters: TypeAlias = tuple[tuple[str, str, str], ...]
"""Path, type and role of each parameter."""
LeftOut: TypeAlias = Mapping[str, Digest]
"""Digest of the value of every parameter that is not in the key, by its path."""


@dataclass(frozen=True)
class KeySchema:
    """What all keys of one op, runner and contract in one environment have in common; trust is kept per schema.

    ``runner`` is the type's identity, ``parameters`` has (path, type, role) of every parameter and keyword argument, those that are left
    out of the key included, ``contract`` the digest of what a contract says about the class.
    """

    op: str
    runner: str
    parameters: Parameters
    contract: Digest
    environment: dict[str, Value]

    @cached_property
    def digest(self) -> Digest:
        """The name of the schema; the order of ``parameters`` is irrelevant, and there is no limit to their number."""
        rest = _beside_op(self.runner, self.contract, self.environment, self.parameters)
        return schema_digest(_KIND_BYTES + encode(self.op) + rest)

    def to_value(self) -> Value:
        """Return the schema as a value to be stored."""
        return Named(_KIND, {name: getattr(self, name) for name in _FIELDS} | {"parameters": [*self.parameters]})

    @classmethod
    def from_value(cls, value: Value) -> KeySchema:
        """Return the schema in a stored value.

        Raises:
            NotCanonicalError: the value is not a schema of this format.
        """
        fields: dict[str, Any] = value.content if isinstance(value, Named) and value.kind == _KIND else None  # type: ignore[assignment]
        if type(fields) is not dict or set(fields) != set(_FIELDS) or not _well_formed(fields):
            raise NotCanonicalError("not a key schema of this format", 0)
        return cls(**fields | {"parameters": tuple(fields["parameters"])})


class SchemaDigests:
    """Digests of schemas, for who has many: one class serves many ops and calls. Thread-safe: two may work out the same twice."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._beside_ops: dict[tuple[str, Digest, int, Parameters], tuple[dict[str, Value], bytes]] = {}

    def of(self, op: str, runner: str, parameters: Parameters, contract: Digest, environment: dict[str, Value]) -> Digest:
        """Return what ``KeySchema(...).digest`` is.

        ``environment`` is known again by being the same object, which must not change; it is kept, so that no other one has its place.
        """
        what = (runner, contract, id(environment), parameters)
        known = self._beside_ops.get(what)
        if known is None:
            if len(self._beside_ops) >= _MAX_REMEMBERED:
                self._beside_ops.clear()
            known = self._beside_ops[what] = (environment, _beside_op(runner, contract, environment, parameters))
        return schema_digest(_KIND_BYTES + encode(op) + known[1])


def stored_digest(data: bytes) -> Digest:
    """Return the digest of the schema whose ``to_value`` is encoded in ``data``, where its parameters are sorted; nothing is decoded.

    Of other bytes it is the digest of nothing.

    Raises:
        NotCanonicalError: they do not have the fields of a schema.
    """
    start, end = len(_BEFORE_OP), data.find(_BEFORE_RUNNER)
    if end < start or not data.startswith(_BEFORE_OP):
        raise NotCanonicalError("not a key schema of this format", len(data))
    return schema_digest(_KIND_BYTES + data[start:end] + _stored_beside_op(_BEFORE_OP + _NO_OP + data[end:]))


def _beside_op(runner: str, contract: Digest, environment: dict[str, Value], parameters: Parameters) -> bytes:
    return encode_each([runner, contract, environment, len(parameters), *sorted(parameters)])


@shared
def _stored_beside_op(data: bytes) -> bytes:
    """Return what ``_beside_op`` does, for a stored schema that had another op."""
    parts = _LAYOUT.cut(data)
    count, rows = list_items(parts["parameters"])
    return b"".join([parts["runner"], parts["contract"], parts["environment"], encode(count), rows])


def _well_formed(fields: dict[str, Any]) -> bool:
    return (
        all(type(fields[name]) is str for name in ("op", "runner", "contract"))
        and is_digest(fields["contract"])
        and type(fields["parameters"]) is list
        and all(_is_parameter(row) for row in fields["parameters"])
        and type(fields["environment"]) is dict
        and all(type(name) is str for name in fields["environment"])
    )


def _is_parameter(row: object) -> bool:
    return type(row) is tuple and len(row) == _PARAMETER_PARTS and all(type(part) is str for part in row)


def left_out_value(role: str, value: Value) -> Digest:
    """Return the digest of one value that is left out of a key, for a ``LeftOut``.

    Raises:
        UnsupportedValueError: the value has no canonical form.
    """
    if type(value) in _REMEMBERED:
        return _remembered_value(role, value)  # type: ignore[arg-type]
    return _value_digest(role, value)


def _value_digest(role: str, value: Value) -> Digest:
    return left_out_digest_of(encode((role, value)))


_remembered_value: Final = lru_cache(maxsize=_MAX_REMEMBERED, typed=True)(_value_digest)
"""The same, remembered by type and value: ranks and sizes are the same in all runners of a process."""


def left_out_digest(values: LeftOut) -> Digest:
    """Return one digest of all left-out values; their order is irrelevant, and there is no limit to their number."""
    return _left_out_digest(tuple(sorted(values.items())))


@lru_cache(maxsize=_MAX_REMEMBERED)
def _left_out_digest(rows: tuple[tuple[str, Digest], ...]) -> Digest:
    """Return what ``left_out_digest`` does: of text, which calls and the verdicts on them have in common."""
    return left_out_digest_of(encode_each(rows))


def joint(these: LeftOut, those: LeftOut) -> LeftOut:
    """Return the values of two processes as one: equal ones as they are, others as a pair. The order of the two is irrelevant.

    It is so as a whole: (1, 2) with (3, 4) is not (1, 4) with (3, 2).
    """
    if these == those:
        return these
    first, second = sorted((these, those), key=left_out_digest)
    found: dict[str, Digest] = {}
    for path in sorted({*first, *second}):
        pair = (first.get(path, ""), second.get(path, ""))
        found[path] = Digest(pair[0]) if pair[0] == pair[1] else left_out_digest_of(encode(pair))
    return found


def is_left_out(value: object) -> bool:
    """Whether a stored value is a ``LeftOut``."""
    return type(value) is dict and all(type(path) is str and type(digest) is str and is_digest(digest) for path, digest in value.items())
