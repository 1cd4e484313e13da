"""The line about records that a change of the environment has left behind."""

import json
import logging
import os

import pytest
import torch

import fi_cachestore
from fi_cachestore.adapter import attach as attach_module
from fi_cachestore.adapter import state as state_module
from fi_cachestore.adapter.orphans import OrphanWatch, device_at_hand
from fi_cachestore.environment.facets import Device, Role
from fi_cachestore.environment.identity import Environments
from fi_cachestore.environment.manifest import manifest
from fi_cachestore.environment.orphans import changes_since, described
from fi_cachestore.environment.probes import CPU_PROBES, Probe
from fi_cachestore.store.left_behind import about_how_many, manifests
from fi_cachestore.store.open import open_store
from fi_cachestore.store.roots import write_manifest
from fi_cachestore.testing.samples import sample_key, sample_record
from tests.adapter.runners import PlainRunner, choose, config, matrix, timed

CPU = Device("cpu")


@pytest.fixture(autouse=True)
def plain_tuner():
    yield
    fi_cachestore.detach()


def environments(**facets):
    """This machine, with facets of a backend in the place of CPU ones, or beside them."""
    probes = [probe for probe in CPU_PROBES if probe.name not in facets]
    roles = {"torch": Role.VALIDITY, "processor": Role.VALIDITY, "driver": Role.PERFORMANCE}
    probes += [Probe(name, roles.get(name, Role.BACKEND), lambda _, value=value: value) for name, value in facets.items()]
    return Environments(lambda _: tuple(probes))


@pytest.fixture
def session_in(monkeypatch, caplog):
    """Tune or attach in an environment with the given facets; returns what was said."""

    def run(root, mode="auto", **facets):
        monkeypatch.setattr(attach_module, "Environments", lambda: environments(**facets))
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="fi_cachestore"):
            if mode == "auto":
                with timed(), fi_cachestore.autotune(root=root):
                    choose("op", [PlainRunner()], [matrix(100)], config())
            else:
                fi_cachestore.attach(root=root)
                choose("op", [PlainRunner()], [matrix(100)], config())
            fi_cachestore.detach()
        return [record.getMessage() for record in caplog.records]

    return run


def test_a_changed_facet_is_named_with_both_values_and_the_number_of_records(tmp_path, session_in):
    assert session_in(tmp_path, cudnn="9.19", cublas="13") == []
    said = session_in(tmp_path, "replay", cudnn="9.20", cublas="13")
    assert len(said) == 1
    assert said[0].startswith(f"3 records under {tmp_path} were measured in another environment of this ")
    assert said[0].endswith("are not served: cudnn 9.19 -> 9.20; tune again in this one")


def test_after_the_same_environment_has_been_tuned_nothing_is_said(tmp_path, session_in):
    session_in(tmp_path, cudnn="9.19")
    assert len(session_in(tmp_path, cudnn="9.20")) == 1
    for mode in ("auto", "replay"):
        assert session_in(tmp_path, mode, cudnn="9.20") == []
        assert session_in(tmp_path, mode, cudnn="9.19") == []


def test_it_is_said_once_however_often_sessions_are_opened(tmp_path, monkeypatch, caplog, session_in):
    session_in(tmp_path, cudnn="9.19")
    monkeypatch.setattr(attach_module, "Environments", lambda: environments(cudnn="9.20"))
    with caplog.at_level(logging.WARNING, logger="fi_cachestore"):
        for _ in range(3):
            fi_cachestore.attach(root=tmp_path)
            choose("op", [PlainRunner()], [matrix(100)], config())
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"driver": "580"}, {"driver": "590"}),
        ({"processor": "one"}, {"processor": "another", "torch": "2"}),
        ({"cudnn": None}, {"cudnn": None}),
        ({"cudnn": "9.19"}, {"cudnn": "9.19"}),
    ],
    ids=["performance", "another device", "unknown then and now", "nothing"],
)
def test_what_leaves_no_records_behind_is_not_said(tmp_path, session_in, before, now):
    session_in(tmp_path, **before)
    assert [line for line in session_in(tmp_path, "replay", **now) if "another environment" in line] == []


