"""Records of other processes are believed after they were verified, and for the values that were seen; what contradicts is served by nobody."""

import functools
import os
import shutil
from collections import Counter

import pytest
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from fi_cachestore.adapter import attach as attach_module
from fi_cachestore.store import verdicts as verdicts_module
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.open import open_store
from tests.adapter.believing import believe, verdicts
from tests.adapter.doubtful import (
    COUNTS,
    RIGHT,
    SPOILT,
    WRONG,
    Compound,
    Hungry,
    Killing,
    Ranked,
    SeedRunner,
    Unrepeatable,
    ask,
    layout_called,
    ranking_called,
    replay,
    tune,
)
from tests.adapter.processes import fresh
from tests.adapter.runners import BUCKETS, timed
from tests.adapter.test_sizes import with_contract

OWN = {True: 13, False: 3}
"""The fastest tactic of each layout."""


def start(root, layout, role=WRONG, **place):
    return fresh(tune, root, SeedRunner(layout), functools.partial(layout_called, role), **place)


def serve(root, layout, role=WRONG, **place):
    return fresh(replay, root, SeedRunner(layout), functools.partial(layout_called, role), **place)


def assert_nobody_is_served(root):
    """Every process tunes for itself, and what is only attached runs its default."""
    for layout, own in OWN.items():
        again = start(root, layout)
        assert (again.tactic, again.after) == (own, own)
        assert again.measured
        assert again.report.hit_count == again.report.tuned_count == 0
        assert again.report.ephemeral["quarantined key schema"] >= 1
        assert again.report.verified_count == 0, "the verdict is known"
        assert serve(root, layout).tactic == -1


# -- the seed bug, in every order of starts ---------------------------------------------------------------------------------------


def test_a_second_layout_is_caught_quarantined_and_served_by_nobody(tmp_path):
    assert start(tmp_path, True).tactic == 13
    second = start(tmp_path, False)
    assert (second.tactic, second.after) == (3, 3), "tuned in memory, by its own list"
    assert "another tactic list" in str(second.report.quarantined)
    assert second.report.run_count == 0, "what its own list does not have is not run, to see what happens"
    assert verdicts(tmp_path) == {"quarantine": 1}
    assert_nobody_is_served(tmp_path)


def test_two_equal_starts_validate_their_own_layout_and_the_other_is_still_caught(tmp_path):
    first, second = start(tmp_path, True), start(tmp_path, True)
    assert (first.report.verified_count, second.report.verified_count) == (0, 2)
    assert (second.tactic, second.measured) == (13, [])
    assert verdicts(tmp_path) == {"validation": 1}
    assert serve(tmp_path, True).tactic == 13
    assert serve(tmp_path, False).tactic == -1
    assert start(tmp_path, False).tactic == 3
    assert verdicts(tmp_path) == {"validation": 1, "quarantine": 1}
    assert_nobody_is_served(tmp_path)


def test_what_two_processes_validated_says_nothing_of_records_that_a_third_with_another_layout_wrote(tmp_path):
    start(tmp_path, True)
    start(tmp_path, True)
    assert start(tmp_path, False, columns=64).tactic == 3, "nobody has been there: it measures and publishes"
    assert verdicts(tmp_path) == {"validation": 1}
    assert serve(tmp_path, True, columns=64).report.misses == {"unproven": 1}
    assert start(tmp_path, True, columns=64).tactic == 13
    assert verdicts(tmp_path) == {"validation": 1, "quarantine": 1}
    assert_nobody_is_served(tmp_path)


def test_layouts_that_were_validated_apart_are_not_believed_together(tmp_path):
    for layout, columns in ((True, 32), (True, 32), (False, 64), (False, 64)):
        start(tmp_path, layout, columns=columns)
    assert verdicts(tmp_path) == {"validation": 2}
    assert serve(tmp_path, True, columns=64).report.misses == {"unproven": 1}
    assert start(tmp_path, True, columns=64).tactic == 13
    assert_nobody_is_served(tmp_path)


def test_a_verdict_changes_no_key(tmp_path):
    keys = []
    for layout in (True, True, False):  # unproven, validated, quarantined
        start(tmp_path, layout)
        keys.append(sorted(open_store(tmp_path)))
    assert verdicts(tmp_path) == {"validation": 1, "quarantine": 1}
    assert keys[0] == keys[1] == keys[2] != []


def test_the_mended_contract_validates(tmp_path):
    start(tmp_path, True)
    start(tmp_path, False)
    assert verdicts(tmp_path) == {"quarantine": 1}
    for layout, own in OWN.items():
        assert [start(tmp_path, layout, RIGHT).tactic for _ in range(2)] == [own, own]
        assert serve(tmp_path, layout, RIGHT).tactic == own
    assert verdicts(tmp_path)["validation"] == 1, "one schema, and nothing is left out"


