"""Packing at the end of a session: by one process at a time, and only where it is worth it."""

from __future__ import annotations

import logging
from typing import Final

from fi_cachestore.coordination.port import Busy, Coordinator, Unavailable
from fi_cachestore.errors import CacheStoreError
from fi_cachestore.keys.digest import part_digest
from fi_cachestore.records.record import Record
from fi_cachestore.store.packing import WORTHWHILE_COUNT, Packer, Packing

logger: Final = logging.getLogger("fi_cachestore")

TURN: Final = part_digest(b"packing")
"""What a packer claims, so that others do not do the same work."""


def pack_in_turn(packer: Packer[Record], turns: Coordinator) -> Packing | None:
    """Pack a root that has many loose records; ``None`` if it has few, somebody else is at it, or the file system refuses. Never raises."""
    if packer.loose_count() < WORTHWHILE_COUNT:
        return None
    match turns.claim(TURN, "packing"):
        case Busy():
            return None
        case Unavailable():  # two at once cost double work and nothing else
            return _packed(packer)
        case claim:
            try:
                return _packed(packer)
            finally:
                claim.release()


def _packed(packer: Packer[Record]) -> Packing | None:
    try:
        done = packer.pack(packer.plan())
    except CacheStoreError as error:
        logger.info("records stay loose: %s", error)
        return None
    logger.info("%d records packed, %d loose files removed %s", done.record_count, done.removed_count, done.why_not)
    return done
