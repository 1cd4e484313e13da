"""``why``: each reason end to end, with the real tuner, after the process has gone."""

import json
import os
import subprocess
import sys

import pytest

import fi_cachestore
from fi_cachestore import config as settings
from fi_cachestore.cli.why_advice import next_steps
from fi_cachestore.cli.why_facts import Asked, Explained
from fi_cachestore.keys.canonical import Named
from fi_cachestore.keys.diff import diff
from fi_cachestore.keys.nearest import Near
from fi_cachestore.records.envelope import FORMAT_VERSION, HEADER_BYTES, MissReason, _check
from fi_cachestore.records.missed import Beyond, InMemory, Missed, MissedSession
from fi_cachestore.records.verdict import Word
from fi_cachestore.store.loose import entry_path
from fi_cachestore.store.missed_log import MissedLog
from fi_cachestore.store.open import open_store
from fi_cachestore.store.port import Miss
from fi_cachestore.store.roots import open_root
from fi_cachestore.testing.samples import sample_key, sample_record
from fi_cachestore.validation.ledger import Ledger
from tests.adapter.runners import PlainRunner, choose, config, matrix, timed


@pytest.fixture(autouse=True)
def plain_tuner():
    yield
    fi_cachestore.detach()


@pytest.fixture
def root(tmp_path):
    with timed(), fi_cachestore.autotune(root=tmp_path / "root") as session:
        choose("op", [PlainRunner()], [matrix(100)], config())
    session.detach()
    return tmp_path / "root"


SERVE = """
import sys
import fi_cachestore
from tests.adapter.runners import *

fi_cachestore.attach(root=sys.argv[1])
"""


def serve(root, calls):
    """Serve calls in a process that then goes."""
    subprocess.run([sys.executable, "-c", SERVE + calls, root], check=True, timeout=120)


def served(root, op):
    """Serve a call in a session that then ends."""
    session = fi_cachestore.attach(root=root)
    choose(op, [PlainRunner()], [matrix(100)])
    session.detach()


