import json
import multiprocessing
import os
import signal
import threading

import filelock
import pytest

from fi_cachestore.coordination.files import FileCoordinator
from fi_cachestore.coordination.local import LocalCoordinator
from fi_cachestore.coordination.port import Busy, Unavailable
from fi_cachestore.keys.digest import Digest

DIGEST, OTHER = Digest("a" * 64), Digest("b" * 64)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["files", "local"])
def coordinator(request, tmp_path):
    return FileCoordinator(tmp_path / "claims") if request.param == "files" else LocalCoordinator()


def test_one_holder_at_a_time(coordinator):
    claim = coordinator.claim(DIGEST, "op")
    assert not isinstance(claim, Busy | Unavailable)
    assert isinstance(coordinator.claim(DIGEST, "op"), Busy)
    other = coordinator.claim(OTHER, "op")
    assert not isinstance(other, Busy | Unavailable)
    claim.release()
    claim.release()  # a second time does nothing
    again = coordinator.claim(DIGEST, "op")
    assert not isinstance(again, Busy | Unavailable)
    claim.release()  # nor does a third, now that somebody else holds it
    assert isinstance(coordinator.claim(DIGEST, "op"), Busy)
    again.release()
    other.release()


def test_another_thread_may_release_a_claim(coordinator):
    claim = coordinator.claim(DIGEST, "op")
    thread = threading.Thread(target=claim.release)
    thread.start()
    thread.join()
    again = coordinator.claim(DIGEST, "op")
    assert not isinstance(again, Busy | Unavailable)
    again.release()


def test_one_of_many_threads_gets_it(coordinator):
    count = 8
    barrier, answers = threading.Barrier(count), []

    def claim():
        barrier.wait()
        answers.append(coordinator.claim(DIGEST, "op"))

    threads = [threading.Thread(target=claim) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(not isinstance(answer, Busy) for answer in answers) == 1


def hold(directory, ready, go):
    claim = FileCoordinator(directory).claim(DIGEST, "bf16_gemm")
    ready.set()
    go.wait(60)
    claim.release()


@pytest.fixture
def holder(tmp_path):
    ready, go = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path / "claims", ready, go))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join(30)


def test_those_who_wait_are_told_for_whom(tmp_path, holder):
    answer = FileCoordinator(tmp_path / "claims").claim(DIGEST, "op")
    assert isinstance(answer, Busy)
    assert f"process {holder.pid} on " in answer.holder
    assert answer.holder.endswith("for bf16_gemm")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_claim_is_free_when_its_holder_dies(tmp_path, holder, how):
    os.kill(holder.pid, how)
    holder.join(30)
    claim = FileCoordinator(tmp_path / "claims").claim(DIGEST, "op")
    assert not isinstance(claim, Busy | Unavailable)
    claim.release()


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EIO", "EOPNOTSUPP"])
def test_a_file_system_without_flock_means_no_claims(tmp_path, monkeypatch, code):
    import errno
    import fcntl

    def flock(fd, operation):
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(fcntl, "flock", flock)
    answer = FileCoordinator(tmp_path / "claims").claim(DIGEST, "op")
    assert isinstance(answer, Unavailable)
    assert answer.why


def test_no_lock_is_soft_or_waited_for(tmp_path, monkeypatch):
    made = []
    real = filelock.FileLock.__init__

    def init(self, *args, **kwargs):
        made.append(kwargs)
        real(self, *args, **kwargs)

    monkeypatch.setattr(filelock.FileLock, "__init__", init)
    FileCoordinator(tmp_path).claim(DIGEST, "op").release()
    assert [(kwargs["fallback_to_soft"], kwargs["timeout"]) for kwargs in made] == [(False, 0)]


def test_a_directory_that_cannot_be_made_means_no_claims(tmp_path):
    (tmp_path / "claims").write_text("")
    assert isinstance(FileCoordinator(tmp_path / "claims").claim(DIGEST, "op"), Unavailable)


@pytest.mark.timeout(20)
def test_a_pipe_in_the_lock_files_place_makes_nobody_wait(tmp_path):
    place = tmp_path / DIGEST[:2] / f"{DIGEST}.lock"
    place.parent.mkdir()
    os.mkfifo(place)
    first = FileCoordinator(tmp_path).claim(DIGEST, "op")
    answers = [FileCoordinator(tmp_path).claim(DIGEST, "op") for _ in range(3)]
    assert all(isinstance(answer, Busy | Unavailable) for answer in answers)
    if not isinstance(first, Unavailable):
        first.release()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", ["directory", "link", "dangling link"])
def test_something_else_in_the_lock_files_place_means_no_claims(tmp_path, damage):
    place = tmp_path / DIGEST[:2] / f"{DIGEST}.lock"
    place.parent.mkdir()
    if damage == "directory":
        place.mkdir()
    else:
        target = tmp_path / "target"
        if damage == "link":
            target.write_text("precious")
        place.symlink_to(target)
    assert isinstance(FileCoordinator(tmp_path).claim(DIGEST, "op"), Unavailable)
    if damage == "link":
        assert (tmp_path / "target").read_text() == "precious"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff" * 100, b"[" * 400, json.dumps({"pid": 1, "host": [], "op": {}}).encode()]
)
def test_a_strange_holder_file_only_costs_the_name(tmp_path, content):
    coordinator = FileCoordinator(tmp_path)
    claim = coordinator.claim(DIGEST, "op")
    (tmp_path / DIGEST[:2] / f"{DIGEST}.lock").write_bytes(content)
    answer = coordinator.claim(DIGEST, "op")
    assert isinstance(answer, Busy)
    assert answer.holder.startswith(("an unnamed process", "process 1 on"))
    claim.release()


def count_in(directory, path, rounds):
    coordinator = FileCoordinator(directory)
    done = 0
    while done < rounds:
        claim = coordinator.claim(DIGEST, "op")
        if isinstance(claim, Busy):
            continue
        value = int(path.read_text())
        path.write_text(str(value + 1))
        claim.release()
        done += 1


def test_processes_exclude_each_other(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    processes = [FORK.Process(target=count_in, args=(tmp_path / "claims", path, 100)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert path.read_text() == "400"
