"""The ledger: what may be served, by what is stored and what was seen; nothing in a folder can raise, hang or vouch for itself."""

import os
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fi_cachestore.errors import StoreIOError
from fi_cachestore.keys.canonical import Named
from fi_cachestore.keys.schema import left_out_digest
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, seal
from fi_cachestore.records.observation import Side
from fi_cachestore.records.verdict import Override, Quarantine, Validation, Word
from fi_cachestore.store import verdicts as verdicts_module
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.fsck import LEFTOVER, STRAY, verify
from fi_cachestore.store.roots import open_read_only, open_root
from fi_cachestore.store.verdicts import VerdictFolder
from fi_cachestore.testing.faults import DISK_FULL, FaultyWriter, fail_at
from fi_cachestore.testing.samples import sample_record, sample_schema
from fi_cachestore.validation import ledger as ledger_module
from fi_cachestore.validation import stored as stored_module
from fi_cachestore.validation.ledger import Ledger, Standing
from tests.store.test_damaged_files import make_dangling_link, make_file, make_link_to_device, make_loop, make_socket, make_sparse
from tests.validation.samples import CONTRADICTION, NOW_NS, RECORD, SCHEMA, digest_of, left_out, seen, side
from tests.validation.samples import override as sample_override
from tests.validation.samples import quarantine as sample_quarantine
from tests.validation.samples import validation as sample_validation

UNPROVEN, VALIDATED, QUARANTINED = Standing
OTHER_SCHEMA = sample_schema(2)


def open_ledger(root, *, layers=()):
    return Ledger(open_root(root, after=layers, durable=False).verdicts)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def ledger(root):
    return open_ledger(root)


def promote(ledger, rank=1, schema=SCHEMA, **more):
    return ledger.promote(schema, side(0), side(rank, "boot 1 17 2000"), [(RECORD, seen())], NOW_NS, **more)


def quarantine(ledger, schema=SCHEMA):
    ledger.quarantine(schema, side(0), side(1, "boot 1 17 2000"), RECORD, seen(space=None), CONTRADICTION, NOW_NS)


def overrule(ledger, word):
    return ledger.override(SCHEMA.digest, word, "root@host", f"said {word}", NOW_NS)


def standing(ledger, rank=0, schema=SCHEMA):
    return ledger.standing(schema.digest, digest_of(rank))


# -- what counts ------------------------------------------------------------------------------------------------------------------


def test_an_empty_root_proves_nothing_and_is_not_touched(ledger, root):
    before = sorted(root.iterdir())
    assert standing(ledger) is UNPROVEN
    assert ledger.banned_because(SCHEMA.digest) == ""
    assert not ledger.is_refused(RECORD)
    assert sorted(root.iterdir()) == before


def test_agreement_validates_the_left_out_values_of_both_sides_and_no_others(ledger, root):
    assert promote(ledger, 1, also_seen=[left_out(5)])
    for view in (ledger, open_ledger(root)):
        assert [standing(view, rank) for rank in (0, 1, 2, 5)] == [VALIDATED, VALIDATED, UNPROVEN, VALIDATED]
        assert standing(view, 0, OTHER_SCHEMA) is UNPROVEN


def test_two_equal_sides_validate_their_one_value(ledger, root):
    promote(ledger, 0)
    assert [standing(open_ledger(root), rank) for rank in (0, 1)] == [VALIDATED, UNPROVEN]


def test_a_quarantine_beats_validations_whichever_came_first(ledger, root):
    promote(ledger)
    quarantine(ledger)
    quarantine(ledger, OTHER_SCHEMA)
    assert not promote(ledger, schema=OTHER_SCHEMA)
    for view in (ledger, open_ledger(root)):
        assert [standing(view, rank) for rank in (0, 1, 2)] == [QUARANTINED] * 3
        assert standing(view, 0, OTHER_SCHEMA) is QUARANTINED
        assert view.banned_because(SCHEMA.digest) == "another tactic list (2 tactics recorded, 3 here)"
    assert not any(isinstance(found, Validation) and found.schema == OTHER_SCHEMA for _, found in ledger.entries())


def test_both_sides_of_a_contradiction_are_kept(ledger):
    quarantine(ledger)
    ((_, kept),) = ledger.entries()
    assert isinstance(kept, Quarantine)
    assert (kept.schema, kept.writer, kept.reader) == (SCHEMA, side(0), side(1, "boot 1 17 2000"))
    assert (kept.sample.recorded, kept.sample.seen) == (RECORD.space, seen(space=None))


