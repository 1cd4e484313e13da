"""What ranks settle at the end of a session: one (runner, tactic) for every call that two or more of them made. Pure functions.

A pair is 32 bytes: a digest of the runner's key and the tactic. ``DEFAULT`` is the pair that every rank can always use: FlashInfer's own
default. Every rank comes to the same answer from the same values, and ``ranks.py`` sees to it that they are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final

from fi_cachestore.keys.digest import Digest

Pair = bytes
CallId = bytes

DIGEST_BYTES: Final = 32
DEFAULT: Final[Pair] = bytes(DIGEST_BYTES)
_MAX_CALLS: Final = 1 << 20


def pair_of(key: Digest, tactic: bytes) -> Pair:
    """Return the pair of a runner's key and the canonical bytes of one of its tactics."""
    return blake2b(bytes.fromhex(key) + tactic, digest_size=DIGEST_BYTES, person=b"fi_cachestore/a1").digest()


def call_id(keys: Sequence[Digest]) -> CallId:
    """Return the name of a call: the keys of its candidate runners, in the order of its list."""
    return blake2b(b"".join(map(bytes.fromhex, keys)), digest_size=DIGEST_BYTES, person=b"fi_cachestore/n1").digest()


def pack_choices(choices: Mapping[CallId, Pair]) -> bytes:
    """Return choices as rows of call and pair, sorted by call."""
    return b"".join(call + pair for call, pair in sorted(choices.items()))


def unpack_choices(data: bytes) -> dict[CallId, Pair]:
    """Return the choices in rows; bytes that are none give nothing."""
    size = 2 * DIGEST_BYTES
    if len(data) % size or len(data) > size * _MAX_CALLS:
        return {}
    rows = (data[at : at + size] for at in range(0, len(data), size))
    return {row[:DIGEST_BYTES]: row[DIGEST_BYTES:] for row in rows}


def pack_pairs(pairs: Sequence[Pair]) -> bytes:
    """Return pairs one after the other, best first."""
    return b"".join(pairs)


def unpack_pairs(data: bytes) -> list[Pair]:
    """Return the pairs in bytes; bytes that are none give nothing."""
    if len(data) % DIGEST_BYTES:
        return []
    return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]


def disputed(choices: Mapping[int, Mapping[CallId, Pair]]) -> list[CallId]:
    """Return the calls that several ranks made and not all of them answer alike, in order. ``choices`` is by rank."""
    chosen: dict[CallId, set[Pair]] = {}
    for of_rank in choices.values():
        for call, pair in of_rank.items():
            chosen.setdefault(call, set()).add(pair)
    return sorted(call for call, pairs in chosen.items() if len(pairs) > 1)


def shared_count(choices: Mapping[int, Mapping[CallId, Pair]]) -> int:
    """Return how many calls two or more ranks made."""
    counts: dict[CallId, int] = {}
    for of_rank in choices.values():
        for call in of_rank:
            counts[call] = counts.get(call, 0) + 1
    return sum(1 for count in counts.values() if count > 1)


def settle(options: Mapping[int, Sequence[Pair]]) -> Pair:
    """Return the pair that all take: the first in the list of the lowest rank that every rank can use, else ``DEFAULT``.

    ``options`` has, by rank, the pairs that it can use, best first.
    """
    if not options:
        return DEFAULT
    usable = set.intersection(*(set(pairs) for pairs in options.values()))
    return next((pair for pair in options[min(options)] if pair in usable), DEFAULT)
