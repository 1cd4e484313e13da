"""Digests: BLAKE2b with a personalisation per purpose, so that equal bytes in two roles never share a name."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import NewType

Digest = NewType("Digest", str)
"""64 lower-case hexadecimal digits (BLAKE2b-256)."""

DIGEST_HEX_CHARS = 64
_FORM = re.compile(r"[0-9a-f]{64}", re.ASCII)

_KEY_PERSON = b"fi_cachestore/k1"
_PART_PERSON = b"fi_cachestore/p1"
_RULES_PERSON = b"fi_cachestore/s1"
_TACTICS_PERSON = b"fi_cachestore/t1"
_SOURCE_PERSON = b"fi_cachestore/c1"
_SCHEMA_PERSON = b"fi_cachestore/h1"
_LEFT_OUT_PERSON = b"fi_cachestore/l1"
_CONTENT_PERSON = b"fi_cachestore/o1"


def key_digest(canonical: bytes) -> Digest:
    """Return the name of a record: the digest of its key's canonical bytes."""
    return _digest(canonical, _KEY_PERSON)


def part_digest(canonical: bytes) -> Digest:
    """Return the digest of one part of a key, for explanations."""
    return _digest(canonical, _PART_PERSON)


def rules_digest(canonical: bytes) -> Digest:
    """Return the name under which the rules of the last session on one device model are kept."""
    return _digest(canonical, _RULES_PERSON)


def tactics_digest(canonical: bytes) -> Digest:
    """Return the digest of a tactic list."""
    return _digest(canonical, _TACTICS_PERSON)


def source_digest(text: str) -> Digest:
    """Return the digest of source text."""
    return _digest(text.encode("utf-8", "backslashreplace"), _SOURCE_PERSON)


def schema_digest(canonical: bytes) -> Digest:
    """Return the digest of a key schema."""
    return _digest(canonical, _SCHEMA_PERSON)


def left_out_digest_of(canonical: bytes) -> Digest:
    """Return the digest of one value that is left out of a key, or of all of them."""
    return _digest(canonical, _LEFT_OUT_PERSON)


def content_digest(canonical: bytes) -> Digest:
    """Return the digest of a whole record, so that one of several for a key can be named."""
    return _digest(canonical, _CONTENT_PERSON)


def is_digest(text: str) -> bool:
    """Whether ``text`` has the form of a digest."""
    return _FORM.fullmatch(text) is not None


def _digest(data: bytes, person: bytes) -> Digest:
    return Digest(blake2b(data, digest_size=32, person=person).hexdigest())
