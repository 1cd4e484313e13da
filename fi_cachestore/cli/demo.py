"""``demo``: tune once, restart, get the same tactics back; and why the old kind of key fails. Every step is a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fi_cachestore.cli.opened import json_option, root_option
from fi_cachestore.cli.output import note, print_json
from fi_cachestore.errors import CacheStoreError
from fi_cachestore.keys.diff import diff, show
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.records.record import DEFAULT_TACTIC
from fi_cachestore.store.open import open_store

_TICK_S = 10.0
_TIMEOUT_S = 600.0
_RANK_COUNT = 4
_KILLED_RANK = 2
_RANK_SETTINGS = ("GLOO_SOCKET_IFNAME=lo", "FI_CACHESTORE_DEAD_AFTER_S=5")


class DemoFailedError(CacheStoreError):
    """A step of the demo did not do what it shows."""

    exit_code = 1

    def __init__(self, step: str, what: str) -> None:
        """Keep the step and what went wrong."""
        super().__init__(step, what)
        self.step, self.what = step, what

    def __str__(self) -> str:
        """Return both."""
        return f"demo, {self.step}: {self.what}"


@click.command("demo")
@root_option
@json_option
def demo_command(root: Path | None, *, as_json: bool) -> None:
    """Show the whole thing at work: tune, restart, four processes, four ranks, a key that collides, one that is caught.

    About a minute and a half on two cores.
    """
    with _directory(root) as base:
        result = _run(base, quiet=as_json)
        if as_json:
            print_json("demo/1", result)


@contextmanager
def _directory(root: Path | None) -> Iterator[Path]:
    if root is not None:
        yield root.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="fi_cachestore-demo-") as name:
        yield Path(name)


def _run(base: Path, *, quiet: bool) -> dict[str, Any]:
    note(f"Each step runs in fresh processes and works under {base}; importing torch and FlashInfer takes some seconds per process.")
    store = base / "store"
    _title("1. Cold start: tune the block-scaled GEMM in both scale layouts and two shapes")
    cold = _one("tune", store)
    note(f"   {cold['profile_count']} profiles measured ({cold['measurement_count']} timings) in {cold['seconds']:.2f} s")
    _title("2. Restart: a fresh process runs the same calls")
    warm = _one("tune", store)
    note(f"   {warm['hit_count']} profiles found, {warm['measurement_count']} timings, {warm['seconds']:.2f} s")
    _require("restart", warm["measurement_count"] == 0, f"{warm['measurement_count']} timings in a warm start")
    served = _one("serve", store)["served"]
    note(f"   a process that only attaches is served: {served}")
    _require("restart", _is_tuned(served), f"it serves {served}")
    _title("3. Four processes start together on an empty store")
    four = _many([("tune", base / "shared")] * 4)
    counts = [result["profile_count"] for result in four]
    note(f"   profiles measured by each: {counts}, {sum(counts)} in total; one process alone measured {cold['profile_count']}")
    _require("four processes", sum(counts) == cold["profile_count"], f"{sum(counts)} profiles measured")
    result = {"cold": cold, "warm": warm, "served": served, "four": four, "ranks": _ranks(base, cold["profile_count"])}
    result |= {"collision": _collision(base), "quarantine": _quarantine(base), "gpu": _gpu(base)}
    _title("What the store holds now (fi-cachestore ls)")
    if not quiet:
        subprocess.run([sys.executable, "-m", "fi_cachestore.cli.main", "ls", "--root", str(store)], check=True)
    return result


def _is_tuned(served: dict[str, int]) -> bool:
    """Whether records were served: on a busy machine the default may be the fastest for a call or two, but not for all."""
    return any(tactic != DEFAULT_TACTIC for tactic in served.values())


def _ranks(base: Path, profile_count: int) -> dict[str, Any]:
    _title("4. Four ranks of one job, a torch.distributed group over loopback, start together on an empty store")
    tasks = [("rank", base / "job", rank, *(["killed"] if rank == _KILLED_RANK else [])) for rank in range(_RANK_COUNT)]
    ranks = _many(tasks, settings=_RANK_SETTINGS, killed=_KILLED_RANK)
    counts = [rank["profile_count"] for rank in ranks]
    note(f"   profiles measured by each: {counts}, {sum(counts)} in total")
    _require("four ranks", sum(counts) == profile_count, f"{sum(counts)} profiles measured")
    served = [rank["served"] for rank in ranks]
    note(f"   all four serve {served[0]}")
    _require("four ranks", all(one == served[0] for one in served) and _is_tuned(served[0]), f"they serve {served}")
    _title(f"5. The same ranks on another empty store; rank {_KILLED_RANK} is killed while it measures")
    others = [rank["without_one"] for rank in ranks if "without_one" in rank]
    note(
        f"   profiles measured by the others: {[one['profile_count'] for one in others]}; the last was done after {_slowest(others):.1f} s"
    )
    note(f"   all of them serve {others[0]['served']}")
    alike = all(one["served"] == others[0]["served"] for one in others) and _is_tuned(others[0]["served"])
    _require("a rank is killed", len(others) == _RANK_COUNT - 1 and alike, f"the others serve {[one['served'] for one in others]}")
    return {"profile_counts": counts, "served": served[0], "without_one": others}


def _slowest(ranks: Sequence[dict[str, Any]]) -> float:
    return max(float(rank["seconds"]) for rank in ranks)


def _collision(base: Path) -> dict[str, Any]:
    _title("6. A key without the layout: FlashInfer's own persistent cache, tuned with 8x4 scales, replayed with 128x4")
    _one("old-key", base / "old", "8x4", "tune")
    old = _one("old-key", base / "old", "128x4", "serve")
    note(f"   replayed: {old['error']}")
    _require("old key", old["error"] is not None, "the wrong tactic was not replayed")
    _title("7. The same with fi_cachestore")
    first = _one("one-layout", base / "new", "8x4", "tune")
    second = _one("one-layout", base / "new", "128x4", "serve")
    note(f"   8x4 was tuned to tactic {first['tactic']}; 128x4 has another key, is served tactic {second['tactic']}, and runs")
    _require("new key", second["error"] is None and first["digest"] != second["digest"], f"{second['error']}")
    keys = [TuneKey.from_canonical(bytes.fromhex(one["key"])) for one in (first, second)]
    rows = [(row.path, show(row.left), show(row.right)) for row in diff(*keys)]
    note("   the two keys differ in:")
    for path, left, right in rows:
        note(f"     {path}: {left} | {right}")
    why = _why(base / "new", second["digest"])
    note(f"   fi-cachestore why {second['digest'][:12]}, after that process has gone: {why['reason']}; {'; '.join(why['next'])}")
    _require("why", why["nearest"][0]["digest"] == first["digest"], f"the nearest key is {why['nearest'][0]['digest']}")
    return {"old_key_error": old["error"], "differences": rows, "why": why}


def _why(root: Path, digest: str) -> dict[str, Any]:
    """Ask the command line about a key that a process of this demo missed or stored."""
    ask = ["-m", "fi_cachestore.cli.main", "why", digest, "--root", str(root), "--json"]
    command = ["env", _state_setting(root.parent), sys.executable, *ask]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    _require("why", result.returncode == 1, result.stderr)
    explained: dict[str, Any] = json.loads(result.stdout)["explained"][0]
    return explained


def _state_setting(base: Path) -> str:
    return f"FI_CACHESTORE_STATE_DIR={base / 'state'}"


def _quarantine(base: Path) -> dict[str, Any]:
    _title("8. A contract that leaves the layout out of the key by mistake: process A tunes 8x4, process B asks for 128x4")
    first = _one("mistaken", base / "mistaken", "8x4")
    second = _one("mistaken", base / "mistaken", "128x4")
    note(f"   A tuned {first['profile_count']} profiles and runs tactic {first['tactic']}")
    _require("quarantine", first["profile_count"] > 0 and len(second["quarantined"]) == 1, f"B quarantines {second['quarantined']}")
    [(schema, why)] = second["quarantined"].items()
    note(f"   B has the same keys, tries {second['verified_count']} record before it believes any, and finds: {why}")
    note(f"   key schema {schema[:12]} is quarantined; B tunes in memory, runs tactic {second['tactic']}, and the result is right")
    right = second["verified_count"] == 1 and second["tactic"] % 2 == 0 and second["profile_count"] == 0
    _require("quarantine", right, f"B runs tactic {second['tactic']}, published {second['profile_count']}")
    digest = next(iter(open_store(base / "mistaken", read_only=True)))
    why = _why(base / "mistaken", digest)
    note(f"   fi-cachestore why {digest[:12]}: {why['reason']}: {why['detail']}; {'; '.join(why['next'])}")
    _require("quarantine", why["reason"] == "quarantined", f"why says {why['reason']}")
    again = _one("mistaken", base / "mistaken", "8x4")
    note(f"   A starts again: served by nobody, {again['measurement_count']} timings of its own, in memory; tactic {again['tactic']}")
    alone = list(again["quarantined"]) == [schema] and again["measurement_count"] > 0 and again["tactic"] % 2 == 1
    _require("quarantine", alone, f"A measures {again['measurement_count']}")
    return {"first": first, "second": second, "again": again, "why": why}


def _gpu(base: Path) -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    _title("9. flashinfer.bmm_fp8 on this GPU, each backend; kernels are compiled first")
    cold, warm = _one("gpu", base / "gpu"), _one("gpu", base / "gpu")
    note(
        f"   cold: profiles {cold['profile_counts']} in {cold['seconds']:.1f} s; warm: {warm['profile_counts']} in {warm['seconds']:.1f} s"
    )
    _require("gpu", not any(warm["profile_counts"].values()), "a warm start measured")
    return {"cold": cold, "warm": warm}


def _title(text: str) -> None:
    note(f"\n{text}")


def _require(step: str, holds: bool, what: str) -> None:  # noqa: FBT001 - a check
    if not holds:
        raise DemoFailedError(step, what)


def _one(task: str, root: Path, *rest: str) -> dict[str, Any]:
    return _many([(task, root, *rest)])[0]


def _many(tasks: Sequence[tuple[Any, ...]], *, settings: Sequence[str] = (), killed: int | None = None) -> list[dict[str, Any]]:
    """Run tasks side by side; all begin when all are ready. Says that it lives while they run.

    ``settings`` are environment variables for them, ``NAME=VALUE``; ``killed`` is the task that is to end by SIGKILL.
    """
    workers = [_Worker([str(part) for part in task], (*settings, _state_setting(task[1].parent))) for task in tasks]
    with _alive(f"{len(tasks)} process{'es' if len(tasks) > 1 else ''} at work"):
        try:
            for worker in workers:
                worker.wait_ready()
            for worker in workers:
                worker.begin()
            return [worker.result(is_killed=number == killed) for number, worker in enumerate(workers)]
        finally:
            for worker in workers:
                worker.end()


@contextmanager
def _alive(what: str) -> Iterator[None]:
    """Print a line every few seconds while something long runs."""
    done = threading.Event()
    started = time.monotonic()

    def tick() -> None:
        while not done.wait(_TICK_S):
            note(f"   ... {what}, {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Worker:
    def __init__(self, arguments: list[str], settings: Sequence[str]) -> None:
        self._task = " ".join(arguments[:1])
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the worker
        command = ["env", *settings, sys.executable, "-m", "fi_cachestore.cli.demo_worker", *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        self._process: subprocess.Popen[str] = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]

    def wait_ready(self) -> None:
        stdout = self._process.stdout
        while stdout is not None and (line := stdout.readline()):
            if line == "ready\n":
                return
        self._fail()

    def begin(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def result(self, *, is_killed: bool) -> dict[str, Any]:
        """Return the last thing that the worker said."""
        output, _ = self._process.communicate(timeout=_TIMEOUT_S)
        lines = [line for line in output.splitlines() if line.startswith("{")]
        if self._process.returncode != (-signal.SIGKILL if is_killed else 0) or not lines:
            self._fail()
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _fail(self) -> None:
        self._log.seek(0)
        raise DemoFailedError(self._task, f"a process ended early:\n{self._log.read()[-4000:]}")
