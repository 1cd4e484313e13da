"""Several ranks measure again: what one renews all serve, and they end alike."""

import torch.distributed as dist

import fi_cachestore
from fi_cachestore.store.fsck import verify
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.ranks.job import job
from tests.ranks.runners import MEASURED_PER_PROFILE, PROFILE_COUNT, Backend, answer, tune

OPS = [f"op{number}" for number in range(8)]


def told(best):
    """A timer for which one tactic is the best by far."""

    def timer(run, runner, tactic):
        run()
        return 1.0 if tactic == best else 5.0

    return timer


def warm_up(rank, root, mode, best):
    runners = [Backend()]
    with cpu_timing(told(best)) as measured, fi_cachestore.autotune(root=root, mode=mode, group=dist.group.WORLD) as session:
        for op in OPS:
            tune(op, runners)
    report = session.report()
    return len(measured), [answer(op, runners, rows)[1] for op in OPS for rows in (20, 70, 300)], report.renewed_count, report.hit_count


def test_on_one_root_what_one_rank_renews_all_serve(tmp_path):
    assert {tuple(answers) for _, answers, _, _ in job(2, warm_up, tmp_path, "auto", 0)} == {(0,) * 24}
    results = job(2, warm_up, tmp_path, "refresh", 2)
    assert [answers for _, answers, _, _ in results] == [[2] * 24] * 2
    assert sum(renewed for _, _, renewed, _ in results) == len(OPS) * PROFILE_COUNT
    assert sum(count for count, _, _, _ in results) >= len(OPS) * PROFILE_COUNT * MEASURED_PER_PROFILE
    again = job(2, warm_up, tmp_path, "auto", 1)
    assert [(count, answers) for count, answers, _, _ in again] == [(0, [2] * 24)] * 2
    assert verify(tmp_path).findings == ()


def test_nothing_is_renewed_where_nothing_has_changed(tmp_path):
    job(2, warm_up, tmp_path, "auto", 1)
    results = job(2, warm_up, tmp_path, "refresh", 1)
    assert [(answers, renewed) for _, answers, renewed, _ in results] == [([1] * 24, 0)] * 2
    assert all(count > 0 for count, _, _, _ in results)


def pin_in_a_group(rank, root, digest):
    runners = [Backend()]
    with (
        cpu_timing(told(1)) as measured,
        fi_cachestore.autotune(root=root, mode="pin", pin=digest, group=dist.group.WORLD) as session,
    ):
        served = [tune(op, runners)[1] for op in (*OPS, "unknown")]
    return served, len(measured), session.is_among_ranks


def test_pinned_ranks_serve_their_bundle_and_share_nothing(tmp_path):
    from fi_cachestore.store.bundle import write_bundle
    from fi_cachestore.store.roots import packed_reader

    job(2, warm_up, tmp_path / "root", "auto", 0)
    reader = packed_reader(tmp_path / "root")
    digest = write_bundle(tmp_path / "out" / "packs", reader, list(reader)).digest
    assert job(2, pin_in_a_group, tmp_path / "out", digest) == [([0] * 8 + [-1], 0, False)] * 2
