"""Overviews: what a start had to read file by file is one file for the next; it is believed for folders that have not changed since."""

import errno
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from fi_cachestore.errors import DamagedError, StoreIOError, UnsupportedValueError
from fi_cachestore.keys.canonical import Named
from fi_cachestore.records.envelope import seal
from fi_cachestore.records.overview import Glance, overview_from, overview_value
from fi_cachestore.records.verdict import Word
from fi_cachestore.store import verdicts as verdicts_module
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.fsck import LEFTOVER, verify
from fi_cachestore.store.overviews import Overviews
from fi_cachestore.store.roots import open_read_only, open_root
from fi_cachestore.store.verdicts import VerdictFolder
from fi_cachestore.testing.faults import DISK_FULL, FaultyWriter, fail_at, kill_at
from fi_cachestore.testing.samples import sample_schema
from fi_cachestore.validation import ledger as ledger_module
from fi_cachestore.validation import stored as stored_module
from fi_cachestore.validation.ledger import Ledger, Standing
from tests.store.test_damaged_files import DAMAGE
from tests.validation.samples import NOW_NS, RECORD, digest_of
from tests.validation.test_ledger import (
    MANY,
    CountingReader,
    Later,
    open_ledger,
    opened_with_a_clock,
    pass_a_tick,
    promote,
    quarantine,
    standing,
)

UNPROVEN, VALIDATED, QUARANTINED = Standing
FORK = multiprocessing.get_context("fork")
BY_THE_OVERVIEW = [["list", "read", "time"], ["time"], ["time"], ["time"] * len(MANY), [], [], []]
"""What each question reads where an overview has all schemas: from the fourth on, all are compared in one go."""


def overview_files(root):
    folder = root / "verdicts" / "overview"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def newest(root):
    return VerdictFolder(root).overviews.newest()


def ask(root, schemas=MANY, **more):
    """Start, ask for schemas, and leave an overview; return what each question read."""
    pass_a_tick(root)
    ledger, reader = opened_with_a_clock(root, **more)
    found = []
    for schema in schemas:
        reader.operations.clear()
        assert standing(ledger, 0, schema) is VALIDATED
        found.append([what for what, _ in reader.operations])
    ledger.keep_overview()
    return found


def standings(root, **more):
    ledger, _ = opened_with_a_clock(root, **more)
    return [standing(ledger, 0, schema) for schema in MANY]


