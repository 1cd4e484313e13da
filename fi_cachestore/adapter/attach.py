"""Attaching sessions to FlashInfer's tuner, and detaching them: the public context manager and its long-lived sibling."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any, Final

import flashinfer.autotuner
from flashinfer.autotuner import AutoTuner
from flashinfer.version import __version__ as flashinfer_version

from fi_cachestore import config
from fi_cachestore.adapter.contracts import flashinfer_contracts
from fi_cachestore.adapter.introspect import Introspector
from fi_cachestore.adapter.policy import rule_fields
from fi_cachestore.adapter.state import AdapterState, Attached, Overrides
from fi_cachestore.adapter.symbols import check
from fi_cachestore.adapter.tuner import CacheStoreTuner
from fi_cachestore.config import Mode, Settings
from fi_cachestore.coordination.files import FileCoordinator
from fi_cachestore.coordination.local import LocalCoordinator
from fi_cachestore.coordination.port import SystemClock
from fi_cachestore.environment.identity import Environments
from fi_cachestore.environment.manifest import manifest
from fi_cachestore.errors import CacheStoreError, ConfigError, UnsupportedFlashInferError
from fi_cachestore.records.rules import Rule
from fi_cachestore.report import Report
from fi_cachestore.session import Ports, Session
from fi_cachestore.store.open import open_session_root
from fi_cachestore.store.roots import write_manifest

logger: Final = logging.getLogger("fi_cachestore")

_STATE: Final = "_fi_cachestore"
_lock = threading.RLock()


class SessionHandle:
    """What ``autotune`` and ``attach`` give: the session's report, and the way out. Thread-safe."""

    def __init__(self, mode: Mode, attached: Attached | None = None, state: AdapterState | None = None) -> None:
        """Wrap a session of a tuner's state; neither where FlashInfer is untouched."""
        self.mode = mode
        self._attached = attached
        self._state = state

    @property
    def is_attached(self) -> bool:
        """Whether FlashInfer's tuner works with this session."""
        return self._state is not None and self._attached in self._state.attached

    def report(self) -> Report:
        """Return what the session did so far."""
        return Report() if self._attached is None else self._attached.session.report()

    def refresh(self) -> None:
        """Forget remembered misses, so that what other processes published since is found."""
        if self._attached is not None and self._state is not None:
            self._attached.session.refresh()
            self._state.forget()

    def detach(self) -> None:
        """Take the session off FlashInfer's tuner; with the last one, FlashInfer is exactly as it was. A second call does nothing."""
        if self._attached is not None and self._state is not None:
            _detach(self._attached, self._state)

    @contextlib.contextmanager
    def tuning(self) -> Iterator[None]:
        """Have the session measure what FlashInfer's tuning contexts bring up; at the end, keep its rules for later processes."""
        if self._attached is None or self._state is None:
            yield
            return
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)
            _commit(self._attached, self._state)

    def _count(self, step: int) -> None:
        if self._attached is not None and self._state is not None:
            with _lock:
                self._attached.tuning_count += step
                self._state.forget()


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
) -> Iterator[SessionHandle]:
    """Tune with records, in place of ``flashinfer.autotune`` and ``autotune_v2``.

    Inside, ops without a record are measured by FlashInfer's own loop and published at once; after it, the process keeps serving from
    the records, under the same buckets, rounding and policy, on every thread, until ``detach``. Contexts of FlashInfer may be opened
    inside. ``root`` and ``mode`` default to the settings of ``config``; the other arguments are FlashInfer's (``policy`` is its
    ``MeasurementPolicy``). With ``tune_mode=False`` nothing is measured. ``group`` is reserved: several ranks tune for themselves.

    A cache that cannot be used costs one warning, never an exception.

    Raises:
        ConfigError: ``mode`` is not one of the modes.
        ValueError: FlashInfer refuses ``tuning_buckets`` or ``cuda_graph_profile_replays``.
    """
    buckets = None if tuning_buckets is None else tuple(sorted(set(tuning_buckets)))
    skipped = frozenset({skip_ops} if isinstance(skip_ops, str) else skip_ops or ())
    rule = Rule(buckets, bool(round_up), cuda_graph_profile_replays, **rule_fields(policy))
    because = None if group is None else "groups of ranks are not supported yet"
    handle = _open(root, mode, Overrides(rule, policy, skipped), ephemeral_because=because)
    forwarded: dict[str, Any] = {"tuning_buckets": tuning_buckets, "round_up": round_up, "skip_ops": skip_ops}
    if cuda_graph_profile_replays is not None:
        forwarded["cuda_graph_profile_replays"] = cuda_graph_profile_replays
    # FlashInfer's plain context nests in itself and in autotune_v2; autotune_v2 does not, and is never held open here.
    measuring = handle.tuning() if tune_mode else contextlib.nullcontext()
    with flashinfer.autotuner.autotune(tune_mode, **forwarded), measuring:
        yield handle


