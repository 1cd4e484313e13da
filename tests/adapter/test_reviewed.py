"""A runner class of FlashInfer that changed or is new goes by the default rules, and the report says so."""

import logging

import pytest
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from fi_cachestore.adapter.contracts import Contract
from fi_cachestore.adapter.introspect import Introspector
from fi_cachestore.adapter.reviewed import CHANGED, NEW
from tests.adapter.runners import PlainRunner, choose, matrix, timed


class LaterRunner(PlainRunner):
    """Stands for a class of a FlashInfer that was not reviewed."""


class UnkeyedRunner(LaterRunner):
    def __init__(self):
        self.thing = object()


for made in (LaterRunner, UnkeyedRunner):
    made.__module__ = "flashinfer.gemm.later"


def contracts(*names):
    return {name: Contract(type=name, fingerprint="0" * 16) for name in names}


@pytest.fixture
def session(tmp_path):
    with timed():
        attached = fi_cachestore.attach(root=tmp_path)
        yield attached
        attached.detach()


def know(monkeypatch, *names):
    state = AutoTuner.get().state
    monkeypatch.setattr(state, "introspector", Introspector(contracts(*names), state.introspector.environments))


def test_a_class_of_another_release_is_reported_once(session, monkeypatch, caplog):
    name = "flashinfer.gemm.later:LaterRunner"
    know(monkeypatch, name)
    with caplog.at_level(logging.WARNING):
        for rows in (16, 64, 256):
            choose("later", [LaterRunner()], [matrix(rows)])
    report = session.report()
    assert report.unreviewed == report.to_json()["unreviewed"] == {name: CHANGED}
    assert f"contracts that do not hold: {name} ({CHANGED})" in str(report)
    assert [record.getMessage() for record in caplog.records if "contract" in record.getMessage()] == [
        f"the contract of {name} does not hold: {CHANGED}; the default rules apply"
    ]


def test_so_is_a_class_without_a_contract_and_one_without_a_key(session, monkeypatch):
    know(monkeypatch)
    choose("later", [LaterRunner(), UnkeyedRunner()], [matrix(16)])
    assert session.report().unreviewed == {f"flashinfer.gemm.later:{name}": NEW for name in ("LaterRunner", "UnkeyedRunner")}


def test_while_tuning_too(tmp_path, monkeypatch):
    with timed(), fi_cachestore.autotune(root=tmp_path) as tuning:
        know(monkeypatch)
        choose("later", [UnkeyedRunner()], [matrix(16)])
        assert tuning.report().unreviewed == {"flashinfer.gemm.later:UnkeyedRunner": NEW}
        choose("other", [PlainRunner()], [matrix(16)])
    assert list(tuning.report().unreviewed) == ["flashinfer.gemm.later:UnkeyedRunner"]