def why(*arguments):
    """Run the command in a process; returns exit code, stdout and stderr."""
    command = [sys.executable, "-m", "fi_cachestore.cli.main", "why", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return result.returncode, result.stdout, result.stderr


def why_json(*arguments):
    code, out, _ = why(*arguments, "--json")
    document = json.loads(out)
    assert document["schema"] in ("fi_cachestore.why/1", "fi_cachestore.error/1")
    return code, document


# -- the last session -------------------------------------------------------------------------------------------------------------


def test_misses_are_explained_after_the_process_has_gone(root):
    serve(root, 'choose("op", [PlainRunner()], [matrix(300)], config((16, 64, 256, 300)))')
    code, document = why_json("--last")
    assert code == 1
    [row] = document["explained"]
    assert (row["op"], row["reason"], row["is_stored"]) == ("op", "absent", False)
    assert row["missed"] == {"reason": "absent", "detail": "", "call_count": 1, "is_covered": False}
    first = row["nearest"][0]
    assert first["differences"] == [
        {"field": "profile[0].bucket", "asked": {"value": 300, "text": "300"}, "stored": {"value": 256, "text": "256"}}
    ]
    assert row["next"] == ["tune at bucket 300 (the nearest that is stored is 256)"]
    assert document["root"] == str(root)  # the session's own, without being told
    assert document["session"]["mode"] == "replay"
    assert document["compared_count"] == 3

    code, out, err = why("--last")
    assert (code, "tune at bucket 300" in out) == (1, True)
    assert "1 key missed" in err

    code, document = why_json(row["digest"][:10])
    assert (code, document["explained"]) == (1, [row])
    code, out, _ = why(row["digest"][:10])
    assert code == 1
    assert "key          " + row["digest"] in out
    assert "profile[0].bucket" in out
    assert "next         tune at bucket 300" in out


def test_a_session_without_misses_says_so_and_the_one_before_is_still_there(root):
    served(root, "other")
    served(root, "op")
    code, document = why_json("--last")
    assert (code, document["explained"], document["session"]["decided_count"]) == (0, [], 1)
    code, document = why_json("--last", "--back", "2")
    assert (code, [row["op"] for row in document["explained"]]) == (1, ["other"])
    assert document["explained"][0]["next"] == ["nothing is stored for other: tune it in mode auto"]


class Opaque(PlainRunner):
    def __init__(self):
        self.handle = iter(())


def test_sizes_beyond_and_calls_without_a_key_are_listed(root):
    session = fi_cachestore.attach(root=root)
    choose("op", [PlainRunner()], [matrix(5000)])
    choose("opaque", [Opaque()], [matrix(100)])
    session.detach()
    code, document = why_json("--last")
    assert code == 1
    [beyond], [in_memory] = document["beyond"], document["in_memory"]
    assert (beyond["op"], beyond["bucket"], beyond["largest_size"], beyond["call_count"]) == ("op", 256, 5000, 1)
    assert beyond["next"] == "tune op at a bucket near 5000; the largest one is 256"
    assert (in_memory["op"], in_memory["reason"]) == ("opaque", "incomplete key")
    assert "Opaque" in in_memory["gaps"][0]
    _, out, _ = why("--last")
    assert beyond["next"] in out
    assert in_memory["gaps"][0] in out


def test_without_any_session_that_is_said(tmp_path):
    code, document = why_json("--last")
    assert (code, document["error"]) == (1, "NoSuchSessionError")
    assert "keeps 0" in document["message"]
    code, document = why_json("--last", "--back", "3")
    assert (code, document["fields"]["back"]) == (1, 3)


def test_without_a_state_directory_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("FI_CACHESTORE_STATE_DIR", "/dev/null")
    assert why("--last", "--root", tmp_path)[0] == 1


def test_hostile_files_in_the_state_directory_are_passed_over(root):
    served(root, "other")
    folder = MissedLog(settings.load().state.value).folder
    (folder / "00000002.rec").write_bytes(b"\x00" * 100)
    os.mkfifo(folder / "00000003.rec")
    (folder / "00000004.rec").symlink_to("/dev/zero")
    code, document = why_json("--last")
    assert (code, [row["op"] for row in document["explained"]]) == (1, ["other"])


# -- reasons ----------------------------------------------------------------------------------------------------------------------


def later_format(path):
    data = bytearray(path.read_bytes()[:-16])
    data[HEADER_BYTES - 8 : HEADER_BYTES - 4] = (FORMAT_VERSION + 1).to_bytes(4, "big")
    path.write_bytes(bytes(data) + _check(bytes(data)))


def another_record(path):
    other = min(found for found in path.parents[1].rglob("*.rec") if found != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("damage", "reason", "advice"),
    [
        (lambda path: path.write_bytes(b"bad"), "corrupt", "fi-cachestore verify"),
        (another_record, "foreign", "fi-cachestore verify"),
        (later_format, "future-format", "upgrade fi_cachestore"),
        (lambda path: path.unlink(), "absent", "tune at bucket 64"),
    ],
    ids=["corrupt", "foreign", "future-format", "absent"],
)
def test_each_reason_of_the_store(root, damage, reason, advice):
    key = fi_cachestore.tune_key("op", PlainRunner(), [matrix(100)], tuning_config=config())
    damage(entry_path(root / "objects", key.digest, 0))
    served(root, "op")
    code, document = why_json("--last")
    [row] = document["explained"]
    assert (code, row["digest"], row["missed"]["reason"], row["reason"]) == (1, key.digest, reason, reason)
    assert advice in row["next"][0]


def test_a_miss_that_is_measured_since_is_stored_now(root):
    served(root, "other")
    with timed(), fi_cachestore.autotune(root=root):
        choose("other", [PlainRunner()], [matrix(100)], config())
    _, document = why_json("--last", "--back", "2")
    [row] = document["explained"]
    assert (row["missed"]["reason"], row["is_stored"]) == ("absent", True)


VERDICTS = [("unproven", "start once more in mode auto"), ("quarantined", "contradict each other"), ("refused", "validate_tactic")]


@pytest.mark.parametrize(("reason", "advice"), VERDICTS)
def test_each_verdict_on_a_stored_record(tmp_path, reason, advice):
    store = open_root(tmp_path)
    record = sample_record()
    store.records.publish(record)
    ledger = Ledger(store.verdicts)
    if reason == "quarantined":
        ledger.override(record.evidence.schema, Word.DISTRUSTED, "me", "a test", 1)
    if reason == "refused":
        ledger.override(record.evidence.schema, Word.TRUSTED, "me", "a test", 1)
        ledger.refuse(record, "two processes died", 1)
    code, document = why_json(record.digest, "--root", tmp_path)
    [row] = document["explained"]
    assert (code, row["is_stored"], row["reason"]) == (1, True, reason)
    assert row["verdict"]["schema"] == record.evidence.schema
    assert advice in row["next"][0]
    assert (row["detail"] == "distrusted by me: a test") == (reason == "quarantined")
    if reason != "refused":
        assert any(record.evidence.schema[:16] in step for step in row["next"])


def test_a_record_that_nothing_speaks_against(tmp_path):
    store = open_root(tmp_path)
    record = sample_record()
    store.records.publish(record)
    store.records.publish(sample_record(1))
    Ledger(store.verdicts).override(record.evidence.schema, Word.TRUSTED, "me", "a test", 1)
    code, document = why_json(record.digest[:8], "--root", tmp_path)
    [row] = document["explained"]
    assert (code, row["reason"], row["next"]) == (0, None, [])
    assert row["nearest"][0]["digest"] == sample_record(1).digest
    code, out, _ = why(record.digest[:8], "--root", tmp_path)
    assert (code, "nothing speaks against it" in out) == (0, True)


def test_what_a_pinned_bundle_lacks_is_told_from_what_the_root_has(tmp_path):
    record = sample_record()
    open_store(tmp_path).publish(record)
    missed = (Missed(record.key.canonical, "absent", "", 1, is_covered=False),)
    MissedLog(settings.load().state.value).append(session(mode="pin", missed=missed, roots=(str(tmp_path),)))
    code, document = why_json("--last")
    [row] = document["explained"]
    assert (code, row["is_stored"], row["reason"]) == (1, True, "not-pinned")
    assert "fi-cachestore pack --out" in row["next"][0]


# -- asking -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [[], ["abcd", "--last"], ["abcd", "--call", "a:b"], ["--last", "--call", "a:b"], ["--last", "--back", "0"]]
)
def test_one_question_at_a_time(arguments):
    assert why(*arguments)[0] == 2