@pytest.fixture
def root(tmp_path):
    """Seven validated schemas."""
    for schema in MANY:
        promote(open_ledger(tmp_path / "root"), schema=schema)
    pass_a_tick(tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def kept(root):
    """The same with an overview."""
    ask(root)
    assert overview_files(root) == ["00000000.rec"]
    return root


# -- what it saves ----------------------------------------------------------------------------------------------------------------


def test_the_next_start_reads_one_file_and_asks_for_a_time_per_schema(kept):
    assert ask(kept) == BY_THE_OVERVIEW
    assert overview_files(kept) == ["00000000.rec"], "there was nothing new"


def test_it_is_the_same_for_a_root_that_is_only_read_and_nothing_is_written_there(kept):
    image = open_read_only(kept).verdicts
    before = sorted(kept.rglob("*"))
    ledger = Ledger(image, Later())
    assert [standing(ledger, 0, schema) for schema in MANY] == [VALIDATED] * len(MANY)
    ledger.keep_overview()
    assert sorted(kept.rglob("*")) == before


def test_a_layer_s_overview_counts_for_it_and_the_writable_root_gets_its_own(kept, tmp_path):
    reader = CountingReader()
    verdicts = open_root(tmp_path / "own", after=[kept], durable=False, reader=reader).verdicts
    verdicts.layers[0]._reader = verdicts.layers[0].overviews._reader = reader
    ledger = Ledger(verdicts, Later())
    assert [standing(ledger, 0, schema) for schema in MANY] == [VALIDATED] * len(MANY)
    assert {what for what, name in reader.operations if name in {schema.digest for schema in MANY}} == {"time"}
    ledger.keep_overview()
    assert (overview_files(tmp_path / "own"), overview_files(kept)) == ([], ["00000000.rec"])


def layered(own, image):
    return Ledger(open_root(own, after=[image], durable=False).verdicts, Later())


@pytest.mark.parametrize("has_an_overview", [False, True])
def test_what_the_writable_root_has_counts_beside_a_layer_s_overview(kept, tmp_path, has_an_overview):
    own = tmp_path / "own"
    quarantine(open_ledger(own), MANY[4])
    promote(open_ledger(own), 2, MANY[5])
    promote(open_ledger(own), 2, sample_schema(50))
    open_ledger(own).override(MANY[6].digest, Word.DISTRUSTED, "root@host", "said so", NOW_NS)
    pass_a_tick(own)
    if has_an_overview:
        ledger = layered(own, kept)
        for schema in (*MANY, sample_schema(50)):
            standing(ledger, 0, schema)
        ledger.keep_overview()
    assert bool(newest(own)) is has_an_overview
    ledger = layered(own, kept)
    assert [standing(ledger, 0, schema) for schema in MANY] == [VALIDATED] * 4 + [QUARANTINED, VALIDATED, QUARANTINED]
    assert [standing(ledger, 2, schema) for schema in MANY[3:6]] == [UNPROVEN, QUARANTINED, VALIDATED]
    assert [standing(ledger, rank, sample_schema(50)) for rank in (0, 1, 2)] == [VALIDATED, UNPROVEN, VALIDATED]


def test_what_a_root_s_own_overview_says_is_no_word_on_a_layer_s_which_has_too_many(kept, tmp_path, monkeypatch):
    own = tmp_path / "own"
    for schema in MANY[:5]:
        promote(open_ledger(own), 2, schema)
    ask_layered = layered(own, tmp_path / "none")
    pass_a_tick(own)
    for schema in MANY[:5]:
        assert standing(ask_layered, 2, schema) is VALIDATED
    ask_layered.keep_overview()
    assert (len(newest(own)), len(newest(kept))) == (5, 7)
    quarantine(open_ledger(kept), MANY[4])
    monkeypatch.setattr(stored_module, "_MAX_AHEAD", 6)
    ledger = layered(own, kept)
    assert [standing(ledger, 0, schema) for schema in MANY] == [VALIDATED] * 4 + [QUARANTINED] + [VALIDATED] * 2


def test_who_looked_into_no_folder_leaves_none_nor_does_who_has_no_clock(root):
    ledger, _ = opened_with_a_clock(root)
    assert standing(ledger, 0, sample_schema(50)) is UNPROVEN
    ledger.keep_overview()
    without = open_ledger(root)
    for schema in MANY:
        assert standing(without, 0, schema) is VALIDATED
    without.keep_overview()
    Ledger(None).keep_overview()
    assert overview_files(root) == []
    ask(root, MANY[:1])
    assert list(newest(root)) == [MANY[0].digest]


def test_a_root_that_is_only_read_refuses_one(kept):
    with pytest.raises(StoreIOError, match="read-only"):
        VerdictFolder(kept).overviews.append(newest(kept))


def test_one_changed_schema_is_read_and_the_others_are_not(kept):
    promote(open_ledger(kept), 2, MANY[4])
    promote(open_ledger(kept), 2, sample_schema(50))
    assert ask(kept)[3:] == [["time"] * len(MANY), ["list", "list", "read"], [], []], "all folders, and its own"
    assert ask(kept) == BY_THE_OVERVIEW
    assert overview_files(kept) == ["00000000.rec", "00000001.rec"]


def test_many_changed_schemas_are_looked_through_and_a_new_overview_has_them(kept):
    for schema in MANY[:5]:
        promote(open_ledger(kept), 2, schema)
    fourth = ask(kept)[3]
    assert fourth.count("list") == 5, "the folders that have changed"
    assert fourth.count("time") == 2 * len(MANY)
    assert overview_files(kept) == ["00000000.rec", "00000001.rec"]
    assert ask(kept) == BY_THE_OVERVIEW


def test_it_has_schemas_that_were_seen_with_many_values_and_none_with_very_many(root, monkeypatch):
    for rank in range(2, 20):
        promote(open_ledger(root), rank, MANY[5])
    ask(root)
    glance = newest(root)[MANY[5].digest]
    assert glance.validated == glance.stems == {f"validation-{digest_of(rank)}" for rank in range(20)}
    monkeypatch.setattr(stored_module, "_MANY_FILES", 18)
    shutil.rmtree(root / "verdicts" / "overview")
    ask(root)
    assert sorted(newest(root)) == sorted(schema.digest for schema in MANY if schema != MANY[5])


def test_no_more_than_so_many_files_are_read_for_it_and_later_starts_do_the_rest(root, monkeypatch):
    monkeypatch.setattr(verdicts_module, "_MAX_LOOKED_INTO", 5)  # each schema has two
    counts = []
    for _ in range(4):
        ask(root)
        counts.append(len(newest(root)))
    assert counts == [2, 4, 6, 7]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES])
