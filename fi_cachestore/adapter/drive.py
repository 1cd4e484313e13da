"""Tuning: FlashInfer's own loop, driven once per runner, so that hit, claim and publish are per (runner, profile).

The loop asks ``search_cache`` before each profile. A profile that a record answers, or that another process measures, looks like a hit
to it; one that is ours looks like a miss, is measured by the loop, and is harvested when the loop asks for the next. Profiles claimed
elsewhere are left for last, and the loop is repeated until nothing is left.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from flashinfer import autotuner as flashinfer_autotuner
from flashinfer.autotuner import TunableRunner, TuningConfig

from fi_cachestore import __version__
from fi_cachestore.adapter import cardinality, cuda, reviewed, serve, together, trust
from fi_cachestore.adapter.frames import Frame, Step, Trial
from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.adapter.serve import Description
from fi_cachestore.adapter.state import Attached
from fi_cachestore.adapter.tactics import is_default
from fi_cachestore.adapter.trust import Course
from fi_cachestore.config import Mode
from fi_cachestore.environment.facets import Device
from fi_cachestore.errors import Gap
from fi_cachestore.keys.canonical import encode
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.records.record import DEFAULT_TACTIC, Provenance, Record
from fi_cachestore.session import Session
from fi_cachestore.work import Answered, Elsewhere, Mine

if TYPE_CHECKING:
    from fi_cachestore.adapter.tuner import CacheStoreTuner


def choose(
    tuner: CacheStoreTuner, op: str, runners: list[TunableRunner], config: TuningConfig, inputs: list[Any], kwargs: Mapping[str, Any]
) -> tuple[TunableRunner, Any]:
    """Answer ``choose_one`` while tuning: see to every profile of every runner, then choose from the records."""
    attached = tuner.state.tuning or tuner.state.current
    if attached.session.mode is Mode.REPLAY:
        return serve.choose(tuner, op, runners, config, inputs, kwargs)
    described = describe(tuner, attached, op, runners, tuner.effective_config(config), inputs, kwargs)
    communicates = serve.communicates(tuner.state, op, runners)
    if described is None:
        among = communicates and attached.session.group is not None  # without a key too, all ranks measure such an op in step
        with tuner.averaging_over(attached.process_group) if among else tuner.memory_only():
            return tuner.plain_choose_one(op, runners, config, inputs, **kwargs)
    if communicates and attached.session.group is None:
        tuner.state.note_ephemeral(op, "collective op without a group")
        return tuner.plain_choose_one(op, runners, config, inputs, **kwargs)
    profiles = tuner._generate_optimization_profiles(described.calls[0].config, inputs)
    whole_call = encode([described.fingerprint, [profile.get_opt_shapes() for profile in profiles]])
    if not tuner.state.is_tuned(whole_call):
        if cuda.is_capturing():
            return _inside_a_capture(tuner, attached.session, described)
        if cardinality.stays_in_memory(tuner.state, attached.session, op):
            tuner.state.note_ephemeral(op, cardinality.TOO_MANY_KEYS)
            with tuner.memory_only():
                return tuner.plain_choose_one(op, runners, config, inputs, **kwargs)
        if not _is_seen_to(tuner, attached, described, profiles, config, communicates=communicates):
            return runners[0], DEFAULT_TACTIC
        tuner.state.forget_answers()
        tuner.state.set_tuned(whole_call)
    decision = serve.answer(tuner, described)
    if decision.in_memory_because:
        return serve.in_memory(tuner, decision, op, runners, config, inputs, kwargs)
    return runners[decision.runner_index], decision.tactic


def _inside_a_capture(tuner: CacheStoreTuner, session: Session, described: Description) -> tuple[TunableRunner, Any]:
    """Answer a call that nothing may be measured for now: by records, but among ranks, which have not agreed on any yet, by the default."""
    tuner.state.note_ephemeral(described.op, cuda.CAPTURED)
    if session.group is not None:
        return described.runners[0], DEFAULT_TACTIC
    decision = serve.answer(tuner, described)
    return described.runners[decision.runner_index], decision.tactic


def _is_seen_to(
    tuner: CacheStoreTuner, attached: Attached, described: Description, profiles: list[Any], config: TuningConfig, *, communicates: bool
) -> bool:
    """See to every profile of every runner; whether the call may then be answered, and not by the default for now."""
    indices = range(len(described.runners))
    steps = [[step_of(tuner, described.view(0, index), profile.get_opt_shapes()) for profile in profiles] for index in indices]
    if not communicates:
        return _see_to_all(tuner, attached.session, described, profiles, steps, config) is not Course.DEFAULT
    why = together.see_to(tuner, attached, described, steps, lambda view, frame: _pass(tuner, view, frame, config))
    if why:
        tuner.state.note_ephemeral(described.op, why)
    return not why


def _see_to_all(
    tuner: CacheStoreTuner, session: Session, described: Description, profiles: list[Any], steps: list[list[Step]], config: TuningConfig
) -> Course:
    """Have every profile of every runner answered by a record that may be believed; note the calls that these are, for ranks to agree on.

    What is not answered from records is no call of theirs.
    """
    views = [described.view(0, index) for index in range(len(steps))]
    if any(trust.banned_because(tuner.state, view) for view in views):
        for view in views:
            trust.examine(tuner, session, view, ())
        return Course.MEMORY
    session.ask_ranks(step.key for of_runner in steps for step in of_runner if step.keys)
    for view, of_runner in zip(views, steps, strict=True):
        course = _see_to(tuner, session, view, list(zip(profiles, of_runner, strict=True)), config)
        if course is not Course.RECORDS:
            return course
    for of_profile in zip(*steps, strict=True):
        if all(step.keys for step in of_profile):
            session.choices.note(tuple(step.key.digest if step.record is None else step.record.digest for step in of_profile))
    return Course.RECORDS


def describe(
    tuner: CacheStoreTuner,
    attached: Attached,
    op: str,
    runners: list[TunableRunner],
    config: tuple[TuningConfig, Any],
    inputs: list[Any],
    kwargs: Mapping[str, Any],
) -> Description | None:
    """Describe a tuning call, and note the rule it is made under; ``None`` (said once) for a call that stays in memory."""
    state = tuner.state
    group = getattr(flashinfer_autotuner, "get_autotune_process_group", lambda: None)()
    if group is not None and attached.session.group is None:
        state.suspend("FlashInfer averages its timings over a process group")
    if state.suspended_because is not None or attached.session.mode is Mode.EPHEMERAL:
        attached.session.recorder.ephemeral(state.suspended_because or "mode ephemeral")  # the session has said so
        return None
    described = serve.describe(tuner, op, runners, [config], inputs, kwargs)
    if not isinstance(described, Description) or described.gaps:
        if isinstance(described, Description):
            reviewed.note(state, described)
        state.note_ephemeral(op, "incomplete key", described if isinstance(described, tuple) else described.gaps)
        return None
    if (device := described.calls[0].device) is not None:
        attached.devices.add(device)
        attached.session.note_rule(state.device_model(device), tuner.rule_in_force())
    return described


def step_of(tuner: CacheStoreTuner, view: RunnerView, shapes: tuple[tuple[int, ...], ...]) -> Step:
    """Return one profile of a runner. A profile without a key of its own is left alone: it would be found by no look-up."""
    keys = view.keys(view.call.bucket(shapes), serving=False)
    complete = tuple(key for key in keys if isinstance(key, TuneKey))
    if not complete:
        tuner.state.note_ephemeral(view.call.op, "profile without a key", tuple(gap for gap in keys if isinstance(gap, Gap)))
    return Step(complete, is_done=not complete)


def _see_to(tuner: CacheStoreTuner, session: Session, view: RunnerView, rows: list[tuple[Any, Step]], config: TuningConfig) -> Course:
    """Have every step of one runner (by its profile) answered: by a record, by our measurement, or by somebody else's."""
    steps = [step for _, step in rows]
    for step in steps:
        if not step.is_done and (record := session.answered(step.keys)) is not None:
            step.record, step.is_done = record, True
    course = trust.examine(tuner, session, view, answered(rows))
    if course is not Course.RECORDS or not _open(steps):
        return course
    cuda.synchronize(view.call.inputs)
    known = {id(step) for step in steps if step.record is not None}
    try:
        _measure(tuner, session, view, steps, config)
    finally:
        session.drop(step.key for step in steps if step.keys)
    new = [(profile, step) for profile, step in rows if id(step) not in known]
    trust.note_measured(tuner.state, view, [step.record for step in steps if step.is_own and step.record is not None])
    return trust.examine(tuner, session, view, answered(new))


