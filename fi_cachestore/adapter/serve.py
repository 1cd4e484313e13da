"""Serving: from a call to runner and tactic, by records alone.

Reads only: nothing here writes, locks, tunes, compiles or logs per call, and an answer is remembered for the very same call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from flashinfer.autotuner import TunableRunner, TuningConfig

from fi_cachestore.adapter import cardinality, cuda, missing, reviewed, trust
from fi_cachestore.adapter import policy as policies
from fi_cachestore.adapter.introspect import Call, RunnerView, device_of
from fi_cachestore.adapter.missing import Withheld
from fi_cachestore.adapter.state import AdapterState, Attached, Decision
from fi_cachestore.adapter.tactics import find_in, is_default, is_plain_value, own_list, tactic_value
from fi_cachestore.config import Mode
from fi_cachestore.coordination.agreement import Pair, pair_of
from fi_cachestore.errors import Gap
from fi_cachestore.keys.canonical import Value, encode
from fi_cachestore.keys.digest import Digest
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.records.choosing import Candidate, Choice, preference
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.record import DEFAULT_TACTIC, Record, TacticSpace
from fi_cachestore.store.port import Hit

if TYPE_CHECKING:
    from fi_cachestore.adapter.tuner import CacheStoreTuner

_DEFAULT: Final = Decision(0, DEFAULT_TACTIC, is_hit=False)


@dataclass
class Description:
    """One call under every rule that may hold for it. The views under the first rule are made at once, the others when asked for."""

    op: str
    runners: Sequence[TunableRunner]
    calls: tuple[Call, ...]
    views: dict[tuple[int, int], RunnerView] = field(default_factory=dict)

    def view(self, call_index: int, runner_index: int) -> RunnerView:
        """Return one runner of the call under one rule."""
        at = (call_index, runner_index)
        if at not in self.views:
            self.views[at] = RunnerView(self.calls[call_index], self.runners[runner_index])
        return self.views[at]

    @cached_property
    def gaps(self) -> tuple[Gap, ...]:
        """What the call lacks for complete keys."""
        return tuple(dict.fromkeys(gap for index in range(len(self.runners)) for gap in self.view(0, index).gaps))

    @cached_property
    def fingerprint(self) -> bytes:
        """Everything that the answer depends on. Only for a call without gaps."""
        rules: list[Value] = [[call.bucket().dims, call.dynamic_dims(), call.roundings, call.policy] for call in self.calls]
        runners: list[Value] = [self.view(0, index).fingerprint() for index in range(len(self.runners))]
        return encode([self.op, list(self.calls[0].raw_inputs()), runners, rules])


def choose(
    tuner: CacheStoreTuner, op: str, runners: list[TunableRunner], config: TuningConfig, inputs: list[Any], kwargs: Mapping[str, Any]
) -> tuple[TunableRunner, Any]:
    """Answer ``choose_one`` outside tuning."""
    state = tuner.state
    memo, asked = state.memo, (tuner, op, runners, config, inputs, kwargs)
    before = memo.begin(*asked)
    if state.suspended_because is not None or all(attached.session.mode is Mode.EPHEMERAL for attached in state.attached):
        with tuner.memory_only():
            return tuner.plain_choose_one(op, runners, config, inputs, **kwargs)
    described = describe(tuner, op, runners, configs_in_force(tuner, config, inputs), inputs, kwargs)
    gaps = described.gaps if isinstance(described, Description) else described
    if isinstance(described, Description) and communicates(tuner.state, op, runners) and (gaps or not _is_voted(tuner, described)):
        return tuner.plain_choose_one(op, runners, config, inputs, **kwargs)
    if gaps or not isinstance(described, Description):
        if isinstance(described, Description):
            reviewed.note(state, described)
        state.note_ephemeral(op, "incomplete key", gaps)
        state.look_for_orphans(device_of(inputs))  # a facet that is unknown by now leaves records behind too
        with tuner.memory_only():
            return tuner.plain_choose_one(op, runners, config, inputs, **kwargs)
    decision = answer(tuner, described)
    if decision.in_memory_because:
        return in_memory(tuner, decision, op, runners, config, inputs, kwargs)
    is_in_memory = cardinality.stays_in_memory(state, state.current.session, op)
    if not decision.is_hit and (is_in_memory or any(attached.session.mode is Mode.EPHEMERAL for attached in state.attached)):
        with tuner.memory_only():  # what such a session tuned is in FlashInfer's memory
            return tuner.plain_choose_one(op, runners, config, inputs, **kwargs)
    if not decision.is_for_now:
        memo.keep(before, (decision.runner_index, decision.tactic), *asked)
    return runners[decision.runner_index], decision.tactic


def in_memory(
    tuner: CacheStoreTuner,
    decision: Decision,
    op: str,
    runners: list[TunableRunner],
    config: TuningConfig,
    inputs: list[Any],
    kwargs: Mapping[str, Any],
) -> tuple[TunableRunner, Any]:
    """Let FlashInfer answer a call whose records may not be believed."""
    tuner.state.note_ephemeral(op, decision.in_memory_because)
    with tuner.memory_only():
        return tuner.plain_choose_one(op, runners, config, inputs, **kwargs)


def communicates(state: AdapterState, op: str, runners: Sequence[TunableRunner]) -> bool:
    """Whether the runners of a call communicate with other ranks: by their contract, by name, or by what was seen."""
    return state.communicates(op) or any(state.introspector.contract(runner).collective for runner in runners)


def _is_voted(tuner: CacheStoreTuner, described: Description) -> bool:
    """Whether all ranks hold the same records for a call whose runners communicate: else only FlashInfer's own answer is the same."""
    bucket = described.calls[0].bucket()
    keys = (described.view(0, index).keys(bucket, serving=True) for index in range(len(described.runners)))
    return all(any(isinstance(key, TuneKey) and tuner.state.is_voted(key.digest) for key in of_runner) for of_runner in keys)


