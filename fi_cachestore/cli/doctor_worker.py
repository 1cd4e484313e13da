"""The other process of ``doctor``: holds a claim until it is killed, or is one of two ranks that meet."""

from __future__ import annotations

import datetime as dt
import logging
import sys
from pathlib import Path
from typing import Any, Final

from fi_cachestore.coordination.files import FileCoordinator
from fi_cachestore.coordination.port import Busy, Unavailable
from fi_cachestore.coordination.torch_store import join
from fi_cachestore.keys.digest import Digest

DIGEST: Final = Digest("d0c7" * 16)
"""What is claimed."""
HELD: Final = "held"
HEARD: Final = "heard"
RANK_COUNT: Final = 2
_MEETING_S: Final = 30.0


def hold(folder: Path) -> str:
    """Claim ``DIGEST`` and say so, or why not; keep it until stdin ends."""
    match FileCoordinator(folder).claim(DIGEST, "doctor"):
        case Busy(holder):
            return f"{holder} has it"
        case Unavailable(why):
            return why
        case claim:
            _say(HELD)
            sys.stdin.read()
            claim.release()
            return "released"


def meet(rank: int, meeting: str, address: str | None) -> str:
    """Make a gloo group with the other process, then a session's store with it, and be answered by that."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANK_COUNT, timeout=dt.timedelta(seconds=_MEETING_S)
    )
    world: Any = dist.group.WORLD
    joined = join(world, None, reachable_at=[] if address is None else [address], answer_s=_MEETING_S)
    try:
        if joined.board is None:
            return "no store"
        answer = joined.board.compare_set("doctor", b"", b"here")
        dist.barrier()  # the first rank serves the store until the other has been answered
    finally:
        joined.close()
        dist.destroy_process_group()
    return HEARD if answer == b"here" else "another value"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """Run ``hold FOLDER`` or ``meet RANK MEETING [ADDRESS]``."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    task, *rest = arguments
    _say(hold(Path(rest[0])) if task == "hold" else meet(int(rest[0]), rest[1], rest[2] if rest[2:] else None))


if __name__ == "__main__":
    main(sys.argv[1:])