# -- what an operator says --------------------------------------------------------------------------------------------------------


def test_an_override_beats_evidence_either_way(tmp_path):
    start(tmp_path, True)
    assert serve(tmp_path, True).report.misses == {"unproven": 1}
    believe(tmp_path)
    assert serve(tmp_path, True).tactic == 13
    assert serve(tmp_path, False).tactic == 13, "wrong, as they were told"


# -- cost: sampled, once per schema -----------------------------------------------------------------------------------------------


def test_a_sample_is_tried_once_and_a_validated_store_costs_nothing_at_start(tmp_path):
    first = fresh(tune, tmp_path, SeedRunner(True))
    assert len(first.measured) == 4 * len(BUCKETS)
    assert first.report.verified_count == first.report.listing_count == first.report.run_count == 0
    second = fresh(tune, tmp_path, SeedRunner(True))
    assert (second.tactic, second.measured, second.report.verified_count) == (13, [], 2), "the smallest profile and the largest"
    assert second.counts == {"listings": 2, "runs": 6}, "per record a list, and the default twice beside the tactic"
    assert (second.report.listing_count, second.report.run_count) == (2, 6)
    third = fresh(tune, tmp_path, SeedRunner(True))
    assert (third.tactic, third.measured, third.counts) == (13, [], {"listings": 0, "runs": 0})
    assert third.report.verified_count == third.report.listing_count == third.report.run_count == 0
    served = fresh(replay, tmp_path, SeedRunner(True))
    assert (served.tactic, served.counts) == (13, {"listings": 0, "runs": 0})


OPS = ("one", "two", "three")
SEVEN_OPS = (*OPS, "four", "five", "six", "seven")


def note_verdicts_read(operations):
    """Note what is listed, read and decoded of verdicts."""
    listed, read, decoded = OsFileSystem.names, OsFileSystem.read, verdicts_module.verdict_from

    def noting(what, call):
        def noted(files, path, *rest):
            if "/verdicts" in str(path):
                operations.append(what)
            return call(files, path, *rest)

        return noted

    OsFileSystem.names, OsFileSystem.read = noting("list", listed), noting("read", read)
    verdicts_module.verdict_from = lambda value: operations.append("decode") or decoded(value)


def start_of(root, ops=OPS, **settings):
    """Tune some ops, and return what was done to the verdicts, and what was tried. What is on disk counts as settled."""
    operations = []
    note_verdicts_read(operations)
    verdicts_module._SETTLED_NS = -(10**12)
    COUNTS.update(listings=0, runs=0)
    with timed() as measured, fi_cachestore.autotune(root=root, **settings) as session:
        tactics = [ask(SeedRunner(True), op=op) for op in ops]
        asked = Counter(operations)
    return tactics, len(measured), session.report().hit_count, session.report().verified_count, asked


def test_a_start_on_a_validated_store_lists_and_reads_each_schema_once_and_decodes_no_verdict(tmp_path):
    count = len(OPS) * len(BUCKETS)
    assert fresh(start_of, tmp_path)[:4] == ([13] * 3, 4 * count, 0, 0)
    assert fresh(start_of, tmp_path)[:4] == ([13] * 3, 0, count, 2 * len(OPS))
    found = fresh(start_of, tmp_path)
    assert found[:4] == ([13] * 3, 0, count, 0)
    assert found[4] == {"list": 3 + len(OPS), "read": len(OPS)}, (
        "three folders (no overview, no refusal), and each schema's own and one validation"
    )


def test_a_later_start_finds_all_verdicts_in_one_file_and_only_sessions_that_publish_leave_it(tmp_path):
    root, count = tmp_path / "root", len(SEVEN_OPS) * len(BUCKETS)
    for _ in range(2):
        fresh(start_of, root, SEVEN_OPS)
    shutil.rmtree(root / "verdicts" / "overview", ignore_errors=True)
    before = tree(root)
    replayed = fresh(start_of, root, SEVEN_OPS, mode="replay")
    assert replayed[0] == [13] * len(SEVEN_OPS)
    assert tree(root) == before
    fresh(start_of, root, SEVEN_OPS)
    overview = root / "verdicts" / "overview"
    assert tree(root).keys() - before.keys() == {overview, overview / "00000000.rec"}
    found = fresh(start_of, root, SEVEN_OPS)
    assert found[:4] == ([13] * len(SEVEN_OPS), 0, count, 0)
    assert found[4] == {"list": 2, "read": 1}, "the folder of overviews and the newest one, and that there is no refusal"
    replayed = fresh(start_of, root, SEVEN_OPS, mode="replay")
    assert (replayed[0], replayed[4]) == ([13] * len(SEVEN_OPS), found[4])