def test_several_facets_and_one_that_is_not_determined_any_more(tmp_path, session_in):
    session_in(tmp_path, cudnn="9.19", cublas="12")
    [said] = [line for line in session_in(tmp_path, "replay", cudnn=None, cublas="13") if "another environment" in line]
    assert said.endswith("are not served: cudnn 9.19 -> (unknown), cublas 12 -> 13; tune again in this one")


def test_it_is_said_at_the_first_call_where_the_device_cannot_be_told_before(tmp_path, session_in, monkeypatch):
    """A process with CUDA does not know its device until somebody uses it."""
    monkeypatch.setattr(state_module, "device_at_hand", lambda: None)
    session_in(tmp_path, cudnn="9.19")
    for now, change in (("9.20", "9.20"), (None, "(unknown)")):
        [said] = [line for line in session_in(tmp_path, "replay", cudnn=now) if "another environment" in line]
        assert said.endswith(f"are not served: cudnn 9.19 -> {change}; tune again in this one")


def test_records_of_an_image_are_counted_too(tmp_path, session_in, monkeypatch):
    session_in(tmp_path / "image", cudnn="9.19")
    monkeypatch.setenv("FI_CACHESTORE_PATH", str(tmp_path / "image"))
    before = sorted(tmp_path.rglob("*"))
    [said] = session_in(tmp_path / "own", "replay", cudnn="9.20")
    assert said.startswith("3 records under ")
    assert [path for path in sorted(tmp_path.rglob("*")) if "state" not in str(path)] == [p for p in before if "state" not in str(p)]


def test_without_manifests_nothing_is_probed_or_read(tmp_path):
    def fail(*_):
        raise AssertionError

    OrphanWatch([tmp_path], type("Records", (), {"__iter__": fail, "get": fail})()).say(CPU, Environments(fail))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"7",
        b"[" * 60_000,
        b'{"schema": "other"}',
        b'{"schema": "fi_cachestore.environment/1"}',
        b'{"schema": "fi_cachestore.environment/1", "device": 1, "facets": {}}',
        b'{"schema": "fi_cachestore.environment/1", "device": "cpu", "facets": []}',
        b'{"schema": "fi_cachestore.environment/1", "device": "cpu", "facets": {"a": 1}}',
        b'{"schema": "fi_cachestore.environment/1", "device": "cpu", "facets": {"a": {"role": "validity", "value": 1}}}',
        b'{"schema": "fi_cachestore.environment/1", "device": "cpu", "facets": {"a": {"role": "validity"}}}',
    ],
)
def test_what_is_no_manifest_is_passed_over(tmp_path, session_in, data):
    assert described(data) is None
    session_in(tmp_path, cudnn="9.19")
    (tmp_path / "manifests" / "bad.json").write_bytes(data)
    os.mkfifo(tmp_path / "manifests" / "fifo.json")
    (tmp_path / "manifests" / "zero.json").symlink_to("/dev/zero")
    assert len(session_in(tmp_path, "replay", cudnn="9.20")) == 1


def test_control_characters_and_long_values_do_not_reach_the_log(tmp_path, session_in):
    session_in(tmp_path, cudnn="9\x1b[2J" + "x" * 1000)
    [said] = session_in(tmp_path, "replay", cudnn="9.20")
    assert "\x1b" not in said
    assert len(said) < 400


def test_of_several_environments_the_most_similar_is_named():
    current = environments(cudnn="3", cublas="3").of(CPU)
    found = [described(manifest(environments(cudnn=cudnn, cublas=cublas).of(CPU))[1]) for cudnn, cublas in (("1", "1"), ("2", "3"))]
    assert [str(change) for change in changes_since(found, current)] == ["cudnn 2 -> 3"]
    assert changes_since([], current) == ()
    assert changes_since([described(manifest(current)[1]), *found], current) == ()