def test_joiners_are_told_what_was_asked_for_and_is_validated_and_nothing_else(ledger):
    promote(ledger)
    promote(ledger, schema=OTHER_SCHEMA)
    assert [standing(ledger, rank) for rank in (0, 2)] == [VALIDATED, UNPROVEN]
    assert standing(ledger, 0, OTHER_SCHEMA) is VALIDATED
    quarantine(ledger, OTHER_SCHEMA)
    told = set(ledger.validated())
    assert (SCHEMA.digest, digest_of(0)) in told
    assert (SCHEMA.digest, digest_of(2)) not in told
    assert OTHER_SCHEMA.digest not in {schema for schema, _ in told}


def test_the_first_quarantine_stays(ledger, root):
    quarantine(ledger)
    open_ledger(root).quarantine(SCHEMA, side(3), side(4), RECORD, seen(), CONTRADICTION, NOW_NS + 1)
    assert [found.unix_ns for _, found in ledger.entries()] == [NOW_NS]


@pytest.mark.parametrize("before", ["nothing", "validated", "quarantined"])
def test_the_latest_override_beats_both(root, before):
    ledger = open_ledger(root)
    if before != "nothing":
        promote(ledger)
    if before == "quarantined":
        quarantine(ledger)
    evidence = standing(ledger)
    for word, expected in [
        (Word.TRUSTED, VALIDATED),
        (Word.DISTRUSTED, QUARANTINED),
        (Word.EVIDENCE, evidence),
        (Word.DISTRUSTED, QUARANTINED),
        (Word.TRUSTED, VALIDATED),
    ]:
        overrule(ledger, word)
        assert standing(ledger) is standing(open_ledger(root)) is expected
    assert [found.why for _, found in ledger.entries() if isinstance(found, Override)] == [
        "said trusted",
        "said distrusted",
        "said evidence",
        "said distrusted",
        "said trusted",
    ]
    assert standing(ledger, 77) is VALIDATED  # for all left-out values
    assert ledger.trusted_because(SCHEMA.digest) == "trusted by root@host: said trusted"
    assert ledger.banned_because(SCHEMA.digest) == ""


def test_distrust_says_who_and_why(ledger):
    overrule(ledger, Word.DISTRUSTED)
    assert ledger.banned_because(SCHEMA.digest) == "distrusted by root@host: said distrusted"
    assert ledger.trusted_because(SCHEMA.digest) == ""


def test_what_another_rank_has_seen_holds_in_memory_alone(ledger, root):
    promote(ledger)
    ledger.hold(SCHEMA.digest, "rank 3 says so")
    assert standing(ledger) is QUARANTINED
    assert ledger.banned_because(SCHEMA.digest) == "rank 3 says so"
    ledger.refresh()
    assert standing(ledger) is QUARANTINED
    assert standing(open_ledger(root)) is VALIDATED
    overrule(ledger, Word.TRUSTED)
    assert standing(ledger) is VALIDATED


def test_a_refusal_is_of_one_record_and_not_of_its_key(ledger, root):
    other = sample_record(times_ns={0: 1})
    assert other.digest == RECORD.digest
    ledger.refuse(RECORD, "it kills", NOW_NS)
    for view in (ledger, open_ledger(root), open_ledger(root)):
        assert [view.is_refused(record) for record in (RECORD, other, sample_record(2), RECORD)] == [True, False, False, True]


# -- memory -----------------------------------------------------------------------------------------------------------------------


def test_what_others_write_is_found_after_a_refresh(ledger, root):
    other = open_ledger(root)
    assert standing(ledger) is UNPROVEN
    assert not ledger.is_refused(RECORD)
    promote(other)
    other.refuse(RECORD, "it kills", NOW_NS)
    assert standing(ledger) is UNPROVEN
    assert not ledger.is_refused(RECORD)
    ledger.refresh()
    assert standing(ledger) is VALIDATED
    assert ledger.is_refused(RECORD)
    quarantine(other)
    ledger.refresh()
    assert standing(ledger) is QUARANTINED


