"""From settings to a session on FlashInfer's tuner: its stores, claims and verdicts, and what an earlier session on the root leaves."""

from __future__ import annotations

import functools
import logging
import socket
from typing import Final

from fi_cachestore.adapter.joining import Meeting
from fi_cachestore.adapter.orphans import OrphanWatch
from fi_cachestore.adapter.state import AdapterState, Attached, Overrides
from fi_cachestore.config import Mode, Settings
from fi_cachestore.coordination.files import FileCoordinator
from fi_cachestore.coordination.local import LocalCoordinator
from fi_cachestore.coordination.packing import pack_in_turn
from fi_cachestore.coordination.port import Clock, Coordinator
from fi_cachestore.coordination.ranks import Layered
from fi_cachestore.environment.process import OsProcessTable
from fi_cachestore.session import Ports, Session
from fi_cachestore.store.roots import OpenRoot
from fi_cachestore.validation.ledger import Ledger
from fi_cachestore.validation.sentinel import Sentinel
from fi_cachestore.work import Limits

logger: Final = logging.getLogger("fi_cachestore")


def attached(
    settings: Settings,
    state: AdapterState,
    overrides: Overrides,
    opened: OpenRoot | None,
    cannot: str,
    meeting: Meeting | None,
    *,
    share_tuning: bool,
) -> Attached:
    """Return a session for the settings, ephemeral (said once) where its root cannot be used."""
    identity = (str(settings.root.value), settings.path.value, settings.mode.value)
    earlier = next((known.session for known in state.attached if known.identity == identity), None)
    limits = Limits(settings.max_wait_s.value, settings.stall_s.value)
    group = None if meeting is None else meeting.group
    if opened is None:
        if cannot:
            logger.warning("%s; tuning stays in memory", cannot)
        ports = Ports(None, None, LocalCoordinator(), state.clock, group=group)
        return Attached(Session(Mode.EPHEMERAL, ports, limits, earlier=earlier), overrides, identity)
    claims_files = share_tuning and not settings.mode.value.only_reads
    coordinator: Coordinator = FileCoordinator(opened.claims) if claims_files else LocalCoordinator()
    if group is not None and share_tuning:
        coordinator = Layered(group.ranks, coordinator)
    ledger, sentinel = checks(opened, state.clock, earlier)
    pack = None if opened.packer is None else functools.partial(pack_in_turn, opened.packer, FileCoordinator(opened.claims))
    ports = Ports(
        opened.records,
        opened.rules,
        coordinator,
        state.clock,
        opened.settled,
        group,
        ledger,
        pack,
        successors=opened.successors,
        sentinel=sentinel,
    )
    session = Session(settings.mode.value, ports, limits, share_tuning=share_tuning, earlier=earlier)
    for schema, why in list(state.trust.told.items()):  # a session that ends on another thread may add to them
        session.belief.hold(schema, why)
    return Attached(session, overrides, identity, opened.path, OrphanWatch([opened.path, *opened.layers], opened.records))


def checks(opened: OpenRoot, clock: Clock, earlier: Session | None) -> tuple[Ledger | None, Sentinel | None]:
    """Return what decides about others' records: what an earlier session on the root has, with what was written since."""
    ledger = None if earlier is None else earlier.belief.ledger
    if ledger is not None:
        ledger.refresh()
    elif opened.verdicts is not None:
        ledger = Ledger(opened.verdicts, clock.unix_ns)
    else:
        return None, None
    return ledger, Sentinel(opened.marks, ledger, OsProcessTable(), clock, socket.gethostname())
