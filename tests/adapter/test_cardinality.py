"""A parameter that takes ever new values is reported with what a contract would say; an op with too many keys is tuned in memory."""

import dataclasses
import logging

import pytest
import torch
import torch.distributed as dist
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from fi_cachestore.adapter.api import introspector
from fi_cachestore.adapter.cardinality import Cardinality, stays_in_memory
from fi_cachestore.adapter.contracts import load_contracts
from fi_cachestore.adapter.introspect import Call, Introspector, RunnerView
from fi_cachestore.adapter.policy import resolved
from fi_cachestore.testing.samples import sample_key
from tests.adapter.runners import PlainRunner, choose, config, matrix, timed
from tests.ranks.job import job

LIMIT = 5


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    monkeypatch.setenv("FI_CACHESTORE_MAX_VALUES", str(LIMIT))


@pytest.fixture
def session(tmp_path):
    session = fi_cachestore.attach(root=tmp_path, mode="auto")
    yield session
    session.detach()


@dataclasses.dataclass
class Tile:
    m: int
    name: str = "tile"


class AttributeRunner(PlainRunner):
    def __init__(self, number):
        self.raw_m = number
        self.fixed = "layout"


class FieldRunner(PlainRunner):
    def __init__(self, number):
        self.tile = Tile(number)


class ExtrasRunner(PlainRunner):
    def __init__(self, number):
        self.number_cache = [number]

    def get_cache_key_extras(self, inputs):
        return ("fixed", f"variant {self.number_cache[0]}")


class ContractedRunner(AttributeRunner):
    """A contract for it exists already."""


def closure_runner(number):
    class ClosureRunner(PlainRunner):
        def time_ms(self, tactic):
            return number

    return ClosureRunner()


def function_runner(number):
    runner = PlainRunner()
    runner.infer = lambda: number
    return runner


NAME = f"{__name__}:"
CASES = {
    "attribute": (AttributeRunner, {}, "raw_m", True),
    "text": (lambda number: AttributeRunner(str(number)), {}, "raw_m", False),
    "number and truth": (lambda number: AttributeRunner([True, False][number] if number < 2 else number), {}, "raw_m", False),
    "field": (FieldRunner, {}, "tile.m", True),
    "closure": (closure_runner, {}, "closure.number", True),
    "function": (function_runner, {}, "infer.closure.number", True),
    "argument": (lambda number: PlainRunner(), {"scale": float}, "arguments.scale", True),
    "extras": (ExtrasRunner, {}, "extras.1", False),
}


def call(number, name):
    make, arguments, _, _ = CASES[name]
    runner, kwargs = make(number), {key: convert(number) for key, convert in arguments.items()}
    choose("varying", [runner], [matrix(50)], **kwargs)
    return runner, kwargs


def digest(contracts, runner, kwargs):
    described = Introspector({**introspector().contracts, **contracts}, introspector().environments)
    view = RunnerView(Call(described, "varying", config(), [matrix(50)], kwargs, resolved(config(), None)), runner)
    return view.keys(view.call.bucket(), serving=True)[0].digest


@pytest.mark.parametrize("name", CASES)
def test_the_line_of_contract_that_is_reported_takes_the_parameter_out_of_the_key(session, caplog, name):
    _, _, path, varies = CASES[name]
    for number in range(LIMIT):
        call(number, name)
    assert session.report().varying == {}
    calls = [call(number, name) for number in range(LIMIT, 4 * LIMIT)]
    ((subject, advice),) = session.report().varying.items()
    runner = calls[0][0]
    assert (
        subject
        == f"varying: {path.removeprefix('arguments.').removeprefix('extras.')} of {type(runner).__module__}:{type(runner).__qualname__}"
    )
    text = advice.partition(":\n")[2]
    (contract,) = load_contracts(text, "report").values()
    assert contract.varies == ({path} if varies else set())
    assert len({digest({}, *made) for made in calls[:3]}) == 3
    assert len({digest({contract.type: contract}, *made) for made in calls[:3]}) == 1
    said = [record for record in caplog.records if "probably dynamic" in record.getMessage()]
    assert len(said) == 1
    assert subject in said[0].getMessage()
    assert advice in said[0].getMessage()
    assert str(session.report()).endswith(f"probably dynamic: {subject}")
    assert session.report().to_json()["varying"] == {subject: advice}


def test_a_runner_with_a_contract_needs_one_line_more(session, monkeypatch):
    name = f"{ContractedRunner.__module__}:{ContractedRunner.__qualname__}"
    row = f'[[runner]]\ntype = "{name}"\nfingerprint = ""\n'
    state = AutoTuner.get().state
    monkeypatch.setattr(state, "introspector", Introspector(load_contracts(row, "test"), state.introspector.environments))
    for number in range(LIMIT + 1):
        choose("varying", [ContractedRunner(number)], [matrix(50)])
    ((_, advice),) = session.report().varying.items()
    line = advice.removeprefix("if so, its contract says: ")
    (contract,) = load_contracts(row + line, "report").values()
    assert contract.varies == {"raw_m"}


