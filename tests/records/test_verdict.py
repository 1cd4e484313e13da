"""Stored verdicts: what was written comes back, and anything else is damage."""

import pytest

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.canonical import Named, decode, encode
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, seal, unseal_front
from fi_cachestore.records.mark import Mark
from fi_cachestore.records.verdict import verdict_from
from fi_cachestore.testing.samples import sample_schema
from tests.validation import samples

SAMPLE = samples.validation().to_value().content["samples"][0]
SIDE = samples.validation().to_value().content["writer"]


def changed_sample(at, item):
    return tuple(item if position == at else part for position, part in enumerate(SAMPLE))


COMMON = [{"more": 1}, {"unix_ns": -1}, {"unix_ns": 1.0}, {"unix_ns": True}, {"unix_ns": "left out"}]
BAD_SIDES = [None, SIDE[:2], [*SIDE], (1, *SIDE[1:]), (*SIDE[:2], {"a": "b"}), (*SIDE[:2], None)]
BAD_SAMPLES = [
    1,
    SAMPLE[:-1],
    [*SAMPLE],
    *(changed_sample(0, item) for item in (1, "ab")),
    *(changed_sample(1, item) for item in ("guessed", 1, [])),
    *(changed_sample(2, item) for item in (None, (1,), (-1, "ab" * 32), (True, "ab" * 32), (1, "ab"), [1, "ab" * 32])),
    *(changed_sample(3, item) for item in (1, (1, 2))),
    changed_sample(5, 1),
    changed_sample(6, 1),
    *(changed_sample(7, item) for item in ("same", None, {})),
]
DAMAGE = {
    "validation": [
        *COMMON,
        *({"writer": item} for item in BAD_SIDES),
        *({"reader": item} for item in BAD_SIDES),
        *({"samples": [item]} for item in BAD_SAMPLES),
        {"samples": ()},
        {"schema": None},
        {"schema": {}},
        {"left_out": []},
        {"left_out": {"a": 1}},
    ],
    "quarantine": [
        *COMMON,
        *({"writer": item} for item in BAD_SIDES),
        *({"sample": item} for item in BAD_SAMPLES),
        {"schema": 1},
        {"schema": sample_schema(2).to_value()},
        {"schema_digest": "ab"},
        {"schema_digest": None},
        {"reason": 1},
        {"detail": b""},
    ],
    "override": [
        *COMMON,
        {"schema_digest": 1},
        {"number": -1},
        {"number": 100_000_000},
        {"number": True},
        {"word": "adored"},
        {"word": 1},
        {"who": None},
        {"why": 1},
    ],
    "refusal": [*COMMON, {"key": "ab"}, {"content": 1}, {"why": None}],
}


def damaged(value, changes):
    return Named(value.kind, {name: item for name, item in {**value.content, **changes}.items() if item != "left out"})


@pytest.mark.parametrize("name", samples.VERDICTS)
def test_a_verdict_comes_back_equal(name):
    verdict = samples.VERDICTS[name]()
    assert verdict_from(decode(encode(verdict.to_value()))) == verdict


@pytest.mark.parametrize(("name", "changes"), [(name, changes) for name, rows in DAMAGE.items() for changes in rows], ids=str)
def test_a_sound_envelope_around_something_else_is_damage(name, changes):
    with pytest.raises(DamagedError):
        verdict_from(damaged(samples.VERDICTS[name]().to_value(), changes))


@pytest.mark.parametrize("value", [None, {}, Named("fi_cachestore.record/1", {}), Named("fi_cachestore.refusal/1", [])], ids=str)
def test_other_values_are_no_verdicts(value):
    with pytest.raises(DamagedError):
        verdict_from(value)


def test_a_quarantine_without_its_grounds_is_one_all_the_same():
    trimmed = samples.quarantine().trimmed()
    assert verdict_from(trimmed.to_value()) == trimmed
    assert (trimmed.folder, trimmed.stem) == (samples.quarantine().folder, samples.quarantine().stem)
    assert (trimmed.reason, trimmed.unix_ns) == ("the tactic raises", samples.NOW_NS)
    assert len(seal(trimmed.to_value())) < MAX_SEALED_BYTES // 8


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
        {"key": "ab"},
        {"key": 1},
        {"content": "ab"},
        {"op": 1},
        {"process": None},
        {"host": 1},
        {"unix_ns": -1},
        {"op": "left out"},
    ],
    ids=str,
)
def test_anything_else_is_no_mark(changes):
    value = samples.mark().to_value()
    assert Mark.from_value(value) == samples.mark()
    with pytest.raises(DamagedError):
        Mark.from_value(damaged(value, changes))


def test_what_follows_a_seal_is_told_from_it():
    sealed = seal(samples.mark().to_value())
    assert unseal_front(sealed) == (samples.mark().to_value(), b"")
    assert unseal_front(sealed + b"more") == (samples.mark().to_value(), b"more")
    for length in range(len(sealed)):
        with pytest.raises(DamagedError):
            unseal_front(sealed[:length])