def answered(rows: Iterable[tuple[Any, Step]]) -> list[trust.Row]:
    """Return the profiles that a record answers."""
    return [(profile, step.record) for profile, step in rows if step.record is not None]


def _measure(tuner: CacheStoreTuner, session: Session, view: RunnerView, steps: list[Step], config: TuningConfig) -> None:
    """Drive the loop until every step is done: measured here, or found when somebody else was done with it."""
    frame = Frame(session, view, view.call.device or Device("cpu"), steps)
    while True:
        before = _open(steps)
        _pass(tuner, view, frame, config)
        after = _open(steps)
        if not after:
            return
        if not frame.elsewhere and len(after) == len(before):
            session.warn_once("loop", "%s: FlashInfer did not offer %d profiles; they stay untuned", view.call.op, len(after))
            return
        if frame.elsewhere:
            session.await_any(frame.elsewhere)


def _open(steps: list[Step]) -> list[Step]:
    return [step for step in steps if not step.is_done]


def _pass(tuner: CacheStoreTuner, view: RunnerView, frame: Frame, config: TuningConfig) -> None:
    """Run the loop once. Whatever ends it, no claim stays held."""
    frame.position, frame.elsewhere = 0, []
    call = view.call
    try:
        with tuner.state.frames.push(frame), tuner.isolated():
            tuner.plain_choose_one(call.op, [view.runner], config, call.inputs, **call.arguments)
        if frame.trial is not None:  # the loop gave up in the middle of a profile: it does so only when memory runs out
            frame.trial.is_out_of_memory = True
            harvest(tuner, frame)
    finally:
        if frame.trial is not None:
            frame.session.abandon(frame.trial.mine)
            frame.trial = None