def test_a_digest_that_nobody_knows(root):
    code, document = why_json("0123456789", "--root", root)
    assert (code, document["error"]) == (1, "NoSuchRecordError")
    assert "nor a miss" in document["message"]
    assert why("01", "--root", root)[0] == 1


def test_a_prefix_of_several(tmp_path):
    log = MissedLog(settings.load().state.value)
    keys = {}
    for number in range(2000):
        keys.setdefault(sample_key(number).digest[:4], []).append(sample_key(number))
    two = next(found for found in keys.values() if len(found) > 1)[:2]
    open_store(tmp_path).publish(sample_record(key=two[0]))
    log.append(session(missed=(Missed(two[1].canonical, "absent", "", 1, is_covered=False),)))
    code, document = why_json(two[0].digest[:4], "--root", tmp_path)
    assert (code, document["error"]) == (1, "NoSuchRecordError")
    assert all(key.digest[:16] in document["message"] for key in two)
    assert why_json(two[1].digest[:20], "--root", tmp_path)[1]["explained"][0]["missed"]["reason"] == "absent"


CALL = """
import fi_cachestore
from tests.adapter.runners import *

def rounded():
    return fi_cachestore.tune_key("op", PlainRunner(), [matrix(100)], tuning_config=config(round_up=True))

"""


def test_a_call_described_on_the_spot(root, tmp_path, monkeypatch):
    (tmp_path / "described_calls.py").write_text(CALL)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    code, document = why_json("--call", "described_calls:rounded", "--root", root)
    assert (code, document["explained"][0]["reason"]) == (1, "absent")
    assert "rounded otherwise" in document["explained"][0]["next"][0]


@pytest.mark.parametrize("text", ["json", "json:missing", "no_such_module_here:f", "os:getcwd"])
def test_a_call_that_is_none(text):
    code, document = why_json("--call", text)
    assert (code, document["error"]) == (10, "ConfigError")


def test_looking_changes_nothing(root, tmp_path):
    served(root, "other")
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    why("--last")
    why("0123456789", "--root", tmp_path / "missing")
    assert sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


# -- what next --------------------------------------------------------------------------------------------------------------------


def session(**changes):
    plain = {"library": "l", "host": "h", "pid": 1, "mode": "auto", "roots": (), "started_unix_ns": 1, "ended_unix_ns": 2}
    rows = {"decided_count": 1, "dropped_count": 0, "missed": (), "in_memory": (), "beyond": ()}
    return MissedSession(**{**plain, **rows, **changes})


ASKED = sample_key()
TYPE = type(ASKED.runner)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"environment": {**ASKED.environment, "gpu_name": "Old GPU"}}, "environment: gpu_name 'Old GPU' -> 'Sample GPU'"),
        ({"runner": TYPE("sample.module:SampleRunner 01", ASKED.runner.params)}, "the source of the runner's class is not what it was"),
        ({"runner": TYPE("sample.module:Other", ASKED.runner.params)}, "this op has records of sample.module:Other"),
        (
            {"runner": TYPE(ASKED.runner.type, {**ASKED.runner.params, "number": 7})},
            "configured otherwise (params.number: stored 7, asked 0)",
        ),
        ({"profile": ({"bucket": 32, "rounding": Named("rounding", "floor")},)}, "tune at bucket 64 (the nearest that is stored is 32)"),
        ({"profile": ({"bucket": 64, "rounding": Named("rounding", "ceil")},)}, "sizes are rounded otherwise"),
        ({"policy": {**ASKED.policy, "l2": "cold"}}, "times were taken otherwise (policy.l2: stored 'cold', asked 'hot')"),
        ({"arguments": {"scale": 2.5}}, "the call differs in its arguments (arguments.scale: stored 2.5, asked 1.5)"),
        ({"extras": None}, "the call differs in its extras"),
        ({"inputs": ()}, "the call differs in its inputs"),
        ({"op": "other"}, "nothing is stored for sample_gemm"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_differs_says_what_to_do(changes, expected):
    stored = sample_key(**changes)
    explained = Explained(Asked(ASKED.digest, ASKED), Miss(MissReason.ABSENT), None, (Near(stored, diff(ASKED, stored)),))
    steps = next_steps(explained)
    assert len(steps) == 1
    assert expected in steps[0]


def test_terminal_controls_in_kept_texts_are_spelled_out(tmp_path):
    rows = {
        "in_memory": (InMemory("op\x1b[2J", "why", ("gap\x07",), 1),),
        "beyond": (Beyond("op\x1b", 0, 1, 9, 1),),
        "host": "host\x1b[31m",
    }
    MissedLog(settings.load().state.value).append(session(**rows))
    _, out, err = why("--last", "--root", tmp_path)
    assert "\x1b" not in out + err
    assert "\x07" not in out
