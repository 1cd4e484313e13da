"""Ways around a verdict that must not be one: processes that only serve, other sessions, rankings, files that were moved, names of processes."""

from dataclasses import replace
from functools import partial

import flashinfer
import pytest
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from fi_cachestore.adapter import attach as attach_module
from fi_cachestore.adapter import cuda
from fi_cachestore.adapter.roles import Role
from fi_cachestore.environment.process import Process, process_identity
from fi_cachestore.keys.schema import left_out_digest
from fi_cachestore.store.open import open_store
from fi_cachestore.store.roots import open_root
from fi_cachestore.store.verdicts import VerdictFolder
from fi_cachestore.validation.ledger import Ledger
from tests.adapter.believing import verdicts
from tests.adapter.doubtful import RIGHT, WRONG, CountingRunner, Hungry, Killing, SeedRunner, ask, layout_called, replay, tune
from tests.adapter.processes import fresh
from tests.adapter.runners import config, matrix, timed
from tests.adapter.test_sizes import with_contract
from tests.adapter.test_trust import assert_nobody_is_served, serve, start

has_ranking = pytest.mark.skipif(not hasattr(AutoTuner, "rank_tactics"), reason="FlashInfer 0.6.14 and later")


# -- who only serves --------------------------------------------------------------------------------------------------------------


def only_serving(root, mode, layout, *, in_context):
    """Serve what an engine's process serves that never opens a context of this library; return every tactic it got."""
    layout_called(WRONG)
    fi_cachestore.attach(mode, root=root)
    got = {ask(SeedRunner(layout))}
    if in_context:
        with timed(), flashinfer.autotune(tune_mode=True):
            got.add(ask(SeedRunner(layout)))
    return got | {ask(SeedRunner(layout)), ask(SeedRunner(layout), rows=20)}


@pytest.mark.parametrize(("mode", "in_context"), [("replay", False), ("replay", True), ("auto", False)])
def test_who_only_serves_never_gets_another_layouts_tactic(tmp_path, mode, in_context):
    for _ in range(2):
        start(tmp_path, True)
    assert fresh(only_serving, tmp_path, mode, False, in_context=in_context) == {-1}
    assert verdicts(tmp_path) == {"validation": 1}, "look-ups decide nothing"
    assert fresh(only_serving, tmp_path, mode, True, in_context=in_context) == {13}


def test_who_serves_and_tunes_in_flashinfers_own_context_finds_the_other_layout_out(tmp_path):
    start(tmp_path, True)
    assert fresh(only_serving, tmp_path, "auto", False, in_context=True) <= {3, -1}
    assert verdicts(tmp_path) == {"quarantine": 1}
    assert_nobody_is_served(tmp_path)


# -- rankings ---------------------------------------------------------------------------------------------------------------------


def ranking(root, layout, role):
    layout_called(role)
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        ranked = AutoTuner.get().rank_tactics("op", [SeedRunner(layout)], config((64,)), [matrix(64)], k=3)
    return ranked, len(measured), session.report().verified_count


@has_ranking
def test_a_ranking_of_another_layout_is_found_out_and_given_to_nobody(tmp_path):
    assert fresh(ranking, tmp_path, True, WRONG)[0] == [13, 12, 11]
    ranked, measured_count, verified_count = fresh(ranking, tmp_path, False, WRONG)
    assert (ranked, verified_count) == ([3, 2, 1], 1)
    assert measured_count > 0, "its own, in memory"
    assert verdicts(tmp_path) == {"quarantine": 1}
    for layout, own in ((True, [13, 12, 11]), (False, [3, 2, 1])):
        ranked, measured_count, verified_count = fresh(ranking, tmp_path, layout, WRONG)
        assert (ranked, verified_count) == (own, 0)
        assert measured_count > 0


@has_ranking
def test_a_ranking_is_verified_once_and_then_given_as_it_was_recorded(tmp_path):
    assert [fresh(ranking, tmp_path, True, RIGHT) for _ in range(3)] == [([13, 12, 11], 3, 0), ([13, 12, 11], 0, 1), ([13, 12, 11], 0, 0)]
    assert verdicts(tmp_path) == {"validation": 1}


def ranking_and_saying_why(root, runner):
    layout_called(WRONG)
    with timed(), fi_cachestore.autotune(root=root) as session:
        AutoTuner.get().rank_tactics("op", [runner], config((64,)), [matrix(64)], k=3)
    return session.report().ephemeral


@has_ranking
def test_it_is_said_why_a_ranking_is_made_in_memory(tmp_path):
    assert fresh(ranking_and_saying_why, tmp_path, SeedRunner(True)) == {}
    for _ in range(2):
        assert fresh(ranking_and_saying_why, tmp_path, SeedRunner(False)) == {"quarantined key schema": 1}
    assert fresh(ranking_and_saying_why, tmp_path / "other", Hungry()) == {}
    assert fresh(ranking_and_saying_why, tmp_path / "other", Hungry("no memory")) == {"records that could not be verified": 1}