def test_only_facets_that_decide_validity_and_only_devices_of_one_kind_are_compared():
    current = environments(driver="590", cudnn="2").of(CPU)

    def since(**facets):
        return changes_since([described(manifest(environments(**facets).of(CPU))[1])], current)

    assert since(driver="580", cudnn="2") == ()
    assert [str(change) for change in since(driver="580", cudnn="1")] == ["cudnn 1 -> 2"]
    assert since(driver="590", cudnn="1", processor="another") == ()


# -- how many ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "words"), [(0, "0 records"), (1, "1 record"), (64, "64 records")])
def test_few_records_are_counted(tmp_path, count, words):
    store = open_store(tmp_path)
    for number in range(count):
        store.publish(sample_record(number))
    assert about_how_many(store, lambda record: True) == (count, words)


class Counted:
    """A store of many records that counts what is read."""

    def __init__(self, count):
        self.count, self.read = count, 0

    def __iter__(self):
        return (f"{number:064x}" for number in range(self.count))

    def get(self, digest):
        self.read += 1
        return fi_cachestore.Hit(sample_record(int(digest, 16)), "")


@pytest.mark.parametrize(("count", "words"), [(1000, "about 500 records"), (1_000_000, "at least about 2048 records")])
def test_many_records_are_told_from_a_bounded_sample(count, words):
    store = Counted(count)
    half = about_how_many(store, lambda record: record.key.runner.params["number"] // max(1, min(count, 4097) // 64) % 2 == 0)
    assert half[1] == words
    assert store.read == 64


def test_only_records_of_this_device_that_are_asked_for_no_more_count(tmp_path, monkeypatch, caplog):
    now = environments(cudnn="9.20").of(CPU)
    facets = {"device": "cpu", **{f.name: f.value for f in now.facets if isinstance(f.value, str)}}
    facets = {name: value for name, value in facets.items() if name in ("device", "processor", "cudnn")}
    store = open_store(tmp_path)
    kept = [{**facets, "cudnn": "9.19"}, facets, {"device": "cpu", "processor": facets["processor"]}]
    for other in (*kept, {**facets, "processor": "another", "cudnn": "9.19"}, {**facets, "device": "cuda"}):
        store.publish(sample_record(key=sample_key(environment=other)))
    write_manifest(tmp_path, *manifest(environments(cudnn="9.19").of(CPU)))
    with caplog.at_level(logging.WARNING, logger="fi_cachestore"):
        OrphanWatch([tmp_path], store).say(CPU, environments(cudnn="9.20"))
    [record] = caplog.records
    assert record.getMessage().startswith("1 record under")


def test_manifests_are_bounded_in_number_and_size(tmp_path):
    folder = tmp_path / "manifests"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number}.json").write_text(json.dumps({"number": number}))
    (folder / "other.txt").write_text("x")
    assert len(list(manifests([tmp_path]))) == 64
    for path in folder.iterdir():
        path.write_bytes(bytes(100_000))
    assert list(manifests([tmp_path])) == []


def test_the_device_at_hand_wakes_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert device_at_hand() == CPU
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert device_at_hand() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert device_at_hand() == Device("cuda", 3)


def test_where_the_device_is_not_at_hand_the_first_call_says_it(tmp_path, monkeypatch, caplog, session_in):
    session_in(tmp_path, cudnn="9.19")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(attach_module, "Environments", lambda: environments(cudnn="9.20"))
    with caplog.at_level(logging.WARNING, logger="fi_cachestore"):
        fi_cachestore.attach(root=tmp_path)
        assert caplog.records == []
        choose("op", [PlainRunner()], [matrix(100)], config())
    assert len(caplog.records) == 1
