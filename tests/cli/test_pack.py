"""``pack``, and the commands that look at records on packed roots."""

import json
import sys

import pytest

from fi_cachestore.cli import main as main_module
from fi_cachestore.coordination.files import FileCoordinator
from fi_cachestore.coordination.packing import TURN
from fi_cachestore.keys.canonical import decode
from fi_cachestore.records.record import Record
from fi_cachestore.store.bundle import open_bundle
from fi_cachestore.store.open import open_store
from fi_cachestore.testing.samples import sample_key, sample_record
from tests.store.packs import loose_files, make_pack, pack_files

RECORDS = [*(sample_record(number) for number in range(3)), sample_record(key=sample_key(op="other_op"))]


@pytest.fixture
def root(tmp_path):
    store = open_store(tmp_path / "root")
    for record in RECORDS:
        store.publish(record)
    return tmp_path / "root"


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fi-cachestore", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main_module.main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, json.loads(out) if "--json" in arguments else out, err

    return call


@pytest.mark.parametrize("flags", [(), ("--dry-run",), ("--yes", "--dry-run")])
def test_without_a_yes_the_plan_is_printed_and_nothing_changes(run, root, flags):
    before = sorted(root.rglob("*"))
    code, out, err = run("pack", "--root", root, *flags)
    assert (code, out.splitlines()) == (0, ["loose records  4"])
    assert "nothing was changed; pass --yes" in err
    assert sorted(root.rglob("*")) == before


def test_with_a_yes_it_is_done_and_the_second_time_nothing_is_left_to_do(run, root):
    code, document, err = run("pack", "--root", root, "--yes", "--json")
    assert (code, document["schema"]) == (0, "fi_cachestore.pack/1")
    assert document["plan"] == {"loose_count": 4, "merged": [], "kept": []}
    (path,) = pack_files(root)
    assert document["done"] == {
        "path": str(path),
        "record_count": 4,
        "size_bytes": path.stat().st_size,
        "removed_count": 4,
        "merged": [],
        "why_not": "",
    }
    assert "4 records in" in err
    assert loose_files(root) == []
    code, document, err = run("pack", "--root", root, "--yes", "--json")
    assert (code, document["done"]) == (0, None)
    assert [row["record_count"] for row in document["plan"]["kept"]] == [4]
    assert "nothing to pack" in err


def test_all_packs_are_merged_when_asked_for(run, root):
    make_pack(root, [sample_record(number) for number in range(10, 30)])
    run("pack", "--root", root, "--yes")
    assert len(pack_files(root)) == 2
    code, document, _ = run("pack", "--root", root, "--yes", "--into-one", "--json")
    assert (code, document["done"]["record_count"], len(document["done"]["merged"])) == (0, 24, 2)
    assert len(pack_files(root)) == 1


def test_a_root_that_is_not_there_is_not_made(run, tmp_path):
    code, _, err = run("pack", "--root", tmp_path / "none", "--yes")
    assert (code, "nothing to pack" in err) == (0, True)
    assert not (tmp_path / "none").exists()


def test_a_root_that_is_not_believed_is_not_packed(run, root):
    root.chmod(0o777)
    code, out, _ = run("pack", "--root", root, "--yes", "--json")
    assert (code, out["error"]) == (10, "RootRefusedError")
    assert len(loose_files(root)) == 4


def test_while_another_process_packs_nothing_is_done(run, root):
    claim = FileCoordinator(root / "claims").claim(TURN, "packing")
    code, document, err = run("pack", "--root", root, "--yes", "--json")
    claim.release()
    assert (code, document["done"]) == (1, None)
    assert "is packing" in err
    assert len(loose_files(root)) == 4


def test_a_bundle_has_what_was_chosen_from_root_and_layers(run, root, tmp_path, monkeypatch):
    layer = open_store(tmp_path / "layer")
    layer.publish(sample_record(0, times_ns={0: 7}))  # the root's own is searched first
    layer.publish(sample_record(8))
    monkeypatch.setenv("FI_CACHESTORE_PATH", str(tmp_path / "layer"))
    code, document, err = run("pack", "--root", root, "--out", tmp_path / "out", "--op", "sample*", "--json")
    assert (code, document["record_count"], document["done"]) == (0, 4, None)
    assert "--yes" in err
    assert not (tmp_path / "out").exists()
    code, out, _ = run("pack", "--root", root, "--out", tmp_path / "out", "--op", "sample*", "--yes")
    (path,) = (tmp_path / "out").iterdir()
    assert (code, out.strip()) == (0, str(path))
    bundle = open_bundle(path, path.stem)
    assert [bundle.get(record.digest).entry for record in (*RECORDS[:3], sample_record(8))] == [*RECORDS[:3], sample_record(8)]
    assert len(bundle) == 4
    assert len(loose_files(root)) == 4


def test_filters_without_a_bundle_are_a_usage_error(run, root):
    assert run("pack", "--root", root, "--op", "x")[0] == 2


# -- looking at packed records ----------------------------------------------------------------------------------------------------------------


def test_ls_show_and_diff_say_the_same_of_packed_records(run, root):
    first, second = (record.digest for record in RECORDS[:2])
    commands = [("ls",), ("ls", "--op", "other*"), ("show", first[:8]), ("diff", first, second)]
    before = [run(*command, "--root", root, "--json")[:2] for command in commands]
    run("pack", "--root", root, "--yes")
    assert loose_files(root) == []
    after = [run(*command, "--root", root, "--json")[:2] for command in commands]

    def without_source(document):
        rows = [{name: value for name, value in row.items() if name != "source"} for row in document.get("records", [])]
        return {name: value for name, value in document.items() if name != "source"} | ({"records": rows} if rows else {})

    assert [(code, without_source(found)) for code, found in after] == [(code, without_source(found)) for code, found in before]
    assert run("verify", "--root", root)[0] == 0


def test_ls_reads_no_more_than_it_prints(run, root, monkeypatch):
    make_pack(root, [sample_record(number) for number in range(100, 400)])
    decoded, real = [], Record.from_body.__func__

    def counting(cls, body):
        decoded.append(1)
        return real(cls, body)

    monkeypatch.setattr(Record, "from_body", classmethod(counting))
    code, out, _ = run("ls", "--root", root, "--limit", 5)
    assert (code, len(out.splitlines()), len(decoded)) == (0, 7, 5)


def test_a_table_in_a_pipe_has_one_line_per_row_and_every_column(run, root):
    _, out, _ = run("ls", "--root", root)
    head, rule, *rows = out.splitlines()
    assert head.split() == ["digest", "op", "runner", "bucket", "tactic", "time", "to", "default", "measured"]
    assert set(rule) == {"-", " "}
    assert [row.split()[0] for row in rows] == sorted(record.digest[:12] for record in RECORDS)


def test_keys_in_packs_are_those_that_were_published(run, root):
    run("pack", "--root", root, "--yes")
    store = open_store(root, read_only=True)
    assert {decode(store.get(record.digest).entry.key.canonical).kind for record in RECORDS} == {"fi_cachestore.key/1"}
