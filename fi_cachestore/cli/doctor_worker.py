"""The other process of ``doctor``: holds a claim until it is killed, or is one rank of a group that meets."""

from __future__ import annotations

import datetime as dt
import json
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
RANK_COUNT: Final = 2
MEETING_S: Final = 30.0
"""How long the ranks have to meet."""


def hold(folder: Path) -> None:
    """Claim ``DIGEST``, print ``held`` or why not, and keep it until stdin ends."""
    match FileCoordinator(folder).claim(DIGEST, "doctor"):
        case Busy(holder):
            _say(f"taken by {holder}")
        case Unavailable(why):
            _say(why)
        case claim:
            _say("held")
            sys.stdin.read()
            claim.release()


def meet(folder: Path, rank: int, address: str | None) -> dict[str, Any]:
    """Make a gloo group with the other process, meet it as a session does, and say something to it through the session's store."""
    import torch.distributed as dist

    timeout = dt.timedelta(seconds=MEETING_S)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANK_COUNT, timeout=timeout)
    world: Any = dist.group.WORLD
    joined = join(world, {}, reachable_at=[] if address is None else [address], answer_s=MEETING_S)
    try:
        heard = joined.board is not None and joined.board.compare_set("doctor", b"", b"here") == b"here"
        dist.barrier()  # the first rank serves the store until the other has been answered
    finally:
        joined.close()
        dist.destroy_process_group()
    return {"heard": heard}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """Run ``hold FOLDER`` or ``meet FOLDER RANK [ADDRESS]``."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    task, folder, *rest = arguments
    if task == "hold":
        hold(Path(folder))
    else:
        _say(json.dumps(meet(Path(folder), int(rest[0]), rest[1] if len(rest) > 1 else None)))


if __name__ == "__main__":
    main(sys.argv[1:])
