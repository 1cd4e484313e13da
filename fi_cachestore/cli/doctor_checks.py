"""What ``doctor`` looks at in its own process: settings, the root, its file system, and the clock."""

from __future__ import annotations

import datetime as dt
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from fi_cachestore.config import Settings
from fi_cachestore.coordination.port import Clock
from fi_cachestore.errors import ConfigError, RootRefusedError, StoreIOError
from fi_cachestore.records.record import Record
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.loose import LooseReader
from fi_cachestore.store.open import read_only_paths
from fi_cachestore.store.port import Hit
from fi_cachestore.store.publish import create_once
from fi_cachestore.store.roots import RECORDS_FOLDER, check_root

RELEASE_YEAR: Final = 2026
_CLOCK_SLACK_NS: Final = 60 * 10**9
_MAX_RECORDS: Final = 10_000
_MOUNTS: Final = Path("/proc/self/mounts")
_MOUNT_LINE: Final = re.compile(r"\S+ (?P<where>\S+) (?P<type>\S+) .*")
_SHARED: Final = frozenset(
    {
        *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "glusterfs", "afs", "pvfs2", "wekafs", "ocfs2", "gfs2"),
        *("9p", "virtiofs"),
    }
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


def check_settings(errors: Sequence[ConfigError]) -> Check:
    """Say which of our environment variables are set and mean nothing."""
    if not errors:
        return Check("settings", Outcome.OK, "every variable that is set is understood")
    advice = "correct or unset them; engines store nothing while a value is not understood"
    return Check("settings", Outcome.PROBLEM, "; ".join(map(str, errors)), advice)


def check_accepted(settings: Settings, root: Path) -> Check:
    """Say whether sessions would use the root and its read-only layers."""
    layers = read_only_paths(settings)
    try:
        for path in (root, *layers):
            check_root(path, trusted=settings.trusted.value)
    except RootRefusedError as error:
        return Check("root is accepted", Outcome.PROBLEM, f"{error.root}: {error.reason}", error.advice)
    missing = [str(path) for path in (root, *layers) if not path.exists()]
    detail = "owner, permissions and layout" + (f", of {len(layers)} read-only layers too" if layers else "")
    return Check("root is accepted", Outcome.OK, f"{detail}; not there: {', '.join(missing)}" if missing else detail)


def check_hard_links(folder: Path) -> Check:
    """Publish a file in ``folder`` as records are, and see that a second one of its name is not."""
    writer, path = OsFileSystem(), folder / "published"
    advice = "choose a root on another file system; what cannot be published stays in memory"
    try:
        created = [create_once(writer, path, b"doctor", durable=True) for _ in range(2)]
    except StoreIOError as error:
        return Check("hard links", Outcome.PROBLEM, f"a file could not be published: {error.reason}", advice)
    if created != [True, False]:
        return Check("hard links", Outcome.PROBLEM, "a second file took the place of the first", advice)
    return Check("hard links", Outcome.OK, "a file was published, and not replaced by a second one of its name")


def check_file_system(root: Path) -> Check:
    """Say on which file system the root is, and whether several hosts may share it. That is never a problem."""
    try:
        table = _MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError as error:
        return Check("file system", Outcome.NOT_CHECKED, f"{_MOUNTS}: {error.strerror}")
    where, kind = mount_of(root.resolve(), table)
    detail = f"{kind} at {where}"
    if kind in _SHARED:
        detail += ", which several hosts may share; between hosts a claim holds as far as this file system's locks do"
    elif kind.startswith("fuse"):
        detail += "; whether several hosts share it cannot be told"
    return Check("file system", Outcome.OK, detail)


def mount_of(path: Path, table: str) -> tuple[str, str]:
    """Return where and as what ``path`` is mounted, by the lines of ``/proc/mounts``, of which later ones hide earlier ones."""
    where, kind = "/", "unknown"
    for line in filter(None, map(_MOUNT_LINE.fullmatch, table.splitlines())):
        mounted = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line["where"])
        if path.is_relative_to(mounted) and len(Path(mounted).parts) >= len(Path(where).parts):
            where, kind = mounted, line["type"]
    return where, kind


def check_clock(root: Path | None, clock: Clock) -> Check:
    """See that the monotonic clock moves, and compare the wall clock with this release and the newest of at most 10,000 records."""
    before_ns = clock.monotonic_ns()
    clock.sleep(0.002)
    if clock.monotonic_ns() <= before_ns:
        return Check("clock", Outcome.PROBLEM, "the monotonic clock does not advance", "repair the host: no wait would end")
    now_ns = clock.unix_ns()
    if now_ns < dt.datetime(RELEASE_YEAR, 1, 1, tzinfo=dt.UTC).timestamp() * 1e9:
        return Check("clock", Outcome.PROBLEM, f"the wall clock says {_time(now_ns)}, before this version was made", "set the clock")
    newest = None if root is None else _newest(root)
    if newest is None:
        return Check("clock", Outcome.OK, f"{_time(now_ns)}; no record to compare it with")
    measured_ns = newest.provenance.measured_unix_ns
    if measured_ns > now_ns + _CLOCK_SLACK_NS:
        detail = f"the wall clock says {_time(now_ns)}, record {newest.digest[:12]} was measured at {_time(measured_ns)}"
        return Check("clock", Outcome.PROBLEM, detail, f"set the clock here, or that of {newest.provenance.host}, where it was measured")
    return Check("clock", Outcome.OK, f"{_time(now_ns)}; the newest record is of {_time(measured_ns)}")


def _newest(root: Path) -> Record | None:
    store = LooseReader(root, RECORDS_FOLDER, Record)
    digests = itertools.islice(store, _MAX_RECORDS)
    found = (answer.entry for answer in map(store.get, digests) if isinstance(answer, Hit))
    return max(found, key=lambda record: record.provenance.measured_unix_ns, default=None)


def _time(unix_ns: int) -> str:
    try:
        return dt.datetime.fromtimestamp(unix_ns // 10**9, dt.UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{unix_ns} ns after 1970"
