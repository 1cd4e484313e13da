"""The crash sentinel, with real processes that die in every way, and with hosts and times of our making."""

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest

from fi_cachestore.coordination.port import SystemClock
from fi_cachestore.environment.process import OsProcessTable, Process, process_identity
from fi_cachestore.errors import DamagedError
from fi_cachestore.records.mark import Mark
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.marks import MarkFolder
from fi_cachestore.store.verdicts import VerdictFolder, Verdicts
from fi_cachestore.testing.faults import DISK_FULL, FaultyWriter, fail_at
from fi_cachestore.testing.samples import sample_record
from fi_cachestore.validation.ledger import Ledger
from fi_cachestore.validation.sentinel import FaultTracer, Sentinel

RECORD = sample_record(1)
FORK = multiprocessing.get_context("fork")
DAY_NS = 24 * 3600 * 10**9
HERE = Process("boot-a", 1, 100, 7000)


class Table:
    """A host's processes, as told."""

    def __init__(self, this=HERE, alive=()):
        self._this, self._alive = this, dict(alive)

    def this(self):
        return self._this

    def start_ticks(self, pid):
        return self._alive.get(pid)


class FixedClock(SystemClock):
    def __init__(self, now_ns):
        self.now_ns = now_ns

    def unix_ns(self):
        return self.now_ns


class NoTracer:
    def tracing(self, file):
        return contextlib.nullcontext()


def open_sentinel(root, *, table=None, now_ns=DAY_NS, tracer=None):
    ledger = Ledger(Verdicts(VerdictFolder(root, durable=False, writer=OsFileSystem())))
    return Sentinel(MarkFolder(root), ledger, table or OsProcessTable(), FixedClock(now_ns), "host-a", tracer), ledger


def marks(root):
    return [MarkFolder(root).load(path) for path, _ in MarkFolder(root).files()]


def segfault():
    ctypes.string_at(0)


def raise_signal(number):
    return lambda: os.kill(os.getpid(), number)


def kill_in_run(root, death):
    sentinel, _ = open_sentinel(root)
    with sentinel.guard(RECORD, (1, 2)):
        death()


def die(root, death):
    """Let a child process die in a run; return how it ended."""
    child = FORK.Process(target=kill_in_run, args=(root, death))
    child.start()
    child.join(60)
    return child.exitcode


