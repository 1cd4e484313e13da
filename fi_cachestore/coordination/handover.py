"""Records for ranks that join later, left in the store of a process group: no collective, and nobody waits.

Whoever serves and has records leaves them there once; who joins reads what is there. One set of names per group, written over by the next.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any, Final

from fi_cachestore.errors import BoardLostError

logger: Final = logging.getLogger("fi_cachestore")

MAX_LEFT_BYTES: Final = 64 * 1024 * 1024
"""What is left for joiners, at most."""
_CHUNK_BYTES: Final = 1024 * 1024
_PREFIX: Final = "fi_cachestore/handover"
_LENGTH_BYTES: Final = 4


def leave(process_group: Any, entries: Iterable[bytes]) -> int:
    """Leave sealed entries for ranks that join ``process_group`` later, unless somebody has; return how many.

    Raises:
        BoardLostError: the group has no store that can be reached, or torch does not give it away.
    """
    store = _store(process_group)
    with _errors_named("leaving records for joiners"):
        if store.add(f"{_PREFIX}/writers", 1) > 1:
            return 0
        chunks: list[bytearray] = [bytearray()]
        count = 0
        for entry in entries:
            if len(chunks) * _CHUNK_BYTES + len(entry) > MAX_LEFT_BYTES:
                logger.warning("more than %d MiB of records for joiners; the rest is left out", MAX_LEFT_BYTES >> 20)
                break
            if len(chunks[-1]) > _CHUNK_BYTES:
                chunks.append(bytearray())
            chunks[-1] += len(entry).to_bytes(_LENGTH_BYTES, "big") + entry
            count += 1
        for number, chunk in enumerate(chunks):
            store.set(f"{_PREFIX}/{number}", bytes(chunk))
        store.set(f"{_PREFIX}/count", str(len(chunks)))
    return count


def left(process_group: Any) -> Iterator[bytes]:
    """Yield the sealed entries that were left for joiners, if any were. They are not checked here.

    Raises:
        BoardLostError: the group has no store that can be reached, or torch does not give it away.
    """
    store = _store(process_group)
    with _errors_named("reading what was left for joiners"):
        if not store.check([f"{_PREFIX}/count"]):
            return
        chunk_count = min(int(store.get(f"{_PREFIX}/count")), 2 * MAX_LEFT_BYTES // _CHUNK_BYTES)
        chunks = [bytes(store.get(f"{_PREFIX}/{number}")) for number in range(chunk_count)]
    for chunk in chunks:
        at = 0
        while at + _LENGTH_BYTES <= len(chunk):
            size = int.from_bytes(chunk[at : at + _LENGTH_BYTES], "big")
            yield chunk[at + _LENGTH_BYTES : at + _LENGTH_BYTES + size]
            at += _LENGTH_BYTES + size


def _store(process_group: Any) -> Any:
    with _errors_named("asking the group for its store"):
        return process_group.get_group_store()


@contextlib.contextmanager
def _errors_named(operation: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise BoardLostError(operation, f"{type(error).__name__}: {error}".splitlines()[0][:200]) from error
