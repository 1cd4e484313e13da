"""Jobs of several ranks: real processes, a real gloo group over loopback, the real AutoTuner; kernel times are made up."""

import datetime as dt
import os
import tempfile
from pathlib import Path

from tests.adapter.processes import Fresh


def _rank(function, rank, size, meeting, timeout_s, args, kwargs):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    timeout = dt.timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timeout)
    return function(rank, *args, **kwargs)


class Job:
    """``function(rank, *args)`` on every rank, in processes of their own."""

    def __init__(self, size, function, *args, timeout_s=60, env=None, **kwargs):
        meeting = Path(tempfile.mkdtemp()) / "meeting"
        self.ranks = [Fresh(_within, env or {}, _rank, function, rank, size, meeting, timeout_s, args, kwargs) for rank in range(size)]

    def results(self, timeout_s=120):
        return [rank.result(timeout_s) for rank in self.ranks]


def _within(env, function, *args):
    os.environ.update(env)
    return function(*args)


def job(size, function, *args, **kwargs):
    """Run a job to its end and return what each rank returned."""
    return Job(size, function, *args, **kwargs).results()
