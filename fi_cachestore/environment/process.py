"""Which process this is: a name that no other process has, on this host or another, now or later."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE: Final = Path("/proc/self/ns/pid")
_TEXT: Final = re.compile(r"(\S+) ([0-9]+) ([0-9]+) ([0-9]+)", re.ASCII)
_START_FIELD: Final = 19
"""Position of the start time in ``/proc/<pid>/stat`` after the command's closing parenthesis."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process: the boot of its host, its pid namespace (a container has its own), pid, and start in clock ticks since the boot.

    A pid that is used again starts at another tick, and a fork is a process of its own.
    """

    boot: str
    namespace: int
    pid: int
    start_ticks: int

    def __str__(self) -> str:
        """Return the four parts as one line."""
        return f"{self.boot} {self.namespace} {self.pid} {self.start_ticks}"

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """Return the process that ``str`` gave as ``text``; ``None`` for any other text."""
        found = _TEXT.fullmatch(text)
        return cls(found[1], int(found[2]), int(found[3]), int(found[4])) if found else None


class ProcessTable(Protocol):
    """The processes of a host, as one of them sees them."""

    def this(self) -> Process | None:
        """Return the calling process, ``None`` where that cannot be told for sure."""

    def start_ticks(self, pid: int) -> int | None:
        """Return when ``pid`` was started, ``None`` for no such process."""


class OsProcessTable:
    """The processes of this host, by ``/proc``. Stateless; safe in forks."""

    def this(self) -> Process | None:
        """Return the calling process."""
        pid = os.getpid()
        try:
            boot, namespace = _BOOT_ID.read_text().strip(), _PID_NAMESPACE.stat().st_ino
        except OSError:
            return None
        ticks = self.start_ticks(pid)
        return None if ticks is None or not boot else Process(boot, namespace, pid, ticks)

    def start_ticks(self, pid: int) -> int | None:
        """Return when ``pid`` was started; a zombie has ended."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        return int(fields[_START_FIELD]) if len(fields) > _START_FIELD and fields[0] not in "ZX" else None


def process_identity() -> str:
    """Return this process's name; empty, which is nobody's name, where it cannot be told for sure."""
    found = OsProcessTable().this()
    return "" if found is None else str(found)


def boot_id() -> str:
    """Return a name for the running kernel, so that equal directories of two hosts are told apart."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()
