"""Whether this rank's own runner lists what another rank measured under the same key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fi_cachestore.adapter.frames import Step
from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.adapter.roles import Role
from fi_cachestore.adapter.tactics import is_default, tactic_value
from fi_cachestore.keys.canonical import encode
from fi_cachestore.session import Session

if TYPE_CHECKING:
    from fi_cachestore.adapter.tuner import CacheStoreTuner


def refuse_unlisted(tuner: CacheStoreTuner, session: Session, view: RunnerView, profiles: Sequence[Any], steps: Sequence[Step]) -> None:
    """Refuse the tactics of others' records that this rank's runner does not list itself. Without other ranks, nothing is asked.

    A key says what a list depends on, placement apart, so a reviewed runner without placement needs no look; nor can one be had
    where the list itself comes from timing.
    """
    if (
        session.group is None
        or view.contract.space == "measured"
        or (view.contract.type and not any(role is Role.PLACEMENT for _, role in view.left_out))
    ):
        return
    for profile, step in zip(profiles, steps, strict=True):
        record = step.record
        if record is None or not session.known.is_foreign(record.digest):
            continue
        listed = _own_values(tuner, view, profile)
        for measurement in record.usable:
            if not is_default(measurement.tactic) and encode(measurement.tactic) not in listed:
                session.choices.refuse(record.digest, measurement.tactic)


def _own_values(tuner: CacheStoreTuner, view: RunnerView, profile: Any) -> set[bytes]:
    try:
        tensors: list[Any] = tuner._prepare_input_tensors(profile, view.call.inputs)
        if view.call.config.inputs_pre_hook is not None:
            tensors = list(view.call.config.inputs_pre_hook(tensors))
        own = list(view.runner.get_valid_tactics(tensors, profile))
    except Exception:  # noqa: BLE001 - a runner that cannot list here cannot use what others measured
        return set()
    return {encode(tactic_value(tactic, position)) for position, tactic in enumerate(own)}
