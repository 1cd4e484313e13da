"""One rank of a job on two hosts; run by ``test_network.py`` inside a network namespace."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

import fi_cachestore
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.ranks.runners import Backend, Other, answer, noisy, tune


def main(rank, meeting, root, out):
    dist.init_process_group("gloo", init_method=f"tcp://{meeting}", rank=rank, world_size=2)
    ops = ["op0", "op1"]
    with cpu_timing(noisy(rank)) as measured:
        with fi_cachestore.autotune(root=root, group=dist.group.WORLD) as session:
            for op in ops:
                tune(op, [Backend(), Other()])
        answers = [answer(op, [Backend(), Other()], rows) for op in ops for rows in (20, 70, 300)]
    report = session.report()
    found = {
        "measured": len(measured),
        "answers": answers,
        "shared": report.shared_call_count,
        "stored": len(fi_cachestore.open_store(root)),
    }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
