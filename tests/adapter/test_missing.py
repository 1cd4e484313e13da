"""What is kept of misses, with the real tuner: which, with which reason, when, where, and what stays as it was."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from flashinfer import autotune as flashinfer_autotune
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from fi_cachestore import config as settings
from fi_cachestore.records.verdict import Word
from fi_cachestore.store.loose import entry_path
from fi_cachestore.store.missed_log import KEPT_COUNT, MissedLog
from fi_cachestore.store.roots import open_root
from fi_cachestore.validation.ledger import Ledger
from tests.adapter.processes import fresh
from tests.adapter.runners import PlainRunner, choose, config, matrix, timed


@pytest.fixture(autouse=True)
def plain_tuner():
    """What is kept goes to the state directory of the process's first session."""
    yield
    fi_cachestore.detach()


def log():
    return MissedLog(settings.load().state.value)


def last():
    return next(log().latest())


def tuned(root, op="op", rows=100, runner=PlainRunner, **kwargs):
    with timed(), fi_cachestore.autotune(root=root, **kwargs) as session:
        choose(op, [runner()], [matrix(rows)], config())
    session.detach()


def served(root, *ops, rows=100, runner=PlainRunner, tuning_config=None):
    """Serve calls in a session that ends; returns its report."""
    session = fi_cachestore.attach(root=root)
    for op in ops:
        choose(op, [runner()], [matrix(rows)], tuning_config)
    session.detach()
    return session.report()


def rows(session):
    return [(missed.key.op, missed.reason, missed.call_count, missed.is_covered) for missed in session.missed]


class SlowRunner(PlainRunner):
    """Another runner of the same op."""

    def time_ms(self, tactic):
        return 50.0


# -- what is kept -----------------------------------------------------------------------------------------------------------------


def test_a_miss_is_kept_with_its_whole_key(tmp_path):
    tuned(tmp_path / "root")
    served(tmp_path / "root", "other op", "op", "other op")
    kept = last()
    assert rows(kept) == [("other op", "absent", 1, False)]
    with timed(), fi_cachestore.autotune(root=tmp_path / "root"):
        choose("other op", [PlainRunner()], [matrix(100)], config())
    assert kept.missed[0].digest in set(fi_cachestore.open_store(tmp_path / "root", read_only=True))


def test_sizes_of_one_bucket_are_one_miss_of_several_calls(tmp_path):
    session = fi_cachestore.attach(root=tmp_path / "root")
    for size in (70, 80, 80, 90, 300):
        choose("op", [PlainRunner()], [matrix(size)])
    session.detach()
    assert rows(last()) == [("op", "absent", 3, False), ("op", "absent", 1, False)]
    assert last().decided_count == 4


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b"bad"), "corrupt"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "corrupt"),
        (lambda path: path.unlink(), "absent"),
    ],
    ids=["bad", "short", "gone"],
)
def test_the_reason_is_that_of_the_store(tmp_path, damage, reason):
    tuned(tmp_path / "root")
    served(tmp_path / "root", "nothing")
    for digest in fi_cachestore.open_store(tmp_path / "root", read_only=True):
        damage(entry_path(tmp_path / "root" / "objects", digest, 0))
    served(tmp_path / "root", "op")
    assert rows(last()) == [("op", reason, 1, False)]


def test_a_miss_that_another_runner_covers_says_so(tmp_path):
    tuned(tmp_path / "root")
    session = fi_cachestore.attach(root=tmp_path / "root")
    assert choose("op", [SlowRunner(), PlainRunner()], [matrix(100)]) == (1, 2)
    session.detach()
    [missed] = last().missed
    assert missed.is_covered
    assert ":SlowRunner " in missed.key.runner.type


VERDICTS = {
    "unproven": lambda ledger, record: None,
    "quarantined": lambda ledger, record: ledger.override(record.evidence.schema, Word.DISTRUSTED, "me", "a test", 1),
    "refused": lambda ledger, record: ledger.refuse(record, "two processes died", 1),
    "nothing": lambda ledger, record: ledger.override(record.evidence.schema, Word.TRUSTED, "me", "a test", 1),
}


def tuned_elsewhere(root):
    with timed(), fi_cachestore.autotune(root=root):
        choose("op", [PlainRunner()], [matrix(100)], config())