class CountingReader(OsFileSystem):
    def __init__(self):
        self.operations = []

    def read(self, path, limit_bytes):
        self.operations.append(("read", Path(path).name))
        return super().read(path, limit_bytes)

    def names(self, directory):
        self.operations.append(("list", Path(directory).name))
        return super().names(directory)

    def changed_unix_ns(self, directory):
        self.operations.append(("time", Path(directory).name))
        return super().changed_unix_ns(directory)


def test_asking_again_reads_nothing(root):
    promote(open_ledger(root))
    reader = CountingReader()
    ledger = Ledger(open_root(root, durable=False, reader=reader).verdicts)
    for rank in (0, 1, 2, 3):
        standing(ledger, rank)
        standing(ledger, rank, OTHER_SCHEMA)
        ledger.is_refused(RECORD)
    once = list(reader.operations)
    # one listing of all, one of the schema that something is known about and one of refusals, and the two files that were asked for
    assert Counter(what for what, _ in once) == {"list": 3, "read": 2}
    for rank in (0, 1, 2, 3):
        standing(ledger, rank)
        standing(ledger, rank, OTHER_SCHEMA)
        ledger.is_refused(RECORD)
    assert reader.operations == once


def test_a_validated_schema_costs_one_listing_and_one_file_and_nothing_is_decoded(root, monkeypatch):
    schemas = [sample_schema(number) for number in range(1, 6)]
    for schema in schemas:
        promote(open_ledger(root), schema=schema)
    reader = CountingReader()
    ledger = Ledger(open_root(root, durable=False, reader=reader).verdicts)
    monkeypatch.setattr(verdicts_module, "verdict_from", None)
    for schema in schemas:
        assert not ledger.banned_because(schema.digest)
        assert standing(ledger, 0, schema) is VALIDATED
    assert ledger.refuses_nothing()
    each = [(("list", schema.digest), ("read", f"validation-{digest_of(0)}.0.rec")) for schema in schemas]
    assert reader.operations == [("list", "verdicts"), *(operation for pair in each for operation in pair), ("list", "refused")]


# -- reading ahead ----------------------------------------------------------------------------------------------------------------

MANY = [sample_schema(number) for number in range(1, 8)]


class Later:
    """A clock that is ahead, so that what was changed just now is settled."""

    def __init__(self, ahead_s=10):
        self.ahead_s = ahead_s

    def __call__(self):
        return time.time_ns() + self.ahead_s * 10**9


def opened_with_a_clock(root, *, now_unix_ns=None):
    reader = CountingReader()
    return Ledger(open_root(root, durable=False, reader=reader).verdicts, now_unix_ns or Later()), reader


def pass_a_tick(root):
    """Wait until the file system's clock has gone on, so that whatever changes now has another time than what has changed before."""
    latest_ns = max(path.stat().st_ctime_ns for path in (root / "verdicts").iterdir())
    probe = root.parent / "probe"
    probe.touch()
    while probe.stat().st_ctime_ns <= latest_ns:
        probe.touch()


@pytest.fixture
def seven(root):
    """Seven validated schemas."""
    for schema in MANY:
        promote(open_ledger(root), schema=schema)
    pass_a_tick(root)
    return root


def operations_of_each(ledger, reader, schemas=MANY):
    """Ask for schemas one after the other; return what each question read."""
    found = []
    for schema in schemas:
        reader.operations.clear()
        assert standing(ledger, 0, schema) is VALIDATED
        found.append([what for what, _ in reader.operations])
    return found


def test_from_the_fourth_schema_on_all_are_read_in_one_go_and_questions_a_second_later_ask_for_a_time(seven):
    ledger, reader = opened_with_a_clock(seven)
    first, second, third, fourth, *later = operations_of_each(ledger, reader)
    assert (first, second, third) == (["list", "list", "list", "read"], ["list", "read"], ["list", "read"]), "overviews, all, its own"
    assert fourth == ["time", "list", "read", "read"] * len(MANY)
    assert later == [[]] * 3
    clock = Later()
    ledger, reader = opened_with_a_clock(seven, now_unix_ns=clock)
    operations_of_each(ledger, reader, MANY[:4])
    clock.ahead_s += 2
    assert operations_of_each(ledger, reader, MANY[4:]) == [["time"]] * 3, "what was seen counts for a second, and then if it still holds"
    reader = CountingReader()
    without = Ledger(open_root(seven, durable=False, reader=reader).verdicts)
    assert operations_of_each(without, reader)[4:] == [["list", "read"]] * 3, "without a clock one by one"


