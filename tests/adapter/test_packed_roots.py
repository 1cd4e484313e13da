"""Sessions on packed roots: what is packed, what attaching costs, what is read when."""

import gc
import os
import shutil
import sys
from collections import Counter

import pytest
import torch
from flashinfer.autotuner import AutoTuner, TuningConfig

import fi_cachestore
from fi_cachestore.coordination import packing
from fi_cachestore.store.open import open_store
from fi_cachestore.store.packing import WORTHWHILE_COUNT
from fi_cachestore.testing.samples import sample_record
from tests.store.packs import loose_files, make_pack, pack, pack_files

from .believing import believe
from .processes import fresh
from .runners import PlainRunner, timed

SIZES = tuple(range(1, 7))


def call(rows):
    return AutoTuner.get().choose_one("packed_op", [PlainRunner()], TuningConfig(), [torch.zeros(rows, 8)])


def tuned(root, mode="auto", worthwhile_count=1, layers=""):
    """Tune a few calls in this process and return what was served after it, and how often something was measured."""
    packing.WORTHWHILE_COUNT = worthwhile_count
    os.environ["FI_CACHESTORE_PATH"] = str(layers)
    with timed() as measured:
        with fi_cachestore.autotune(root=root, mode=mode) as session:
            for rows in SIZES:
                call(rows)
        served = [call(rows)[1] for rows in SIZES]
    return served, len(measured), session.report().tuned_count


def attached(root, *, preload=False):
    with timed() as measured:
        session = fi_cachestore.attach(root=root, preload=preload)
        served = [call(rows)[1] for rows in SIZES]
    session.detach()
    return served, len(measured)


def test_a_session_packs_what_has_come_together_and_the_next_start_serves_from_the_pack(tmp_path):
    served, _, tuned_count = fresh(tuned, tmp_path)
    assert (served, tuned_count) == ([2] * len(SIZES), len(SIZES))
    assert loose_files(tmp_path) == []
    assert len(pack_files(tmp_path)) == 1
    assert fresh(tuned, tmp_path)[1:] == (0, 0)
    assert fresh(attached, tmp_path) == ([2] * len(SIZES), 0)


def test_a_session_with_few_records_leaves_them_loose(tmp_path):
    fresh(tuned, tmp_path, worthwhile_count=WORTHWHILE_COUNT)
    assert len(loose_files(tmp_path)) == len(SIZES)
    assert pack_files(tmp_path) == []


def test_a_session_that_measured_nothing_packs_nothing(tmp_path):
    fresh(tuned, tmp_path, worthwhile_count=WORTHWHILE_COUNT)
    fresh(tuned, tmp_path)
    assert pack_files(tmp_path) == []


def test_modes_that_do_not_write_do_not_pack(tmp_path):
    fresh(tuned, tmp_path, worthwhile_count=WORTHWHILE_COUNT)
    fresh(tuned, tmp_path, mode="replay")
    assert pack_files(tmp_path) == []


def test_a_read_only_layer_may_be_packed(tmp_path):
    fresh(tuned, tmp_path / "image")
    assert len(pack_files(tmp_path / "image")) == 1
    assert fresh(tuned, tmp_path / "own", layers=tmp_path / "image")[1:] == (0, 0)


# -- what attaching costs ---------------------------------------------------------------------------------------------------------------

SPAWNING = ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "subprocess.Popen")


def events_of(root, *, preload=False, calls=1):
    """Return the audited events of attaching in this process and the first look-up: all that starts a process, and all under ``root``."""
    import fi_cachestore.adapter.attach

    found, is_on = [], [True]

    def hook(event, arguments):
        if is_on and (event.startswith(SPAWNING) or (arguments and str(arguments[0]).startswith(str(root)))):
            found.append(event)

    sys.addaudithook(hook)
    with timed():
        fi_cachestore.attach(root=root, preload=preload)
        for rows in SIZES[:calls]:
            assert call(rows)[1] == 2
    is_on.clear()
    return found


def test_attaching_starts_no_process(tmp_path):
    fresh(tuned, tmp_path)
    believe(tmp_path)
    found = fresh(events_of, tmp_path)
    assert [event for event in found if event.startswith(SPAWNING)] == []
    assert "open" in found  # the hook is at work


def test_attaching_costs_the_same_at_any_size(tmp_path):
    fresh(tuned, tmp_path)
    believe(tmp_path)
    few = fresh(events_of, tmp_path)
    make_pack(tmp_path, [sample_record(number) for number in range(3000)], sequence=9)
    assert len(pack_files(tmp_path)) == 2
    many = fresh(events_of, tmp_path)
    assert many.count("open") == few.count("open") + 1  # the second pack
    assert len(many) == len(few) + 1
    store = open_store(tmp_path)
    for number in range(4000, 4100):
        store.publish(sample_record(number))
    assert fresh(events_of, tmp_path) == many  # a hundred loose records more, and no scan of them