def test_a_folder_that_cannot_be_listed_is_not_kept_as_an_empty_one(root, monkeypatch, code):
    """For a process without descriptors left a quarantine is out of sight; the next one must see it."""
    quarantine(open_ledger(root), MANY[4])
    real = os.listdir

    def refusing(path):
        if Path(path).name == MANY[4].digest:
            raise OSError(code, os.strerror(code))
        return real(path)

    ledger, _ = opened_with_a_clock(root)
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", refusing)
        for schema in MANY:
            standing(ledger, 0, schema)
        ledger.keep_overview()
    assert set(newest(root)) == {schema.digest for schema in MANY} - {MANY[4].digest}
    assert standings(root) == [VALIDATED] * 4 + [QUARANTINED] + [VALIDATED] * 2


def test_where_there_is_no_room_for_all_it_has_what_this_process_asked_for(root, monkeypatch):
    ask(root, MANY[:4])
    ask(root, MANY[1:6])
    assert len(newest(root)) == 6, "a root may serve several machines"
    monkeypatch.setattr(stored_module, "_MAX_OVERVIEW", 6)
    ask(root, MANY[2:])
    assert sorted(newest(root)) == sorted(schema.digest for schema in MANY[2:])


# -- when it is believed ----------------------------------------------------------------------------------------------------------


def test_what_is_written_later_is_seen_at_the_first_question(kept):
    quarantine(open_ledger(kept), MANY[0])
    quarantine(open_ledger(kept), MANY[5])
    open_ledger(kept).override(MANY[6].digest, Word.DISTRUSTED, "root@host", "said so", NOW_NS)
    open_ledger(kept).refuse(RECORD, "it kills", NOW_NS)
    ledger, _ = opened_with_a_clock(kept)
    assert [standing(ledger, 0, schema) for schema in MANY] == [QUARANTINED] + [VALIDATED] * 4 + [QUARANTINED] * 2
    assert ledger.is_refused(RECORD)


@pytest.mark.parametrize(("asked_count", "passed_s"), [(1, 0), (3, 0), (4, 2), (4, -2), (6, 2)])
def test_what_is_written_between_two_questions_is_seen_at_once_or_a_second_after_all_were_compared(kept, asked_count, passed_s):
    clock = Later()
    ledger, _ = opened_with_a_clock(kept, now_unix_ns=clock)
    for schema in MANY[:asked_count]:
        assert standing(ledger, 0, schema) is VALIDATED
    quarantine(open_ledger(kept), MANY[6])
    clock.ahead_s += passed_s
    assert standing(ledger, 0, MANY[6]) is QUARANTINED


def test_a_look_through_counts_for_a_second_of_its_own(kept):
    for schema in MANY[2:]:
        promote(open_ledger(kept), 2, schema)
    clock = Later()
    ledger, reader = opened_with_a_clock(kept, now_unix_ns=clock)
    for at, schema in enumerate(MANY):
        clock.ahead_s += 2 * (at == 5)  # the fourth that the overview leaves open
        reader.operations.clear()
        assert standing(ledger, 0, schema) is VALIDATED
    assert reader.operations == []


