"""``doctor``: whether this host can do what sessions need, tried out with real files, locks and processes."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from fi_cachestore import config
from fi_cachestore.cli.doctor_checks import (
    Check,
    Outcome,
    check_accepted,
    check_clock,
    check_file_system,
    check_hard_links,
    check_settings,
)
from fi_cachestore.cli.doctor_processes import check_locks, check_meeting
from fi_cachestore.cli.opened import json_option, root_option
from fi_cachestore.cli.output import note, print_json, print_table
from fi_cachestore.config import Settings
from fi_cachestore.coordination.port import SystemClock

_WRITING: Final = ("root is writable", "hard links", "locks")


@click.command("doctor")
@root_option
@json_option
@click.option("--no-torch", is_flag=True, help="Leave out what needs torch: two processes that meet as ranks do.")
def doctor_command(root: Path | None, *, as_json: bool, no_torch: bool) -> int:
    """Try out what sessions need: root, locks between processes, clock, meeting of ranks. Removes what it created.

    Exit code 1 on a problem.
    """
    settings, errors = config.load_understood(root=root)
    path = settings.root.value
    checks = [check_settings(errors), *check_root_of(settings), check_clock(path, SystemClock())]
    checks.append(check_meeting(settings.address.value, is_wanted=not no_torch))
    problem_count = sum(check.outcome is Outcome.PROBLEM for check in checks)
    if as_json:
        content = {"root": None if path is None else str(path), "problem_count": problem_count, "checks": [asdict(c) for c in checks]}
        print_json("doctor/1", content)
    else:
        print_table(("check", "result", "detail", "what to do"), [(c.name, c.outcome.value, c.detail, c.advice) for c in checks])
        note(f"{path or 'no root'}: {problem_count} problems in {len(checks)} checks")
    return 1 if problem_count else 0


def check_root_of(settings: Settings) -> list[Check]:
    """Check the settings' root and, where sessions would write to it, that this works. Where they would not, neither does this."""
    root = settings.root.value
    if root is None:
        found = Check("root", Outcome.PROBLEM, settings.root.source, "set FI_CACHESTORE_DIR")
        return [found, *_not_checked("there is no root", "root is accepted", "file system", *_WRITING)]
    accepted = check_accepted(settings, root)
    rows = [Check("root", Outcome.OK, f"{root} (from {settings.root.source})"), accepted, check_file_system(root)]
    if accepted.outcome is Outcome.PROBLEM:
        return [*rows, *_not_checked("the root is not accepted", *_WRITING)]
    if not settings.mode.value.publishes:
        return [*rows, *_not_checked(f"nothing is written in mode {settings.mode.value}", *_WRITING)]
    try:
        with _folder_in(root) as folder:
            return [*rows, Check(_WRITING[0], Outcome.OK, "a folder was made in it"), check_hard_links(folder), check_locks(folder)]
    except OSError as error:
        advice = "set FI_CACHESTORE_DIR to a writable directory, or FI_CACHESTORE_MODE to replay where records are only read"
        unwritable = Check(_WRITING[0], Outcome.PROBLEM, f"{error.filename or root}: {error.strerror}", advice)
        return [*rows, unwritable, *_not_checked("the root is not writable", *_WRITING[1:])]


def _not_checked(why: str, *names: str) -> list[Check]:
    return [Check(name, Outcome.NOT_CHECKED, why) for name in names]


@contextlib.contextmanager
def _folder_in(root: Path) -> Iterator[Path]:
    """Yield a new folder in ``root``; afterwards it is gone, with every parent that had to be made for it.

    Raises:
        OSError: it cannot be made.
    """
    made: list[Path] = []
    try:
        for path in (*reversed(root.parents), root):
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
            with contextlib.suppress(OSError):  # an engine uses it by now
                path.rmdir()
