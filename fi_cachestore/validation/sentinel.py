"""The crash sentinel: a tactic that kills processes is found out without anybody watching them.

While a tactic of a stored record is tried, a mark lies in the root. It goes away whenever the run comes to an end in this process, by a
result or by an exception. During the run ``faulthandler`` writes into the mark, so that a process that dies of a fault (SIGSEGV, SIGABRT,
SIGBUS, SIGILL, SIGFPE) leaves a trace there. SIGKILL and SIGTERM leave none: schedulers and the out-of-memory killer send them at any
time, which says nothing of a tactic. Nor does ``os._exit``: a kernel cannot call it, so somebody's code (a watchdog's, a forked worker's)
decided to end the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar, Final, Protocol

from fi_cachestore.coordination.port import Clock
from fi_cachestore.environment.process import Process, ProcessTable
from fi_cachestore.errors import StoreIOError
from fi_cachestore.keys.canonical import Value
from fi_cachestore.records.mark import Mark
from fi_cachestore.records.record import Record
from fi_cachestore.store.marks import MarkFile, MarkFolder
from fi_cachestore.validation.ledger import Ledger

logger: Final = logging.getLogger("fi_cachestore")

ENDS_TO_REFUSE: Final = 2
_STALE_NS: Final = 24 * 3600 * 10**9
_STDERR: Final = 2
_FATAL: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
_SIGACTION_BYTES: Final = 512
"""More than any C library's ``struct sigaction`` has."""


class Tracer(Protocol):
    """Has a dying process leave a trace in a file."""

    def tracing(self, file: BinaryIO) -> contextlib.AbstractContextManager[None]:
        """Write to ``file`` if the process dies of a fault inside."""


class FaultTracer:
    """``faulthandler``, which a process has only one of: one run at a time, in the thread that has it; runs inside runs are fine.

    It is installed anew for the run, since libraries (tvm-ffi, which FlashInfer imports) take its signals over. Afterwards it is off or on
    as it was, and every signal has the handler it had. Python does not tell where an engine's own writes to; it gets ``stderr``, all
    threads, which is what ``-X faulthandler`` and a plain ``faulthandler.enable()`` mean.
    """

    _lock: ClassVar = threading.RLock()
    _files: ClassVar[list[BinaryIO]] = []

    @contextlib.contextmanager
    def tracing(self, file: BinaryIO) -> Iterator[None]:
        """Trace into ``file``; see ``Tracer``."""
        with self._lock, _handlers_restored():
            was_enabled = faulthandler.is_enabled()
            faulthandler.disable()
            self._files.append(file)
            faulthandler.enable(file=file, all_threads=False)
            try:
                yield
            finally:
                self._files.pop()
                faulthandler.disable()
                if self._files:
                    faulthandler.enable(file=self._files[-1], all_threads=False)
                elif was_enabled:
                    faulthandler.enable(file=_STDERR, all_threads=True)


@contextlib.contextmanager
def _handlers_restored() -> Iterator[None]:
    """Give the fatal signals back whatever handlers they have now, also those that no Python code installed."""
    system = ctypes.CDLL(None)
    handlers = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in _FATAL}
    for number, handler in handlers.items():
        system.sigaction(number, None, handler)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            system.sigaction(number, handler, None)


class Sentinel:
    """Thread-safe. Marks are put up by those who try a record out, never by look-ups."""

    def __init__(
        self, marks: MarkFolder | None, ledger: Ledger, processes: ProcessTable, clock: Clock, host: str, tracer: Tracer | None = None
    ) -> None:
        """Keep marks in ``marks``; ``None`` keeps none, where nothing can be written."""
        self._marks, self._ledger = marks, ledger
        self._processes, self._clock, self._host = processes, clock, host
        self._tracer: Tracer = FaultTracer() if tracer is None else tracer

    def may_run(self, record: Record) -> bool:
        """Whether a record may be tried. One that two processes died of is refused, here and for good."""
        if self._ledger.is_refused(record):
            return False
        if self._marks is None:
            return True
        ends = [found for found in self._marks.of(record.digest, record.content) if self._has_ended(found)]
        traced = [found for found in ends if found.is_traced]
        for found in ends:
            if not found.is_traced:
                self._marks.remove(found.path)
        if len(traced) < ENDS_TO_REFUSE:
            return True
        hosts = ", ".join(sorted({found.mark.host for found in traced}))
        self._ledger.refuse(record, f"{len(traced)} processes died while they tried it, on {hosts}", self._clock.unix_ns())
        logger.warning("%s: record %s kills processes (on %s); it is not served any more", record.key.op, record.digest[:12], hosts)
        return False

    @contextlib.contextmanager
    def guard(self, record: Record, tactic: Value) -> Iterator[None]:
        """Have a mark up while the caller runs ``tactic`` and waits for its end. Where none can be put up, the run goes on without."""
        put_up = self._put_up(record, tactic)
        if put_up is None or self._marks is None:
            yield
            return
        mark, file = put_up
        try:
            with file, self._tracer.tracing(file):
                yield
        finally:
            self._marks.remove(mark)

    def _put_up(self, record: Record, tactic: Value) -> tuple[Path, BinaryIO] | None:
        if self._marks is None:
            return None
        process = self._processes.this()
        name = "" if process is None else str(process)
        mark = Mark(record.digest, record.content, record.key.op, tactic, name, self._host, self._clock.unix_ns())
        try:
            path = self._marks.create(mark)
        except StoreIOError as error:
            logger.warning("%s; a tactic is tried without a mark", error)
            return None
        try:
            return path, self._marks.open_for_trace(path)
        except OSError:  # taken away meanwhile, or a file system without appending
            self._marks.remove(path)
            return None

    def _has_ended(self, found: MarkFile) -> bool:
        """Whether a mark's process is gone. A pid says so only in its own boot and container; elsewhere the trace, or a day, does."""
        this, other = self._processes.this(), Process.parse(found.mark.process)
        if this is not None and other is not None and (this.boot, this.namespace) == (other.boot, other.namespace):
            return self._processes.start_ticks(other.pid) != other.start_ticks
        return found.is_traced or self._clock.unix_ns() - found.mark.unix_ns > _STALE_NS