# Counted on Python 3.11, for a root that one session has left, in a process that has attached before: its trust is checked (``stat``) and its
# format; then, for the first call, its packs, rules, verdicts and settlements are read, and it is found out (most of ``stat``) which package
# the runner's class is from. Whoever has a reason to spend more changes the numbers. It was 250 functions.
MAX_ATTACH_CALLS = 300
MAX_ATTACHING = {"stat": 7, "open": 1, "fstat": 1, "read": 1, "close": 1, "listdir": 1}
MAX_LOOKING_UP = {"open": 3, "fstat": 3, "read": 3, "close": 2, "pread": 4, "access": 2, "listdir": 12, "scandir": 12, "stat": 60}
OF_PYTHON = {"fspath", "getpid", "geteuid", "register_at_fork", "getcwd", "_path_splitroot_ex", "_path_normpath"}
"""What ``posix`` has that asks no file system."""


def counted(function):
    """The functions of Python that a call enters, and how often it asks the system for what."""
    entered, asked = [], Counter()

    def profile(frame, event, arg):
        if event == "call":
            entered.append(frame.f_code.co_name)
        elif event == "c_call" and arg.__module__ == "posix" and arg.__name__ not in OF_PYTHON:
            asked[arg.__name__] += 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return entered[1:], asked


def attaching_counted(root, empty):
    """What attaching and the first look-up take, in a process that has attached before."""
    with timed():
        fi_cachestore.attach(root=empty).detach()
        entered, attaching = counted(lambda: fi_cachestore.attach(root=root))
        served = []
        _, looking_up = counted(lambda: served.append(call(SIZES[0])[1]))
    return entered, attaching, looking_up, served


def test_attaching_stays_cheap(tmp_path):
    fresh(tuned, tmp_path / "root")
    believe(tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / "manifests")  # else the environment is probed, which is not the question
    entered, attaching, looking_up, served = fresh(attaching_counted, tmp_path / "root", tmp_path / "empty")
    assert served == [2]
    assert len(entered) <= MAX_ATTACH_CALLS, entered
    assert "signature" not in entered  # of FlashInfer's methods, which were looked at when the process attached first
    assert attaching <= Counter(MAX_ATTACHING), attaching
    assert looking_up <= Counter(MAX_LOOKING_UP), looking_up


def second_attach(root):
    import importlib.resources

    fi_cachestore.attach(root=root).detach()
    read, real = [], importlib.resources.files
    importlib.resources.files = lambda *arguments: read.append(arguments) or real(*arguments)
    with timed():
        fi_cachestore.attach(root=root)
        assert call(SIZES[0])[1] == 2
    return read


def test_contracts_are_read_once_per_process(tmp_path):
    fresh(tuned, tmp_path)
    believe(tmp_path)
    assert fresh(second_attach, tmp_path) == []


def decoded_count(root, *, preload):
    from fi_cachestore.records.record import Record

    seen, real = [], Record.from_body.__func__

    def counting(cls, body):
        seen.append(1)
        return real(cls, body)

    Record.from_body = classmethod(counting)
    with timed():
        session = fi_cachestore.attach(root=root, preload=preload)
        attached_count = len(seen)
        assert call(SIZES[0])[1] == 2
    session.detach()
    gc.collect()
    return attached_count, len(seen)


def test_nothing_is_decoded_that_is_not_asked_for(tmp_path):
    fresh(tuned, tmp_path)
    believe(tmp_path)
    assert fresh(decoded_count, tmp_path, preload=False) == (0, 1)


def test_preload_reads_everything_at_once_and_nothing_later(tmp_path):
    fresh(tuned, tmp_path)
    believe(tmp_path)
    open_store(tmp_path).publish(sample_record(1))
    assert fresh(decoded_count, tmp_path, preload=True) == (len(SIZES) + 1, len(SIZES) + 1)
    assert fresh(attached, tmp_path, preload=True) == ([2] * len(SIZES), 0)


def preloaded_and_emptied(root):
    session = fi_cachestore.attach(root=root, preload=True)
    for path in (*loose_files(root), *pack_files(root)):
        path.unlink()
    with timed():
        served = [call(rows)[1] for rows in SIZES]
    session.detach()
    return served


def test_what_was_preloaded_needs_no_files(tmp_path):
    fresh(tuned, tmp_path)
    believe(tmp_path)
    assert fresh(preloaded_and_emptied, tmp_path) == [2] * len(SIZES)


@pytest.mark.parametrize("name", ["junk", "truncated"])
def test_a_bad_pack_costs_a_miss_and_is_measured_anew(tmp_path, name):
    fresh(tuned, tmp_path)
    (path,) = pack_files(tmp_path)
    path.write_bytes(b"junk" if name == "junk" else path.read_bytes()[:-9])
    served, measured_count, tuned_count = fresh(tuned, tmp_path)
    assert (served, tuned_count) == ([2] * len(SIZES), len(SIZES))
    assert measured_count > 0


def tuned_while_packed(root):
    """Records that this process has published are packed by another while the session goes on."""
    with timed() as measured:
        with fi_cachestore.autotune(root=root) as session:
            for rows in SIZES[:3]:
                call(rows)
            pack(root)
            for rows in SIZES:
                call(rows)
        again = [call(rows)[1] for rows in SIZES]
    return again, len(measured), session.report().tuned_count


def test_packing_under_a_running_session_changes_nothing(tmp_path):
    assert fresh(tuned_while_packed, tmp_path)[::2] == ([2] * len(SIZES), len(SIZES))
    assert len(loose_files(tmp_path)) == 3
    assert fresh(tuned, tmp_path)[1:] == (0, 0)