def test_values_that_no_contract_speaks_of_are_reported_with_another_advice(session):
    for number in range(1, LIMIT + 2):
        choose("varying", [PlainRunner()], [matrix(50), torch.zeros(4, number), number])
    report = session.report().varying
    assert {subject.partition(" of ")[0] for subject in report} == {"varying: inputs[1].shape[1]", "varying: inputs[2]"}
    assert all("TuningConfig" in advice for advice in report.values())


def test_dims_that_the_config_declares_do_not_count(session):
    for rows in range(16, 16 + 4 * LIMIT):
        choose("varying", [PlainRunner()], [matrix(rows)])
    assert session.report().varying == {}


def test_ops_and_runners_are_counted_apart(session):
    for number in range(LIMIT):
        choose("a", [AttributeRunner(number)], [matrix(50)])
        choose("b", [AttributeRunner(LIMIT + number)], [matrix(50)])
        choose("a", [ContractedRunner(LIMIT + number)], [matrix(50)])
    assert session.report().varying == {}


def test_calls_while_tuning_count(tmp_path):
    with timed(), fi_cachestore.autotune(root=tmp_path) as session:
        for number in range(LIMIT + 1):
            choose("varying", [AttributeRunner(number)], [matrix(50)])
    session.detach()
    assert len(session.report().varying) == 1


def test_rankings_count(tmp_path):
    with timed(), fi_cachestore.autotune(root=tmp_path) as session:
        for number in range(LIMIT + 1):
            AutoTuner.get().rank_tactics("varying", [AttributeRunner(number)], config(), [matrix(50)], k=2)
    session.detach()
    assert len(session.report().varying) == 1


def test_a_call_that_was_answered_before_is_not_counted_again(session, monkeypatch):
    counted = []
    real = Cardinality.count
    monkeypatch.setattr(Cardinality, "count", lambda self, key: (counted.append(key), real(self, key))[1])
    for _ in range(3):
        choose("varying", [PlainRunner()], [matrix(50)])
    assert len(counted) == 1


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("fi_cachestore.adapter.cardinality._MAX_PLACES", 10)
    counts = Cardinality(max_values=3, max_keys=4)
    reported = [place for number in range(20) for place, _ in counts.count(sample_key(number, op="one"))]
    assert [place.path for place in reported] == ["number"]
    assert not any(values.digests for place, values in counts._places.items() if place.path == "number")
    assert counts.is_full("one")
    assert "one" not in counts._keys
    for number in range(20):
        counts.count(sample_key(op=f"op{number}"))
    assert len(counts._places) == 10
    assert not counts.is_full("op1")


# -- keys of one op -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_keys(monkeypatch):
    monkeypatch.setenv("FI_CACHESTORE_MAX_KEYS", "3")


def test_an_op_with_too_many_keys_is_tuned_in_memory_and_the_others_are_not(tmp_path, three_keys, caplog):
    caplog.set_level(logging.WARNING)
    with timed() as measured, fi_cachestore.autotune(root=tmp_path) as session:
        answers = [choose("many", [AttributeRunner(number)], [matrix(50)]) for number in range(6)]
        assert choose("few", [AttributeRunner(1)], [matrix(50)]) == (0, 2)
        before = len(measured)
        repeated = [choose("many", [AttributeRunner(number)], [matrix(50)]) for number in range(6)]
        assert len(measured) == before, "what is in memory is not measured twice"
    assert answers == repeated == [(0, 2)] * 6
    report = session.report()
    assert report.tuned_count == 3 * (4 + 1)
    assert set(report.ephemeral) == {"too many keys"}
    assert len(list(fi_cachestore.open_store(tmp_path, read_only=True))) == report.tuned_count
    assert [choose("many", [AttributeRunner(number)], [matrix(50)]) for number in range(7)] == [(0, 2)] * 6 + [(0, -1)]
    session.detach()
    said = [record.getMessage() for record in caplog.records if "too many keys" in record.getMessage()]
    assert said == ["many stays ephemeral (tuned per process, in memory): too many keys"]


def test_records_of_a_full_op_are_still_served(tmp_path, three_keys):
    with timed(), fi_cachestore.autotune(root=tmp_path) as session:
        choose("stored", [AttributeRunner(0)], [matrix(50)])
    session.detach()
    session = fi_cachestore.attach(root=tmp_path)
    try:
        served = [choose("stored", [AttributeRunner(number)], [matrix(50)])[1] for number in (1, 2, 3, 4, 5, 0)]
        assert served == [-1, -1, -1, -1, -1, 2]
    finally:
        session.detach()


def on_a_rank(rank, root):
    with timed(), fi_cachestore.autotune(root=root, group=dist.group.WORLD) as session:
        answers = [choose("many", [AttributeRunner(number)], [matrix(50)]) for number in range(6)]
        state = AutoTuner.get().state
        assert state.cardinality.is_full("many")
        assert not stays_in_memory(state, state.current.session, "many")
    return answers, session.report().ephemeral


def test_ranks_do_not_go_their_own_ways(tmp_path, three_keys):
    assert job(2, on_a_rank, tmp_path, env={"FI_CACHESTORE_MAX_KEYS": "3"}) == [([(0, 2)] * 6, {})] * 2