@pytest.mark.parametrize("reason", VERDICTS)
def test_a_record_that_may_not_be_served_is_kept_with_the_verdict(tmp_path, reason):
    fresh(tuned_elsewhere, tmp_path)
    key = fi_cachestore.tune_key("op", PlainRunner(), [matrix(100)], tuning_config=config())
    opened = open_root(tmp_path)
    VERDICTS[reason](Ledger(opened.verdicts), opened.records.get(key.digest).entry)
    served(tmp_path, "op")
    kept = last()
    assert rows(kept) == ([] if reason == "nothing" else [("op", reason, 1, False)])
    assert [missed.digest for missed in kept.missed] == ([] if reason == "nothing" else [key.digest])
    assert [row.reason for row in kept.in_memory] == (["quarantined key schema"] if reason == "quarantined" else [])
    if reason == "quarantined":
        assert kept.missed[0].detail == "distrusted by me: a test"
    fi_cachestore.detach()
    command = [sys.executable, "-m", "fi_cachestore.cli.main", "why", key.digest[:12], "--root", tmp_path, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    [explained] = json.loads(result.stdout)["explained"]
    assert (result.returncode, explained["reason"]) == ((0, None) if reason == "nothing" else (1, reason))


ACCEPTED = {-1, 0, 1, 2}  # a global: not part of a key


class PickyRunner(PlainRunner):
    """Accepts what it was told to."""

    def validate_tactic(self, inputs, tactic):
        return tactic in ACCEPTED


def test_tactics_that_the_runner_refuses_are_kept_as_refused(tmp_path, monkeypatch):
    tuned(tmp_path / "root", runner=PickyRunner)
    served(tmp_path / "root", "op", runner=PickyRunner)
    assert rows(last()) == []
    monkeypatch.setitem(globals(), "ACCEPTED", set())
    served(tmp_path / "root", "op", runner=PickyRunner)
    assert rows(last()) == [("op", "refused", 1, True)]  # the default was measured too, and needs no validation
    assert last().missed[0].detail.endswith("refuses: 2, 1, 0")


class Opaque(PlainRunner):
    def __init__(self):
        self.handle = object.__new__(type("Handle", (), {"__slots__": ("x",)}))


def test_a_call_without_a_key_is_kept_with_what_it_lacks(tmp_path):
    served(tmp_path / "root", "opaque", runner=Opaque)
    [in_memory] = last().in_memory
    assert (in_memory.op, in_memory.reason, in_memory.call_count) == ("opaque", "incomplete key", 1)
    assert "handle" in in_memory.gaps[0]


def test_a_miss_that_is_measured_later_is_over(tmp_path):
    session = fi_cachestore.attach("auto", root=tmp_path / "root")
    choose("op", [PlainRunner()], [matrix(100)])
    choose("never tuned", [PlainRunner()], [matrix(100)])
    with timed(), flashinfer_autotune(True):
        choose("op", [PlainRunner()], [matrix(100)])
    session.detach()
    assert [op for op, *_ in rows(last())] == ["never tuned"]


# -- sizes far beyond the buckets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows_count", "expected"), [(256, []), (512, []), (513, [("op", 0, 256, 513, 1)]), (17, []), (60, [])])
def test_sizes_beyond_twice_the_largest_bucket_are_counted(tmp_path, rows_count, expected):
    report = served(tmp_path / "root", "op", rows=rows_count)
    assert [(b.op, b.dim, b.bucket, b.largest_size, b.call_count) for b in last().beyond] == expected
    assert report.beyond == ({"op": 1} if expected else {})
    assert ("far beyond" in str(report)) == bool(expected)


def test_sizes_beyond_are_counted_where_records_serve_them_and_the_largest_is_kept(tmp_path):
    tuned(tmp_path / "root", rows=256)
    session = fi_cachestore.attach(root=tmp_path / "root")
    assert [choose("op", [PlainRunner()], [matrix(size)]) for size in (2000, 1000, 1000, 3000)] == [(0, 2)] * 4
    session.detach()
    [beyond] = last().beyond
    assert (beyond.bucket, beyond.largest_size, beyond.call_count) == (256, 3000, 3)
    assert last().missed == ()
    assert session.report().to_json()["beyond"] == {"op": 3}


def powers(size):
    return tuple(1 << n for n in range(size.bit_length()))


def capped(size):
    return (16, 64, 256)


def broken(size):
    raise RuntimeError(size)


@pytest.mark.parametrize(("made_for", "expected"), [(powers, {}), (capped, {"op": 1}), (broken, {}), (lambda size: (), {})])
def test_buckets_that_are_made_for_the_size_at_hand_are_exceeded_only_if_they_end_below_it(tmp_path, made_for, expected):
    made = config()
    [spec] = made.dynamic_tensor_specs
    grown = replace(made, dynamic_tensor_specs=(replace(spec, gen_tuning_buckets=made_for),))
    report = served(tmp_path / "root", "op", rows=5000, tuning_config=grown)
    assert report.beyond == expected


# -- when and where ---------------------------------------------------------------------------------------------------------------

SERVE = """
import os, signal, sys
import fi_cachestore
from tests.adapter.processes import fresh
from tests.adapter.runners import PlainRunner, choose, matrix

fi_cachestore.attach(root=sys.argv[1])
choose("op", [PlainRunner()], [matrix(100)])
"""


def process(root, end=""):
    """Serve one missing call in a fresh process that ends in some way; return its exit code and standard error."""
    result = subprocess.run([sys.executable, "-c", SERVE + end, root], capture_output=True, text=True, check=False, timeout=120)
    return result.returncode, result.stderr


def test_misses_outlive_the_process_and_a_replay_root_is_not_created(tmp_path):
    assert process(tmp_path / "root") == (0, "")
    assert rows(last()) == [("op", "absent", 1, False)]
    assert last().roots == (str(tmp_path / "root"),)
    assert (last().mode, last().pid == os.getpid()) == ("replay", False)
    assert not (tmp_path / "root").exists()


def test_a_process_that_ends_by_an_exception_or_an_exit_in_a_signal_handler_keeps_its_misses(tmp_path):
    assert process(tmp_path / "root", "raise RuntimeError('engine')")[0] == 1
    handled = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); os.kill(os.getpid(), signal.SIGTERM)"
    assert process(tmp_path / "root", handled) == (3, "")
    assert [rows(session) for session in log().latest()] == [[("op", "absent", 1, False)]] * 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_keeps_none(tmp_path, number):
    assert process(tmp_path / "root", f"os.kill(os.getpid(), {int(number)})") == (-number, "")
    assert list(log().latest()) == []