def test_schemas_that_nothing_is_known_of_are_not_looked_for_in_folders(kept):
    ledger, reader = opened_with_a_clock(kept)
    for number in range(50, 60):
        assert standing(ledger, 0, sample_schema(number)) is UNPROVEN
    assert [what for what, _ in reader.operations] == ["list", "read", "list"] + ["time"] * len(MANY)


def test_an_overview_of_very_many_schemas_is_compared_one_by_one(kept, monkeypatch):
    monkeypatch.setattr(stored_module, "_MAX_AHEAD", len(MANY) - 1)
    assert ask(kept) == [["list", "read", "time"]] + [["time"]] * (len(MANY) - 1)


def test_words_and_quarantines_that_it_lists_are_read_each_time(root):
    quarantine(open_ledger(root), MANY[0])
    open_ledger(root).override(MANY[1].digest, Word.DISTRUSTED, "root@host", "said so", NOW_NS)
    ledger, _ = opened_with_a_clock(root)
    expected = [QUARANTINED] * 2 + [VALIDATED] * 5
    assert [standing(ledger, 0, schema) for schema in MANY] == expected
    ledger.keep_overview()
    assert newest(root)[MANY[0].digest].stems > {"quarantine"}
    assert standings(root) == expected


def test_what_is_compared_ahead_is_not_read_ahead(root):
    quarantine(open_ledger(root), MANY[6])
    ledger, _ = opened_with_a_clock(root)
    for schema in MANY:
        standing(ledger, 0, schema)
    ledger.keep_overview()
    promote(open_ledger(root), 2, MANY[5])
    ledger, reader = opened_with_a_clock(root)
    assert [standing(ledger, 0, schema) for schema in MANY[:4]] == [VALIDATED] * 4
    assert [what for what, _ in reader.operations] == ["list", "read"] + ["time"] * (3 + len(MANY))
    assert [standing(ledger, 0, schema) for schema in MANY[4:]] == [VALIDATED, VALIDATED, QUARANTINED]


def test_a_validation_that_goes_away_is_missed(kept):
    for path in (kept / "verdicts" / MANY[2].digest).iterdir():
        path.unlink()
    shutil.rmtree(kept / "verdicts" / MANY[3].digest)
    assert standings(kept) == [VALIDATED] * 2 + [UNPROVEN] * 2 + [VALIDATED] * 3


def test_values_that_nobody_has_validated_are_unproven_as_ever(kept):
    ledger, _ = opened_with_a_clock(kept)
    assert [standing(ledger, 3, schema) for schema in MANY] == [UNPROVEN] * len(MANY)


def test_a_damaged_validation_is_not_taken_for_a_sound_one_and_mends_as_ever(root):
    for path in (root / "verdicts" / MANY[6].digest).iterdir():
        path.write_bytes(b"damaged")
    for _ in range(2):
        ledger, _ = opened_with_a_clock(root)
        assert [standing(ledger, 0, schema) for schema in MANY] == [VALIDATED] * 6 + [UNPROVEN]
        ledger.keep_overview()
    assert not newest(root)[MANY[6].digest].validated
    promote(open_ledger(root), 0, MANY[6])
    assert standings(root) == [VALIDATED] * 7


def test_what_changed_just_now_is_not_in_it(root):
    """A second change within the grain of the clock would leave the same time."""
    ask(root, now_unix_ns=time.time_ns)
    assert newest(root) == {}


def test_folders_that_tools_have_put_together_are_not_taken_for_those_of_the_overview(kept, tmp_path):
    """What copies folders gives them the times that their originals had: all but one, which nobody can set."""
    quarantine(open_ledger(kept), MANY[1])
    (banned,) = (kept / "verdicts" / MANY[1].digest).glob("quarantine.*")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(kept, elsewhere)
    (elsewhere / "verdicts" / MANY[1].digest / banned.name).unlink()
    for folder in (kept, elsewhere):
        shutil.rmtree(folder / "verdicts" / "overview", ignore_errors=True)
    times = {path: path.stat().st_mtime_ns for path in (elsewhere / "verdicts").iterdir()}
    ask(elsewhere)
    shutil.copytree(elsewhere / "verdicts", kept / "verdicts", dirs_exist_ok=True)  # a merge: ours has a quarantine that theirs has not
    for path, time_ns in times.items():
        os.utime(kept / "verdicts" / path.name, ns=(time_ns, time_ns))
    assert len(newest(kept)) == len(MANY)
    assert (kept / "verdicts" / MANY[1].digest).stat().st_mtime_ns == times[elsewhere / "verdicts" / MANY[1].digest]
    assert standings(kept) == [VALIDATED, QUARANTINED] + [VALIDATED] * 5