@pytest.mark.parametrize("passed_s", [2, -2])
def test_a_quarantine_that_is_written_after_reading_ahead_is_seen_at_the_first_question_a_second_later(seven, passed_s):
    clock = Later()
    ledger, reader = opened_with_a_clock(seven, now_unix_ns=clock)
    operations_of_each(ledger, reader, MANY[:5])
    quarantine(open_ledger(seven), MANY[5])
    open_ledger(seven).override(MANY[6].digest, Word.DISTRUSTED, "root@host", "said so", NOW_NS)
    clock.ahead_s += passed_s  # a clock that goes back says nothing of how long ago it was
    assert [standing(ledger, 0, schema) for schema in MANY[4:]] == [VALIDATED, QUARANTINED, QUARANTINED]


def test_a_folder_that_was_changed_just_now_is_not_believed_to_be_unchanged_by_its_time(seven):
    """A second change within the grain of the clock would leave the same time."""
    ledger, reader = opened_with_a_clock(seven, now_unix_ns=time.time_ns)
    assert operations_of_each(ledger, reader)[4:] == [["list", "read"]] * 3


def test_a_time_in_the_future_or_none_at_all_proves_nothing(seven, monkeypatch):
    ledger, reader = opened_with_a_clock(seven, now_unix_ns=lambda: time.time_ns() - 1000 * 10**9)
    assert operations_of_each(ledger, reader)[4:] == [["list", "read"]] * 3
    monkeypatch.setattr(OsFileSystem, "changed_unix_ns", lambda *_: None)
    ledger, reader = opened_with_a_clock(seven)
    assert operations_of_each(ledger, reader)[4:] == [["list", "read"]] * 3


def test_what_is_banned_damaged_or_seen_with_many_values_is_not_read_ahead_and_counts_as_before(seven):
    quarantine(open_ledger(seven), MANY[4])
    for rank in range(2, 8):
        promote(open_ledger(seven), rank, MANY[5])
    for path in (seven / "verdicts" / MANY[6].digest).iterdir():
        path.write_bytes(b"damaged")
    ledger, reader = opened_with_a_clock(seven)
    assert [standing(ledger, 0, schema) for schema in MANY] == [VALIDATED] * 4 + [QUARANTINED, VALIDATED, UNPROVEN]
    of_many_values = [name for what, name in reader.operations if what == "read" and name == f"validation-{digest_of(7)}.0.rec"]
    assert of_many_values == [], "one of its files was asked for, and read"
    assert ledger.damaged() == {"corrupt": 1}


def test_refreshing_forgets_what_was_read_ahead(seven):
    ledger, reader = opened_with_a_clock(seven)
    operations_of_each(ledger, reader, MANY[:5])
    for path in (seven / "verdicts" / MANY[6].digest).iterdir():
        path.write_bytes(b"damaged")
    ledger.refresh()
    assert [standing(ledger, 0, schema) for schema in MANY] == [VALIDATED] * 6 + [UNPROVEN]


def test_a_root_with_very_many_schemas_is_not_read_through(seven, monkeypatch):
    monkeypatch.setattr(stored_module, "_MAX_AHEAD", len(MANY) - 1)
    ledger, reader = opened_with_a_clock(seven)
    assert operations_of_each(ledger, reader)[4:] == [["list", "read"]] * 3


def test_nothing_is_refused_until_something_is(ledger, root):
    assert ledger.refuses_nothing()
    ledger.refuse(RECORD, "it kills", NOW_NS)
    assert not ledger.refuses_nothing()
    assert not open_ledger(root).refuses_nothing()
    in_memory = Ledger(None)
    in_memory.refuse(RECORD, "it kills", NOW_NS)
    assert not in_memory.refuses_nothing()


def test_without_a_store_everything_holds_in_memory():
    ledger = Ledger(None)
    promote(ledger)
    assert [standing(ledger, rank) for rank in (0, 1, 2)] == [VALIDATED, VALIDATED, UNPROVEN]
    ledger.refuse(RECORD, "it kills", NOW_NS)
    assert ledger.is_refused(RECORD)
    quarantine(ledger)
    assert standing(ledger) is QUARANTINED
    assert list(ledger.entries()) == []


