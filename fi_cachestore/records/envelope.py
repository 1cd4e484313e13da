r"""The envelope around everything on disk.

==============  =====  ================================================================
bytes           size   content
==============  =====  ================================================================
0-7             8      magic ``\x93FICS\r\n\x1a`` (a text-mode transfer breaks it)
8-11            4      format version, big-endian
12-15           4      length of the body in bytes, big-endian
16-             n      body: canonical bytes (``keys/canonical.py``)
last 16         16     BLAKE2b-128 of everything before, personalised
==============  =====  ================================================================
"""

from __future__ import annotations

import struct
from enum import StrEnum
from hashlib import blake2b

from fi_cachestore.errors import DamagedError, NotCanonicalError
from fi_cachestore.keys.canonical import MAX_BYTES, Value, decode, encode

MAGIC = b"\x93FICS\r\n\x1a"
FORMAT_VERSION = 1
_HEADER = struct.Struct(">8sII")
_CHECK_BYTES = 16
_PERSON = b"fi_cachestore/e1"

HEADER_BYTES = _HEADER.size
MAX_SEALED_BYTES = HEADER_BYTES + MAX_BYTES + _CHECK_BYTES
"""No file of this format is longer; readers refuse longer ones before reading them."""


class MissReason(StrEnum):
    """Why a look-up found nothing that may be served."""

    ABSENT = "absent"
    CORRUPT = "corrupt"
    FOREIGN = "foreign"
    UNREADABLE = "unreadable"
    FUTURE_FORMAT = "future-format"
    UNPROVEN = "unproven"
    QUARANTINED = "quarantined"
    REFUSED = "refused"


def seal(value: Value) -> bytes:
    """Return ``value`` as the bytes of one file.

    Raises:
        UnsupportedValueError: ``value`` has no canonical form or is too large.
    """
    body = encode(value)
    front = _HEADER.pack(MAGIC, FORMAT_VERSION, len(body)) + body
    return front + _check(front)


def unseal(data: bytes) -> Value:
    """Return the value sealed in ``data``, checked byte for byte.

    Raises:
        DamagedError: reason ``corrupt``, or ``future-format`` for a well-formed file of a later version.
    """
    return decoded(body_of(data))


def body_of(data: bytes) -> bytes:
    """Return the body sealed in ``data``, as it was written: what decodes it checks whether it is canonical.

    Raises:
        DamagedError: as ``unseal`` does.
    """
    version, body_bytes = check_seal(data)
    if version > FORMAT_VERSION:
        raise DamagedError(MissReason.FUTURE_FORMAT, f"format {version}, this version reads {FORMAT_VERSION}")
    if version != FORMAT_VERSION or body_bytes != len(data) - HEADER_BYTES - _CHECK_BYTES or body_bytes > MAX_BYTES:
        raise DamagedError(MissReason.CORRUPT, "header and content disagree")
    return data[HEADER_BYTES:-_CHECK_BYTES]


def decoded(body: bytes) -> Value:
    """Return the value in a body.

    Raises:
        DamagedError: reason ``corrupt``.
    """
    try:
        return decode(body)
    except NotCanonicalError as error:
        raise DamagedError(MissReason.CORRUPT, error.reason) from error


def check_seal(data: bytes) -> tuple[int, int]:
    """Return the version and the length that ``data`` claim, once their checksum has shown that they are as they were written.

    Raises:
        DamagedError: reason ``corrupt``.
    """
    if len(data) < HEADER_BYTES + _CHECK_BYTES:
        raise DamagedError(MissReason.CORRUPT, f"{len(data)} bytes are too few")
    magic, version, body_bytes = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise DamagedError(MissReason.CORRUPT, "not a file of this library")
    if _check(data[:-_CHECK_BYTES]) != data[-_CHECK_BYTES:]:
        raise DamagedError(MissReason.CORRUPT, "checksum differs")
    return version, body_bytes


def unseal_front(data: bytes) -> tuple[Value, bytes]:
    """Return the value sealed at the beginning of ``data``, and whatever follows it.

    Raises:
        DamagedError: as ``unseal`` does.
    """
    end = len(data)
    if len(data) >= HEADER_BYTES:
        end = HEADER_BYTES + _HEADER.unpack_from(data)[2] + _CHECK_BYTES
    return unseal(data[:end]), data[end:]


def _check(front: bytes) -> bytes:
    return blake2b(front, digest_size=_CHECK_BYTES, person=_PERSON).digest()
