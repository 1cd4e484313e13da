"""What an audit says: rules with stable names, findings with severity, reason and place."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Severity(StrEnum):
    """``error``: another tactic list, so maybe an illegal tactic; ``warning``: never raced, or tuning lost; ``note``: to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """Higher is worse."""
        return {"note": 0, "warning": 1, "error": 2}[self.value]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``name`` never changes; ``severity`` is its worst."""

    name: str
    severity: Severity
    title: str
    effect: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    ``types`` are the runner classes that it holds for, those that inherit the code included; ``op`` is there where it is about an op.
    ``reviewed`` says why it is harmless, where somebody has read it; such a finding fails nothing.
    """

    rule: str
    severity: Severity
    parameter: str
    message: str
    path: str
    line: int
    types: tuple[str, ...] = ()
    op: str | None = None
    reviewed: str = ""

    @property
    def order(self) -> tuple[int, str, int, str, str]:
        """Worst first, then by place."""
        return -self.severity.rank, self.path, self.line, self.rule, self.parameter


@dataclass(frozen=True, slots=True)
class ClassReport:
    """What was found out about one runner class.

    ``extras`` is the method that gives its part of the key, ``None`` without one; ``used`` are the parameters that change behaviour,
    ``keyed`` those of them that FlashInfer's persisted key holds, ``missed`` the others; ``size_dependent`` says that the tactic list reads
    a dim that is bucketed.
    """

    type: str
    path: str
    line: int
    direct: bool
    extras: str | None
    ops: tuple[str, ...]
    used: tuple[str, ...]
    keyed: tuple[str, ...]
    missed: tuple[str, ...]
    size_dependent: bool
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """An audit of one package or path."""

    target: str
    classes: tuple[ClassReport, ...]
    findings: tuple[Finding, ...]
    unread: tuple[tuple[str, str], ...] = field(default=())

    def at_or_above(self, severity: Severity) -> int:
        """Return how many findings are as bad as ``severity`` or worse, those that were reviewed as harmless left out."""
        return sum(finding.severity.rank >= severity.rank for finding in self.findings if not finding.reviewed)


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE
_LIST = "an illegal tactic, or one never raced, is served"
_KERNEL = "a tactic never raced in this setting is served: slower at worst"
_MISSES = "that the key misses"

RULES: Final = {
    rule.name: rule
    for rule in (
        Rule("list-parameter", _E, f"The tactic list depends on a parameter {_MISSES}", _LIST),
        Rule("list-input", _E, f"The tactic list depends on a property of an input {_MISSES}", _LIST),
        Rule("kernel-parameter", _W, f"What is launched depends on a parameter {_MISSES}", _KERNEL),
        Rule("kernel-input", _W, f"What is launched depends on a property of an input {_MISSES}", _KERNEL),
        Rule("call-argument", _W, "What is launched depends on keyword arguments, none of which is in the key", _KERNEL),
        Rule("no-dtype", _W, "Tensors go to compiled code and no part of the key holds a dtype", _KERNEL),
        Rule(
            "no-extras",
            _N,
            "The class neither defines nor inherits extras",
            "op, class name and bucketed shapes alone tell its calls apart",
        ),
        Rule("address-in-key", _W, "The key holds an address or what follows from one", "tuning is lost where memory lies otherwise"),
        Rule("dynamic-in-key", _W, "The key holds a raw dimension beside its bucket", "tuning is lost at every size but the tuned ones"),
        Rule("placement-in-key", _W, "The key holds a rank, an expert offset or a device index", "ranks cannot share what they tune"),
        Rule("unstable-in-key", _E, "The key holds an identity or a hash", "tuning is lost at every start, or served to another object"),
        Rule("repr-in-key", _N, "The key holds the text of an object", "stable only while the class's repr names values and nothing else"),
        Rule("list-size", _W, "The tactic list depends on the raw size, the key on its bucket", "a tactic may be illegal at another size"),
        Rule("class-name", _W, "Classes of one name share an op", "an entry of one is served to the other"),
        Rule("op-name", _N, "Several call sites share an op name", "class names, shapes and extras alone tell their calls apart"),
        Rule("bundled-config", _W, "Bundled configurations have keys that no call makes", "they are never served"),
    )
}