def test_replay_verifies_nothing_and_writes_nothing(tmp_path):
    root = tmp_path / "root"
    fresh(tune, root, SeedRunner(True))
    before = tree(root)
    served = fresh(replay, root, SeedRunner(True))
    assert (served.tactic, served.counts) == (-1, {"listings": 0, "runs": 0})
    assert served.report.misses == {"unproven": 1}
    assert tree(root) == before


def tree(root):
    """Every path below a root with its size and time of change."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(root.rglob("*"))}


# -- what becomes of tactics ------------------------------------------------------------------------------------------------------

OWN_WAY = {"removed": 2, "permuted": 3, "renumbered": 2, "not a number": 3, "raising": 2, "refusing": -1, "writing nothing": 3}
"""What FlashInfer itself chooses in its memory, where nobody checks what comes out."""


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_tactic_is_found_out_and_its_record_is_served_by_nobody(tmp_path, how):
    assert fresh(tune, tmp_path, SPOILT[how]()).tactic == (2 if how == "renumbered" else 3)
    second = fresh(tune, tmp_path, SPOILT[how]("spoilt"))
    assert verdicts(tmp_path) == {"quarantine": 1}
    assert second.report.tuned_count == 0
    assert (second.tactic, second.after) == (OWN_WAY[how], OWN_WAY[how])
    assert second.measured, "its own, in memory"
    for how_rank in ("", "spoilt"):
        assert fresh(replay, tmp_path, SPOILT[how](how_rank)).tactic == -1


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_as_it_was_is_validated_whatever_the_kind_of_tactic(tmp_path, how):
    for _ in range(2):
        assert fresh(tune, tmp_path, SPOILT[how]()).tactic == (2 if how == "renumbered" else 3)
    assert verdicts(tmp_path) == {"validation": 1}


def test_without_memory_to_verify_nothing_is_served_and_nothing_is_written(tmp_path):
    assert fresh(tune, tmp_path, Hungry()).tactic == 3
    second = fresh(tune, tmp_path, Hungry("no memory"))
    assert (second.tactic, second.after) == (-1, -1)
    assert second.report.ephemeral["records that could not be verified"] >= 1
    assert verdicts(tmp_path) == {}
    assert fresh(tune, tmp_path, Hungry()).tactic == 3
    assert verdicts(tmp_path) == {"validation": 1}


def test_positions_whose_results_cannot_be_compared_are_not_served_and_nothing_is_written(tmp_path):
    assert fresh(tune, tmp_path, Unrepeatable()).tactic == 2
    second = fresh(tune, tmp_path, Unrepeatable())
    assert (second.tactic, second.report.tuned_count) == (2, 0)
    assert second.measured, "its own, in memory"
    assert second.report.ephemeral["records that could not be verified"] >= 1
    assert verdicts(tmp_path) == {}


def reviewed_as_listed():
    with_contract(attach_module, Unrepeatable, space="listed")


def test_positions_that_a_contract_calls_a_list_are_proved_by_it(tmp_path):
    for _ in range(2):
        assert fresh(tune, tmp_path, Unrepeatable(), reviewed_as_listed).tactic == 2
    assert verdicts(tmp_path) == {"validation": 1}


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGABRT"])
def test_a_tactic_that_kills_twice_is_refused_and_the_third_start_serves_the_default(tmp_path, how):
    assert fresh(tune, tmp_path, Killing(), buckets=(64,)).tactic == 3
    for _ in range(2):
        with pytest.raises(ChildProcessError):
            fresh(tune, tmp_path, Killing(how), buckets=(64,))
        assert verdicts(tmp_path) == {}
    third = fresh(tune, tmp_path, Killing(how), buckets=(64,))
    assert (third.tactic, third.after, third.measured) == (-1, -1, [])
    assert third.report.misses["refused"] >= 1
    assert verdicts(tmp_path) == {"refusal": 1} or verdicts(tmp_path).total() == 1
    assert fresh(replay, tmp_path, Killing(), buckets=(64,)).report.misses == {"refused": 1}


def test_processes_that_somebody_kills_say_nothing_of_a_tactic(tmp_path):
    fresh(tune, tmp_path, Killing(), buckets=(64,))
    for _ in range(3):
        with pytest.raises(ChildProcessError, match="-9"):
            fresh(tune, tmp_path, Killing("SIGKILL"), buckets=(64,))
    assert verdicts(tmp_path) == {}
    assert fresh(tune, tmp_path, Killing(), buckets=(64,)).tactic == 3
    assert verdicts(tmp_path) == {"validation": 1}


def block_the_fastest():
    AutoTuner.get()._blocklist._invalid["op::Raising"] = {3}


def test_what_a_blocklist_names_is_neither_tried_nor_served(tmp_path):
    fresh(tune, tmp_path, SPOILT["raising"]())
    second = fresh(tune, tmp_path, SPOILT["raising"]("spoilt"), block_the_fastest)
    assert (second.tactic, second.after, second.measured) == (2, 2, [])
    assert verdicts(tmp_path)["quarantine"] == 0
    assert fresh(replay, tmp_path, SPOILT["raising"]("spoilt"), block_the_fastest).tactic == 2


# -- lists that come from timing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_reviewed", [False, True])
def test_a_list_that_is_ranked_by_timing_validates_and_stays_valid_over_twenty_starts(tmp_path, is_reviewed):
    prepare = functools.partial(ranking_called, "measured") if is_reviewed else None
    fresh(tune, tmp_path, Ranked(), prepare)
    second = fresh(tune, tmp_path, Ranked(), prepare)
    assert second.report.verified_count == 2
    assert verdicts(tmp_path) == {"validation": 1}
    for _ in range(18):
        again = fresh(tune, tmp_path, Ranked(), prepare)
        assert (again.tactic, again.measured, again.counts) == ((7, 8), [], {"listings": 0, "runs": 0})
    assert verdicts(tmp_path) == {"validation": 1}


@pytest.mark.skipif(not hasattr(AutoTuner, "rank_tactics"), reason="FlashInfer 0.6.14 and later")
def test_a_list_that_the_tuner_itself_ranks_comes_from_timing(tmp_path):
    """Two lists of one process are alike here, since the second is ranked from a record."""
    assert fresh(tune, tmp_path, Compound({1: 1.0, 2: 2.0, 3: 3.0})).tactic == 3
    for path in tmp_path.glob("objects/*/*.rec"):
        if open_store(tmp_path).get(path.name[:64]).entry.key.op == "stage":
            path.unlink()
    second = fresh(tune, tmp_path, Compound({1: 3.0, 2: 2.0, 3: 1.0}))
    assert (second.tactic, second.report.quarantined) == (3, {})
    assert second.report.verified_count == 2
    assert verdicts(tmp_path)["quarantine"] == 0


# -- layers -----------------------------------------------------------------------------------------------------------------------


def tune_over_image(root, image, runner):
    os.environ["FI_CACHESTORE_PATH"] = str(image)
    return tune(root, runner)


def test_the_store_of_an_image_is_verified_without_writing_to_it_and_the_verdict_lands_in_the_writable_layer(tmp_path):
    image, root = tmp_path / "image", tmp_path / "root"
    fresh(tune, image, SeedRunner(True))
    before = tree(image)
    first = fresh(tune_over_image, root, image, SeedRunner(True))
    assert (first.tactic, first.measured, first.report.verified_count) == (13, [], 2)
    assert tree(image) == before
    assert (verdicts(image), verdicts(root)) == ({}, {"validation": 1})
    second = fresh(tune_over_image, root, image, SeedRunner(True))
    assert (second.tactic, second.measured, second.counts) == (13, [], {"listings": 0, "runs": 0})


def test_a_validation_that_comes_with_the_image_is_believed(tmp_path):
    image, root = tmp_path / "image", tmp_path / "root"
    for _ in range(2):
        fresh(tune, image, SeedRunner(True))
    first = fresh(tune_over_image, root, image, SeedRunner(True))
    assert (first.tactic, first.measured, first.counts) == (13, [], {"listings": 0, "runs": 0})
    assert verdicts(root) == {}


def ask_for_both(root):
    layout_called(WRONG)
    tuned = tune(root, SeedRunner(True))
    return tuned.after, [ask(SeedRunner(layout)) for layout in (True, False, True, False)]


def test_an_answer_that_is_remembered_for_one_value_is_not_given_to_another(tmp_path):
    assert fresh(ask_for_both, tmp_path) == (13, [13, -1, 13, -1])


# -- whose a record is ------------------------------------------------------------------------------------------------------------


def fork_and_ask(root):
    tuned = tune(root, SeedRunner(True))
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, str(ask(SeedRunner(True), rows=299)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return tuned.tactic, os.read(reading, 100).decode()


def test_a_fork_is_another_process(tmp_path):
    assert fresh(fork_and_ask, tmp_path) == (13, "-1")


def test_a_start_that_meets_another_process_verifies_what_that_one_wrote_first(tmp_path):
    fresh(tune, tmp_path, SeedRunner(True), rows=60)
    second = fresh(tune, tmp_path, SeedRunner(True), rows=300)
    assert second.tactic == 13
    assert second.report.verified_count == 2
    assert second.report.hit_count == len(BUCKETS)
