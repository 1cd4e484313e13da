"""What to do next about a key that is not served: from the reason and from the fields in which the nearest stored key differs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from fi_cachestore.cli.why_facts import Explained, NotServed
from fi_cachestore.keys.diff import Difference, show
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.keys.nearest import Near, runner_class
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.missed import Beyond

_MAX_FIELDS: Final = 4
_BUCKET: Final = ".bucket"


def next_steps(explained: Explained) -> list[str]:
    """Return what to do, one sentence per line; nothing for a key that is served."""
    schema = "SCHEMA" if explained.verdict is None else explained.verdict.schema[:16]
    believe = f"fi-cachestore trust set {schema} --as trusted --why ..."
    match explained.reason:
        case None:
            return []
        case MissReason.CORRUPT | MissReason.FOREIGN:
            return ["the file is damaged (fi-cachestore verify): the next session in mode auto moves it aside and measures again"]
        case MissReason.UNREADABLE:
            return ["the system refuses to read the file: check its permissions and those of its directories"]
        case MissReason.FUTURE_FORMAT:
            return ["a later version wrote it: upgrade fi_cachestore, or give this version a root of its own"]
        case NotServed.UNPROVEN:
            return [
                f"unproven: start once more in mode auto, which tries it out, or fi-cachestore trust set {schema} --as trusted --why ..."
            ]
        case NotServed.QUARANTINED:
            return [
                "two processes contradict each other: a parameter that decides something is not in the key; give the runner a contract",
                f"both sides: fi-cachestore trust show {schema}; if the verdict is wrong: {believe}",
            ]
        case NotServed.NOT_PINNED:
            return ["the bundle that is pinned lacks it: make another (fi-cachestore pack --out) and pin that, or use another mode"]
        case NotServed.REFUSED:
            return ["what was measured is refused here: see the runner's validate_tactic and FlashInfer's blocklist, or measure again"]
    return list(_for_absent(explained.key, explained.nearest[0] if explained.nearest else None))


def _for_absent(key: TuneKey | None, near: Near | None) -> Iterator[str]:
    if key is None:
        yield "nothing is known of this key but its digest"
        return
    if near is None or near.key.op != key.op:
        yield f"nothing is stored for {key.op}: tune it in mode auto"
        return
    by_part: dict[str, list[Difference]] = {}
    for row in near.differences:
        by_part.setdefault(_part(row.path), []).append(row)
    if set(by_part) == {"profile"} and (wanted := [row for row in by_part["profile"] if row.path.endswith(_BUCKET)]):
        yield "; ".join(f"tune at bucket {show(row.left)} (the nearest that is stored is {show(row.right)})" for row in wanted)
    for part, rows in by_part.items():
        yield from _about(part, rows, key, near)


def _part(path: str) -> str:
    return path.partition(".")[0].partition("[")[0].partition("<")[0]


def _about(part: str, rows: list[Difference], key: TuneKey, near: Near) -> Iterator[str]:
    match part:
        case "environment":
            yield (
                "environment: "
                + ", ".join(f"{row.path.removeprefix('environment.')} {show(row.right)} -> {show(row.left)}" for row in rows[:_MAX_FIELDS])
                + ": records of the old one are kept and not served here; tune again"
            )
        case "runner" if runner_class(key.runner.type) == runner_class(near.key.runner.type):
            yield "the source of the runner's class is not what it was: tune again"
        case "runner":
            yield f"this op has records of {runner_class(near.key.runner.type)}, not of this runner: tune with it among the candidates"
        case "params":
            yield f"the runner is configured otherwise ({_fields(rows)}): tune with this configuration"
        case "profile" if any(not row.path.endswith(_BUCKET) for row in rows):
            yield f"sizes are rounded otherwise ({_fields(rows)}): tune and serve with the same round_up and buckets"
        case "policy":
            yield f"times were taken otherwise ({_fields(rows)}): tune and serve under one measurement policy"
        case "inputs" | "arguments" | "extras":
            yield f"the call differs in its {part} ({_fields(rows)}): tune with a call like this one"


def _fields(rows: Iterable[Difference]) -> str:
    listed = list(rows)
    more = f" and {len(listed) - _MAX_FIELDS} more" if len(listed) > _MAX_FIELDS else ""
    return ", ".join(f"{row.path}: stored {show(row.right)}, asked {show(row.left)}" for row in listed[:_MAX_FIELDS]) + more


def next_size(beyond: Beyond) -> str:
    """Return what to do about sizes far beyond the largest bucket."""
    return f"tune {beyond.op} at a bucket near {beyond.largest_size}; the largest one is {beyond.bucket}"