def test_where_a_file_system_tells_no_times_there_is_none(root, monkeypatch):
    for answer in (None, 0):
        monkeypatch.setattr(OsFileSystem, "changed_unix_ns", lambda *_, answer=answer: answer)
        ask(root)
        assert newest(root) == {}


# -- what is found in its place ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_overview_counts_as_absent_and_is_found(kept, kind):
    path = kept / "verdicts" / "overview" / "00000000.rec"
    path.unlink()
    DAMAGE[kind][0](path)
    assert standings(kept) == [VALIDATED] * len(MANY)
    assert [(finding.path, finding.reason) for finding in verify(kept).findings] == [(str(path), "corrupt")]
    ask(kept)
    assert ask(kept) == BY_THE_OVERVIEW


def test_one_flipped_bit_anywhere_makes_it_absent(kept):
    path = kept / "verdicts" / "overview" / "00000000.rec"
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert newest(kept) == {}


def test_one_that_goes_away_while_it_is_looked_for_counts_as_absent(kept):
    """Another process has written two since the folder was listed."""

    class Late(OsFileSystem):
        def read(self, path, limit_bytes):
            Path(path).unlink()
            return super().read(path, limit_bytes)

    assert Overviews(kept / "verdicts", reader=Late(), writer=None).newest() == {}


def test_the_one_before_counts_where_the_newest_is_bad(kept):
    good = newest(kept)
    (kept / "verdicts" / "overview" / "00000001.rec").write_bytes(b"bad")
    assert newest(kept) == good
    assert ask(kept) == [["list", "read", "read", "time"], *BY_THE_OVERVIEW[1:]]


SCHEMA_NAME, STEM = MANY[0].digest, f"validation-{digest_of()}"


@pytest.mark.parametrize(
    "content",
    [
        [(SCHEMA_NAME, "5")],
        {"refused": "5"},
        {SCHEMA_NAME.upper(): "5"},
        {SCHEMA_NAME[:-1]: "5"},
        {5: "5"},
        {SCHEMA_NAME.encode(): "5"},
        {SCHEMA_NAME: None},
        {SCHEMA_NAME: 5},
        {SCHEMA_NAME: b"5"},
        {SCHEMA_NAME: ["5"]},
        {SCHEMA_NAME: ""},
        {SCHEMA_NAME: "-1"},
        {SCHEMA_NAME: "5.0"},
        {SCHEMA_NAME: "5\n"},
        {SCHEMA_NAME: "5 "},
        {SCHEMA_NAME: " 5"},
        {SCHEMA_NAME: "\u0665"},
        {SCHEMA_NAME: 20 * "5"},
        {SCHEMA_NAME: STEM},
        {SCHEMA_NAME: f"5  {STEM}"},
        {SCHEMA_NAME: f"5,{STEM}"},
        {SCHEMA_NAME: "5 quarantine"},
        {SCHEMA_NAME: f"5 {STEM}x"},
        {SCHEMA_NAME: f"5 {STEM[:-1]}"},
        {SCHEMA_NAME: f"5 {STEM}\n"},
        {SCHEMA_NAME: f"5 ?quarantine {STEM}"},
        {SCHEMA_NAME: "5 ??quarantine"},
        {SCHEMA_NAME: "5 ? quarantine"},
        {SCHEMA_NAME: "5?quarantine"},
        {SCHEMA_NAME: "5 ?override-../../../x"},
        {SCHEMA_NAME: "5 ?notes"},
    ],
)
def test_an_overview_of_another_form_is_none(kept, content):
    with pytest.raises(DamagedError, match="overview"):
        overview_from(Named("fi_cachestore.overview/2", content))
    (kept / "verdicts" / "overview" / "00000001.rec").write_bytes(seal(Named("fi_cachestore.overview/2", content)))
    assert set(newest(kept)) == {schema.digest for schema in MANY}
    assert [finding.reason for finding in verify(kept).findings] == ["corrupt"]