def next_profile(tuner: CacheStoreTuner, frame: Frame) -> bool:
    """Answer FlashInfer's look-up inside a drive: whether the profile it comes to counts as a hit. Harvests the one before."""
    harvest(tuner, frame)
    if frame.position >= len(frame.steps):
        return True
    step = frame.steps[frame.position]
    frame.position += 1
    if step.is_done:
        return True
    if frame.is_together:
        frame.trial = Trial(step, Mine(None, share=frame.leads), tuner.state.clock.monotonic_ns())
        return False
    match frame.session.begin(step.key, step.keys[1:]):
        case Mine() as mine:
            frame.trial = Trial(step, mine, tuner.state.clock.monotonic_ns())
            return False
        case Answered(record):
            step.record, step.is_done = record, True
        case Elsewhere():
            frame.elsewhere.append(step.key)
        case _:
            step.is_done = True
    return True


def harvest(tuner: CacheStoreTuner, frame: Frame) -> None:
    """Turn the measurement under way into a record, publish it and free its claim."""
    trial, frame.trial = frame.trial, None
    if trial is None:
        return
    step, session = trial.step, frame.session
    step.is_done = True
    if trial.is_out_of_memory:
        session.give_up(trial.mine, step.key, counted_as="out_of_memory_count")
        return
    if trial.is_all_failed() and not (trial.has_met_runner and cuda.is_sound(frame.view.call.inputs)):
        session.warn_once(
            "unmeasured", "%s: measuring fails here (%s), not the tactics; nothing is stored", step.key.op, trial.tried[-1][3]
        )
        session.give_up(trial.mine, step.key, counted_as="unmeasured_count")
        return
    provenance = _provenance(tuner, frame, trial)
    evidence = trust.evidence_of(tuner.state.trust, frame.view)
    record = Record(step.key, trial.measurements(), trial.space(), provenance, evidence, default_raced=trial.is_default_raced)
    mine = trial.mine if trial.is_storable() else replace(trial.mine, share=False)
    tuner.state.objects.remember(record.digest, trial.objects())
    step.record = session.finish(mine, record)
    step.is_own = step.record is record


def _provenance(tuner: CacheStoreTuner, frame: Frame, trial: Trial) -> Provenance:
    clock = tuner.state.clock
    performance = tuner.state.introspector.environments.of(frame.device).performance()
    return Provenance(
        measured_unix_ns=clock.unix_ns(),
        tuning_ns=max(clock.monotonic_ns() - trial.started_ns, 0),
        host=socket.gethostname(),
        pid=os.getpid(),
        library=f"fi_cachestore {__version__}",
        performance=performance,
    )


def timed(frame: Frame, measure: Callable[[Any], float], tactic: Any) -> float:
    """Measure a tactic inside a drive and keep its time; before the first, measure the default where the list has none.

    Raises what ``measure`` raises.
    """
    trial = frame.trial
    assert trial is not None  # noqa: S101 - the caller has looked
    if frame.races_default and trial.default() is None and not any(map(is_default, [tactic, *(trial.listed or ())])):
        trial.is_default_raced = True
        with contextlib.suppress(Exception):
            _timed_once(frame, trial, measure, DEFAULT_TACTIC)
        if trial.is_out_of_memory:
            raise torch.cuda.OutOfMemoryError
    known = trial.default() if is_default(tactic) else None
    if known is None:
        return _timed_once(frame, trial, measure, tactic)
    trial.is_default_raced = False  # it was in the list after all, in a version of FlashInfer that does not show its list
    return known[0] / 1e6 if known[0] is not None else float("inf")


def _timed_once(frame: Frame, trial: Trial, measure: Callable[[Any], float], tactic: Any) -> float:
    key = trial.step.key
    frame.session.note_work(f"{key.op} {key.digest[:12]} tactic {tactic!r:.60}")
    try:
        time_ms = measure(tactic)
    except Exception as error:
        trial.is_out_of_memory |= isinstance(error, cuda.OUT_OF_MEMORY)
        trial.has_met_runner |= _comes_from(error, frame.runner)
        trial.note(tactic, None, type(error).__name__)
        cuda.clear_error()
        raise
    trial.has_met_runner = True
    trial.note(tactic, time_ms, None)
    return time_ms


def _comes_from(error: Exception, runner: TunableRunner) -> bool:
    """Whether a runner's code was under way when an error was raised. What a kernel does later is met by whoever waits for it."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_locals.get("self") is runner:
            return True
        trace = trace.tb_next
    return False
