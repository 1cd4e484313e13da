"""Attaching sessions to FlashInfer's tuner, and detaching them: the public context manager and its long-lived sibling."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Collection, Iterator
from typing import Any, Final

import flashinfer.autotuner
from flashinfer.autotuner import AutoTuner
from flashinfer.version import __version__ as flashinfer_version

from fi_cachestore import config
from fi_cachestore.adapter import missing, opening, pinned
from fi_cachestore.adapter.cardinality import Cardinality
from fi_cachestore.adapter.contracts import flashinfer_contracts
from fi_cachestore.adapter.introspect import Introspector
from fi_cachestore.adapter.joining import Meeting, environment_of, met, timings_averaged_over
from fi_cachestore.adapter.state import AdapterState, Attached, Overrides, default_device
from fi_cachestore.adapter.symbols import check
from fi_cachestore.adapter.tuner import CacheStoreTuner
from fi_cachestore.config import Mode, Settings
from fi_cachestore.coordination.handover import leave, left
from fi_cachestore.coordination.port import SystemClock
from fi_cachestore.environment.identity import Environments
from fi_cachestore.environment.manifest import manifest
from fi_cachestore.errors import BoardLostError, CacheStoreError, ConfigError, UnsupportedFlashInferError
from fi_cachestore.report import Report
from fi_cachestore.store.open import open_session_root
from fi_cachestore.store.roots import OpenRoot, write_manifest

logger: Final = logging.getLogger("fi_cachestore")

_STATE: Final = "_fi_cachestore"
_lock = threading.RLock()


class SessionHandle:
    """What ``autotune`` and ``attach`` give: the session's report, and the way out. Thread-safe."""

    def __init__(
        self, mode: Mode, attached: Attached | None = None, state: AdapterState | None = None, meeting: Meeting | None = None
    ) -> None:
        """Wrap a session of a tuner's state; neither where FlashInfer is untouched. ``meeting`` has the ranks it is among."""
        self.mode = mode
        self._attached = attached
        self._state = state
        self._meeting = meeting

    @property
    def is_attached(self) -> bool:
        """Whether FlashInfer's tuner works with this session."""
        return self._state is not None and self._attached in (*self._state.attached, *self._state.aside)

    @property
    def is_among_ranks(self) -> bool:
        """Whether the session shares its measurements with other ranks."""
        return self._meeting is not None

    def report(self) -> Report:
        """Return what the session did so far."""
        return Report() if self._attached is None else self._attached.session.report()

    def refresh(self) -> None:
        """Forget remembered misses, so that what other processes published since is found."""
        if self._attached is not None and self._state is not None:
            self._attached.session.refresh()
            self._state.forget()

    def hand_over(self, process_group: Any) -> None:
        """Serve what was left in a group's store for joiners, and leave there what this process holds. Never raises."""
        if self._attached is None or self._state is None:
            return
        session = self._attached.session
        mine = [sealed for attached in self._state.attached for sealed in attached.session.known.held()]
        verified = [sealed for attached in self._state.attached for sealed in attached.session.belief.for_joiners()]
        try:
            if mine:
                leave(process_group, [*verified, *mine])
                return
            taken = sum(session.take_in(sealed) for sealed in left(process_group))
        except BoardLostError as error:
            logger.warning("nothing is exchanged with ranks that join: %s", error)
            return
        self._state.forget()
        logger.info("%d records of ranks that served before", taken)

    def detach(self) -> None:
        """Take the session off the tuner, between two measurements; after the last one, FlashInfer is exactly as it was."""
        if self._attached is not None and self._state is not None:
            _detach(self._attached, self._state)

    @contextlib.contextmanager
    def tuning(self) -> Iterator[None]:
        """Have the session measure what FlashInfer's tuning contexts bring up."""
        if self._attached is None or self._state is None:
            yield
            return
        attached, state = self._attached, self._state
        _count(attached, state, 1)
        try:
            with state.belonging_to(attached):
                yield
        finally:
            _count(attached, state, -1)

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """End the session with the block: keep its rules for later processes, and agree with the other ranks.

        A block that raises agrees with nobody; the other ranks go on without this one.
        """
        if self._attached is None or self._state is None:
            yield
            return
        try:
            yield
        except BaseException:
            self._attached.session.leave()
            self._part(linger=True)
            raise
        finally:
            _commit(self._attached, self._state)
            self._part(linger=False)

    def _part(self, *, linger: bool) -> None:
        if self._meeting is not None and self._state is not None:
            self._state.part(self._meeting, linger=linger)
            self._meeting = None


