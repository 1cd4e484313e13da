"""Verdicts: what is believed about a key schema or a record, by whom, and why. Each is one file under ``verdicts/``.

A validation holds for one set of left-out values, a quarantine for a whole schema, an override is an operator's word on a schema, and
a refusal bans one record, whatever its schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, TypeAlias

from fi_cachestore.errors import DamagedError, NotCanonicalError
from fi_cachestore.keys.canonical import Named, Value, decode_field
from fi_cachestore.keys.digest import Digest, is_digest
from fi_cachestore.keys.fields import Layout, shared
from fi_cachestore.keys.schema import KeySchema, LeftOut, is_left_out, left_out_digest, stored_digest
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.observation import Sample, Side, sample_from, side_from, side_value

REFUSED: Final = "refused"
VALIDATION: Final = "validation-"
"""What the names of validations begin with; their left-out digest follows."""
SCHEMA_STEM: Final = re.compile(r"validation-[0-9a-f]{64}|quarantine|override-[0-9]{8}", re.ASCII)
"""The names that verdicts on a schema have, without generation."""
MAX_NUMBER: Final = 99_999_999
_MAX_TEXT_CHARS: Final = 2000
_VALIDATION_KIND: Final = "fi_cachestore.validation/1"
_VALIDATION_FIELDS: Final = ("schema", "left_out", "writer", "reader", "samples", "unix_ns")
_VALIDATION_LAYOUT: Final = Layout(_VALIDATION_KIND, _VALIDATION_FIELDS)


class Word(StrEnum):
    """What an operator says about a schema: serve it, never serve it, or believe the evidence again."""

    TRUSTED = "trusted"
    DISTRUSTED = "distrusted"
    EVIDENCE = "evidence"


@dataclass(frozen=True, slots=True)
class Validation:
    """Two processes agreed about a sample of a schema's keys; holds for these left-out values alone."""

    schema: KeySchema
    left_out: LeftOut
    writer: Side
    reader: Side
    samples: tuple[Sample, ...]
    unix_ns: int

    @property
    def folder(self) -> str:
        """Where it is kept."""
        return self.schema.digest

    @property
    def stem(self) -> str:
        """The name of its file, without generation."""
        return f"{VALIDATION}{left_out_digest(self.left_out)}"

    def to_value(self) -> Value:
        """Return the content of an envelope."""
        content: dict[str, Value] = {
            "schema": self.schema.to_value(),
            "left_out": dict(self.left_out),
            "writer": side_value(self.writer),
            "reader": side_value(self.reader),
            "samples": [sample.to_value() for sample in self.samples],
            "unix_ns": self.unix_ns,
        }
        return Named(_VALIDATION_KIND, content)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Two processes contradict each other about one key; no key of the schema is served. Both sides are kept.

    Too large for one file, it is kept without ``schema``, ``sample`` and left-out values: the ban matters more than its grounds.
    """

    schema_digest: Digest
    schema: KeySchema | None
    reason: str
    detail: str
    writer: Side
    reader: Side
    sample: Sample | None
    unix_ns: int

    @property
    def folder(self) -> str:
        """Where it is kept."""
        return self.schema_digest

    @property
    def stem(self) -> str:
        """The name of its file, without generation."""
        return "quarantine"

    def trimmed(self) -> Quarantine:
        """Return what fits into a file in any case."""
        writer, reader = (Side(side.process[:_MAX_TEXT_CHARS], side.host[:_MAX_TEXT_CHARS]) for side in (self.writer, self.reader))
        return replace(self, schema=None, writer=writer, reader=reader, sample=None)

    def to_value(self) -> Value:
        """Return the content of an envelope."""
        content: dict[str, Value] = {
            "schema_digest": self.schema_digest,
            "schema": None if self.schema is None else self.schema.to_value(),
            "reason": self.reason[:_MAX_TEXT_CHARS],
            "detail": self.detail[:_MAX_TEXT_CHARS],
            "writer": side_value(self.writer),
            "reader": side_value(self.reader),
            "sample": None if self.sample is None else self.sample.to_value(),
            "unix_ns": self.unix_ns,
        }
        return Named("fi_cachestore.quarantine/1", content)


@dataclass(frozen=True, slots=True)
class Override:
    """An operator's word on a schema. Numbered per schema; the latest counts, the earlier ones stay readable."""

    schema_digest: Digest
    number: int
    word: Word
    who: str
    why: str
    unix_ns: int

    @property
    def folder(self) -> str:
        """Where it is kept."""
        return self.schema_digest

    @property
    def stem(self) -> str:
        """The name of its file, without generation."""
        return f"override-{self.number:08d}"

    def to_value(self) -> Value:
        """Return the content of an envelope."""
        content: dict[str, Value] = {
            "schema_digest": self.schema_digest,
            "number": self.number,
            "word": self.word.value,
            "who": self.who[:_MAX_TEXT_CHARS],
            "why": self.why[:_MAX_TEXT_CHARS],
            "unix_ns": self.unix_ns,
        }
        return Named("fi_cachestore.override/1", content)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One record that is not served any more, by its key and its whole content: a later measurement of the same key is another record."""

    key: Digest
    content: Digest
    why: str
    unix_ns: int

    @property
    def folder(self) -> str:
        """Where it is kept."""
        return REFUSED

    @property
    def stem(self) -> str:
        """The name of its file, without generation."""
        return f"{self.key}-{self.content}"

    def to_value(self) -> Value:
        """Return the content of an envelope."""
        content: dict[str, Value] = {
            "key": self.key,
            "content": self.content,
            "why": self.why[:_MAX_TEXT_CHARS],
            "unix_ns": self.unix_ns,
        }
        return Named("fi_cachestore.refusal/1", content)


Verdict: TypeAlias = Validation | Quarantine | Override | Refusal


def verdict_from(value: Value) -> Verdict:
    """Return the verdict in an envelope's content.

    Raises:
        DamagedError: the content is not a verdict of this format.
    """
    if not isinstance(value, Named) or value.kind not in _READERS or type(value.content) is not dict:
        raise DamagedError(MissReason.CORRUPT, "not a verdict of this format")
    names, read = _READERS[value.kind]
    fields: dict[str, Any] = value.content
    if set(fields) != names or type(fields["unix_ns"]) is not int or fields["unix_ns"] < 0:
        raise DamagedError(MissReason.CORRUPT, "a verdict with other fields")
    try:
        return read(fields)
    except (NotCanonicalError, TypeError, ValueError) as error:
        raise DamagedError(MissReason.CORRUPT, f"not a verdict: {type(error).__name__}: {error}"[:200]) from error


def validated_by(body: bytes) -> tuple[Digest, Digest] | None:
    """Return the schema and the left-out digest that the body of a validation is about, told by their bytes; ``None`` for another body.

    They are those of a schema and of left-out values if they are the digests of such; the rest, which is for people, is not looked at.
    """
    try:
        parts = _VALIDATION_LAYOUT.cut(body)
        return stored_digest(parts["schema"]), _left_out_digest(parts["left_out"])
    except NotCanonicalError:
        return None


@shared
def _left_out_digest(data: bytes) -> Digest:
    """Return the digest of encoded left-out values: many schemas are validated for the same."""
    values = decode_field(data)
    if not is_left_out(values):
        raise NotCanonicalError("not left-out values", len(data))
    return left_out_digest(values)  # type: ignore[arg-type]


def _validation(fields: dict[str, Any]) -> Validation:
    if not is_left_out(fields["left_out"]) or type(fields["samples"]) is not list:
        raise TypeError
    return Validation(
        KeySchema.from_value(fields["schema"]),
        fields["left_out"],
        side_from(fields["writer"]),
        side_from(fields["reader"]),
        tuple(map(sample_from, fields["samples"])),
        fields["unix_ns"],
    )


def _quarantine(fields: dict[str, Any]) -> Quarantine:
    schema = None if fields["schema"] is None else KeySchema.from_value(fields["schema"])
    digest = _digest(fields["schema_digest"])
    if schema is not None and schema.digest != digest:
        raise DamagedError(MissReason.FOREIGN, f"holds the schema {schema.digest[:12]}")
    sample = None if fields["sample"] is None else sample_from(fields["sample"])
    sides = (side_from(fields["writer"]), side_from(fields["reader"]))
    return Quarantine(digest, schema, _text(fields["reason"]), _text(fields["detail"]), *sides, sample, fields["unix_ns"])


def _override(fields: dict[str, Any]) -> Override:
    if type(fields["number"]) is not int or not 0 <= fields["number"] <= MAX_NUMBER:
        raise ValueError
    word = Word(_text(fields["word"]))
    return Override(_digest(fields["schema_digest"]), fields["number"], word, _text(fields["who"]), _text(fields["why"]), fields["unix_ns"])


def _refusal(fields: dict[str, Any]) -> Refusal:
    return Refusal(_digest(fields["key"]), _digest(fields["content"]), _text(fields["why"]), fields["unix_ns"])


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _digest(value: object) -> Digest:
    text = _text(value)
    if not is_digest(text):
        raise ValueError
    return Digest(text)


_READERS: Final[dict[str, tuple[frozenset[str], Callable[[dict[str, Any]], Verdict]]]] = {
    _VALIDATION_KIND: (frozenset(_VALIDATION_FIELDS), _validation),
    "fi_cachestore.quarantine/1": (
        frozenset({"schema_digest", "schema", "reason", "detail", "writer", "reader", "sample", "unix_ns"}),
        _quarantine,
    ),
    "fi_cachestore.override/1": (frozenset({"schema_digest", "number", "word", "who", "why", "unix_ns"}), _override),
    "fi_cachestore.refusal/1": (frozenset({"key", "content", "why", "unix_ns"}), _refusal),
}
