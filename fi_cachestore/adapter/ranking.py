"""Ranking while tuning: the tactics of one runner for one profile, fastest first, from a record or measured now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from flashinfer.autotuner import TunableRunner, TuningConfig

from fi_cachestore.adapter import cardinality, cuda, drive, serve, trust
from fi_cachestore.adapter.frames import Frame, Step
from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.adapter.trust import Course
from fi_cachestore.config import Mode
from fi_cachestore.environment.facets import Device
from fi_cachestore.records.choosing import ranked
from fi_cachestore.records.record import DEFAULT_TACTIC, Record
from fi_cachestore.session import Session

if TYPE_CHECKING:
    from fi_cachestore.adapter.tuner import CacheStoreTuner

_ALL: Final = 1 << 30


def rank(
    tuner: CacheStoreTuner, op: str, runner: TunableRunner, config: TuningConfig, inputs: list[Any], kwargs: Mapping[str, Any], count: int
) -> list[Any]:
    """Answer ``rank_tactics`` while tuning: the best ``count`` tactics of the runner's own list, from a record or measured now."""
    attached = tuner.state.tuning or tuner.state.current
    if attached.session.mode is Mode.REPLAY:
        chosen = serve.choose(tuner, op, [runner], config, inputs, kwargs)
        return [chosen[1]]
    described = drive.describe(tuner, attached, op, [runner], tuner.effective_config(config, ranking=True), inputs, kwargs)
    if described is None:
        with tuner.memory_only():
            return tuner.plain_rank_tactics(op, [runner], config, inputs, k=count, **kwargs)
    if serve.communicates(tuner.state, op, [runner]):
        return tuner.plain_rank_tactics(op, [runner], config, inputs, k=count, **kwargs)
    cardinality.note(tuner.state, described)
    view = described.view(0, 0)
    step = drive.step_of(tuner, view, view.call.shapes)
    if not step.keys:
        with tuner.memory_only():
            return tuner.plain_rank_tactics(op, [runner], config, inputs, k=count, **kwargs)
    course = _see_to(tuner, attached.session, view, step)
    measured: list[Any] = []
    if step.record is None and cuda.is_capturing():
        tuner.state.note_ephemeral(op, cuda.CAPTURED)
        return [DEFAULT_TACTIC]
    if course is Course.RECORDS and step.record is None:
        frame = Frame(attached.session, view, view.call.device or Device("cpu"), [step], races_default=False)
        measured = _ranked_here(tuner, view, frame, config)
        trust.note_measured(tuner.state, view, [step.record] if step.is_own and step.record is not None else [])
        course = _see_to(tuner, attached.session, view, step)
    if course is Course.MEMORY:
        tuner.state.note_ephemeral(op, trust.QUARANTINED if trust.banned_because(tuner.state, view) else trust.UNVERIFIED)
        with tuner.memory_only():
            return tuner.plain_rank_tactics(op, [runner], config, inputs, k=count, **kwargs)
    if step.record is None or course is Course.DEFAULT:
        return measured[:count] if measured else [DEFAULT_TACTIC]
    return _own_ranking(tuner, attached.session, view, step.record)[:count] or [DEFAULT_TACTIC]


def _see_to(tuner: CacheStoreTuner, session: Session, view: RunnerView, step: Step) -> Course:
    """Look for a record of the one profile that is ranked, and whether it may be believed."""
    if step.record is None and (record := session.answered(step.keys)) is not None:
        step.record, step.is_done = record, True
    bucket = view.call.bucket().dims
    profiles = [] if step.record is None else tuner._generate_optimization_profiles(view.call.config, view.call.inputs)
    own = [(profile, step) for profile in profiles if view.call.bucket(profile.get_opt_shapes()).dims == bucket]
    return trust.examine(tuner, session, view, drive.answered(own))


def _own_ranking(tuner: CacheStoreTuner, session: Session, view: RunnerView, record: Record) -> list[Any]:
    """Return the runner's own objects for the tactics of a record that may be served, fastest first."""
    if trust.why_not(tuner.state, session, view, record) is not None:
        return []
    usable = [value for value in ranked(record) if not session.choices.is_refused(record.digest, value)]
    if cuda.is_capturing() and any(serve.needs_list(view, value) for value in usable):
        return []
    objects = (serve.own_object(tuner, view, record, value) for value in usable)
    tactics = [tactic for is_known, tactic in objects if is_known]
    blocklist = vars(tuner).get("_blocklist")
    return tactics if blocklist is None else list(blocklist.filter(view.call.op, view.runner, tactics))


def _ranked_here(tuner: CacheStoreTuner, view: RunnerView, frame: Frame, config: TuningConfig) -> list[Any]:
    """Have the one step of ``frame`` answered; return FlashInfer's ranking where it was measured here."""
    step, session, call = frame.steps[0], frame.session, view.call
    cuda.synchronize(call.inputs)
    try:
        while drive.next_profile(tuner, frame):
            if step.is_done:
                return []
            session.await_any(frame.elsewhere)
            frame.position, frame.elsewhere = 0, []
        with tuner.state.frames.push(frame), tuner.isolated():
            measured = tuner.plain_rank_tactics(call.op, [view.runner], config, call.inputs, k=_ALL, **call.arguments)
        drive.harvest(tuner, frame)
    except cuda.OUT_OF_MEMORY:
        if frame.trial is not None:
            frame.trial.is_out_of_memory = True
            drive.harvest(tuner, frame)
        raise
    finally:
        if frame.trial is not None:
            session.abandon(frame.trial.mine)
            frame.trial = None
        session.drop(step.keys)
    return measured