def test_what_another_rank_has_verified_is_believed_at_once(ledger):
    assert [standing(ledger, rank) for rank in (0, 1)] == [UNPROVEN] * 2
    ledger.take_in(SCHEMA.digest, digest_of(0))
    assert [standing(ledger, rank) for rank in (0, 1)] == [VALIDATED, UNPROVEN]
    assert list(ledger.agreed()) == [(SCHEMA.digest, digest_of(0))]


def test_what_is_remembered_is_bounded(root, monkeypatch):
    monkeypatch.setattr(ledger_module, "_MAX_REMEMBERED", 8)
    ledger = open_ledger(root)
    promote(ledger)
    for number in range(50):
        standing(ledger, number)
        assert len(ledger._standings) <= 8
    for number in range(50):
        standing(ledger, 0, sample_schema(number + 10))
        assert len(ledger._schemas) <= 9
    assert standing(ledger, 1) is VALIDATED


# -- limits -----------------------------------------------------------------------------------------------------------------------


def test_validations_of_a_schema_are_bounded(root, monkeypatch, caplog):
    monkeypatch.setattr(ledger_module, "MAX_VALIDATIONS", 4)
    for start in range(3):  # three processes, each with values of its own
        ledger = open_ledger(root)
        for rank in range(5):
            promote(ledger, 100 * start + rank + 1)
    assert not promote(ledger, 999)
    assert standing(ledger, 999) is UNPROVEN
    assert len(list((root / "verdicts" / SCHEMA.digest).iterdir())) == 4
    assert caplog.text.count("more than 4 sets of left-out values") == 3  # once for each process
    quarantine(ledger)
    assert standing(open_ledger(root)) is QUARANTINED  # the ban is not one of them


HUGE = {f"parameter {number}": "ab" * 32 for number in range(5000)}


def test_verdicts_too_large_for_a_file_hold_in_this_process(ledger, root, caplog):
    huge = Side("boot 1 17 2000", "host", HUGE)
    assert ledger.promote(SCHEMA, side(0), huge, [(RECORD, seen())], NOW_NS)
    assert ledger.standing(SCHEMA.digest, left_out_digest(HUGE)) is VALIDATED
    assert standing(ledger) is VALIDATED
    assert standing(open_ledger(root)) is UNPROVEN
    assert "holds in this process only" in caplog.text


def test_a_ban_too_large_for_a_file_is_kept_without_its_grounds(ledger, root):
    wide = replace(SCHEMA, parameters=tuple((f"p{number}", "int", "semantic") for number in range(5000)))
    huge = Side("boot 1 17 2000", "host", HUGE)
    observation = seen(tactic="x" * MAX_SEALED_BYTES)
    ledger.quarantine(wide, side(0), huge, RECORD, observation, replace(CONTRADICTION, detail="x" * MAX_SEALED_BYTES), NOW_NS)
    later = open_ledger(root)
    assert standing(later, 0, wide) is QUARANTINED
    ((_, kept),) = later.entries()
    assert (kept.schema, kept.sample, kept.reason) == (None, None, "another tactic list")


# -- layers -----------------------------------------------------------------------------------------------------------------------


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_verdicts_of_a_read_only_layer_count_and_new_ones_go_to_the_writable_root(tmp_path, root):
    image = tmp_path / "image"
    promote(open_ledger(image), 1)
    before = tree(image)
    ledger = open_ledger(root, layers=[image])
    assert [standing(ledger, rank) for rank in (0, 1, 2)] == [VALIDATED, VALIDATED, UNPROVEN]
    promote(ledger, 2)
    quarantine(ledger, OTHER_SCHEMA)
    ledger.refuse(RECORD, "it kills", NOW_NS)
    assert tree(image) == before
    later = open_ledger(root, layers=[image])
    assert [standing(later, rank) for rank in (0, 1, 2)] == [VALIDATED] * 3
    assert standing(later, 0, OTHER_SCHEMA) is QUARANTINED
    assert later.is_refused(RECORD)
    assert not open_ledger(image).is_refused(RECORD)


def test_bans_and_refusals_of_any_layer_count(tmp_path, root):
    layers = [tmp_path / "one", tmp_path / "two"]
    quarantine(open_ledger(layers[1]))
    open_ledger(layers[0]).refuse(RECORD, "it kills", NOW_NS)
    promote(open_ledger(root))
    ledger = open_ledger(root, layers=layers)
    assert standing(ledger) is QUARANTINED
    assert ledger.is_refused(RECORD)
    overrule(ledger, Word.TRUSTED)  # the root's own word beats them
    assert standing(open_ledger(root, layers=layers)) is VALIDATED


