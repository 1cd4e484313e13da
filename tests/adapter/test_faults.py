"""A cache that fails costs speed, never an engine: with a real tuner, every fault of the root ends in memory and one warning."""

import errno
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace

import pytest

import fi_cachestore
from fi_cachestore import Mode
from fi_cachestore.adapter import attach as attach_module
from fi_cachestore.records.record import Record
from fi_cachestore.store.loose import LooseStore, entry_path
from fi_cachestore.testing.faults import FaultyWriter, fail_at
from tests.adapter.processes import fresh
from tests.adapter.runners import PlainRunner, choose, config, matrix, timed


class Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def tune(op="op", rows=100):
    return choose(op, [PlainRunner()], [matrix(rows)], config())


def session_on(root, before=lambda: None, between=lambda: None):
    """Tune two ops in a session, serve them after it; returns what was measured, served and warned of."""
    heard = Warnings()
    logging.getLogger("fi_cachestore").addHandler(heard)
    before()
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        tune("first")
        between()
        tune("second")
    return len(measured), tune("first"), tune("second"), session.mode, heard.texts


def expect_memory(result, warned, *, count=24):
    measured, first, second, _, warnings = result
    assert (measured, first, second) == (count, (0, 2), (0, 2))
    assert len(warnings) == 1, warnings
    assert warned in warnings[0]


def test_a_root_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    result = fresh(session_on, tmp_path / "file" / "root")
    expect_memory(result, "not used as a cache root", count=18)
    assert result[3] is Mode.EPHEMERAL