@pytest.mark.parametrize("value", [None, {}, Named("fi_cachestore.overview/1", {}), Named("fi_cachestore.rules/1", {})])
def test_another_value_is_no_overview(value):
    with pytest.raises(DamagedError, match="not an overview of this format"):
        overview_from(value)


def test_an_overview_comes_back_as_it_was():
    glances = {
        MANY[0].digest: Glance(5, frozenset({STEM, "quarantine"}), frozenset({STEM})),
        MANY[1].digest: Glance(0, frozenset(), frozenset()),
    }
    assert overview_from(overview_value(glances)) == glances
    assert overview_from(overview_value({})) == {}


def test_strange_names_beside_it_are_passed_over_and_found(kept):
    folder = kept / "verdicts" / "overview"
    (folder / "notes.txt").write_text("hello")
    (folder / ".host-1-0123.tmp").write_text("half")
    assert ask(kept) == BY_THE_OVERVIEW
    assert sorted(finding.reason for finding in verify(kept).findings) == [LEFTOVER, "stray"]
    assert verify(kept).verdict_count == len(list((kept / "verdicts").glob("*/validation-*"))), "an overview is no verdict"


# -- writing ----------------------------------------------------------------------------------------------------------------------


def test_what_others_have_left_since_is_found_after_a_refresh(root):
    ledger, reader = opened_with_a_clock(root)
    assert standing(ledger, 0, MANY[0]) is VALIDATED
    ask(root)
    ledger.refresh()
    reader.operations.clear()
    assert [standing(ledger, 0, schema) for schema in MANY] == [VALIDATED] * len(MANY)
    assert [what for what, _ in reader.operations] == [what for question in BY_THE_OVERVIEW for what in question]
    quarantine(open_ledger(root), MANY[4])
    ledger.refresh()
    reader.operations.clear()
    assert [standing(ledger, 0, schema) for schema in MANY] == [VALIDATED] * 4 + [QUARANTINED] + [VALIDATED] * 2
    assert [what for what, _ in reader.operations].count("time") == len(MANY) + 3, "all were compared again"


def test_what_it_lists_counts_for_how_many_values_there_may_be(kept, monkeypatch, caplog):
    monkeypatch.setattr(ledger_module, "MAX_VALIDATIONS", 2)
    ledger, _ = opened_with_a_clock(kept)
    assert [standing(ledger, 0, schema) for schema in MANY] == [VALIDATED] * len(MANY)
    assert not promote(ledger, 2, MANY[5])
    assert "more than 2 sets of left-out values" in caplog.text
    assert standing(ledger, 2, MANY[5]) is UNPROVEN


def test_nothing_is_looked_at_twice_and_the_same_is_not_written_again(root):
    ledger, reader = opened_with_a_clock(root, now_unix_ns=time.time_ns)
    for _ in range(2):
        assert [standing(ledger, 0, schema) for schema in MANY] == [VALIDATED] * len(MANY)
        ledger.keep_overview()  # they have changed just now: there is nothing to keep
        reader.operations.clear()
        ledger.keep_overview()
        assert reader.operations == []
        ledger.refresh()
    assert overview_files(root) == []
    ask(root)
    for schema in MANY:
        promote(open_ledger(root), 2, schema)
    ask(root, now_unix_ns=time.time_ns)
    ask(root, now_unix_ns=time.time_ns)
    assert overview_files(root) == ["00000000.rec", "00000001.rec"]
    assert newest(root) == {}


def test_what_is_asked_for_beyond_the_limit_is_not_remembered(root, monkeypatch):
    monkeypatch.setattr(stored_module, "_MAX_OVERVIEW", 5)
    ask(root)
    assert sorted(newest(root)) == sorted(schema.digest for schema in MANY[:5])


def test_it_is_not_put_on_the_medium(root):
    writer = FaultyWriter(lambda *_: None)
    Overviews(root / "verdicts", reader=OsFileSystem(), writer=writer).append({})
    assert "link" in writer.steps
    assert "fsync" not in writer.steps


