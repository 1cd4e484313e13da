"""Ranks that join others which serve already."""

from unittest import mock

import torch.distributed as dist

import fi_cachestore
from fi_cachestore.coordination.handover import leave
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.ranks.job import job
from tests.ranks.runners import Other, Sharp, answer, noisy, tune

COLLECTIVES = ["all_reduce", "all_gather", "broadcast", "barrier", "all_gather_object", "broadcast_object_list"]
PLACES = [(op, rows) for op in ("op0", "op1") for rows in (20, 70, 300)]


def answers():
    return [answer(op, [Other(), Sharp()], rows) for op, rows in PLACES]


def joining(rank, roots):
    """Ranks 0 and 1 serve, rank 2 has an empty root and joins them."""
    serving = dist.new_group([0, 1])
    served = None
    if rank < 2:
        with cpu_timing(noisy(rank)), fi_cachestore.autotune(root=roots[rank], group=serving):
            for op in ("op0", "op1"):
                tune(op, [Other(), Sharp()])
        served = answers()
    counted = []
    with mock.patch.multiple(dist, **{name: lambda *_args, name=name, **_kwargs: counted.append(name) for name in COLLECTIVES}):
        if rank < 2:
            fi_cachestore.attach(root=roots[rank], group=dist.group.WORLD)
    dist.barrier()  # the engine's own: the joiner comes after the others
    with mock.patch.multiple(dist, **{name: lambda *_args, name=name, **_kwargs: counted.append(name) for name in COLLECTIVES}):
        if rank == 2:
            fi_cachestore.attach(root=roots[rank], group=dist.group.WORLD)
        found = answers()
    return counted, found, served


def test_a_rank_that_joins_serves_what_the_others_do_without_a_collective(tmp_path):
    results = job(3, joining, [tmp_path / f"host{rank}" for rank in range(3)])
    assert [counted for counted, _, _ in results] == [[], [], []]
    assert results[2][1] == results[0][1] == results[0][2] == results[1][1]
    assert set(results[2][1]) == {(1, 2)}
    assert not (tmp_path / "host2").exists(), "it only reads"


def joining_nobody(rank, root):
    handle = fi_cachestore.attach(root=root, group=dist.group.WORLD)
    return handle.is_attached, answers()


def test_a_rank_that_nobody_left_anything_serves_defaults(tmp_path):
    assert job(2, joining_nobody, tmp_path) == [(True, [(0, -1)] * len(PLACES))] * 2


def joining_rubbish(rank, root):
    if rank == 0:
        leave(dist.group.WORLD, [b"rubbish", b"", bytes(100)])
    dist.barrier()
    fi_cachestore.attach(root=root, group=dist.group.WORLD)
    return answers()


def test_rubbish_that_was_left_costs_nothing(tmp_path):
    assert job(2, joining_rubbish, tmp_path) == [[(0, -1)] * len(PLACES)] * 2


class NoStore:
    """A process group that does not give its store away."""


def test_a_group_without_a_store_costs_one_warning(tmp_path, caplog):
    handle = fi_cachestore.attach(root=tmp_path, group=NoStore())
    assert "nothing is exchanged with ranks that join" in caplog.text
    handle.detach()
