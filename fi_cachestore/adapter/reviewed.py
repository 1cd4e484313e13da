"""Runner classes of FlashInfer that no contract speaks for: the default rules apply, and the report says so."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from fi_cachestore.adapter.sources import type_name

if TYPE_CHECKING:
    from fi_cachestore.adapter.introspect import Introspector, RunnerView
    from fi_cachestore.adapter.serve import Description
    from fi_cachestore.adapter.state import AdapterState

logger: Final = logging.getLogger(__name__)
CHANGED: Final = "its source changed"
NEW: Final = "none was written for this class"


def note(state: AdapterState, described: Description) -> None:
    """Report the runner classes of a call whose contract does not hold; log each once per session."""
    recorder = state.current.session.recorder
    for index in range(len(described.runners)):
        view = described.view(0, index)
        why = unreviewed(state.introspector, view)
        if why is not None and recorder.unreviewed(type_name(type(view.runner)), why):
            logger.warning("the contract of %s does not hold: %s; the default rules apply", type_name(type(view.runner)), why)


def unreviewed(introspector: Introspector, view: RunnerView) -> str | None:
    """Return why no contract speaks for a class of FlashInfer; ``None`` where one does, and for classes of others."""
    name = type_name(type(view.runner))
    if view.contract.type or not name.startswith("flashinfer."):
        return None
    return CHANGED if name in introspector.contracts else NEW