def test_a_process_of_multiprocessing_keeps_its_misses(tmp_path):
    code = """
import multiprocessing, sys
import fi_cachestore
from tests.adapter.processes import fresh
from tests.adapter.runners import PlainRunner, choose, matrix

def serve(root):
    fi_cachestore.attach(root=root)
    choose("op", [PlainRunner()], [matrix(100)])

if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=serve, args=(sys.argv[1],))
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "root"], check=True, timeout=120)
    assert rows(last()) == [("op", "absent", 1, False)]


def test_a_process_keeps_one_file_that_its_commits_renew(tmp_path):
    with timed(), fi_cachestore.autotune(root=tmp_path / "root"):
        choose("op", [PlainRunner()], [matrix(100)], config())
    assert rows(last()) == []
    choose("other", [PlainRunner()], [matrix(100)])
    assert rows(last()) == []
    with timed(), fi_cachestore.autotune(root=tmp_path / "root"):
        choose("op", [PlainRunner()], [matrix(200)], config())
    assert rows(last()) == [("other", "absent", 1, False)]
    fi_cachestore.detach()
    assert len(list(log().folder.iterdir())) == 1


def test_a_session_that_looked_nothing_up_leaves_the_last_one_in_place(tmp_path):
    served(tmp_path / "root", "op")
    served(tmp_path / "root")
    assert rows(last()) == [("op", "absent", 1, False)]
    tuned(tmp_path / "root")
    assert rows(last()) == []


@pytest.mark.parametrize("place", ["a file", "/dev/null", "/proc/nowhere", "full"])
def test_what_cannot_be_kept_costs_nothing(tmp_path, monkeypatch, caplog, place):
    (tmp_path / "file").write_text("not a directory")
    directory = {"a file": str(tmp_path / "file"), "full": "/dev/full"}.get(place, place)
    monkeypatch.setenv("FI_CACHESTORE_STATE_DIR", directory)
    with caplog.at_level("WARNING", logger="fi_cachestore"):
        report = served(tmp_path / "root", "op")
    assert report.misses == {"absent": 1}
    assert caplog.records == []
    assert list(log().latest()) == []


def test_where_no_directory_is_found_nothing_is_kept(tmp_path, monkeypatch):
    import pwd

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert settings.load().state.value is None
    assert served(tmp_path / "root", "op").misses == {"absent": 1}


def test_the_same_call_again_notes_nothing(tmp_path):
    session = fi_cachestore.attach(root=tmp_path / "root")
    runner, inputs, made = PlainRunner(), [matrix(100)], config()
    choose("op", [runner], inputs, made)
    noted = AutoTuner.get().state.missed
    before = dict(vars(noted))
    for _ in range(20):
        choose("op", [runner], inputs, made)
    assert vars(noted) == before
    assert not log().folder.exists()
    session.detach()


def test_the_last_sessions_are_kept_and_no_more(tmp_path):
    for number in range(KEPT_COUNT + 3):
        served(tmp_path / "root", f"op{number}")
    kept = [session.missed[0].key.op for session in log().latest()]
    assert kept == [f"op{number}" for number in reversed(range(3, KEPT_COUNT + 3))]
    assert len(list(log().folder.iterdir())) == KEPT_COUNT