def closed_root(root):
    root.mkdir()
    root.chmod(0o500)
    for directory in root.parents:
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    os.setuid(54321)
    return session_on(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_root_without_permission_to_write(tmp_path):
    result = fresh(closed_root, tmp_path / "root")
    assert result[3] is Mode.EPHEMERAL
    expect_memory(result, "Permission denied", count=18)


def test_a_root_that_vanishes_under_way_is_made_again(tmp_path):
    root = tmp_path / "root"
    measured, first, second, _, warnings = fresh(session_on_vanishing, root)
    assert (measured, first, second, warnings) == (24, (0, 2), (0, 2), [])
    assert len(fi_cachestore.open_store(root, read_only=True)) == 3


def session_on_vanishing(root):
    return session_on(root, between=lambda: shutil.rmtree(root))


def session_on_blocked(root):
    def block():
        shutil.rmtree(root)
        root.write_text("a file now")

    return session_on(root, between=block)


def test_a_root_that_is_replaced_by_something_else(tmp_path):
    measured, first, second, _, warnings = fresh(session_on_blocked, tmp_path / "root")
    assert (measured, first, second) == (24, (0, 2), (0, 2))
    kinds = {"claims": 0, "publishing": 0, "rules": 0}
    for text in warnings:
        kinds["claims" if "claims between" in text else "rules" if "only attaches" in text else "publishing"] += 1
    assert kinds == {"claims": 1, "publishing": 1, "rules": 1}


def session_with_writer(root, step, code):
    real = attach_module.open_session_root

    def open_faulty(settings):
        opened = real(settings)
        faulty = LooseStore(opened.path, "objects", Record, writer=FaultyWriter(fail_at(step, code)))
        return replace(opened, records=faulty)

    attach_module.open_session_root = open_faulty
    return session_on(root)


@pytest.mark.parametrize("step", ["open", "write", "fsync", "link"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_a_full_or_broken_disk(tmp_path, step, code):
    expect_memory(fresh(session_with_writer, tmp_path, step, code), os.strerror(code))
    assert len(fi_cachestore.open_store(tmp_path, read_only=True)) == 0
    assert not list(tmp_path.rglob("*.tmp"))


def damage_everything(root, how):
    store = fi_cachestore.open_store(root)
    for digest in list(store):
        path = entry_path(root / "objects", digest, 0)
        path.unlink()
        how(path)
    return len(store)


def serve(root):
    heard = Warnings()
    logging.getLogger("fi_cachestore").addHandler(heard)
    session = fi_cachestore.attach(root=root)
    return tune("first"), session.report().misses, heard.texts


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("how", "reason"),
    [(lambda path: path.write_bytes(b"random"), "corrupt"), (os.mkfifo, "corrupt"), (lambda path: path.mkdir(), "corrupt")],
    ids=["bytes", "fifo", "directory"],
)
def test_damaged_records_are_counted_misses_and_measured_anew(tmp_path, how, reason):
    fresh(session_on, tmp_path)
    assert damage_everything(tmp_path, how) == 6
    served, misses, warnings = fresh(serve, tmp_path)
    assert served == (0, -1)
    assert misses[reason] >= 1
    assert warnings == []
    measured, first, second, _, warnings = fresh(session_on, tmp_path)
    assert (measured, first, second, warnings) == (24, (0, 2), (0, 2), [])
    assert fresh(session_on, tmp_path)[0] == 0


def test_a_world_writable_root_is_ephemeral_with_one_warning(tmp_path):
    tmp_path.chmod(0o777)
    expect_memory(fresh(session_on, tmp_path), "everyone may write", count=18)
    assert list(tmp_path.iterdir()) == []


def without_home(tmp_path):
    import pwd

    for name in ("HOME", "XDG_CACHE_HOME", "FI_CACHESTORE_DIR"):
        os.environ.pop(name, None)
    os.environ["FI_CACHESTORE_MODE"] = ""
    pwd.getpwuid = lambda uid: (_ for _ in ()).throw(KeyError(uid))
    return session_on(None)


def test_without_home_and_password_entry_everything_stays_in_memory(tmp_path):
    expect_memory(fresh(without_home, tmp_path), "no HOME", count=18)


def without_flock(root):
    import fcntl

    def flock(fd, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl.flock = flock
    return session_on(root)


def test_without_flock_everybody_measures_and_results_are_shared(tmp_path):
    expect_memory(fresh(without_flock, tmp_path), "No locks available")
    assert len(fi_cachestore.open_store(tmp_path)) == 6
    assert fresh(without_flock, tmp_path)[0] == 0


def silent_flock(root):
    import fcntl

    fcntl.flock = lambda fd, operation: None
    return session_on(root)


def test_a_flock_that_does_nothing_changes_no_result(tmp_path):
    assert fresh(silent_flock, tmp_path)[:3] == (24, (0, 2), (0, 2))
    assert fresh(silent_flock, tmp_path)[:3] == (0, (0, 2), (0, 2))


def broken_introspection(root):
    class Broken(PlainRunner):
        @property
        def trouble(self):
            raise RuntimeError

        def get_cache_key_extras(self, inputs):
            message = "extras are broken, which FlashInfer meets as well"
            raise ValueError(message)

    heard = Warnings()
    logging.getLogger("fi_cachestore").addHandler(heard)
    with timed(), fi_cachestore.autotune(root=root), pytest.raises(ValueError, match="FlashInfer meets"):
        choose("broken", [Broken()], [matrix(100)])
    return heard.texts


def test_an_error_in_a_runners_own_code_is_flashinfers_to_raise(tmp_path):
    (warning,) = fresh(broken_introspection, tmp_path)
    assert "broken stays ephemeral" in warning


class Hostile(Sequence):
    """Whoever looks at it meets an error; FlashInfer does not look."""

    def __len__(self):
        message = "do not look"
        raise RuntimeError(message)

    def __getitem__(self, index):
        raise RuntimeError


class HostileRunner(PlainRunner):
    def __init__(self):
        self.hostile = Hostile()


def tune_hostile(root):
    heard = Warnings()
    logging.getLogger("fi_cachestore").addHandler(heard)
    runner = HostileRunner()
    with timed() as measured, fi_cachestore.autotune(root=root) as session:
        inside = [choose("hostile", [runner], [matrix(100)]) for _ in range(2)][1]
    return len(measured), inside, choose("hostile", [runner], [matrix(100)]), session.report().gaps, heard.texts


def test_an_error_that_only_a_description_meets_makes_the_op_ephemeral(tmp_path):
    measured, inside, after, (gap,), (warning,) = fresh(tune_hostile, tmp_path)
    assert (measured, inside, after) == (9, (0, 2), (0, 2))
    assert "do not look" in gap.why
    assert "hostile stays ephemeral" in warning
    assert len(fi_cachestore.open_store(tmp_path)) == 0