def attach(mode: str | Mode = Mode.REPLAY, *, root: str | os.PathLike[str] | None = None) -> SessionHandle:
    """Serve from records, from now until ``detach``; in mode ``auto``, also tune whenever FlashInfer's own contexts do.

    Buckets, rounding and policy are those of the last session committed to the root. A cache that cannot be used costs one warning.

    Raises:
        ConfigError: ``mode`` is not one of the modes.
    """
    return _open(root, mode, Overrides())


def detach() -> None:
    """Take every session off FlashInfer's tuner, which then is exactly as it was before."""
    tuner = AutoTuner.get()
    if isinstance(tuner, CacheStoreTuner):
        state = tuner.state
        for attached in state.attached:
            _detach(attached, state)


def _open(
    root: str | os.PathLike[str] | None, mode: str | Mode | None, overrides: Overrides, *, ephemeral_because: str | None = None
) -> SessionHandle:
    settings = _settings(root, mode)
    if settings.mode.value is Mode.OFF:
        return SessionHandle(Mode.OFF)
    with _lock:
        try:
            tuner = AutoTuner.get()
            check(flashinfer.autotuner, flashinfer_version, tuner)
        except UnsupportedFlashInferError as error:
            logger.warning("%s", error)
            return SessionHandle(Mode.OFF)
        state = _state(tuner)
        attached = _attached(settings, state, overrides, ephemeral_because)
        state.put_first(attached)
        return SessionHandle(attached.session.mode, attached, state)


def _settings(root: str | os.PathLike[str] | None, mode: str | Mode | None) -> Settings:
    try:
        return config.load(root=root, mode=mode)
    except ConfigError as error:
        if error.source == "argument":
            raise
        logger.warning("%s; nothing is stored", error)
        return config.load(root=root, mode=Mode.EPHEMERAL, environ={})


def _state(tuner: Any) -> AdapterState:
    """Return the tuner's adapter state, giving the tuner our class if it does not have it yet."""
    if isinstance(tuner, CacheStoreTuner):
        return tuner.state
    state = AdapterState(Introspector(flashinfer_contracts(), Environments()), SystemClock(), type(tuner))
    vars(tuner)[_STATE] = state
    plain = state.original is AutoTuner
    tuner.__class__ = CacheStoreTuner if plain else type("CacheStoreTuner", (CacheStoreTuner, state.original), {})
    return state


def _attached(settings: Settings, state: AdapterState, overrides: Overrides, ephemeral_because: str | None) -> Attached:
    """Return a session for the settings, ephemeral (said once) where its root cannot be used."""
    identity = (settings.root.value, settings.path.value, settings.mode.value)
    earlier = next((known.session for known in state.attached if known.identity == identity), None)
    max_wait_s = settings.max_wait_s.value
    if settings.mode.value is not Mode.EPHEMERAL and ephemeral_because is None:
        try:
            opened = open_session_root(settings)
        except CacheStoreError as error:
            ephemeral_because = str(error)
        else:
            ports = Ports(opened.records, opened.rules, FileCoordinator(opened.claims), state.clock)
            session = Session(settings.mode.value, ports, max_wait_s=max_wait_s, earlier=earlier)
            return Attached(session, overrides, identity, opened.path)
    if ephemeral_because is not None:
        logger.warning("%s; tuning stays in memory", ephemeral_because)
    ports = Ports(None, None, LocalCoordinator(), state.clock)
    return Attached(Session(Mode.EPHEMERAL, ports, max_wait_s=max_wait_s, earlier=earlier), overrides, identity)


def _commit(attached: Attached, state: AdapterState) -> None:
    """End a tuning context: keep the session's rules, and describe the environments for people."""
    attached.session.commit()
    if attached.root is not None and attached.session.mode is Mode.AUTO:
        for device in sorted(attached.devices, key=str):
            write_manifest(attached.root, *manifest(state.introspector.environments.of(device)))
    logger.info("session ended: %s", attached.session.report())


def _detach(attached: Attached, state: AdapterState) -> None:
    with _lock:
        state.remove(attached)
        tuner = AutoTuner.get()
        if not state.attached and isinstance(tuner, CacheStoreTuner) and tuner.state is state:
            tuner.__class__ = state.original
            del vars(tuner)[_STATE]
