"""Hosts that share no disk: every rank has a root of its own."""

import hashlib
import random
from dataclasses import replace

import torch.distributed as dist

import fi_cachestore
from fi_cachestore.records.record import Measurement
from fi_cachestore.store.fsck import verify
from fi_cachestore.store.port import Hit
from fi_cachestore.store.roots import packed_reader
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.adapter.believing import believe
from tests.ranks.job import job
from tests.ranks.runners import MEASURED_PER_PROFILE, PROFILE_COUNT, Backend, Other, Sharp, Short, answer, noisy, tune, tune_in_turn

PER_RUNNER = PROFILE_COUNT * MEASURED_PER_PROFILE


def warm_up(rank, roots, ops, group=True):
    runners = [Backend(), Other()]
    with cpu_timing(noisy(rank)) as measured:
        with fi_cachestore.autotune(root=roots[rank], group=dist.group.WORLD if group else None) as session:
            for op in ops:
                tune(op, runners)
        return len(measured), [answer(op, runners, rows) for op in ops for rows in (20, 70, 300)], session.report()


def roots_of(tmp_path, count):
    return [tmp_path / f"host{rank}" for rank in range(count)]


def test_cold_hosts_measure_once_in_total_and_all_are_warm_afterwards(tmp_path):
    roots, ops = roots_of(tmp_path, 3), [f"op{number}" for number in range(6)]
    results = job(3, warm_up, roots, ops)
    assert sum(count for count, _, _ in results) == len(ops) * 2 * PER_RUNNER
    assert all(answers == results[0][1] for _, answers, _ in results)
    assert [len(fi_cachestore.open_store(root, read_only=True)) for root in roots] == [len(ops) * 2 * PROFILE_COUNT] * 3
    assert [job(1, warm_up, [root], ops)[0][:2] for root in roots] == [(0, results[0][1])] * 3


def test_a_warm_head_and_a_cold_peer_start_equal(tmp_path):
    roots, ops = roots_of(tmp_path, 2), ["op0", "op1"]
    ((_, answers, _),) = job(1, warm_up, roots[:1], ops)
    results = job(2, warm_up, roots, ops)
    assert [(count, found) for count, found, _ in results] == [(0, answers)] * 2
    assert len(fi_cachestore.open_store(roots[1], read_only=True)) == len(ops) * 2 * PROFILE_COUNT


def bytes_of(root):
    """What every record of a root is, loose or packed."""
    store = packed_reader(root)
    return {digest: hashlib.sha256(store.serving(digest).data).hexdigest() for digest in store}


def scattered(tmp_path, world, ops, seed):
    """Give every record of a tuned root to a random subset of hosts, sometimes with other times on one of them; return how many none has."""
    dice = random.Random(seed)
    job(1, warm_up, [tmp_path / "whole"], ops)
    whole = fi_cachestore.open_store(tmp_path / "whole", read_only=True)
    stores = [fi_cachestore.open_store(root) for root in roots_of(tmp_path, world)]
    nobody_has = 0
    for digest in sorted(whole):
        hit = whole.get(digest)
        assert isinstance(hit, Hit)
        holders = [rank for rank in range(world) if dice.random() < 0.4]
        nobody_has += not holders
        for rank in holders:
            other = tuple(Measurement(m.tactic, dice.randrange(900_000, 1_100_000)) for m in hit.entry.measurements)
            stores[rank].publish(replace(hit.entry, measurements=other) if dice.random() < 0.3 else hit.entry)
    return nobody_has


def test_whatever_subset_of_records_the_hosts_hold(tmp_path):
    subsets = 0
    for world, op_count in ((2, 90), (4, 80)):
        base, ops = tmp_path / str(world), [f"op{number}" for number in range(op_count)]
        nobody_has = scattered(base, world, ops, seed=world)
        roots = roots_of(base, world)
        before = [bytes_of(root) for root in roots]
        results = job(world, warm_up, roots, ops)
        assert sum(count for count, _, _ in results) == nobody_has * MEASURED_PER_PROFILE, "what any host has is not measured again"
        assert all(answers == results[0][1] for _, answers, _ in results)
        assert {report.settled_call_count for _, _, report in results} == {0}, "of records that differ, all use the same one"
        for root, names in zip(roots, before, strict=True):
            assert names.items() <= bytes_of(root).items(), "nothing that a host held is touched"
        assert [count for count, _, _ in job(world, warm_up, roots, ops)] == [0] * world
        subsets += op_count * 2 * PROFILE_COUNT
    assert subsets >= 1000


def test_one_record_that_differs_costs_nothing_else(tmp_path):
    roots, ops = roots_of(tmp_path, 2), [f"op{number}" for number in range(34)]
    job(2, warm_up, roots, ops)
    victim = sorted((roots[1] / "objects").rglob("*.rec"))[7]
    store = fi_cachestore.open_store(roots[1])
    digest = victim.name.partition(".")[0]
    hit = store.get(digest)
    victim.unlink()
    store.publish(
        replace(hit.entry, measurements=tuple(Measurement(m.tactic, 5_000_000 - (m.time_ns or 0)) for m in hit.entry.measurements))
    )
    before = [bytes_of(root) for root in roots]
    results = job(2, warm_up, roots, ops)
    assert [count for count, _, _ in results] == [0, 0]
    assert results[0][1] == results[1][1]
    assert [bytes_of(root) for root in roots] == before


def backends_of_some(rank, roots):
    """Rank 0 has tuned both backends before, rank 1 one of them."""
    with cpu_timing(noisy(rank)) as measured:
        with fi_cachestore.autotune(root=roots[rank]):
            tune("op", [Backend(), Other()] if rank == 0 else [Backend()])
        alone = len(measured)
        with fi_cachestore.autotune(root=roots[rank], group=dist.group.WORLD):
            tune("op", [Backend(), Other()])
        return len(measured) - alone, [answer("op", [Backend(), Other()], rows) for rows in (20, 70, 300)]


def test_records_of_both_backends_on_one_rank_and_of_one_on_the_other(tmp_path):
    results = job(2, backends_of_some, roots_of(tmp_path, 2))
    assert [count for count, _ in results] == [0, 0]
    assert results[0][1] == results[1][1]


def unlike(rank, roots):
    """Rank 1 cannot verify the fastest runner, so that something is settled; each rank on its own root."""
    runners = [Sharp(), Short(rank)]
    with cpu_timing(noisy(0)), fi_cachestore.autotune(root=roots[rank], group=dist.group.WORLD):
        tune_in_turn(rank, "op", runners)
    return [answer("op", runners, rows) for rows in (20, 70, 300)]


def test_every_host_keeps_what_was_settled_and_a_damaged_one_is_found_and_not_believed(tmp_path):
    roots = roots_of(tmp_path, 2)
    answers = job(2, unlike, roots)
    assert answers[0] == answers[1]
    believe(*roots)
    assert job(2, replaying, roots) == answers
    for root in roots:
        assert verify(root).settlement_count == PROFILE_COUNT
        for path in (root / "settled").rglob("*.rec"):
            path.write_bytes(path.read_bytes()[:-1] + b"\0")
        assert {finding.reason for finding in verify(root).findings} == {"corrupt"}
    assert job(2, replaying, roots)[1] != answers[1], "without it, each goes by its records"


def replaying(rank, roots):
    fi_cachestore.attach(root=roots[rank])
    return [answer("op", [Sharp(), Short(rank)], rows) for rows in (20, 70, 300)]
