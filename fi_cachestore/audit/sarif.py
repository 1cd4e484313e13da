"""An audit as SARIF 2.1.0, which code hosts show beside the source."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from fi_cachestore.audit.findings import RULES, Finding, Report, Rule

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(report: Report, version: str) -> dict[str, Any]:
    """Return the report as one run. Reviewed findings are suppressed results; files that were not read are notifications."""
    rules = list(RULES.values())
    places = {rule.name: index for index, rule in enumerate(rules)}
    notes = [_notification(path, reason) for path, reason in report.unread]
    run = {
        "tool": {"driver": {"name": "fi-cachestore audit", "version": version, "rules": [_rule(rule) for rule in rules]}},
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": notes}],
        "results": [_result(finding, places[finding.rule]) for finding in report.findings],
        "columnKind": "unicodeCodePoints",
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.name,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": f"{rule.title}: {rule.effect}."},
        "defaultConfiguration": {"level": rule.severity.value},
    }


def _result(finding: Finding, index: int) -> dict[str, Any]:
    names = ", ".join(name.rpartition(":")[2].rpartition(".")[2] for name in finding.types)
    found: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": finding.severity.value,
        "message": {"text": f"{names}: {finding.message}" if names else finding.message},
        "locations": [_location(finding.path, finding.line)],
        "partialFingerprints": {"finding/v1": _fingerprint(finding)},
    }
    if finding.reviewed:
        found["suppressions"] = [{"kind": "external", "justification": finding.reviewed}]
    return found


def _location(path: str, line: int) -> dict[str, Any]:
    return {"physicalLocation": {"artifactLocation": {"uri": path}, "region": {"startLine": line}}}


def _fingerprint(finding: Finding) -> str:
    """Return what stays the same while code moves: rule, parameter, classes and file, not the line."""
    parts = "\0".join((finding.rule, finding.parameter, finding.path, finding.op or "", *finding.types))
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def _notification(path: str, reason: str) -> dict[str, Any]:
    return {"level": "warning", "message": {"text": f"{path} was not read: {reason}"}, "locations": [_location(path, 1)]}