@contextlib.contextmanager
def autotune(
    tune_mode: bool = True,  # noqa: FBT001, FBT002 - FlashInfer's own signature
    *,
    root: str | os.PathLike[str] | None = None,
    mode: str | Mode | None = None,
    group: Any = None,
    policy: Any = None,
    tuning_buckets: tuple[int, ...] | None = None,
    round_up: bool | None = None,
    skip_ops: str | set[str] | None = None,
    cuda_graph_profile_replays: int | None = None,
    share_tuning: bool = True,
    collective_ops: str | Collection[str] = (),
    preload: bool = False,
    pin: str | None = None,
    strict: bool | None = None,
) -> Iterator[SessionHandle]:
    """Tune with records, in place of ``flashinfer.autotune`` and ``autotune_v2``.

    Inside, ops without a record are measured by FlashInfer's own loop and published at once; after it, the process keeps serving from
    the records, under the same buckets, rounding and policy, on every thread, until ``detach``. Contexts of FlashInfer may be opened
    inside. ``root`` and ``mode`` default to the settings of ``config``; the other arguments are FlashInfer's (``policy`` is its
    ``MeasurementPolicy``). With ``tune_mode=False`` nothing is measured.

    ``group`` is a ``torch.distributed`` process group (gloo preferred) whose ranks all enter and leave together: each profile is measured
    by one of them, and at the end all serve the same runner and tactic for calls that several make. FlashInfer's process group is set
    to it for the block, for callers that look. ``collective_ops`` names ops whose runners communicate while they run, beyond those that
    are known to: all ranks measure these together. Without ``share_tuning`` every rank measures for itself, for memory only.
    With ``preload`` all records are read at once, not when they are first asked for.

    In mode ``pin`` nothing is measured: the bundle whose digest is ``pin`` is served, and what it lacks by the default.

    A cache that cannot be used costs one warning, never an exception, unless a pinned bundle is served with ``strict``.

    Raises:
        ConfigError: ``mode`` is not one of the modes.
        NoSuchBundleError: the pinned bundle is not there, with ``strict``. ``choose_one`` raises ``PinnedMissError`` for what it lacks.
        ValueError: FlashInfer refuses ``tuning_buckets`` or ``cuda_graph_profile_replays``.
    """
    theirs: dict[str, Any] = {"tuning_buckets": tuning_buckets, "round_up": round_up, "skip_ops": skip_ops}
    overrides = Overrides.of(policy, collective_ops, replays=cuda_graph_profile_replays, **theirs)
    handle = _open(_settings(root, mode, pin, strict), overrides, group=group, share_tuning=share_tuning, preload=preload)
    with handle.committing(), _in_flashinfers_context(handle, group, tune_mode, cuda_graph_profile_replays, theirs):
        yield handle


@contextlib.contextmanager
def _in_flashinfers_context(
    handle: SessionHandle,
    group: Any,
    tune_mode: bool,  # noqa: FBT001
    replays: int | None,
    theirs: dict[str, Any],
) -> Iterator[None]:
    """Open FlashInfer's plain context, with the arguments that are ``theirs``, and have the session measure what comes up in it.

    That context nests in itself and in ``autotune_v2``; ``autotune_v2`` does not, and is never held open here.
    """
    if replays is not None:
        theirs["cuda_graph_profile_replays"] = replays  # which an older FlashInfer does not take
    averaging = timings_averaged_over(group) if handle.is_among_ranks else contextlib.nullcontext()
    measuring = handle.tuning() if tune_mode else contextlib.nullcontext()
    with averaging, flashinfer.autotuner.autotune(tune_mode, **theirs), measuring:
        yield


def attach(
    mode: str | Mode = Mode.REPLAY,
    *,
    root: str | os.PathLike[str] | None = None,
    group: Any = None,
    preload: bool = False,
    pin: str | None = None,
    strict: bool | None = None,
) -> SessionHandle:
    """Serve from records, from now until ``detach``; in mode ``auto``, also tune whenever FlashInfer's own contexts do.

    Buckets, rounding and policy are those of the last session committed to the root. A cache that cannot be used costs one warning.
    A record is read when it is first asked for; with ``preload`` all are read now.

    With ``group``, a ``torch.distributed`` process group, a rank that joins serves what ranks that served before have left for it in the
    group's store, and a rank that has records leaves them there. No collective is called and nobody is waited for.

    In mode ``pin`` exactly the bundle whose digest is ``pin`` is served, and nothing else that is attached, until ``detach``; what it lacks
    is served by the default, or with ``strict`` an error.

    Raises:
        ConfigError: ``mode`` is not one of the modes.
        NoSuchBundleError: the pinned bundle is not there, with ``strict``. ``choose_one`` raises ``PinnedMissError`` for what it lacks.
    """
    handle = _open(_settings(root, mode, pin, strict), Overrides(), preload=preload)
    if group is not None:
        handle.hand_over(group)
    return handle


