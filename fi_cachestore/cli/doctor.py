"""``doctor``: whether this host can do what sessions need, tried out with real files, locks and processes."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import click

from fi_cachestore import config
from fi_cachestore.cli.doctor_worker import DIGEST, MEETING_S, RANK_COUNT
from fi_cachestore.cli.opened import json_option, root_option
from fi_cachestore.cli.output import note, print_json, print_table
from fi_cachestore.config import Mode, Settings
from fi_cachestore.coordination.files import FileCoordinator
from fi_cachestore.coordination.port import Busy, Claim, Clock, SystemClock, Unavailable
from fi_cachestore.errors import ConfigError, RootRefusedError, StoreIOError
from fi_cachestore.records.record import Record
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.loose import LooseReader
from fi_cachestore.store.open import read_only_paths
from fi_cachestore.store.port import Hit
from fi_cachestore.store.publish import create_once
from fi_cachestore.store.roots import RECORDS_FOLDER, check_root

RELEASE_YEAR: Final = 2026
_WORKER: Final = "fi_cachestore.cli.doctor_worker"
_CLOCK_SLACK_S: Final = 60
_RELEASE_WAIT_S: Final = 5.0
_CHILD_S: Final = 30.0
_SHARED: Final = frozenset(
    "nfs nfs4 lustre gpfs beegfs ceph cifs smb3 smbfs glusterfs afs orangefs pvfs2 wekafs ocfs2 gfs2 9p virtiofs".split()
)


class Outcome(StrEnum):
    """What a check came to."""

    OK = "ok"
    PROBLEM = "problem"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Check:
    """One row: what was looked at, what it came to, what was seen, and what to do about it."""

    name: str
    outcome: Outcome
    detail: str
    advice: str = ""


@click.command("doctor")
@root_option
@json_option
@click.option("--no-torch", is_flag=True, help="Skip the check that needs torch: the store that ranks share.")
def doctor_command(root: Path | None, *, as_json: bool, no_torch: bool) -> int:
    """Try out what sessions need: the root, its locks, the clock, the store that ranks share. Removes what it created.

    Exit code 1 on a problem.
    """
    settings, errors = config.load_understood(root=root)
    checks = [check_settings(errors), *check_root_of(settings), check_clock(settings, SystemClock()), check_store(settings, no_torch)]
    problem_count = sum(check.outcome is Outcome.PROBLEM for check in checks)
    path = settings.root.value
    if as_json:
        content = {"root": None if path is None else str(path), "problem_count": problem_count, "checks": [asdict(c) for c in checks]}
        print_json("doctor/1", content)
    else:
        print_table(("check", "result", "detail", "what to do"), [(c.name, c.outcome.value, c.detail, c.advice) for c in checks])
        note(f"{path or 'no root'}: {problem_count} problems in {len(checks)} checks")
    return 1 if problem_count else 0


def check_settings(errors: Sequence[ConfigError]) -> Check:
    """Say which of our environment variables mean nothing."""
    if not errors:
        return Check("settings", Outcome.OK, "every variable that is set is understood")
    advice = "correct or unset them; while a value is not understood, engines store nothing"
    return Check("settings", Outcome.PROBLEM, "; ".join(map(str, errors)), advice)


# -- the root ---------------------------------------------------------------------------------------------------------------------


def check_root_of(settings: Settings) -> list[Check]:
    """Check the root of the settings: found, accepted, on which file system; and, where sessions write to it, that this works."""
    root = settings.root.value
    if root is None:
        found = Check("root", Outcome.PROBLEM, settings.root.source, "set FI_CACHESTORE_DIR")
        return [found, *_not_checked("there is no root", "accepted", "file system", "writable", "hard links", "locks")]
    rows = [Check("root", Outcome.OK, f"{root} (from {settings.root.source})"), _accepted(settings, root), _file_system(root)]
    if settings.mode.value is not Mode.AUTO:
        return [*rows, *_not_checked(f"mode {settings.mode.value} writes nothing", "writable", "hard links", "locks")]
    if rows[1].outcome is Outcome.PROBLEM:
        return [*rows, *_not_checked("the root is not accepted", "writable", "hard links", "locks")]
    try:
        with _folder_in(root) as folder:
            return [*rows, Check("writable", Outcome.OK, "a folder was created"), _hard_links(folder), _locks(folder)]
    except OSError as error:
        advice = "set FI_CACHESTORE_DIR to a writable directory, or FI_CACHESTORE_MODE=replay where nothing is to be written"
        unwritable = Check("writable", Outcome.PROBLEM, f"{error.filename or root}: {error.strerror}", advice)
        return [*rows, unwritable, *_not_checked("the root is not writable", "hard links", "locks")]


def _not_checked(why: str, *names: str) -> list[Check]:
    return [Check(name, Outcome.NOT_CHECKED, why) for name in names]


def _accepted(settings: Settings, root: Path) -> Check:
    layers = read_only_paths(settings)
    try:
        for path in (root, *layers):
            check_root(path, trusted=settings.trusted.value)
    except RootRefusedError as error:
        return Check("accepted", Outcome.PROBLEM, f"{error.root}: {error.reason}", error.advice)
    missing = [str(path) for path in (root, *layers) if not path.exists()]
    detail = f"root and {len(layers)} read-only layers" if layers else "owner, permissions and layout"
    return Check("accepted", Outcome.OK, detail + (f"; not there yet: {', '.join(missing)}" if missing else ""))


@contextlib.contextmanager
def _folder_in(root: Path) -> Iterator[Path]:
    """Yield a new folder under ``root``; afterwards it is gone, and so are the parents that had to be made for it.

    Raises:
        OSError: it cannot be made.
    """
    made: list[Path] = []
    try:
        for path in reversed([root, *root.parents]):
            if not path.exists():
                path.mkdir(exist_ok=True)
                made.append(path)
        folder = root / f"doctor-{secrets.token_hex(8)}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # somebody else uses it by now
                path.rmdir()


def _hard_links(folder: Path) -> Check:
    writer, path = OsFileSystem(), folder / "published"
    try:
        created = [create_once(writer, path, b"doctor", durable=True) for _ in range(2)]
    except StoreIOError as error:
        advice = "choose a root on a file system with hard links; until then results stay in memory"
        return Check("hard links", Outcome.PROBLEM, f"a file could not be published: {error.reason}", advice)
    if created != [True, False]:
        return Check("hard links", Outcome.PROBLEM, "a second publish replaced the first", "choose a root on another file system")
    return Check("hard links", Outcome.OK, "a file was published; a second one of its name was not")


# -- locks ------------------------------------------------------------------------------------------------------------------------


def _locks(folder: Path) -> Check:
    """Have another process hold a claim, kill it, and take the claim."""
    advice = "choose a root on a file system with flock; until then every process measures for itself"
    with tempfile.TemporaryFile("w+") as log, _child(["hold", str(folder)], log) as child:
        said = child.stdout.readline().strip() if child.stdout is not None else ""
        if said != "held":
            log.seek(0)
            return Check("locks", Outcome.PROBLEM, f"another process gets no lock: {said or _last_line(log.read())}", advice)
        match FileCoordinator(folder).claim(DIGEST, "doctor"):
            case Unavailable(why):
                return Check("locks", Outcome.PROBLEM, f"no lock here: {why}", advice)
            case Busy():
                pass
            case claim:
                claim.release()
                return Check("locks", Outcome.PROBLEM, "two processes held the same lock at once", advice)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if _freed(folder):
            return Check("locks", Outcome.OK, f"the lock of process {child.pid} held, and was free after its SIGKILL")
    return Check("locks", Outcome.PROBLEM, f"the lock of a killed process stayed taken for {_RELEASE_WAIT_S:g} s", advice)


def _freed(folder: Path) -> bool:
    clock = SystemClock()
    deadline_ns = clock.monotonic_ns() + round(_RELEASE_WAIT_S * 1e9)
    while True:
        answer: Claim | Busy | Unavailable = FileCoordinator(folder).claim(DIGEST, "doctor")
        if not isinstance(answer, Busy | Unavailable):
            answer.release()
            return True
        if clock.monotonic_ns() > deadline_ns:
            return False
        clock.sleep(0.02)


@contextlib.contextmanager
def _child(arguments: Sequence[str], log: object) -> Iterator[subprocess.Popen[str]]:
    """Run the worker until the block ends, at most."""
    command = [sys.executable, "-m", _WORKER, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
    process: subprocess.Popen[str] = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]  # noqa: S603
    try:
        with process:
            yield process
            process.kill()
    finally:
        process.kill()


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it ended without a word")[:200]


# -- the file system --------------------------------------------------------------------------------------------------------------


def _file_system(root: Path) -> Check:
    try:
        table = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape")
    except OSError as error:
        return Check("file system", Outcome.NOT_CHECKED, f"/proc/self/mounts: {error.strerror}")
    where, kind = mount_of(root.resolve(), table)
    if kind in _SHARED:
        detail = f"{kind} at {where}: several hosts may share it; between them claims hold as far as its locks do"
    elif kind.startswith("fuse"):
        detail = f"{kind} at {where}: whether several hosts share it cannot be told"
    else:
        detail = f"{kind} at {where}: this host's own"
    return Check("file system", Outcome.OK, detail)


def mount_of(path: Path, table: str) -> tuple[str, str]:
    """Return where ``path`` is mounted and the type of its file system, by the lines of ``/proc/mounts``; later lines hide earlier ones."""
    found = ("/", "unknown")
    for line in table.splitlines():
        fields = line.split(" ")
        where = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1]) if len(fields) > 2 else ""  # noqa: PLR2004
        if where and path.is_relative_to(where) and len(Path(where).parts) >= len(Path(found[0]).parts):
            found = (where, fields[2])
    return found


# -- the clock --------------------------------------------------------------------------------------------------------------------


def check_clock(settings: Settings, clock: Clock) -> Check:
    """Compare the wall clock with this release and with the newest record of the root, and see that the monotonic one moves."""
    before_ns = clock.monotonic_ns()
    clock.sleep(0.002)
    if clock.monotonic_ns() <= before_ns:
        return Check("clock", Outcome.PROBLEM, "the monotonic clock does not advance", "waits never end on such a host: repair it")
    now_ns = clock.unix_ns()
    if now_ns < dt.datetime(RELEASE_YEAR, 1, 1, tzinfo=dt.UTC).timestamp() * 1e9:
        return Check("clock", Outcome.PROBLEM, f"the wall clock says {_time(now_ns)}, before this version was made", "set the clock")
    root = settings.root.value
    newest = None if root is None else _newest(root)
    if newest is not None and newest.provenance.measured_unix_ns > now_ns + _CLOCK_SLACK_S * 10**9:
        detail = f"the wall clock says {_time(now_ns)}; record {newest.digest[:12]} says {_time(newest.provenance.measured_unix_ns)}"
        return Check("clock", Outcome.PROBLEM, detail, f"set the clock here, or on {newest.provenance.host}, where that was measured")
    return Check("clock", Outcome.OK, f"{_time(now_ns)}, " + ("after every record" if newest is not None else "no record to compare with"))


def _newest(root: Path) -> Record | None:
    store = LooseReader(root, RECORDS_FOLDER, Record)
    found = (answer.entry for answer in map(store.get, store) if isinstance(answer, Hit))
    return max(found, key=lambda record: record.provenance.measured_unix_ns, default=None)


def _time(unix_ns: int) -> str:
    try:
        return dt.datetime.fromtimestamp(unix_ns // 10**9, dt.UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{unix_ns} ns after 1970"


# -- the store of the ranks -------------------------------------------------------------------------------------------------------


def check_store(settings: Settings, no_torch: bool) -> Check:  # noqa: FBT001 - a flag of the command
    """Have two processes of this host meet as the ranks of a session do."""
    name = "store for ranks"
    if no_torch or importlib.util.find_spec("torch") is None:
        return Check(name, Outcome.NOT_CHECKED, "asked not to" if no_torch else "torch is not installed here")
    address = [settings.address.value] if settings.address.value else []
    with tempfile.TemporaryDirectory(prefix="fi_cachestore-doctor-") as folder, contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(RANK_COUNT)]
        ranks = [stack.enter_context(_child(["meet", folder, str(rank), *address], log)) for rank, log in enumerate(logs)]
        try:
            said = [rank.communicate(timeout=2 * _CHILD_S + MEETING_S)[0] for rank in ranks]
        except subprocess.TimeoutExpired:
            said = [""]
        errors = [_last_line(_all_of(log)) for log, rank in zip(logs, ranks, strict=True) if rank.returncode or _all_of(log)]
    if any('"heard": true' not in text for text in said):
        advice = "see that processes of this host reach each other over TCP (GLOO_SOCKET_IFNAME names the interface); alone, ranks share nothing"
        return Check(name, Outcome.PROBLEM, "; ".join(errors) or "two processes did not meet in time", advice)
    return Check(name, Outcome.OK, "two processes met over loopback or this host's own address")


def _all_of(log: object) -> str:
    os.lseek
    return ""