def test_the_last_two_are_kept(kept):
    for rank in range(2, 6):
        promote(open_ledger(kept), rank, MANY[0])
        ask(kept)
    assert overview_files(kept) == ["00000003.rec", "00000004.rec"]


def test_who_stalls_while_others_write_takes_an_old_number_and_the_next_drops_it(root):
    class Stalled(OsFileSystem):
        def __init__(self):
            self.listed = []

        def names(self, path):
            self.listed.append(super().names(path) if self.listed else [])
            return self.listed[-1]

    glances = [{MANY[0].digest: Glance(number, frozenset({STEM}), frozenset({STEM}))} for number in range(5)]
    overviews, stalled = (Overviews(root / "verdicts", reader=reader, writer=OsFileSystem()) for reader in (OsFileSystem(), Stalled()))
    for each in glances[:3]:
        overviews.append(each)
    stalled.append(glances[3])
    assert overview_files(root) == ["00000000.rec", "00000001.rec", "00000002.rec"]
    assert newest(root) == glances[2]
    overviews.append(glances[4])
    assert overview_files(root) == ["00000002.rec", "00000003.rec"]
    assert newest(root) == glances[4]


def test_a_full_disk_costs_the_overview_and_nothing_else(root, caplog):
    verdicts = open_root(root, durable=False).verdicts
    verdicts.own.overviews._writer = FaultyWriter(fail_at("write", DISK_FULL))
    ledger = Ledger(verdicts, Later())
    for schema in MANY:
        assert standing(ledger, 0, schema) is VALIDATED
    ledger.keep_overview()
    assert overview_files(root) == []
    assert not caplog.records


def test_more_than_a_file_holds_is_not_kept(root, monkeypatch):
    glance = Glance(5, frozenset(f"override-{number:08d}" for number in range(60)), frozenset())
    glances = {sample_schema(number).digest: glance for number in range(1000, 1800)}
    with pytest.raises(UnsupportedValueError):
        VerdictFolder(root, writer=OsFileSystem()).overviews.append(glances)
    monkeypatch.setattr(VerdictFolder, "glances", lambda *_, **__: glances)
    ledger, _ = opened_with_a_clock(root)
    for schema in MANY[:3]:
        assert standing(ledger, 0, schema) is VALIDATED
    ledger.keep_overview()
    assert overview_files(root) == []


def killed_append(root, glances, number):
    folder = Path(root) / "verdicts"
    Overviews(folder, reader=OsFileSystem(), writer=FaultyWriter(kill_at(number))).append(glances)


@pytest.mark.parametrize("number", range(1, 8))
def test_a_kill_while_it_is_written_leaves_the_old_or_the_new(kept, number):
    old, new = newest(kept), {MANY[0].digest: Glance(5, frozenset({STEM}), frozenset({STEM}))}
    Overviews(kept / "verdicts", reader=OsFileSystem(), writer=OsFileSystem()).append(old)  # so that one is to be dropped
    process = FORK.Process(target=killed_append, args=(kept, new, number))
    process.start()
    process.join(30)
    assert process.exitcode in (0, -signal.SIGKILL)
    assert newest(kept) in (old, new)
    assert {finding.reason for finding in verify(kept).findings} <= {LEFTOVER}


def keep_at_once(root, start, results):
    start.wait(60)
    try:
        results.put(("", ask(Path(root)) and len(newest(Path(root)))))
    except BaseException as error:
        results.put((repr(error), 0))
        raise


def test_processes_that_keep_one_at_once_all_find_a_sound_one(root):
    start, results = FORK.Barrier(8), FORK.Queue()
    processes = [FORK.Process(target=keep_at_once, args=(str(root), start, results)) for _ in range(8)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [("", len(MANY))] * 8
    for process in processes:
        process.join(30)
    assert ask(root) == BY_THE_OVERVIEW
    assert verify(root).findings == ()
    for rank in (2, 3):  # whoever stalled may have taken a number again that was free by then
        promote(open_ledger(root), rank, MANY[0])
        ask(root)
    assert len(overview_files(root)) == 2