def detach() -> None:
    """Take every session off FlashInfer's tuner, which then is exactly as it was before."""
    tuner = AutoTuner.get()
    if isinstance(tuner, CacheStoreTuner):
        state = tuner.state
        for attached in (*state.attached, *state.aside):
            _detach(attached, state)


def _open(
    settings: Settings, overrides: Overrides, *, group: Any = None, share_tuning: bool = True, preload: bool = False
) -> SessionHandle:
    state, opened, cannot = None, None, ""
    if settings.mode.value is not Mode.OFF:
        with _between_calls():
            state, cannot = _supported(settings)
            if state is not None and settings.mode.value is not Mode.EPHEMERAL:
                opened, cannot = _opened(settings)
    meeting = None if group is None else met(group, settings, opened, cannot, _facets(state))
    if group is not None and meeting is None and settings.mode.value is not Mode.PIN:
        opened, cannot = None, ""  # said already
    if state is None:
        if meeting is not None:
            meeting.end(linger=False)
        return SessionHandle(Mode.OFF)
    with _between_calls():
        state = _state(AutoTuner.get(), settings)  # with the last session, which may have gone meanwhile, the one from above went too
        attached = opening.attached(settings, state, overrides, opened, cannot, meeting, share_tuning=share_tuning)
        attached.process_group = group
        pinned.mark(attached, settings)
        state.put_first(attached)
    if preload:
        attached.session.preload()
    return SessionHandle(attached.session.mode, attached, state, meeting)


@contextlib.contextmanager
def _between_calls() -> Iterator[None]:
    """Hold FlashInfer's lock and ours, in this order: no thread is inside FlashInfer's loop when the tuner's class changes."""
    with getattr(AutoTuner.get(), "_lock", _lock), _lock:
        yield


def _supported(settings: Settings) -> tuple[AdapterState | None, str]:
    """Return the tuner's adapter state, or ``None`` and why FlashInfer stays untouched."""
    try:
        tuner = AutoTuner.get()
        check(flashinfer.autotuner, flashinfer_version, tuner)
    except UnsupportedFlashInferError as error:
        logger.warning("%s", error)
        return None, str(error)
    return _state(tuner, settings), ""


def _opened(settings: Settings) -> tuple[OpenRoot | None, str]:
    """Return the opened root, or ``None`` and why there is none."""
    try:
        return open_session_root(settings), ""
    except CacheStoreError as error:
        return (pinned.instead(settings, error), "") if settings.mode.value is Mode.PIN else (None, str(error))


def _facets(state: AdapterState | None) -> dict[str, str]:
    return {} if state is None else environment_of(state.introspector.environments.of(default_device()))


def _settings(root: str | os.PathLike[str] | None, mode: str | Mode | None, pin: str | None, strict: bool | None) -> Settings:  # noqa: FBT001
    try:
        return config.load(root=root, mode=mode, pin=pin, strict=strict)
    except ConfigError as error:
        if error.source == "argument":
            raise
        logger.warning("%s; nothing is stored", error)
        return config.load(root=root, mode=Mode.EPHEMERAL, environ={})


def _state(tuner: Any, settings: Settings) -> AdapterState:
    """Return the tuner's adapter state, giving the tuner our class if it does not have it yet."""
    if isinstance(tuner, CacheStoreTuner):
        return tuner.state
    clock, described = SystemClock(), Introspector(flashinfer_contracts(), Environments())
    state = AdapterState(described, clock, type(tuner), missing.collector(settings.state.value, clock), Cardinality.within(settings))
    vars(tuner)[_STATE] = state
    missing.keep_at_exit(state)
    plain = state.original is AutoTuner
    tuner.__class__ = CacheStoreTuner if plain else type("CacheStoreTuner", (CacheStoreTuner, state.original), {})
    return state


def _commit(attached: Attached, state: AdapterState) -> None:
    """End a tuning context: keep the session's rules, and describe the environments for people."""
    attached.session.commit()
    state.remember_communicating(attached.session.suspects)
    state.hold(attached.session.belief.quarantined)
    state.forget_answers()
    if attached.root is not None and attached.session.mode.publishes:
        for device in sorted(attached.devices, key=str):
            write_manifest(attached.root, *manifest(state.introspector.environments.of(device)))
    missing.keep(state)
    logger.info("session ended: %s", attached.session.report())


def _count(attached: Attached, state: AdapterState, step: int) -> None:
    with _lock:
        attached.tuning_count += step
        state.forget()


def _detach(attached: Attached, state: AdapterState) -> None:
    with _between_calls():
        missing.keep(state)
        state.hold(attached.session.belief.quarantined)
        state.remove(attached)
        tuner = AutoTuner.get()
        if not state.attached and isinstance(tuner, CacheStoreTuner) and tuner.state is state:
            tuner.__class__ = state.original
            del vars(tuner)[_STATE]
