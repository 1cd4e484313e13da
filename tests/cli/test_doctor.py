import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fi_cachestore import config
from fi_cachestore.cli import doctor, doctor_checks, doctor_processes
from fi_cachestore.cli import main as main_module
from fi_cachestore.coordination.port import Busy
from fi_cachestore.store.open import open_store
from fi_cachestore.testing.samples import sample_record

NAMES = [
    "settings",
    "root",
    "root is accepted",
    "file system",
    "root is writable",
    "hard links",
    "locks",
    "clock",
    "meeting of ranks",
]
WRITING = ("root is writable", "hard links", "locks")


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "root"
    open_store(path).publish(sample_record())
    return path


@pytest.fixture
def check(monkeypatch, capsys):
    """Run the command in this process, without torch unless asked for; returns exit code and the checks by name."""

    def call(*arguments, torch=False):
        given = [*map(str, arguments), *([] if torch else ["--no-torch"]), "--json"]
        monkeypatch.setattr(sys, "argv", ["fi-cachestore", "doctor", *given])
        with pytest.raises(SystemExit) as caught:
            main_module.main()
        document = json.loads(capsys.readouterr().out)
        assert document["schema"] == "fi_cachestore.doctor/1"
        checks = {row["name"]: row for row in document["checks"]}
        assert list(checks) == NAMES
        assert document["problem_count"] == sum(row["outcome"] == "problem" for row in checks.values())
        assert all(row["advice"] for row in checks.values() if row["outcome"] == "problem")
        assert caught.value.code == (1 if document["problem_count"] else 0)
        return caught.value.code, checks

    return call


def outcomes(checks, *names):
    return [checks[name]["outcome"] for name in names]


def contents(folder):
    return {path.relative_to(folder): path.lstat().st_ino for path in folder.rglob("*")}


CHECK_IMPORTS = """
import sys
from fi_cachestore.cli.main import main
sys.argv = ["fi-cachestore", *sys.argv[1:]]
try:
    main()
finally:
    sys.stderr.write(f"IMPORTED {sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'flashinfer', 'numpy'})}")
"""


def run(*arguments, **variables):
    """Run the command in a process of its own."""
    command = [sys.executable, "-c", CHECK_IMPORTS, "doctor", *map(str, arguments)]
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=120)


def test_a_sound_host_has_nine_times_ok_and_nothing_is_left_behind(root):
    before = contents(root)
    result = run("--root", root)
    assert result.returncode == 0, result.stderr
    rows = [line.strip() for line in result.stdout.splitlines() if " ok " in line]
    assert [row.partition("  ")[0] for row in rows] == NAMES
    assert "the lock of another process held, and was free when that was killed" in result.stdout
    assert "2 processes of this host met and shared a value" in result.stdout
    assert "0 problems in 9 checks" in result.stderr
    assert result.stderr.endswith("IMPORTED []"), "the processes that meet import torch, the command does not"
    assert contents(root) == before


def test_a_root_that_is_not_there_is_not_there_afterwards(check, tmp_path):
    code, checks = check("--root", tmp_path / "not" / "yet")
    assert code == 0
    assert outcomes(checks, *WRITING) == ["ok"] * 3
    assert "not there" in checks["root is accepted"]["detail"]
    assert not (tmp_path / "not").exists()


def test_a_root_that_an_engine_begins_to_use_meanwhile_stays(check, tmp_path, monkeypatch):
    def meanwhile(folder):
        open_store(folder.parent)
        return doctor_checks.check_hard_links(folder)

    monkeypatch.setattr(doctor, "check_hard_links", meanwhile)
    assert check("--root", tmp_path / "root")[0] == 0
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["CACHEDIR.TAG", "FORMAT"]


# -- locks ------------------------------------------------------------------------------------------------------------------------


