"""``trust``: what it lists, shows and keeps."""

import json
import os
import sys

import pytest

from fi_cachestore.cli import main as main_module
from fi_cachestore.records.verdict import Word
from fi_cachestore.store.roots import open_root
from fi_cachestore.testing.samples import sample_record, sample_schema
from fi_cachestore.validation.ledger import Ledger, Standing
from tests.validation.samples import CONTRADICTION, NOW_NS, RECORD, SCHEMA, digest_of, seen, side

BANNED, WIDE = sample_schema(2), sample_schema(3)


@pytest.fixture
def root(tmp_path):
    """Three records of a schema that two processes agreed on for ranks 0 and 1; another one that is quarantined."""
    path = tmp_path / "root"
    opened = open_root(path, durable=False)
    for number in range(3):
        opened.records.publish(sample_record(number))
    ledger = Ledger(opened.verdicts)
    ledger.promote(SCHEMA, side(0), side(1, "boot 1 17 2000"), [(RECORD, seen())], NOW_NS)
    ledger.quarantine(BANNED, side(0), side(1, "boot 1 17 2000"), RECORD, seen(space=None, failure="RuntimeError"), CONTRADICTION, NOW_NS)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fi-cachestore", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main_module.main()
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call


@pytest.fixture
def run_json(run):
    def call(*arguments):
        code, out, _ = run(*arguments, "--json")
        return code, json.loads(out)

    return call


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def standing(root, schema=SCHEMA, rank=0):
    return Ledger(open_root(root, durable=False).verdicts).standing(schema.digest, digest_of(rank))


def test_every_schema_is_listed_with_its_standing_and_why(run, run_json, root):
    before = tree(root)
    code, out, err = run("trust", "--root", root)
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines() if "sample_gemm" in line}
    assert rows.keys() == {SCHEMA.digest[:12], BANNED.digest[:12]}
    assert "two processes agreed, for 2 of 2 sets of left-out values" in rows[SCHEMA.digest[:12]]
    assert "another tactic list (2 tactics recorded, 3 here)" in rows[BANNED.digest[:12]]
    assert "2 schemas under" in err
    code, document = run_json("trust", "--root", root)
    assert (code, document["schema"], document["root"]) == (0, "fi_cachestore.trust/1", str(root))
    found = {row["schema"]: row for row in document["schemas"]}
    assert found[SCHEMA.digest] == {
        "schema": SCHEMA.digest,
        "op": "sample_gemm",
        "runner": "sample.module:SampleRunner",
        "standing": "validated",
        "why": "two processes agreed, for 2 of 2 sets of left-out values",
        "record_count": 3,
        "left_out": {
            digest_of(0): {"standing": "validated", "record_count": 3},
            digest_of(1): {"standing": "validated", "record_count": 0},
        },
    }
    assert (found[BANNED.digest]["standing"], found[BANNED.digest]["record_count"]) == ("quarantined", 0)
    assert tree(root) == before


def test_a_schema_nobody_has_tried_is_unproven(run_json, tmp_path):
    open_root(tmp_path, durable=False).records.publish(sample_record())
    _, document = run_json("trust", "--root", tmp_path)
    (row,) = document["schemas"]
    assert (row["standing"], row["why"]) == ("unproven", "no other process has tried it yet")


def test_an_unproven_value_beside_a_proven_one_is_seen(run_json, tmp_path):
    opened = open_root(tmp_path, durable=False)
    opened.records.publish(sample_record())  # measured with rank 0
    Ledger(opened.verdicts).promote(SCHEMA, side(3), side(3), [(RECORD, seen())], NOW_NS)
    _, document = run_json("trust", "--root", tmp_path)
    assert [row["standing"] for row in document["schemas"]] == ["partly validated"]


def test_a_quarantine_shows_both_sides_and_what_differs(run, root):
    code, out, _ = run("trust", "show", BANNED.digest[:10], "--root", root)
    assert code == 0
    rows = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert "another tactic list (2 tactics recorded, 3 here)" in out
    assert "differs" in rows["left out: tp_rank"]
    assert "differs" in rows["process"]
    assert "differs" not in rows["host"]
    assert "not readable" in rows["tactics"]
    assert f"tactic (1, 2) of {RECORD.digest[:12]}" in out
    assert "raises RuntimeError" in out
    assert "placement" in rows["tp_rank"]


def test_the_whole_schema_is_shown_to_programs(run_json, root):
    code, document = run_json("trust", "show", BANNED.digest, "--root", root)
    assert (code, document["schema"]) == (0, BANNED.digest)
    (quarantine,) = document["quarantines"]
    assert quarantine["reader"] == {"host": "sample-host", "process": "boot 1 17 2000", "left_out": dict(side(1).left_out)}
    assert quarantine["sample"]["failure"] == "RuntimeError"
    assert quarantine["sample"]["recorded_space"]["count"] == 2
    assert {"path": "tp_rank", "type": "int", "role": "placement"} in document["parameters"]
    _, document = run_json("trust", "show", SCHEMA.digest, "--root", root)
    assert sorted(row["left_out"] for row in document["validations"]) == sorted([digest_of(0), digest_of(1)])
    assert document["validations"][0]["samples"][0]["output"] == "equal"


def test_a_validation_and_overrides_are_shown_to_people(run, root):
    run("trust", "set", SCHEMA.digest[:8], "--as", "distrusted", "--why", "wrong results", "--yes", "--root", root)
    _, out, _ = run("trust", "show", SCHEMA.digest[:8], "--root", root)
    assert "sample-host (process 17)" in out
    assert "wrong results" in out
    assert "2026-09-21" in out