def test_an_operators_word_in_a_layer(tmp_path, root):
    """It beats the layer's own ban, not another's; the root's own word beats it, and may call for the evidence."""
    image = tmp_path / "image"
    quarantine(open_ledger(image))
    overrule(open_ledger(image), Word.TRUSTED)
    assert standing(open_ledger(root, layers=[image]), 7) is VALIDATED
    assert open_ledger(root, layers=[image]).trusted_because(SCHEMA.digest) == "trusted by root@host: said trusted"
    overrule(open_ledger(root), Word.EVIDENCE)
    assert standing(open_ledger(root, layers=[image]), 7) is QUARANTINED
    overrule(open_ledger(root), Word.TRUSTED)
    assert standing(open_ledger(root, layers=[image]), 7) is VALIDATED
    other = tmp_path / "other"
    quarantine(open_ledger(other))
    assert standing(open_ledger(other, layers=[image]), 7) is QUARANTINED
    overrule(open_ledger(image), Word.DISTRUSTED)
    assert standing(open_ledger(tmp_path / "new", layers=[image]), 7) is QUARANTINED


def test_a_root_that_is_only_read_is_never_written(root):
    promote(open_ledger(root))
    before = tree(root)
    opened = open_read_only(root)
    assert opened.marks is None
    ledger = Ledger(opened.verdicts)
    assert standing(ledger) is VALIDATED
    promote(ledger, 5)
    assert standing(ledger, 5) is VALIDATED
    quarantine(ledger, OTHER_SCHEMA)
    assert standing(ledger, 0, OTHER_SCHEMA) is QUARANTINED
    ledger.refuse(RECORD, "it kills", NOW_NS)
    assert ledger.is_refused(RECORD)
    with pytest.raises(StoreIOError, match="read-only"):
        overrule(ledger, Word.TRUSTED)
    assert tree(root) == before


def test_a_full_disk_costs_one_warning_and_no_exception(root, caplog):
    open_root(root)
    ledger = Ledger(open_root(root, writer=FaultyWriter(fail_at("write", DISK_FULL))).verdicts)
    promote(ledger)
    quarantine(ledger, OTHER_SCHEMA)
    ledger.refuse(RECORD, "it kills", NOW_NS)
    assert standing(ledger) is VALIDATED
    assert standing(ledger, 0, OTHER_SCHEMA) is QUARANTINED
    assert ledger.is_refused(RECORD)
    assert caplog.text.count("holds in this process only") == 1
    assert standing(open_ledger(root)) is UNPROVEN


# -- damage -----------------------------------------------------------------------------------------------------------------------

SEALED = {name: seal(make().to_value()) for name, make in (("validation", sample_validation), ("quarantine", sample_quarantine))}
DAMAGE = {
    "empty": (make_file(b""), "corrupt"),
    "random": (make_file(bytes(range(256)) * 4), "corrupt"),
    "truncated": (make_file(SEALED["quarantine"][:-1]), "corrupt"),
    "another kind": (make_file(seal(RECORD.to_value())), "corrupt"),
    "wrong fields": (make_file(seal(Named("fi_cachestore.validation/1", {"unix_ns": 1}))), "corrupt"),
    "another schema's": (make_file(seal(sample_quarantine(OTHER_SCHEMA).to_value())), "foreign"),
    "another value's": (make_file(seal(sample_validation(9).to_value())), "foreign"),
    "an override": (make_file(seal(sample_override(5).to_value())), "foreign"),
    "ten gigabytes": (make_sparse, "corrupt"),
    "directory": (Path.mkdir, "corrupt"),
    "fifo": (os.mkfifo, "corrupt"),
    "socket": (make_socket, "corrupt"),
    "dangling link": (make_dangling_link, "corrupt"),
    "link to itself": (make_loop, "corrupt"),
    "endless device": (make_link_to_device, "corrupt"),
}