FAULTS = {
    "segfault": (segfault, -signal.SIGSEGV),
    "abort": (os.abort, -signal.SIGABRT),
    "bus": (raise_signal(signal.SIGBUS), -signal.SIGBUS),
    "illegal": (raise_signal(signal.SIGILL), -signal.SIGILL),
    "arithmetic": (raise_signal(signal.SIGFPE), -signal.SIGFPE),
}
OTHER_ENDS = {
    "kill": (raise_signal(signal.SIGKILL), -signal.SIGKILL),
    "terminate": (raise_signal(signal.SIGTERM), -signal.SIGTERM),
    "exit": (lambda: os._exit(3), 3),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_record_that_two_processes_die_of_is_refused_at_the_third(tmp_path, name):
    death, exitcode = FAULTS[name]
    assert die(tmp_path, death) == exitcode
    sentinel, ledger = open_sentinel(tmp_path)
    assert sentinel.may_run(RECORD)
    assert not ledger.is_refused(RECORD)
    assert die(tmp_path, death) == exitcode
    assert [found.is_traced for found in marks(tmp_path)] == [True, True]
    assert not sentinel.may_run(RECORD)
    assert open_sentinel(tmp_path)[1].is_refused(RECORD)  # for every later process


@pytest.mark.parametrize("name", OTHER_ENDS)
def test_other_ends_say_nothing_of_the_tactic(tmp_path, name):
    death, exitcode = OTHER_ENDS[name]
    for _ in range(3):
        assert die(tmp_path, death) == exitcode
        assert [found.is_traced for found in marks(tmp_path)] == [False]
        sentinel, ledger = open_sentinel(tmp_path)
        assert sentinel.may_run(RECORD)
        assert not ledger.is_refused(RECORD)
        assert marks(tmp_path) == []  # what dead processes left is tidied up


def test_any_number_of_ends_without_a_trace_counts_as_none(tmp_path):
    for _ in range(3):
        put_up(tmp_path, HERE)
    assert allowed(tmp_path, table=Table(alive={}))
    assert marks(tmp_path) == []


def raise_in_run():
    message = "no such tactic"
    raise ValueError(message)


@pytest.mark.parametrize("end", [raise_in_run, sys.exit, lambda: None], ids=["exception", "exit", "result"])
def test_an_end_within_python_takes_the_mark_away(tmp_path, end):
    die(tmp_path, end)
    assert marks(tmp_path) == []
    assert list((tmp_path / "marks").iterdir()) == []


def test_a_fault_after_the_run_leaves_no_trace(tmp_path):
    def run_then_fault():
        sentinel, _ = open_sentinel(tmp_path)
        with sentinel.guard(RECORD, 0):
            pass
        segfault()

    child = FORK.Process(target=run_then_fault)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGSEGV
    assert list((tmp_path / "marks").iterdir()) == []


def states_of_faulthandler(pipe, *, enabled):
    faulthandler.disable()
    if enabled:
        faulthandler.enable(file=2)
    with Path(os.devnull).open("ab", buffering=0) as file, FaultTracer().tracing(file):
        pipe.send(faulthandler.is_enabled())
    pipe.send(faulthandler.is_enabled())


@pytest.mark.parametrize("enabled", [False, True])
def test_faulthandler_is_as_it_was(enabled):
    mine, theirs = FORK.Pipe()
    child = FORK.Process(target=states_of_faulthandler, args=(theirs,), kwargs={"enabled": enabled})
    child.start()
    assert [mine.recv(), mine.recv()] == [True, enabled]
    child.join(30)


def with_stderr_in(path, function):
    """Run a function in a child whose stderr is a file, and let it die of a fault; return how it ended and what was written."""

    def work():
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
        faulthandler.disable()
        function()
        segfault()

    child = FORK.Process(target=work)
    child.start()
    child.join(60)
    return child.exitcode, path.read_text()


def run_once(root):
    with open_sentinel(root)[0].guard(RECORD, 0):
        pass


def test_an_engines_own_faulthandler_works_on(tmp_path):
    def engine():
        faulthandler.enable(file=2)
        run_once(tmp_path)

    exitcode, written = with_stderr_in(tmp_path / "stderr", engine)
    assert exitcode == -signal.SIGSEGV
    assert "Segmentation fault" in written
    assert marks(tmp_path) == []


def take_signals_over():
    """What tvm-ffi does: faulthandler stays enabled, and hears nothing any more."""
    faulthandler.enable(file=2)
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        signal.signal(number, signal.SIG_DFL)


def test_a_handler_that_a_library_installed_is_there_again(tmp_path):
    def engine():
        take_signals_over()
        run_once(tmp_path)
        assert faulthandler.is_enabled()

    assert with_stderr_in(tmp_path / "stderr", engine) == (-signal.SIGSEGV, "")


def test_a_fault_is_traced_where_a_library_has_taken_the_signals_over(tmp_path):
    def engine():
        take_signals_over()
        with open_sentinel(tmp_path)[0].guard(RECORD, 0):
            segfault()

    assert with_stderr_in(tmp_path / "stderr", engine) == (-signal.SIGSEGV, "")
    assert [found.is_traced for found in marks(tmp_path)] == [True]


def test_a_fault_after_a_run_inside_a_run_is_traced_in_the_outer_one(tmp_path):
    def run_in_run():
        sentinel, _ = open_sentinel(tmp_path)
        with sentinel.guard(RECORD, 0):
            with sentinel.guard(sample_record(2), 0):
                pass
            segfault()

    child = FORK.Process(target=run_in_run)
    child.start()
    child.join(60)
    assert [(found.mark.key, found.is_traced) for found in marks(tmp_path)] == [(RECORD.digest, True)]


def put_up(root, process, *, host="host-a", unix_ns=DAY_NS, trace=b"", record=RECORD):
    mark = Mark(record.digest, record.content, "op", (1, 2), str(process), host, unix_ns)
    path = MarkFolder(root).create(mark)
    with path.open("ab") as file:
        file.write(trace)
    return path


TRACE = b"Fatal Python error: Segmentation fault\n"


def allowed(root, **changes):
    return open_sentinel(root, tracer=NoTracer(), **changes)[0].may_run(RECORD)


def test_a_traced_mark_of_a_living_process_is_no_end(tmp_path):
    for _ in range(3):
        put_up(tmp_path, HERE, trace=TRACE)
    assert allowed(tmp_path, table=Table(alive={HERE.pid: HERE.start_ticks}))
    assert len(marks(tmp_path)) == 3
    assert not allowed(tmp_path, table=Table(alive={}))


def test_a_pid_that_is_used_again_is_another_process(tmp_path):
    for _ in range(2):
        put_up(tmp_path, HERE, trace=TRACE)
    assert not allowed(tmp_path, table=Table(alive={HERE.pid: HERE.start_ticks + 1}))


ELSEWHERE = {"another boot": Process("boot-b", 1, 100, 7000), "another container": Process("boot-a", 2, 100, 7000)}


@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("alive", [{}, {100: 7000}])
def test_marks_from_elsewhere_are_judged_by_their_trace_and_not_by_pid(tmp_path, where, alive):
    for _ in range(3):
        put_up(tmp_path, ELSEWHERE[where], host="host-b")
    assert allowed(tmp_path, table=Table(alive=alive))
    assert len(marks(tmp_path)) == 3  # whether they live cannot be known from here
    for _ in range(2):
        put_up(tmp_path, ELSEWHERE[where], host="host-b", trace=TRACE)
    assert not allowed(tmp_path, table=Table(alive=alive))


def test_a_mark_from_elsewhere_is_tidied_up_after_a_day(tmp_path):
    put_up(tmp_path, ELSEWHERE["another boot"], unix_ns=0)
    assert allowed(tmp_path, now_ns=DAY_NS)
    assert len(marks(tmp_path)) == 1
    assert allowed(tmp_path, now_ns=DAY_NS + 1)
    assert marks(tmp_path) == []


def test_a_mark_of_nobody_known_counts_by_its_trace(tmp_path):
    for _ in range(2):
        put_up(tmp_path, "", trace=TRACE)
    assert not allowed(tmp_path)


def test_marks_of_other_records_do_not_count(tmp_path):
    for other in (sample_record(2), sample_record(1, times_ns={0: 1})):  # another key, and another measurement of the same key
        for _ in range(2):
            put_up(tmp_path, ELSEWHERE["another boot"], trace=TRACE, record=other)
    assert allowed(tmp_path)


@pytest.mark.parametrize("content", [b"", b"bad", TRACE, bytes(2 << 20)], ids=["empty", "short", "trace alone", "huge"])
def test_a_damaged_mark_counts_as_none(tmp_path, content):
    for _ in range(3):
        put_up(tmp_path, HERE, trace=TRACE).write_bytes(content)
    assert allowed(tmp_path, table=Table())


def test_a_mark_under_another_records_name_counts_as_none(tmp_path):
    for _ in range(2):
        path = put_up(tmp_path, HERE, trace=TRACE, record=sample_record(2))
        path.rename(path.with_name(f"{RECORD.digest}-{RECORD.content}{path.name[129:]}"))
    assert allowed(tmp_path, table=Table())
    with pytest.raises(DamagedError, match="mark of"):
        marks(tmp_path)


def test_where_no_mark_can_be_put_up_the_run_goes_on(tmp_path, caplog):
    ledger = Ledger(None)
    writer = FaultyWriter(fail_at("write", DISK_FULL))
    sentinel = Sentinel(MarkFolder(tmp_path, writer=writer), ledger, OsProcessTable(), SystemClock(), "h", NoTracer())
    with sentinel.guard(RECORD, 0):
        ran = True
    assert ran
    assert "without a mark" in caplog.text
    nowhere = Sentinel(None, ledger, OsProcessTable(), SystemClock(), "h", NoTracer())
    assert nowhere.may_run(RECORD)
    with nowhere.guard(RECORD, 0):
        assert marks(tmp_path) == []


def test_a_tactic_too_large_for_a_mark_is_marked_all_the_same(tmp_path):
    sentinel, _ = open_sentinel(tmp_path, tracer=NoTracer())
    with sentinel.guard(RECORD, "x" * (1 << 20)):
        assert [found.mark.tactic for found in marks(tmp_path)] == [None]
    assert marks(tmp_path) == []


def test_a_refused_record_is_refused_without_marks(tmp_path):
    sentinel, ledger = open_sentinel(tmp_path)
    ledger.refuse(RECORD, "seen elsewhere", 1)
    assert not sentinel.may_run(RECORD)
    assert sentinel.may_run(sample_record(1, times_ns={0: 1}))  # a later measurement of the same key


def test_a_process_has_one_name_and_a_fork_another():
    mine, theirs = FORK.Pipe()
    child = FORK.Process(target=lambda: theirs.send(process_identity()))
    child.start()
    name = mine.recv()
    child.join(30)
    assert process_identity() == process_identity() != ""
    assert name not in ("", process_identity())
    assert str(Process.parse(name)) == name
    assert Process.parse(name).boot == Process.parse(process_identity()).boot


@pytest.mark.parametrize("text", ["", "a b c d", "boot 1 2", "boot 1 2 3 4", "boot -1 2 3"])
def test_other_texts_are_no_process(text):
    assert Process.parse(text) is None


def test_the_table_tells_ended_processes():
    table = OsProcessTable()
    child = FORK.Process(target=lambda: None)
    child.start()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
    assert table.start_ticks(child.pid) is None
    child.join(30)
    assert table.start_ticks(os.getpid()) == table.this().start_ticks
    assert table.start_ticks(2**30) is None
