"""The audit of a package: classes, their keys and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fi_cachestore.audit.calls import CallSites
from fi_cachestore.audit.classes import Finder
from fi_cachestore.audit.coverage import EXTRAS, Coverage
from fi_cachestore.audit.findings import ClassReport, Finding, Report
from fi_cachestore.audit.rules import class_findings, package_findings
from fi_cachestore.audit.sources import Origin
from fi_cachestore.audit.tree import SourceTree


def audit(tree: SourceTree) -> Report:
    """Return what the source of a package or path tells about its runner classes and their keys. Nothing of it is imported or run."""
    finder = Finder(tree)
    sites = CallSites(finder)
    covered = [Coverage(sites, runner) for runner in finder.classes]
    findings = [finding for item in covered for finding in class_findings(item)]
    findings += package_findings(sites, finder.classes)
    merged = _merged(findings)
    rules = {item.runner.type: sorted({finding.rule for finding in merged if item.runner.type in finding.types}) for item in covered}
    classes = tuple(replace(_described(item), rules=tuple(rules[item.runner.type])) for item in covered)
    unread = [(item.path, item.reason) for item in tree.unread]
    unread += [(item.runner.path, fault) for item in covered for fault in item.faults]
    return Report(tree.name, classes, merged, tuple(unread))


def _merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Join what several classes inherit from one place, worst first, then by place."""
    together: dict[tuple[str, str, str, int], Finding] = {}
    for finding in findings:
        key = (finding.rule, finding.parameter, finding.path, finding.line)
        known = together.get(key)
        if known is None:
            together[key] = finding
        else:
            worst = max(known, finding, key=lambda item: item.severity.rank)
            together[key] = replace(worst, types=tuple(dict.fromkeys((*known.types, *finding.types))))
    return tuple(sorted(together.values(), key=lambda item: item.order))


def _described(found: Coverage) -> ClassReport:
    runner = found.runner
    extras = runner.method(EXTRAS)
    used = {parameter for reader in (found.listing, found.launch) for parameter in found.parameters(reader)}
    names = {parameter.name: found.holds(parameter) for parameter in used}
    inputs = {read.source for reader in (found.listing, found.launch) for read in reader.reads if read.source.origin is Origin.INPUT}
    names |= {
        f"inputs[{item.name}].{item.part}": True for item in inputs if item.part in ("shape", "none") or item.part.startswith("shape[")
    }
    missed_inputs = (found.missed_inputs(reader, ("dtype", "layout", "value")) for reader in (found.listing, found.launch))
    names |= {f"inputs[{position}].{part}": False for missed in missed_inputs for position, part in missed}
    missed = {item.parameter.name for reader in (found.listing, found.launch) for item in found.missed(reader)}
    return ClassReport(
        type=runner.type,
        path=runner.path,
        line=runner.line,
        direct=runner.direct,
        extras=extras.type if extras is not None else None,
        ops=tuple(sorted({site.op for site in found.sites.of_class.get(runner.type, ()) if site.op is not None})),
        used=tuple(sorted(names)),
        keyed=tuple(sorted(name for name, held in names.items() if held)),
        missed=tuple(sorted(missed | {name for name, held in names.items() if not held and name.startswith("inputs[")})),
        size_dependent=found.has_choice and found.dynamic(found.listing) is not None,
    )
