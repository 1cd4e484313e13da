"""What ``doctor`` tries out with a second process: locks that exclude it and die with it, and meeting it as a rank."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fi_cachestore.cli.doctor_checks import Check, Outcome
from fi_cachestore.cli.doctor_worker import DIGEST, HEARD, HELD, RANK_COUNT
from fi_cachestore.coordination.files import FileCoordinator
from fi_cachestore.coordination.port import Busy, SystemClock, Unavailable

_WORKER: Final = "fi_cachestore.cli.doctor_worker"
_CHILD_S: Final = 90.0
_FREED_S: Final = 5.0
_PAUSE_S: Final = 0.02
_LINE_CHARS: Final = 240


def check_locks(folder: Path) -> Check:
    """Have another process hold a claim in ``folder``, see that it is taken, kill that process, and see that it is free."""
    advice = "choose a root on a file system with flock; without, every process measures for itself"
    log = folder / "log"
    with _child(log, "hold", str(folder)) as child:
        said = "" if child.stdout is None else child.stdout.readline().strip()
        if said != HELD:
            return Check("locks", Outcome.PROBLEM, f"another process gets no lock: {said or _last_line(log)}", advice)
        match FileCoordinator(folder).claim(DIGEST, "doctor"):
            case Busy():
                pass
            case Unavailable(why):
                return Check("locks", Outcome.PROBLEM, f"this process gets no lock: {why}", advice)
            case claim:
                claim.release()
                return Check("locks", Outcome.PROBLEM, "two processes held one lock at once", advice)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if not _is_freed(folder):
            return Check("locks", Outcome.PROBLEM, f"the lock of a killed process was still taken after {_FREED_S:g} s", advice)
    return Check("locks", Outcome.OK, "the lock of another process held, and was free when that was killed")


def _is_freed(folder: Path) -> bool:
    clock = SystemClock()
    deadline_ns = clock.monotonic_ns() + round(_FREED_S * 1e9)
    while clock.monotonic_ns() < deadline_ns:
        answer = FileCoordinator(folder).claim(DIGEST, "doctor")
        if not isinstance(answer, Busy | Unavailable):
            answer.release()
            return True
        clock.sleep(_PAUSE_S)
    return False


def check_meeting(address: str | None, *, is_wanted: bool) -> Check:
    """Have two processes meet as ranks do: in a gloo group, and then in a store of their own. ``address`` is this host's, if one is set."""
    name = "meeting of ranks"
    if not is_wanted or importlib.util.find_spec("torch") is None:
        return Check(name, Outcome.NOT_CHECKED, "torch is not installed here" if is_wanted else "--no-torch")
    with tempfile.TemporaryDirectory(prefix="fi_cachestore-doctor-") as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        logs = [folder / f"log-{rank}" for rank in range(RANK_COUNT)]
        given = [str(folder / "meeting"), *([address] if address else [])]
        ranks = [stack.enter_context(_child(log, "meet", str(rank), *given)) for rank, log in enumerate(logs)]
        said = [rank.communicate()[0].strip() for rank in ranks]
        if said == [HEARD] * RANK_COUNT:
            return Check(name, Outcome.OK, f"{RANK_COUNT} processes of this host met and shared a value")
        detail = "; ".join(dict.fromkeys(_last_line(log) for log, one in zip(logs, said, strict=True) if one != HEARD))
    advice = "let processes of this host reach each other over TCP; GLOO_SOCKET_IFNAME names the interface that torch takes"
    return Check(name, Outcome.PROBLEM, detail, advice)


@contextlib.contextmanager
def _child(log: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the worker, at most for the block and for ``_CHILD_S``."""
    command = [sys.executable, "-m", _WORKER, *arguments]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as process,  # noqa: S603 - itself
    ):
        limit = threading.Timer(_CHILD_S, process.kill)
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            process.kill()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:_LINE_CHARS] if lines else f"no word from it in {_CHILD_S:g} s"