def damage(root, stem, name):
    folder = root / "verdicts" / SCHEMA.digest
    folder.mkdir(parents=True, exist_ok=True)
    make, reason = DAMAGE[name]
    make(folder / f"{stem}.0.rec")
    return str(folder / f"{stem}.0.rec"), reason


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_validation_counts_as_absent_and_its_place_is_passed_over(root, name):
    path, reason = damage(root, f"validation-{digest_of(0)}", name)
    ledger = open_ledger(root)
    assert standing(ledger) is UNPROVEN
    assert ledger.damaged() == {reason: 1}
    assert [(finding.path, finding.reason) for finding in verify(root).findings] == [(path, reason)]
    promote(ledger)
    assert standing(open_ledger(root)) is VALIDATED
    quarantine(ledger)
    assert standing(open_ledger(root)) is QUARANTINED


def altered(verdict, **changes):
    value = verdict.to_value()
    return seal(Named(value.kind, value.content | changes))


MISPLACED = {
    "another schema": lambda: seal(sample_validation(schema=OTHER_SCHEMA).to_value()),
    "other left-out values": lambda: seal(sample_validation(rank=7).to_value()),
    "a changed schema": lambda: altered(sample_validation(), schema=replace(SCHEMA, op="another").to_value()),
    "a schema with another parameter": lambda: altered(
        sample_validation(), schema=replace(SCHEMA, parameters=(*SCHEMA.parameters, ("zero", "int", "semantic"))).to_value()
    ),
    "another environment": lambda: altered(sample_validation(), schema=replace(SCHEMA, environment={"device": "cpu"}).to_value()),
    "changed left-out values": lambda: altered(sample_validation(), left_out=left_out(7)),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_a_validation_of_something_else_validates_nothing_where_it_lies(root, name):
    folder = root / "verdicts" / SCHEMA.digest
    folder.mkdir(parents=True)
    (folder / f"validation-{digest_of(0)}.0.rec").write_bytes(MISPLACED[name]())
    ledger = open_ledger(root)
    assert standing(ledger) is UNPROVEN
    assert ledger.damaged() == {"foreign": 1}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("fi_cachestore.quarantine/1", {}),
        ("fi_cachestore.validation/2", {}),
        ("fi_cachestore.validation/1", {"more": 1}),
        ("fi_cachestore.validation/1", {"left_out": {"tp_rank": 1}}),
        ("fi_cachestore.validation/1", {"left_out": (1, 2)}),
        ("fi_cachestore.validation/1", {"schema": None}),
    ],
)
def test_a_sealed_body_that_is_no_validation_validates_nothing(root, kind, changes):
    folder = root / "verdicts" / SCHEMA.digest
    folder.mkdir(parents=True)
    content = sample_validation().to_value().content | changes
    (folder / f"validation-{digest_of(0)}.0.rec").write_bytes(seal(Named(kind, content)))
    ledger = open_ledger(root)
    assert standing(ledger) is UNPROVEN
    assert ledger.damaged() == {"corrupt": 1}


@pytest.mark.parametrize(
    "schema",
    [
        replace(SCHEMA, parameters=SCHEMA.parameters[::-1]),
        replace(SCHEMA, op="\u00e6runner and more"),
        replace(SCHEMA, environment={"a": 1}),
    ],
    ids=["unsorted parameters", "a field's name in a value", "an environment of other types"],
)
def test_a_validation_that_its_bytes_do_not_show_is_read_in_full(root, schema):
    promote(open_ledger(root), schema=schema)
    ledger = open_ledger(root)
    assert [standing(ledger, rank, schema) for rank in (0, 1, 2)] == [VALIDATED, VALIDATED, UNPROVEN]
    assert not ledger.damaged()


@pytest.mark.parametrize("name", DAMAGE)
def test_a_quarantine_that_cannot_be_read_bans_all_the_same(root, name):
    promote(open_ledger(root))
    path, reason = damage(root, "quarantine", name)
    ledger = open_ledger(root)
    assert standing(ledger) is QUARANTINED
    assert "cannot be read" in ledger.banned_because(SCHEMA.digest)
    assert ledger.damaged() == {reason: 1}
    assert [(finding.path, finding.reason) for finding in verify(root).findings] == [(path, reason)]
    quarantine(ledger)
    assert "cannot be read" not in open_ledger(root).banned_because(SCHEMA.digest)
    overrule(ledger, Word.TRUSTED)
    assert standing(open_ledger(root)) is VALIDATED


