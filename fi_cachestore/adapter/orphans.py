"""One line when a change of the environment has left records behind; said once per process and kind of device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from fi_cachestore.environment.facets import Device, Environment
from fi_cachestore.environment.identity import Environments
from fi_cachestore.environment.orphans import changes_since, described, is_left_behind
from fi_cachestore.records.record import Record
from fi_cachestore.store.left_behind import about_how_many, manifests
from fi_cachestore.store.port import Store

logger: Final = logging.getLogger("fi_cachestore")


class OrphanWatch:
    """Looks at one root and its layers. Reads a few small files, and some records only where there is something to say."""

    def __init__(self, directories: Sequence[Path], records: Store[Record]) -> None:
        """Look under ``directories``, whose records are ``records``."""
        self._directories, self._records = tuple(directories), records

    def say(self, device: Device, environments: Environments) -> None:
        """Log which facets of ``device`` have changed and how many records that leaves behind, if any. Never raises."""
        earlier = [found for data in manifests(self._directories) if (found := described(data)) is not None]
        if not earlier:
            return  # and nothing is probed
        current = environments.of(device)
        changes = changes_since(earlier, current)
        if not changes:
            return
        count, words = about_how_many(self._records, lambda record: is_left_behind(record.key.environment, current))
        if count:
            logger.warning(
                "%s under %s were measured in another environment of this %s and are not served: %s; tune again in this one",
                words,
                self._directories[0],
                _name(current),
                ", ".join(map(str, changes)),
            )


def device_at_hand() -> Device | None:
    """Return the device that this process works on if that can be told without waking one up."""
    if torch.cuda.is_initialized():
        return Device("cuda", torch.cuda.current_device())
    return Device("cpu") if torch.version.cuda is None else None


def _name(environment: Environment) -> str:
    model = environment.device_model()
    return str(model.get("gpu_name", model.get("processor", environment.device.type)))
