"""The Board port: small values that the ranks of one session share, with one atomic operation."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fi_cachestore.errors import BoardLostError


class Board(Protocol):
    """Values by name. A name that was never set holds ``b""``. Every method is atomic between all ranks and safe from any thread."""

    def compare_set(self, name: str, expected: bytes, desired: bytes) -> bytes:
        """Set ``name`` to ``desired`` if it holds ``expected``; return what it holds now.

        Raises:
            BoardLostError: the board cannot be reached.
        """

    def put(self, values: Mapping[str, bytes]) -> None:
        """Set names, whatever they hold.

        Raises:
            BoardLostError: the board cannot be reached.
        """

    def fetch(self, names: Sequence[str]) -> list[bytes]:
        """Return what the names hold. Never waits for a value to come.

        Raises:
            BoardLostError: the board cannot be reached.
        """


class MemoryBoard:
    """A board for the threads of one process."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._values: dict[str, bytes] = {}

    def compare_set(self, name: str, expected: bytes, desired: bytes) -> bytes:
        """Set ``name`` to ``desired`` if it holds ``expected``; return what it holds now."""
        with self._lock:
            if self._values.get(name, b"") == expected:
                self._values[name] = desired
            return self._values.get(name, b"")

    def put(self, values: Mapping[str, bytes]) -> None:
        """Set names."""
        with self._lock:
            self._values.update(values)

    def fetch(self, names: Sequence[str]) -> list[bytes]:
        """Return what the names hold."""
        with self._lock:
            return [self._values.get(name, b"") for name in names]


@dataclass(slots=True)
class _Request:
    run: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    answer: Any = None
    error: Exception | None = None


class DeadlineBoard:
    """A board whose every answer comes in time or counts as lost, for good: a server that is stopped, not dead, answers nobody.

    Requests run on one daemon thread, so that one which never returns holds up neither its caller nor the end of the process.
    """

    def __init__(self, inner: Board, limit_s: float) -> None:
        """Pass requests on to ``inner``; ``limit_s`` is how long one may take."""
        self._inner, self._limit_s = inner, limit_s
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lost: str | None = None
        threading.Thread(target=self._serve, name="fi_cachestore-board", daemon=True).start()

    def compare_set(self, name: str, expected: bytes, desired: bytes) -> bytes:
        """Set ``name`` to ``desired`` if it holds ``expected``; return what it holds now."""
        held: bytes = self._ask("compare and set", lambda: self._inner.compare_set(name, expected, desired))
        return held

    def put(self, values: Mapping[str, bytes]) -> None:
        """Set names."""
        self._ask("set", lambda: self._inner.put(values))

    def fetch(self, names: Sequence[str]) -> list[bytes]:
        """Return what the names hold."""
        found: list[bytes] = self._ask("get", lambda: self._inner.fetch(names))
        return found

    def close(self) -> None:
        """Let the thread end when it can; the board is lost from now on."""
        self._lost = self._lost or "closed"
        self._requests.put(None)

    def _ask(self, operation: str, run: Callable[[], Any]) -> Any:
        if self._lost is not None:
            raise BoardLostError(operation, self._lost)
        request = _Request(run)
        self._requests.put(request)
        if not request.done.wait(self._limit_s):
            self._lost = f"no answer in {self._limit_s:g} s"
        elif request.error is not None:
            self._lost = f"{type(request.error).__name__}: {request.error}".splitlines()[0][:200]
        if self._lost is not None:
            raise BoardLostError(operation, self._lost)
        return request.answer

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            try:
                request.answer = request.run()
            except Exception as error:  # noqa: BLE001 - whatever a client library raises: the caller hears of it
                request.error = error
            request.done.set()