def test_a_quarantine_of_a_later_format_bans(root, monkeypatch):
    from fi_cachestore.records import envelope

    monkeypatch.setattr(envelope, "FORMAT_VERSION", 2)
    later = seal(sample_quarantine().to_value())
    monkeypatch.undo()
    folder = root / "verdicts" / SCHEMA.digest
    folder.mkdir(parents=True)
    (folder / "quarantine.0.rec").write_bytes(later)
    ledger = open_ledger(root)
    assert standing(ledger) is QUARANTINED
    assert ledger.damaged() == {"future-format": 1}


def test_where_every_place_is_taken_by_bad_files_a_verdict_holds_in_memory(root, caplog):
    folder = root / "verdicts" / SCHEMA.digest
    folder.mkdir(parents=True)
    for generation in range(8):
        (folder / f"quarantine.{generation}.rec").write_bytes(b"bad")
    ledger = open_ledger(root)
    quarantine(ledger)
    assert standing(ledger) is QUARANTINED
    assert "every name for it is taken by a bad file" in caplog.text


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_override_leaves_the_one_before_it_in_force(root, name):
    ledger = open_ledger(root)
    overrule(ledger, Word.TRUSTED)
    place = root / "verdicts" / SCHEMA.digest / "override-00000004.0.rec"
    DAMAGE[name][0](place)
    assert standing(open_ledger(root)) is VALIDATED
    assert overrule(ledger, Word.DISTRUSTED).number == 5
    assert standing(open_ledger(root)) is QUARANTINED


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_refusal_refuses_nothing(root, name):
    folder = root / "verdicts" / "refused"
    folder.mkdir(parents=True)
    DAMAGE[name][0](folder / f"{RECORD.digest}-{RECORD.content}.0.rec")
    ledger = open_ledger(root)
    assert not ledger.is_refused(RECORD)
    ledger.refuse(RECORD, "it kills", NOW_NS)
    assert open_ledger(root).is_refused(RECORD)


def test_strange_names_are_passed_over_and_found_by_verify(root):
    promote(open_ledger(root))
    folder = root / "verdicts" / SCHEMA.digest
    (folder / "quarantine.8.rec").write_bytes(b"")
    (folder / "quarantine.rec").write_bytes(b"")
    (folder / ".host-1-ab.tmp").write_bytes(b"")
    (root / "verdicts" / "notes").write_text("hello")
    (root / "marks").mkdir()
    (root / "marks" / "notes").write_text("hello")
    assert standing(open_ledger(root)) is VALIDATED
    found = verify(root)
    assert sorted(finding.reason for finding in found.findings) == [LEFTOVER, STRAY, STRAY, STRAY, STRAY]
    assert found.verdict_count == 2


def test_verify_counts_verdicts_and_marks(root):
    opened = open_root(root, durable=False)
    ledger = Ledger(opened.verdicts)
    promote(ledger)
    overrule(ledger, Word.TRUSTED)
    ledger.refuse(RECORD, "it kills", NOW_NS)
    from tests.validation.samples import mark

    path = opened.marks.create(mark())
    assert (verify(root).verdict_count, verify(root).mark_count, verify(root).findings) == (4, 1, ())
    path.write_bytes(b"bad")
    assert [(finding.path, finding.reason) for finding in verify(root).findings] == [(str(path), "corrupt")]


def test_a_verdicts_folder_that_is_a_file_counts_as_empty(root, caplog):
    open_root(root)
    (root / "verdicts").write_text("not a folder")
    ledger = open_ledger(root)
    assert standing(ledger) is UNPROVEN
    promote(ledger)
    assert standing(ledger) is VALIDATED
    assert "holds in this process only" in caplog.text


# -- threads ----------------------------------------------------------------------------------------------------------------------


def test_sixteen_threads_see_a_ban_at_once(root):
    ledger = open_ledger(root)
    start = threading.Barrier(16)
    failures = []

    def work(number):
        start.wait(30)
        try:
            for rank in range(30):
                promote(ledger, rank)
                standing(ledger, rank)
                if number == rank:
                    quarantine(ledger)
                    assert standing(ledger, rank) is QUARANTINED
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert {standing(ledger, rank) for rank in range(30)} == {QUARANTINED}


def test_the_number_of_an_override_is_taken_by_one_writer(root):
    folders = [VerdictFolder(root, durable=False, writer=OsFileSystem()) for _ in range(8)]
    numbers = []
    threads = [
        threading.Thread(target=lambda folder=folder: numbers.extend(folder.append(sample_override()).number for _ in range(5)))
        for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(numbers) == list(range(40))