def remembering(root):
    """Serve one layout, rank the tactics of the other, and serve the first one again."""
    layout_called(WRONG)
    fi_cachestore.attach("auto", root=root)
    before = [ask(SeedRunner(True)), ask(SeedRunner(True))]
    with timed(), flashinfer.autotune(tune_mode=True):
        AutoTuner.get().rank_tactics("op", [SeedRunner(False)], config(), [matrix(300)], k=3)
    return before, ask(SeedRunner(True))


@has_ranking
def test_an_answer_that_is_remembered_is_not_given_once_a_ranking_has_found_its_schema_out(tmp_path):
    for _ in range(2):
        start(tmp_path, True)
    assert fresh(remembering, tmp_path) == ([13, 13], -1)


# -- values that were seen, but not together --------------------------------------------------------------------------------------


class TwoLeftOut(CountingRunner):
    """Its list depends on two parameters that a contract wrongly calls dynamic."""

    def __init__(self, fast, wide):
        self.fast, self.wide = fast, wide

    def listed(self, inputs):
        return [10 * (self.fast and not self.wide) + tactic for tactic in (1, 2, 3)]


def two_called_dynamic():
    with_contract(attach_module, TwoLeftOut, roles={"fast": Role.DYNAMIC, "wide": Role.DYNAMIC})


def test_what_two_processes_agree_on_says_nothing_of_two_others_that_have_the_same_values_otherwise_combined(tmp_path):
    for fast, wide in ((False, False), (True, True)):
        assert fresh(tune, tmp_path, TwoLeftOut(fast, wide), two_called_dynamic).tactic == 3
    assert verdicts(tmp_path)["quarantine"] == 0
    assert fresh(tune, tmp_path, TwoLeftOut(True, False), two_called_dynamic, columns=64).tactic == 13
    assert fresh(replay, tmp_path, TwoLeftOut(False, True), two_called_dynamic, columns=64).tactic == -1
    assert fresh(tune, tmp_path, TwoLeftOut(False, True), two_called_dynamic, columns=64).tactic == 3
    assert verdicts(tmp_path)["quarantine"] == 1


# -- files ------------------------------------------------------------------------------------------------------------------------


def verdict_paths(root, kind):
    return [path for path, place in VerdictFolder(root).files() if place is not None and place[1].startswith(kind)]


def test_a_quarantine_that_somebody_deletes_is_found_again_by_the_next_other_layout(tmp_path):
    for layout in (True, True, False):
        start(tmp_path, layout)
    assert_nobody_is_served(tmp_path)
    for path in verdict_paths(tmp_path, "quarantine"):
        path.unlink()
    assert serve(tmp_path, True).tactic == 13, "two processes have agreed on that"
    assert serve(tmp_path, False).tactic == -1
    assert start(tmp_path, False).tactic == 3
    assert_nobody_is_served(tmp_path)


def test_a_validation_under_the_name_of_other_values_or_of_another_schema_validates_nothing(tmp_path):
    for root, op in ((tmp_path / "one", "op"), (tmp_path / "one", "op"), (tmp_path / "two", "op"), (tmp_path / "two", "another")):
        start(root, True, op=op)
    one, two = tmp_path / "one", open_store(tmp_path / "two")
    [validation] = verdict_paths(one, "validation")
    for record in (two.get(digest).entry for digest in two):
        folder = tmp_path / "two" / "verdicts" / record.evidence.schema
        folder.mkdir(parents=True, exist_ok=True)
        name = (
            f"validation-{left_out_digest(record.evidence.left_out)}.0.rec"
            if record.key.op == "another"
            else f"validation-{'0' * 64}.0.rec"
        )
        (folder / name).write_bytes(validation.read_bytes())
    for op in ("op", "another"):
        served = serve(tmp_path / "two", True, op=op)
        assert (served.tactic, served.report.misses) == (-1, {"unproven": 1})


def test_what_was_validated_says_nothing_of_a_record_of_another_layout_in_the_same_call(tmp_path):
    for _ in range(2):
        start(tmp_path, True, buckets=(64,))
    start(tmp_path, False, buckets=(256,))  # which meets none of those
    again = start(tmp_path, True, buckets=(64, 256))
    assert (again.report.verified_count, again.tactic) == (1, 13)
    assert verdicts(tmp_path) == {"validation": 1, "quarantine": 1}


def refused_at_a_start(root):
    """Make a start, and return what this process may not choose of each record."""
    layout_called(WRONG)
    with timed() as measured, fi_cachestore.autotune(root=root) as handle:
        tactic = ask(SeedRunner(True))
        choices = AutoTuner.get().state.current.session.choices
        store = open_store(root)
        records = [store.get(digest).entry for digest in store]
        refused = [{choices.is_refused(record.digest, row.tactic) for row in record.usable} for record in records]
    return tactic, len(measured), handle.report().verified_count, refused


