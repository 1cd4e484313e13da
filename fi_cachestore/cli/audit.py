"""``audit``: what FlashInfer's persisted keys miss, found by reading source."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fi_cachestore import __version__
from fi_cachestore.audit.audit import audit
from fi_cachestore.audit.findings import Report, Severity
from fi_cachestore.audit.review import flashinfer_reviews, reviewed
from fi_cachestore.audit.sarif import to_sarif
from fi_cachestore.audit.tree import open_package, open_path
from fi_cachestore.cli.opened import json_option
from fi_cachestore.cli.output import note, print_json, print_lines, print_table

_PACKAGE = "flashinfer"


@click.command("audit")
@click.option("--module", "target", default=_PACKAGE, show_default=True, help="An installed package or module, or a file or directory.")
@click.option(
    "--fail-on",
    type=click.Choice([*(item.value for item in Severity), "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 from here on.",
)
@click.option("--format", "form", type=click.Choice(["text", "json", "sarif"]), default="text", show_default=True)
@click.option("--class", "pattern", default="", help="Show only classes whose type contains this text.")
@click.option("--all", "shows_all", is_flag=True, help="Show notes and reviewed findings too, and every class.")
@json_option
def audit_command(target: str, fail_on: str, form: str, pattern: str, *, shows_all: bool, as_json: bool) -> int:
    """Report, per runner class, what changes its behaviour and what FlashInfer's persisted key holds of it. Imports and runs nothing."""
    report = _audited(target)
    if pattern:
        report = _only(report, pattern)
    if as_json or form == "json":
        print_json("audit/1", {"version": __version__, **_counts(report), **asdict(report)})
    elif form == "sarif":
        sys.stdout.write(json.dumps(to_sarif(report, __version__), indent=2) + "\n")
    else:
        _print(report, shows_all=shows_all)
    _note(report)
    return 0 if fail_on == "never" else int(report.at_or_above(Severity(fail_on)) > 0)


def _audited(target: str) -> Report:
    """Return the audit of a target; what was reviewed of FlashInfer counts for FlashInfer as installed and nothing else."""
    path = Path(target)
    is_path = path.suffix == ".py" or "/" in target or path.is_dir()
    report = audit(open_path(path) if is_path else open_package(target))
    is_flashinfer = not is_path and target.partition(".")[0] == _PACKAGE
    return reviewed(report, flashinfer_reviews()) if is_flashinfer else report


def _only(report: Report, pattern: str) -> Report:
    classes = tuple(item for item in report.classes if pattern in item.type)
    findings = tuple(item for item in report.findings if any(pattern in name for name in item.types))
    return Report(report.target, classes, findings, report.unread)


def _counts(report: Report) -> dict[str, Any]:
    open_findings = [item for item in report.findings if not item.reviewed]
    return {
        "class_count": len(report.classes),
        "finding_count": {severity.value: sum(item.severity is severity for item in open_findings) for severity in Severity},
        "reviewed_count": len(report.findings) - len(open_findings),
    }


def _print(report: Report, *, shows_all: bool) -> None:
    for finding in report.findings:
        if shows_all or not (finding.reviewed or finding.severity is Severity.NOTE):
            names = [name.rpartition(":")[2].rpartition(".")[2] for name in finding.types]
            about = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004 - enough to know
            print_lines(
                [f"{finding.path}:{finding.line}: {finding.severity}: {finding.rule}: {about + ': ' if about else ''}{finding.message}"]
            )
            if finding.reviewed:
                print_lines([f"    reviewed: {finding.reviewed}"])
    if shows_all:
        rows = (
            (item.type, ", ".join(item.ops), ", ".join(item.missed), "yes" if item.size_dependent else "", ", ".join(item.rules))
            for item in report.classes
        )
        print_table(("class", "ops", "not in the key", "list by size", "rules"), rows)


def _note(report: Report) -> None:
    for path, reason in report.unread:
        note(f"not read: {path}: {reason}")
    counts = _counts(report)
    by_severity = ", ".join(f"{count} {name}s" for name, count in counts["finding_count"].items())
    note(f"{report.target}: {counts['class_count']} runner classes; {by_severity}; {counts['reviewed_count']} reviewed as harmless")