def describe(
    tuner: CacheStoreTuner,
    op: str,
    runners: Sequence[TunableRunner],
    configs: Sequence[tuple[TuningConfig, Any]],
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Description | tuple[Gap, ...]:
    """Describe a call under each of ``configs`` (config and measurement policy). A call that cannot be looked at is a gap; never raises."""
    cupti_works = not getattr(tuner, "_cupti_disabled", False)
    try:
        calls = tuple(
            Call(tuner.state.introspector, op, config, inputs, kwargs, policies.resolved(config, policy, cupti_works=cupti_works))
            for config, policy in configs
        )
        described = Description(op, runners, calls)
        if not described.gaps:
            _ = described.fingerprint
    except Exception as error:  # noqa: BLE001 - code of runners and mappers: FlashInfer meets the same error, and says so itself
        return (Gap(op, "call", type(error).__name__, f"describing it failed: {error}"[:200]),)
    return described


def configs_in_force(tuner: CacheStoreTuner, config: TuningConfig, inputs: Sequence[Any]) -> list[tuple[TuningConfig, Any]]:
    """Return the configs that a look-up made now tries, in order: the open context's, else those of the sessions' rules."""
    device = device_of(inputs)
    if tuner.has_context() or tuner.state.tuning is not None or device is None:
        return [tuner.effective_config(config)]
    return [tuner.config_under(rule, config) for rule in tuner.state.rules(device)]


def answer(tuner: CacheStoreTuner, described: Description) -> Decision:
    """Return the decision for a call with complete keys, from memory if it was made before.

    One that holds for now only, inside a graph capture, is worked out again the next time.
    """
    state = tuner.state
    answers = state.answers
    known = answers.get(described.fingerprint)
    if known is None:
        known = decide(tuner, described)
        if not known.is_for_now:
            state.remember(answers, described.fingerprint, known)
    return known


def decide(tuner: CacheStoreTuner, described: Description) -> Decision:
    """Choose from the records of all runners, or what ranks settled; the default where none may be served."""
    cardinality.note(tuner.state, described)
    reviewed.note(tuner.state, described)
    communicating = communicates(tuner.state, described.op, described.runners)
    views = [] if communicating else [described.view(0, index) for index in range(len(described.runners))]
    if banned := {index: why for index, view in enumerate(views) if (why := trust.banned_because(tuner.state, view))}:
        missing.note_quarantined(tuner.state, described, banned)
        return Decision(0, DEFAULT_TACTIC, is_hit=False, in_memory_because=trust.QUARANTINED)
    withheld: dict[int, Withheld] = {}
    sessions = tuner.state.attached  # the same for all runners, whatever other threads attach or detach meanwhile
    rows = [_record(tuner.state, sessions, described, index, withheld) for index in range(len(described.runners))]
    if any(found.is_doubted for found in withheld.values()):
        missing.note(tuner.state, described, rows, (), withheld, is_covered=False)
        return Decision(0, DEFAULT_TACTIC, is_hit=False, in_memory_because=trust.UNVERIFIED)
    refused: list[Choice] = []
    decision = _chosen(tuner, described, rows, refused)
    missing.note(tuner.state, described, rows, refused, withheld, is_covered=decision.is_hit)
    return replace(decision, is_for_now=True) if (refused or not decision.is_hit) and cuda.is_capturing() else decision


def _chosen(tuner: CacheStoreTuner, described: Description, rows: Sequence[Record | None], refused: list[Choice]) -> Decision:
    session = tuner.state.current.session
    settled = _settled(tuner.state, described, rows)
    found = [Candidate(index, record) for index, record in enumerate(rows) if record is not None]
    for choice in preference(found):
        if settled is not None and settled != pair_of(choice.record.digest, encode(choice.tactic)):
            continue
        if not any(attached.session.choices.is_refused(choice.record.digest, choice.tactic) for attached in tuner.state.attached):
            if cuda.is_capturing() and needs_list(described.view(0, choice.runner_index), choice.tactic):
                break  # not the next one: what never ran in this process may be loaded by its first run, and that ends a capture
            usable, tactic = resolve(tuner, described.view(0, choice.runner_index), choice)
            if usable:
                return Decision(choice.runner_index, tactic, is_hit=True)
        session.recorder.add("refused_count")
        refused.append(choice)
    return _DEFAULT


def _settled(state: AdapterState, described: Description, rows: Sequence[Record | None]) -> Pair | None:
    """Return what ranks settled for the call, by the records it has and, where it has none, the first key it would be tuned under."""
    call: list[Digest] = []
    for index, record in enumerate(rows):
        keys = () if record is not None else described.view(0, index).keys(described.calls[0].bucket(), serving=True)
        digest = record.digest if record is not None else next((key.digest for key in keys if isinstance(key, TuneKey)), None)
        if digest is None:
            return None
        call.append(digest)
    return next((pair for a in state.attached if (pair := a.session.choices.settled(tuple(call))) is not None), None)


def _record(
    state: AdapterState, sessions: Sequence[Attached], described: Description, runner_index: int, withheld: dict[int, Withheld]
) -> Record | None:
    """Return the first record that may be served. The first one that may not be is noted in ``withheld``, by the runner."""
    for call_index, call in enumerate(described.calls):
        view = described.view(call_index, runner_index)
        for key in view.keys(call.bucket(), serving=True):
            if not isinstance(key, TuneKey):
                break
            for attached in sessions:
                if not isinstance(hit := attached.session.find(key.digest), Hit):
                    continue
                if (reason := trust.why_not(state, attached.session, view, hit.entry)) is None:
                    return hit.entry
                attached.session.recorder.miss(reason)
                is_doubted = reason is MissReason.UNPROVEN and trust.is_doubted(state, attached.session, view, hit.entry)
                withheld.setdefault(runner_index, Withheld(key, reason, is_doubted=is_doubted))
    return None


def resolve(tuner: CacheStoreTuner, view: RunnerView, choice: Choice) -> tuple[bool, Any]:
    """Return whether a stored tactic may be used for this very call, and the runner's own object for it."""
    usable, tactic = own_object(tuner, view, choice.record, choice.tactic)
    if not usable:
        return False, None
    blocklist = vars(tuner).get("_blocklist")
    if blocklist is not None and not blocklist.filter(view.call.op, view.runner, [tactic]):
        return False, None
    if view.contract.checks_size and not _fits_size(tuner.state, view, choice.record):
        return False, None  # the default too: a runner that lists nothing cannot run this size
    if is_default(tactic):
        return True, tactic
    return _validates(view, tactic), tactic


def own_object(tuner: CacheStoreTuner, view: RunnerView, record: Record, value: Value) -> tuple[bool, Any]:
    """Return whether a stored tactic is known to the runner, and the runner's own object for it."""
    known, tactic = tuner.state.objects.get(record.digest, encode(value))
    if known:
        return True, tactic
    if is_plain_value(value):
        return True, value
    tactics = own_list(view.runner, view.call.inputs, view.call.shapes)
    if tactics is None:
        return False, None
    try:
        return True, find_in(tactics, value)
    except LookupError:
        return False, None


def needs_list(view: RunnerView, value: Value) -> bool:
    """Whether a runner is asked for its list, which may measure, before a stored tactic is used. The same on all ranks."""
    return view.contract.checks_size or not is_plain_value(value)


def _fits_size(state: AdapterState, view: RunnerView, record: Record) -> bool:
    """Whether a runner lists at the very size of a call what it listed at the bucket's. Asked once per very call, and counted."""
    recorder = state.current.session.recorder
    recorder.add("size_check_count")
    if _lists_the_same(view, record):
        return True
    recorder.add("size_misfit_count")
    return False


def _lists_the_same(view: RunnerView, record: Record) -> bool:
    tactics = own_list(view.runner, view.call.inputs, view.call.shapes)
    return tactics is not None and TacticSpace.of([tactic_value(tactic, i) for i, tactic in enumerate(tactics)]) == record.space


def _validates(view: RunnerView, tactic: Any) -> bool:
    validate = getattr(view.runner, "validate_tactic", None)
    if validate is None:
        return True
    try:
        return bool(validate(view.call.inputs, tactic))
    except Exception:  # noqa: BLE001 - a runner's code: a check that fails is a check not passed
        return False