def test_a_refused_record_of_a_validated_schema_is_offered_to_no_rank(tmp_path):
    for _ in range(2):
        start(tmp_path, True)
    store = open_store(tmp_path)
    records = [store.get(digest).entry for digest in store]
    assert fresh(refused_at_a_start, tmp_path) == (13, 0, 0, [{False}] * len(records))
    Ledger(open_root(tmp_path).verdicts).refuse(records[1], "it kills", 0)
    expected = [{record is records[1]} for record in records]
    assert fresh(refused_at_a_start, tmp_path)[1:] == (0, 0, expected)


# -- what is not tried ------------------------------------------------------------------------------------------------------------


def in_a_capture():
    layout_called(WRONG)
    cuda.is_capturing = lambda: True


def test_nothing_is_tried_out_while_a_graph_is_captured(tmp_path):
    start(tmp_path, True)
    captured = fresh(tune, tmp_path, SeedRunner(True), in_a_capture)
    assert (captured.tactic, captured.measured, captured.counts) == (-1, [], {"listings": 0, "runs": 0})
    assert verdicts(tmp_path) == {}
    assert start(tmp_path, True).report.verified_count == 2


def block_the_fastest():
    AutoTuner.get()._blocklist._invalid["op::Killing"] = {3}


def test_a_tactic_that_flashinfer_blocks_is_not_even_tried(tmp_path):
    assert fresh(tune, tmp_path, Killing()).tactic == 3
    second = fresh(tune, tmp_path, Killing("SIGSEGV"), block_the_fastest)
    assert (second.tactic, second.measured, second.report.verified_count) == (2, [], 2)


# -- sessions ---------------------------------------------------------------------------------------------------------------------


def two_sessions(root):
    """One session only serves, another tunes; both layouts live in the process. Returns what the first layout was served, step by step."""
    layout_called(WRONG)
    serving = fi_cachestore.attach(root=root)
    got = [ask(SeedRunner(True)), ask(SeedRunner(False))]
    tuning = fi_cachestore.attach("auto", root=root)
    got.append(ask(SeedRunner(True)))
    with timed(), flashinfer.autotune(tune_mode=True):
        ask(SeedRunner(False))
    got += [ask(SeedRunner(True)), ask(SeedRunner(True))]
    tuning.detach()
    got.append(ask(SeedRunner(True)))
    serving.detach()
    fi_cachestore.attach(root=root)
    return [*got, ask(SeedRunner(True))]


def test_what_one_session_finds_out_holds_for_another_one_of_the_process_also_when_it_is_gone(tmp_path):
    for _ in range(2):
        start(tmp_path, True)
    assert fresh(two_sessions, tmp_path) == [13, -1, 13, -1, -1, -1, -1]


# -- names of processes -----------------------------------------------------------------------------------------------------------


def this_process(**changes):
    return str(replace(Process.parse(process_identity()), **changes))


CLAIMS = {
    "its pid, used again": lambda: this_process(start_ticks=1),
    "its pid, in another container": lambda: this_process(namespace=1),
    "its pid, before the host was started again": lambda: this_process(boot="another"),
    "nobody": lambda: "",
    "itself": this_process,
}


def claimed(root, forged, layout, claim):
    """Serve records of somebody else whose evidence makes a claim about who measured them."""
    layout_called(WRONG)
    records, store = open_store(root), open_store(forged)
    for record in (records.get(digest).entry for digest in records):
        store.publish(replace(record, evidence=replace(record.evidence, process=CLAIMS[claim]())))
    fi_cachestore.attach(root=forged)
    return ask(SeedRunner(layout))


@pytest.mark.parametrize("claim", sorted({*CLAIMS} - {"itself"}))
def test_a_record_of_a_process_that_had_nearly_this_ones_name_is_anothers(tmp_path, claim):
    start(tmp_path / "root", True)
    assert fresh(claimed, tmp_path / "root", tmp_path / "forged", True, claim) == -1


def test_a_record_that_claims_to_be_this_processs_own_is_not_served_for_other_values(tmp_path):
    start(tmp_path / "root", True)
    assert fresh(claimed, tmp_path / "root", tmp_path / "forged", False, "itself") == -1


def claiming_much(root, forged):
    """Tune where the records of somebody else have evidence as large as a file may be."""
    records, store = open_store(root), open_store(forged)
    for record in (records.get(digest).entry for digest in records):
        values = {f"attribute.x{number}": left_out_digest({}) for number in range(3000)}
        store.publish(replace(record, evidence=replace(record.evidence, process="x" * 100_000, left_out=values)))
    return tune(forged, SeedRunner(True), partial(layout_called, WRONG))


def test_evidence_of_absurd_size_costs_a_verification_at_every_start_and_nothing_else(tmp_path):
    start(tmp_path / "root", True)
    first = fresh(claiming_much, tmp_path / "root", tmp_path / "forged")
    assert (first.tactic, first.after, first.measured, first.report.verified_count) == (13, 13, [], 2)
    assert serve(tmp_path / "forged", True).tactic == -1, "such a verdict does not fit into a file"
    assert start(tmp_path / "forged", True).tactic == 13
    assert start(tmp_path / "forged", False).tactic == 3
    assert_nobody_is_served(tmp_path / "forged")
