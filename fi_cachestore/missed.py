"""Collecting what a process looks up in vain, on the slow path only, and keeping it when the process ends."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from fi_cachestore.coordination.port import Clock
from fi_cachestore.errors import CacheStoreError, Gap
from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.missed import Beyond, InMemory, Missed, MissedSession
from fi_cachestore.store.missed_log import MissedLog

logger: Final = logging.getLogger("fi_cachestore")

MAX_COUNT: Final = 256
"""Rows of each kind; more are counted, not kept."""
MAX_ROWS_BYTES: Final = 384 * 1024
"""Keys and texts of all rows, with room for the rest below the format's limit for one file."""
_MAX_TEXT_BYTES: Final = 300
_MAX_GAPS: Final = 8
_InMemoryRow: TypeAlias = tuple[str, str, tuple[Gap, ...]]
_OF_STORES: Final = frozenset({MissReason.ABSENT, MissReason.CORRUPT, MissReason.FOREIGN, MissReason.UNREADABLE, MissReason.FUTURE_FORMAT})


class MissCollector:
    """What one process missed. Thread-safe, bounded by ``MAX_COUNT`` and ``MAX_ROWS_BYTES``; only ``write`` touches a disk."""

    def __init__(self, log: MissedLog | None, clock: Clock, library: str) -> None:
        """``log`` is where it is kept in the end; ``None`` keeps nothing. ``library`` names this program and its version."""
        self._log, self._clock, self._library = log, clock, library
        self._started_unix_ns = clock.unix_ns()
        self._missed: dict[Digest, Missed] = {}
        self._in_memory: dict[_InMemoryRow, int] = {}
        self._beyond: dict[tuple[str, int, int], Beyond] = {}
        self._decided_count = self._dropped_count = self._rows_bytes = 0
        self._written: tuple[int, Path] | None = None
        self._is_new = False
        self._lock = threading.Lock()

    def decided(self) -> None:
        """Count a call that was looked up for the first time."""
        with self._lock:
            self._decided_count += 1
            self._is_new = True

    def missed(self, key: TuneKey, reason: str, detail: str, *, is_covered: bool) -> None:
        """Note a key without a record that may be served."""
        with self._lock:
            self._is_new = True
            known = self._missed.get(key.digest)
            if known is None:
                if not self._admits(self._missed, len(key.canonical) + _MAX_TEXT_BYTES):
                    return
                known = Missed(key.canonical, "", "", 0, is_covered)
            covered = known.is_covered and is_covered
            self._missed[key.digest] = replace(
                known, reason=_text(reason), detail=_text(detail), call_count=known.call_count + 1, is_covered=covered
            )

    def in_memory(self, op: str, reason: str, gaps: tuple[Gap, ...]) -> None:
        """Note a call that is left to FlashInfer's memory. Cheap where it was noted before: such calls are not remembered elsewhere."""
        row = (op, reason, gaps)
        with self._lock:
            self._is_new = True
            if row in self._in_memory:
                self._in_memory[row] += 1
            elif self._admits(self._in_memory, sum(len(text.encode()) for text in _in_memory_texts(row))):
                self._in_memory[row] = 1

    def beyond(self, op: str, dim: int, bucket: int, size: int) -> None:
        """Note a call far beyond the largest bucket."""
        name = (_text(op), dim, bucket)
        with self._lock:
            self._is_new = True
            known = self._beyond.get(name)
            if known is None and not self._admits(self._beyond, _MAX_TEXT_BYTES):
                return
            largest, count = (0, 0) if known is None else (known.largest_size, known.call_count)
            self._beyond[name] = Beyond(*name, max(size, largest), count + 1)

    def _admits(self, rows: Sized, size_bytes: int) -> bool:
        """Whether one more row is within the limits; one that is not is counted."""
        if len(rows) >= MAX_COUNT or self._rows_bytes + size_bytes > MAX_ROWS_BYTES:
            self._dropped_count += 1
            return False
        self._rows_bytes += size_bytes
        return True

    def write(self, mode: str, roots: Sequence[Path], answers: Callable[[Digest], bool]) -> None:
        """Keep it, in place of what this process kept before, if there is anything new. Never raises.

        ``answers`` tells whether a key has a record by now; a miss of something that was not there, or not readable, is over then.
        """
        if self._log is None:
            return
        with self._lock:
            if not self._is_new:
                return
            self._is_new = False
            session = self._session(mode, roots)
        left = [m for m in session.missed if m.reason not in _OF_STORES or not answers(m.digest)]
        missed = tuple(sorted(left, key=lambda m: (m.is_covered, -m.call_count)))
        try:
            path = self._log.append(replace(session, missed=missed))
        except (CacheStoreError, OSError) as error:
            logger.info("what was missed is not kept for `fi-cachestore why`: %s", error)
            return
        earlier, self._written = self._written, (os.getpid(), path)
        if earlier is not None and earlier[0] == os.getpid():  # not a parent's, from before a fork
            self._log.remove(earlier[1])

    def _session(self, mode: str, roots: Sequence[Path]) -> MissedSession:
        return MissedSession(
            library=self._library,
            host=_text(socket.gethostname()),
            pid=os.getpid(),
            mode=_text(mode),
            roots=tuple(_text(str(root)) for root in roots[:MAX_COUNT]),
            started_unix_ns=self._started_unix_ns,
            ended_unix_ns=self._clock.unix_ns(),
            decided_count=self._decided_count,
            dropped_count=self._dropped_count,
            missed=tuple(self._missed.values()),
            in_memory=tuple(_in_memory(row, count) for row, count in self._in_memory.items()),
            beyond=tuple(self._beyond.values()),
        )


def _in_memory_texts(row: _InMemoryRow) -> list[str]:
    op, reason, gaps = row
    return [_text(op), _text(reason), *(_text(str(gap)) for gap in gaps[:_MAX_GAPS])]


def _in_memory(row: _InMemoryRow, call_count: int) -> InMemory:
    op, reason, *gaps = _in_memory_texts(row)
    return InMemory(op, reason, tuple(gaps), call_count)


def _text(text: str) -> str:
    """Return text that has canonical bytes, of bounded length."""
    return text[:_MAX_TEXT_BYTES].encode("utf-8", "backslashreplace")[:_MAX_TEXT_BYTES].decode("utf-8", "ignore")