def test_without_flock_in_any_process(root, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, fcntl, os\ndef flock(fd, operation):\n    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\nfcntl.flock = flock\n"
    )
    result = run("--root", root, "--no-torch", "--json", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1, result.stderr
    row = next(row for row in json.loads(result.stdout)["checks"] if row["name"] == "locks")
    assert row["outcome"] == "problem"
    assert "another process gets no lock" in row["detail"]
    assert os.strerror(errno.ENOSYS) in row["detail"]
    assert "every process measures for itself" in row["advice"]


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_without_flock_in_this_process(check, root, monkeypatch, code):
    def flock(fd, operation):
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(fcntl, "flock", flock)
    _, checks = check("--root", root)
    assert checks["locks"]["outcome"] == "problem"
    assert "this process gets no lock" in checks["locks"]["detail"]
    assert outcomes(checks, "root is writable", "hard links", "clock") == ["ok"] * 3


def test_a_flock_that_does_nothing_is_found(check, root, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda fd, operation: None)
    _, checks = check("--root", root)
    assert (checks["locks"]["outcome"], checks["locks"]["detail"]) == ("problem", "two processes held one lock at once")


def test_a_lock_that_outlives_its_holder_is_found(check, root, monkeypatch):
    class Stuck:
        def __init__(self, directory):
            pass

        def claim(self, digest, purpose):
            return Busy("a dead process")

    monkeypatch.setattr(doctor_processes, "FileCoordinator", Stuck)
    monkeypatch.setattr(doctor_processes, "_FREED_S", 0.1)
    _, checks = check("--root", root)
    assert "still taken" in checks["locks"]["detail"]


def test_a_process_that_says_nothing_has_its_time(check, root, monkeypatch):
    monkeypatch.setattr(doctor_processes, "_WORKER", "this")  # prints something else
    assert check("--root", root)[1]["locks"]["outcome"] == "problem"
    monkeypatch.setattr(doctor_processes, "_WORKER", "code")  # waits for stdin
    monkeypatch.setattr(doctor_processes, "_CHILD_S", 0.5)
    assert check("--root", root)[1]["locks"]["outcome"] == "problem"


# -- the root ---------------------------------------------------------------------------------------------------------------------


def test_a_file_system_without_hard_links(check, root, monkeypatch):
    def link(source, target, **kwargs):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    before = contents(root)
    monkeypatch.setattr(os, "link", link)
    _, checks = check("--root", root)
    assert outcomes(checks, *WRITING) == ["ok", "problem", "ok"]
    assert os.strerror(errno.EPERM) in checks["hard links"]["detail"]
    assert contents(root) == before


def test_a_read_only_root(root):
    """A bind mount, since the superuser may write where permissions say no."""
    unshare = shutil.which("unshare")
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$2" -m fi_cachestore.cli.main doctor --root "$1" --no-torch --json'
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace may be made here")
    result = subprocess.run(
        [unshare, "-rm", "sh", "-c", script, "sh", str(root), sys.executable], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 1, result.stderr
    checks = {row["name"]: row for row in json.loads(result.stdout)["checks"]}
    assert outcomes(checks, "root is accepted", *WRITING, "clock") == ["ok", "problem", "not checked", "not checked", "ok"]
    assert os.strerror(errno.EROFS) in checks["root is writable"]["detail"]
    assert "FI_CACHESTORE_MODE" in checks["root is writable"]["advice"]


def test_where_nothing_is_ever_written_nothing_is_tried(check, root, monkeypatch):
    monkeypatch.setenv("FI_CACHESTORE_MODE", "replay")
    before = root.stat().st_mtime_ns
    code, checks = check("--root", root)
    assert code == 0
    assert outcomes(checks, *WRITING) == ["not checked"] * 3
    assert root.stat().st_mtime_ns == before


def test_a_root_that_engines_refuse_is_left_alone(check, root):
    root.chmod(0o777)
    before = root.stat().st_mtime_ns
    _, checks = check("--root", root)
    assert "everyone may write" in checks["root is accepted"]["detail"]
    assert outcomes(checks, *WRITING) == ["not checked"] * 3
    assert root.stat().st_mtime_ns == before


def test_layers_that_engines_refuse_are_named(check, root, tmp_path, monkeypatch):
    monkeypatch.setenv("FI_CACHESTORE_PATH", f"{root}:{tmp_path / 'gone'}")
    assert str(tmp_path / "gone") in check("--root", tmp_path / "own")[1]["root is accepted"]["detail"]
    root.chmod(0o777)
    assert str(root) in check("--root", tmp_path / "own")[1]["root is accepted"]["detail"]


def test_without_a_root(check, monkeypatch):
    import pwd

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    code, checks = check()
    assert code == 1
    assert "no HOME" in checks["root"]["detail"]
    assert outcomes(checks, "root is accepted", "file system", *WRITING) == ["not checked"] * 5


# -- file systems -----------------------------------------------------------------------------------------------------------------

TABLE = """/dev/vda / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/export /mnt/a\\040b nfs4 rw,vers=4.2 0 0
/dev/vdb /mnt/a\\040b/inner xfs rw 0 0
tmpfs /over tmpfs rw 0 0
bucket /over fuse.gcsfuse rw 0 0
not a line
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/home/me", ("/", "ext4")),
        ("/mnt/a b/cache", ("/mnt/a b", "nfs4")),
        ("/mnt/a bc", ("/", "ext4")),
        ("/mnt/a b/inner/cache", ("/mnt/a b/inner", "xfs")),
        ("/over/x", ("/over", "fuse.gcsfuse")),
    ],
)
def test_the_file_system_of_a_path(path, found):
    assert doctor_checks.mount_of(Path(path), TABLE) == found


@pytest.mark.parametrize(
    ("kind", "words"),
    [("nfs4", "several hosts may share"), ("lustre", "several hosts may share"), ("fuse.x", "cannot be told"), ("xfs", "")],
)
def test_a_shared_file_system_is_named_and_no_problem(check, root, tmp_path, monkeypatch, kind, words):
    (tmp_path / "mounts").write_text(f"server:/export {tmp_path} {kind} rw 0 0\n")
    monkeypatch.setattr(doctor_checks, "_MOUNTS", tmp_path / "mounts")
    code, checks = check("--root", root)
    assert (code, checks["file system"]["outcome"]) == (0, "ok")
    assert checks["file system"]["detail"].startswith(f"{kind} at {tmp_path}")
    assert words in checks["file system"]["detail"]


def test_without_a_table_of_mounts_nothing_is_said(check, root, monkeypatch):
    monkeypatch.setattr(doctor_checks, "_MOUNTS", Path("/nothing/here"))
    assert check("--root", root)[1]["file system"]["outcome"] == "not checked"


# -- the clock --------------------------------------------------------------------------------------------------------------------


class ScriptedClock:
    def __init__(self, unix_ns, step_ns=2_000_000):
        self._unix_ns, self._now_ns, self._step_ns = unix_ns, 0, step_ns

    def monotonic_ns(self):
        return self._now_ns

    def unix_ns(self):
        return self._unix_ns

    def sleep(self, seconds):
        self._now_ns += self._step_ns


MEASURED_NS = sample_record().provenance.measured_unix_ns
YEAR_NS = 365 * 86400 * 10**9


@pytest.mark.parametrize(
    ("clock", "outcome", "words"),
    [
        (ScriptedClock(MEASURED_NS + 10**9), "ok", "the newest record is of"),
        (ScriptedClock(MEASURED_NS - 30 * 10**9), "ok", "the newest record is of"),
        (ScriptedClock(MEASURED_NS - 3600 * 10**9), "problem", sample_record().digest[:12]),
        (ScriptedClock(MEASURED_NS - 10 * YEAR_NS), "problem", "before this version was made"),
        (ScriptedClock(0), "problem", "1970-01-01"),
        (ScriptedClock(MEASURED_NS, step_ns=0), "problem", "does not advance"),
    ],
)
def test_the_clock(root, clock, outcome, words):
    found = doctor_checks.check_clock(root, clock)
    assert found.outcome == outcome
    assert words in found.detail


def test_the_clock_without_records(tmp_path):
    assert "no record" in doctor_checks.check_clock(tmp_path, ScriptedClock(MEASURED_NS)).detail
    assert "no record" in doctor_checks.check_clock(None, ScriptedClock(MEASURED_NS)).detail


# -- settings ---------------------------------------------------------------------------------------------------------------------


def test_settings_that_are_not_understood_are_all_named_and_the_rest_is_checked(check, root, monkeypatch):
    monkeypatch.setenv("FI_CACHESTORE_DIR", str(root))
    monkeypatch.setenv("FI_CACHESTORE_DURABLE", "maybe")
    monkeypatch.setenv("FI_CACHESTORE_STALL_S", "soon")
    monkeypatch.setenv("FI_CACHESTORE_MAXWAIT", "5")
    code, checks = check()
    assert code == 1
    detail = checks["settings"]["detail"]
    assert "FI_CACHESTORE_DURABLE = 'maybe'" in detail
    assert "FI_CACHESTORE_STALL_S = 'soon'" in detail
    assert (
        "FI_CACHESTORE_MAXWAIT = '5' (from environment) is not valid; expected the name of a setting, such as FI_CACHESTORE_MAX_WAIT_S"
        in detail
    )
    assert outcomes(checks, *WRITING) == ["ok"] * 3
    assert checks["root"]["detail"] == f"{root} (from FI_CACHESTORE_DIR)"


def test_every_setting_that_is_documented_is_known_and_the_other_way_round():
    documented = {line.split()[0] for line in config.__doc__.splitlines() if line.startswith("FI_CACHESTORE_")}
    assert documented == set(config._NAMES)


# -- meeting ----------------------------------------------------------------------------------------------------------------------


def test_ranks_that_cannot_meet(check, root, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    code, checks = check("--root", root, torch=True)
    assert code == 1
    assert checks["meeting of ranks"]["outcome"] == "problem"
    assert "nosuch0" in checks["meeting of ranks"]["detail"]


def test_an_address_that_leads_nowhere_is_passed_over(check, root, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("FI_CACHESTORE_ADDRESS", "127.0.0.254")
    assert check("--root", root, torch=True)[0] == 0


def test_without_torch_ranks_are_not_tried(check, root, monkeypatch):
    monkeypatch.setattr(doctor_processes.importlib.util, "find_spec", lambda name: None)
    row = check("--root", root, torch=True)[1]["meeting of ranks"]
    assert (row["outcome"], row["detail"]) == ("not checked", "torch is not installed here")
