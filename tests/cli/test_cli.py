import json
import subprocess
import sys

import pytest

from fi_cachestore.cli import main as main_module
from fi_cachestore.keys.canonical import Named
from fi_cachestore.records.record import Record
from fi_cachestore.records.rules import Rule, SessionRules
from fi_cachestore.store.loose import LooseStore, entry_path
from fi_cachestore.store.open import open_store
from fi_cachestore.store.rules_log import RulesLog
from fi_cachestore.testing.samples import sample_key, sample_record


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "root"
    store = open_store(path)
    for number in range(3):
        store.publish(sample_record(number))
    store.publish(
        sample_record(key=sample_key(op="other_op", environment={"device": "cuda", "gpu_name": "Other GPU"}), times_ns={-1: None})
    )
    RulesLog(path).append(SessionRules({"device": "cpu"}, (Rule((1, 2)),)))
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, stdout and stderr."""

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
        document = json.loads(out)
        assert document["schema"].startswith("fi_cachestore.")
        return code, document

    return call


# -- ls ---------------------------------------------------------------------------------------------------------------------------


def test_ls_shows_every_record(run, root):
    code, out, err = run("ls", "--root", root)
    assert code == 0
    assert out.count("sample_gemm") == 3
    assert "SampleRunner" in out
    assert "1.00 us" in out
    assert "none works" in out
    assert "4 records" in err


def test_ls_in_raw_units(run_json, root):
    code, document = run_json("ls", "--root", root)
    assert code == 0
    assert document["schema"] == "fi_cachestore.ls/1"
    row = next(row for row in document["records"] if row["digest"] == sample_record(1).digest)
    assert row["op"] == "sample_gemm"
    assert row["runner"] == "sample.module:SampleRunner"
    assert row["best"] == {"tactic": {"tuple": [1, 2]}, "text": "(1, 2)", "time_ns": 1000}
    assert row["default_time_ns"] == 2000
    assert row["measured_unix_ns"] == sample_record().provenance.measured_unix_ns
    assert row["source"].endswith(".0.rec")


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (["--op", "sample_*"], 3),
        (["--op", "other_op"], 1),
        (["--op", "nothing"], 0),
        (["--runner", "SampleRunner"], 4),
        (["--runner", "Other"], 0),
        (["--environment", "gpu_name=Other GPU"], 1),
        (["--environment", "gpu_name=No GPU"], 0),
        (["--limit", "2"], 2),
        (["--op", "sample_*", "--limit", "1"], 1),
    ],
    ids=str,
)
def test_ls_filters(run_json, root, filters, count):
    _, document = run_json("ls", "--root", root, *filters)
    assert len(document["records"]) == count


def test_ls_filters_by_environment_digest(run_json, root):
    _, everything = run_json("ls", "--root", root)
    digest = next(row["environment"] for row in everything["records"] if row["op"] == "other_op")
    _, document = run_json("ls", "--root", root, "--environment", digest[:10])
    assert [row["op"] for row in document["records"]] == ["other_op"]


def test_ls_of_nothing(run_json, tmp_path):
    code, document = run_json("ls", "--root", tmp_path / "missing")
    assert (code, document["records"]) == (0, [])
    assert not (tmp_path / "missing").exists()


def test_ls_counts_what_it_cannot_read(run, run_json, root):
    entry_path(root / "objects", sample_record(1).digest, 0).write_bytes(b"bad")
    _, document = run_json("ls", "--root", root)
    assert len(document["records"]) == 3
    assert [(row["digest"], row["reason"]) for row in document["unreadable"]] == [(sample_record(1).digest, "corrupt")]
    assert "1 files cannot be read" in run("ls", "--root", root)[2]


def test_ls_sees_read_only_layers(run_json, root, tmp_path, monkeypatch):
    monkeypatch.setenv("FI_CACHESTORE_PATH", str(root))
    _, document = run_json("ls", "--root", tmp_path / "own")
    assert len(document["records"]) == 4


# -- show and diff ----------------------------------------------------------------------------------------------------------------


def test_show_has_the_whole_key_every_tactic_and_provenance(run, root):
    record = sample_record(1)
    code, out, _ = run("show", record.digest[:8], "--root", root)
    assert code == 0
    for text in (record.digest, "sample_gemm", "use_8x4_sf_layout: True", "bfloat16[d0 x 4096]", "bucket: 64", "Sample GPU"):
        assert text in out
    lines = [line.split() for line in out.splitlines()]
    assert ["(1,", "2)", "1.00", "us", "0.50", "chosen"] in lines
    assert ["0", "1.50", "us", "0.75"] in lines
    assert ["-1", "2.00", "us", "1.00"] in lines
    assert "sample-host, process 4242, in 0.005 s" in out


def test_show_in_raw_units(run_json, root):
    record = sample_record(1)
    _, document = run_json("show", record.digest, "--root", root)
    assert document["digest"] == record.digest
    assert document["key"]["params"]["value"] == {"use_8x4_sf_layout": True, "number": 1}
    assert [row["time_ns"] for row in document["measurements"]] == [2000, 1500, 1000]
    assert document["tactic_space"]["count"] == 2
    assert document["provenance"]["tuning_ns"] == 5_000_000
    assert set(document["key"]) == {"op", "runner", "params", "inputs", "arguments", "profile", "policy", "extras", "environment"}


def test_show_says_why_there_is_nothing_to_show(run, run_json, root):
    code, out, err = run("show", "0123456", "--root", root)
    assert (code, out) == (1, "")
    assert "no record" in err
    code, document = run_json("show", "0123456", "--root", root)
    assert code == 1
    assert document["schema"] == "fi_cachestore.error/1"
    assert document["fields"]["prefix"] == "0123456"
    code, _, err = run("show", sample_record(1).digest[:3], "--root", root)  # one record has it, by chance
    assert code == 1
    assert "at least 4 digits" in err
    entry_path(root / "objects", sample_record(1).digest, 0).write_bytes(b"bad")
    code, _, err = run("show", sample_record(1).digest, "--root", root)
    assert code == 1
    assert "corrupt" in err


def test_show_asks_for_more_digits(run, root):
    store = LooseStore(root, "objects", Record)
    digests = list(store)
    number = 100
    while not [d for d in digests if sum(o.startswith(d[:2]) for o in digests) > 1]:
        store.publish(sample_record(number))
        number += 1
        digests = list(store)
    from fi_cachestore.cli import opened

    shared = next(d[:2] for d in digests if sum(o.startswith(d[:2]) for o in digests) > 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opened, "_SHORTEST_PREFIX", 2)
        code, _, err = run("show", shared, "--root", root)
    assert code == 1
    assert "give more digits" in err


def test_diff_names_the_fields_and_exits_with_one(run, run_json, root):
    first, second = sample_record(0).digest, sample_record(1).digest
    code, out, err = run("diff", first[:10], second[:10], "--root", root)
    assert code == 1
    assert "params.number" in out
    assert "1 differences" in err
    code, document = run_json("diff", first, second, "--root", root)
    assert code == 1
    assert document["differences"] == [{"field": "params.number", "a": {"value": 0, "text": "0"}, "b": {"value": 1, "text": "1"}}]
    code, document = run_json("diff", first, first, "--root", root)
    assert (code, document["differences"]) == (0, [])


# -- verify -----------------------------------------------------------------------------------------------------------------------


def test_verify_of_a_sound_root(run, run_json, root):
    code, out, err = run("verify", "--root", root)
    assert (code, out) == (0, "")
    assert "4 loose records, 0 in 0 packs, 1 session rules, 0 settlements, 0 verdicts and 0 marks are sound, 0 findings" in err
    code, document = run_json("verify", "--root", root)
    assert (code, document["record_count"], document["findings"]) == (0, 4, [])


def test_verify_finds_damage_and_exits_with_one(run, run_json, root):
    path = entry_path(root / "objects", sample_record(1).digest, 0)
    path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = run("verify", "--root", root)
    assert code == 1
    assert str(path) in out
    assert "corrupt" in out
    code, document = run_json("verify", "--root", root)
    assert code == 1
    assert [(row["path"], row["reason"]) for row in document["findings"]] == [(str(path), "corrupt")]


# -- env --------------------------------------------------------------------------------------------------------------------------


def test_env_shows_settings_with_their_source_and_facets(run, run_json, root, monkeypatch):
    monkeypatch.setenv("FI_CACHESTORE_MODE", "replay")
    code, out, _ = run("env", "--root", root, "--device", "cpu")
    assert code == 0
    assert "FI_CACHESTORE_MODE" in out
    assert "processor" in out
    code, document = run_json("env", "--root", root, "--device", "cpu")
    assert document["settings"]["mode"] == {"value": "replay", "source": "FI_CACHESTORE_MODE"}
    assert document["settings"]["root"] == {"value": str(root), "source": "argument"}
    assert document["facets"]["processor"]["role"] == "validity"
    assert document["root_refused"] is None


def test_env_of_a_gpu_that_is_not_there_names_what_is_unknown(run, run_json, root):
    code, document = run_json("env", "--root", root, "--device", "cuda:0")
    assert code == 0
    assert document["facets"]["gpu_name"]["value"] is None
    assert document["facets"]["gpu_name"]["hint"]
    assert "ephemeral" in run("env", "--root", root, "--device", "cuda")[2]


def test_env_says_why_a_root_would_be_refused(run, run_json, root):
    root.chmod(0o777)
    _, document = run_json("env", "--root", root, "--device", "cpu")
    assert "everyone may write" in document["root_refused"]
    assert "everyone may write" in run("ls", "--root", root)[2]


# -- usage and errors -------------------------------------------------------------------------------------------------------------


def test_usage_errors_exit_with_two(run, root):
    assert run("nothing")[0] == 2
    assert run("ls", "--nothing")[0] == 2
    assert run("show")[0] == 2
    assert run("ls", "--limit", "0")[0] == 2


def test_settings_that_cannot_be_understood_exit_with_ten(run, run_json, root, monkeypatch):
    assert run("env", "--device", "tpu")[0] == 10
    monkeypatch.setenv("FI_CACHESTORE_DURABLE", "maybe")
    code, document = run_json("ls", "--root", root)
    assert code == 10
    assert document["error"] == "ConfigError"
    assert document["fields"]["name"] == "FI_CACHESTORE_DURABLE"


def test_without_a_root_the_reason_is_given(run, monkeypatch):
    import pwd

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    code, _, err = run("ls")
    assert code == 10
    assert "no HOME" in err


def test_help_and_version(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(name in out for name in ("ls", "show", "diff", "verify", "env", "demo", "doctor", "Exit codes"))
    assert "fi-cachestore" in run("--version")[1]
    for name in ("ls", "show", "diff", "verify", "env", "demo", "doctor"):
        assert run(name, "--help")[0] == 0


def test_what_a_directory_holds_cannot_steer_a_terminal(run, tmp_path):
    evil = "op\x1b[2Jname\n\r\x07"
    open_store(tmp_path).publish(sample_record(key=sample_key(op=evil, arguments={"\x1b]0;x\x07": "\x9b31m"})))
    for arguments in (["ls"], ["show", sample_record(key=sample_key(op=evil, arguments={"\x1b]0;x\x07": "\x9b31m"})).digest]):
        _, out, _ = run(*arguments, "--root", tmp_path)
        assert all(character == "\n" or character.isprintable() for character in out)


def test_json_spells_out_what_json_lacks():
    from fi_cachestore.cli.output import to_json

    value = {"a": (1, [b"\x01", None]), "b": Named("dtype", "x"), "c": float("nan"), "d": {1: 2}}
    assert to_json(value) == {
        "a": {"tuple": [1, [{"bytes": "01"}, None]]},
        "b": {"kind": "dtype", "content": "x"},
        "c": {"float": "nan"},
        "d": {"pairs": [[1, 2]]},
    }
    json.dumps(to_json(value), allow_nan=False)


CHECK_IMPORTS = """
import sys
from fi_cachestore.cli.main import main
sys.argv = ["fi-cachestore", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {name.partition(".")[0] for name in sys.modules} & {"torch", "flashinfer", "numpy"}
    sys.stderr.write(f"IMPORTED {sorted(heavy)}")
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["ls"], ["ls", "--json"], ["verify"], ["show", "DIGEST"], ["diff", "DIGEST", "DIGEST"]], ids=str
)
def test_looking_imports_no_torch(root, arguments):
    given = [sample_record(1).digest if part == "DIGEST" else part for part in arguments]
    rooted = [] if arguments == ["--help"] else ["--root", str(root)]
    result = subprocess.run([sys.executable, "-c", CHECK_IMPORTS, *given, *rooted], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.endswith("IMPORTED []")


def test_importing_the_package_imports_no_torch():
    code = "import sys, fi_cachestore; fi_cachestore.Mode; fi_cachestore.open_store; fi_cachestore.diff; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_public_name_is_there():
    import fi_cachestore

    assert all(hasattr(fi_cachestore, name) for name in fi_cachestore.__all__)
    assert dir(fi_cachestore) == sorted(fi_cachestore.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = fi_cachestore.nothing


def test_commands_change_nothing(run, root):
    before = {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in root.rglob("*")}
    for arguments in (["ls"], ["verify"], ["env", "--device", "cpu"], ["show", sample_record(1).digest]):
        run(*arguments, "--root", root)
    assert {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in root.rglob("*")} == before