@pytest.mark.parametrize(("word", "expected"), [("trusted", Standing.VALIDATED), ("distrusted", Standing.QUARANTINED)])
def test_a_word_counts_once_it_is_meant(run, run_json, root, word, expected):
    before = tree(root)
    arguments = ("trust", "set", BANNED.digest[:8], "--as", word, "--why", "checked by hand", "--root", root)
    code, out, err = run(*arguments)
    assert code == 0
    assert BANNED.digest[:12] in out
    assert "pass --yes" in err
    assert tree(root) == before
    code, document = run_json(*arguments, "--yes")
    assert (code, document["schema"]) == (0, "fi_cachestore.trust-set/1")
    assert [row["word"] for row in document["plan"]] == [word]
    (kept,) = document["done"]
    assert (kept["schema"], kept["word"], kept["why"], kept["number"]) == (BANNED.digest, word, "checked by hand", 0)
    assert "@" in kept["who"]
    assert standing(root, BANNED) is expected
    assert standing(root) is Standing.VALIDATED  # the other one is as it was


def test_a_word_can_be_taken_back_and_stays_readable(run, run_json, root):
    for word in ("trusted", "evidence"):
        run("trust", "set", BANNED.digest[:8], "--as", word, "--why", f"{word} for now", "--yes", "--root", root)
    assert standing(root, BANNED) is Standing.QUARANTINED
    _, document = run_json("trust", "show", BANNED.digest, "--root", root)
    assert [row["why"] for row in document["overrides"]] == ["trusted for now", "evidence for now"]


def test_builders_of_images_trust_all_that_is_unproven(run, run_json, root):
    opened = open_root(root, durable=False)
    for number, schema in enumerate((sample_schema(5), sample_schema(6))):
        opened.records.publish(record_of(schema, number + 10))
    code, document = run_json("trust", "set", "--all-unproven", "--as", "trusted", "--why", "built in our image", "--yes", "--root", root)
    assert code == 0
    assert {row["schema"] for row in document["done"]} == {sample_schema(5).digest, sample_schema(6).digest}
    assert standing(root, sample_schema(5), 9) is Standing.VALIDATED
    assert standing(root, BANNED) is Standing.QUARANTINED
    code, document = run_json("trust", "set", "--all-unproven", "--as", "trusted", "--why", "again", "--yes", "--root", root)
    assert (code, document["plan"], document["done"]) == (0, [], [])


def record_of(schema, number):
    from dataclasses import replace

    record = sample_record(number)
    return replace(record, evidence=replace(record.evidence, schema=schema.digest))


def test_a_word_goes_to_the_writable_root_alone(run, root, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    before = tree(root)
    monkeypatch.setenv("FI_CACHESTORE_PATH", str(root))
    code, _, _ = run("trust", "set", BANNED.digest[:8], "--as", "trusted", "--why", "known", "--yes", "--root", mine)
    assert code == 0
    assert tree(root) == before
    ledger = Ledger(open_root(mine, after=[root], durable=False).verdicts)
    assert ledger.standing(BANNED.digest, digest_of(0)) is Standing.VALIDATED


def test_refused_records_are_listed(run, run_json, root):
    Ledger(open_root(root, durable=False).verdicts).refuse(RECORD, "2 processes died", NOW_NS)
    _, _, err = run("trust", "--root", root)
    assert f"record {RECORD.digest[:12]} is refused: 2 processes died" in err
    _, document = run_json("trust", "--root", root)
    assert [row["key"] for row in document["refused"]] == [RECORD.digest]


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "abcd", "--as", "trusted"),
        ("set", "abcd", "--as", "trusted", "--why", " "),
        ("set", "abcd", "--why", "because"),
        ("set", "abcd", "--as", "adored", "--why", "because"),
        ("set", "--as", "trusted", "--why", "because"),
        ("set", "abcd", "--all-unproven", "--as", "trusted", "--why", "because"),
    ],
    ids=" ".join,
)
def test_half_a_word_is_a_usage_error(run, root, arguments):
    before = tree(root)
    code, _, err = run("trust", *arguments, "--yes", "--root", root)
    assert code == 2
    assert "Usage" in err
    assert tree(root) == before


def test_a_schema_that_is_not_there_or_not_one(run, run_json, root):
    code, _, err = run("trust", "show", "ffffffff", "--root", root)
    assert code == 1
    assert "fi-cachestore trust" in err
    code, document = run_json("trust", "show", "f", "--root", root)
    assert (code, document["error"], document["exit_code"]) == (1, "NoSuchSchemaError", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_root_that_cannot_be_written(run, root):
    (root / "verdicts").chmod(0o500)
    code, _, _ = run("trust", "set", BANNED.digest[:8], "--as", "trusted", "--why", "known", "--yes", "--root", root)
    assert code == 11


def test_a_root_that_engines_refuse_is_not_written(run, root):
    root.chmod(0o777)
    code, _, err = run("trust", "set", BANNED.digest[:8], "--as", "trusted", "--why", "known", "--yes", "--root", root)
    assert code == 10
    assert "everyone may write" in err
    root.chmod(0o755)
    assert standing(root, BANNED) is Standing.QUARANTINED


def test_what_a_root_holds_does_not_steer_a_terminal(run, tmp_path):
    opened = open_root(tmp_path, durable=False)
    Ledger(opened.verdicts).override(WIDE.digest, Word.TRUSTED, "\x1b[2Jme", "\x1b]0;owned\x07", NOW_NS)
    for arguments in (("trust",), ("trust", "show", WIDE.digest)):
        _, out, err = run(*arguments, "--root", tmp_path)
        assert "\x1b" not in out + err
        assert "\\x1b" in out
