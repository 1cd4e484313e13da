"""``verify``: every file of a root, checked."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from fi_cachestore.cli.opened import json_option, root_option, root_path
from fi_cachestore.cli.output import note, print_json, print_table
from fi_cachestore.store.fsck import verify


@click.command("verify")
@root_option
@json_option
def verify_command(root: Path | None, *, as_json: bool) -> int:
    """Check every file: envelope, checksum, content, and name against content. Changes nothing. Exit code 1 on findings."""
    checked = verify(root_path(root))
    if as_json:
        print_json("verify/1", asdict(checked))
    else:
        if checked.findings:
            print_table(("file", "reason", "detail"), ((f.path, f.reason, f.detail) for f in checked.findings))
        note(
            f"{checked.root}: {checked.record_count} loose records, {checked.packed_record_count} in {checked.pack_count} packs, "
            f"{checked.rules_count} session rules, "
            f"{checked.settlement_count} settlements, {checked.verdict_count} verdicts and {checked.mark_count} marks are sound, "
            f"{len(checked.findings)} findings, {checked.quarantined_count} files in quarantine"
        )
    return 1 if checked.findings else 0
