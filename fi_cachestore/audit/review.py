"""Findings that people have read: why they are harmless, or less than the rule says. Data, for one release of FlashInfer."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib import metadata, resources

from fi_cachestore.audit.findings import Finding, Report, Severity


@dataclass(frozen=True, slots=True)
class Review:
    """One row: for findings of ``rule`` about classes of these names and, where given, parameters; ``keep`` the severity left."""

    rule: str
    classes: tuple[str, ...]
    parameters: tuple[str, ...]
    why: str
    keep: Severity | None

    def speaks_of(self, finding: Finding) -> bool:
        """Whether the row is about a finding, and all classes that it names."""
        names = [name.rpartition(":")[2].rpartition(".")[2] for name in finding.types]
        known = all(any(fnmatchcase(name, pattern) for pattern in self.classes) for name in names)
        return self.rule == finding.rule and bool(names) and known and (not self.parameters or finding.parameter in self.parameters)


def flashinfer_reviews() -> tuple[Review, ...]:
    """Return the rows that ship, where the installed FlashInfer is the release that was read; none otherwise."""
    rows = tomllib.loads(resources.files(__package__).joinpath("reviewed.toml").read_text("utf-8"))
    try:
        installed = metadata.version("flashinfer-python")
    except metadata.PackageNotFoundError:
        return ()
    if installed != rows["release"]:
        return ()
    return tuple(
        Review(
            row["rule"],
            tuple(row["classes"]),
            tuple(row.get("parameters", ())),
            row["why"],
            Severity(row["keep"]) if "keep" in row else None,
        )
        for row in rows["reviewed"]
    )


def reviewed(report: Report, rows: Sequence[Review]) -> Report:
    """Return the report with every finding that a row speaks of marked with its reason."""
    marked = (_marked(finding, rows) for finding in report.findings)
    return replace(report, findings=tuple(sorted(marked, key=lambda item: item.order)))


def _marked(finding: Finding, rows: Sequence[Review]) -> Finding:
    row = next((row for row in rows if row.speaks_of(finding)), None)
    if row is None:
        return finding
    if row.keep is not None:
        return replace(finding, severity=row.keep, message=f"{finding.message}. Reviewed: {row.why}")
    return replace(finding, reviewed=row.why)
