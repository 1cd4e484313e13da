"""What follows from one observation, row by row."""

import itertools
from dataclasses import replace

import pytest

from fi_cachestore.records.observation import Output, SpaceKind
from fi_cachestore.records.record import TacticSpace
from fi_cachestore.testing.samples import sample_record
from fi_cachestore.validation.evidence import Agreement, Contradiction, Reason, Undecided, judge, tactic_to_try
from tests.validation.samples import RECORD, seen

LISTED, MEASURED, INDEXED = SpaceKind
OTHER_LIST = TacticSpace.of([1, (3, 4)])
PERMUTED = TacticSpace.of([(1, 2), 0])
LONGER = TacticSpace.of([0, (1, 2), 3])
NOTHING_WORKS = sample_record(times_ns={-1: None, 0: None})
ONLY_DEFAULT_WORKS = sample_record(times_ns={-1: 5, 0: None})


def verdict(found):
    match found:
        case Agreement():
            return "agrees"
        case Contradiction(reason, detail):
            assert detail
            return reason
        case Undecided(why):
            assert why
            return "undecided"


TABLE = [
    # what was seen, then the judgement for listed, measured and indexed
    ({}, "agrees", "agrees", "agrees"),
    ({"validates": None}, "agrees", "agrees", "agrees"),
    ({"space": OTHER_LIST}, Reason.LIST, "agrees", "agrees"),
    ({"space": PERMUTED}, Reason.LIST, "agrees", "agrees"),
    ({"space": LONGER}, Reason.LIST, "agrees", Reason.COUNT),
    ({"space": TacticSpace.of([])}, Reason.LIST, "agrees", Reason.COUNT),
    ({"space": None}, "undecided", "agrees", "undecided"),
    ({"validates": False}, Reason.REFUSED, Reason.REFUSED, Reason.REFUSED),
    ({"validates": False, "failure": "MemoryError"}, Reason.REFUSED, Reason.REFUSED, Reason.REFUSED),
    ({"failure": "RuntimeError"}, Reason.RAISED, Reason.RAISED, Reason.RAISED),
    ({"failure": "OutOfMemoryError"}, "undecided", "undecided", "undecided"),
    ({"failure": "MemoryError"}, "undecided", "undecided", "undecided"),
    ({"output": Output.DIFFERS}, Reason.OUTPUT, Reason.OUTPUT, Reason.OUTPUT),
    ({"output": Output.NOT_FINITE}, Reason.NOT_FINITE, Reason.NOT_FINITE, Reason.NOT_FINITE),
    ({"output": Output.NOT_COMPARED}, "agrees", "agrees", "undecided"),
    ({"tactic": -1}, "agrees", "agrees", "undecided"),
    ({"tactic": 7}, "undecided", "undecided", "undecided"),
    ({"tactic": True}, "undecided", "undecided", "undecided"),
    ({"key": sample_record(5).digest}, "undecided", "undecided", "undecided"),
]


@pytest.mark.parametrize(("changes", "expected"), [(row[0], row[1:]) for row in TABLE], ids=str)
def test_what_follows_from_an_observation(changes, expected):
    assert tuple(verdict(judge(RECORD, seen(kind=kind, **changes))) for kind in (LISTED, MEASURED, INDEXED)) == expected


def test_another_list_beats_everything_that_was_run():
    for output, failure in itertools.product(Output, (None, "MemoryError")):
        assert verdict(judge(RECORD, seen(space=LONGER, output=output, failure=failure))) == Reason.LIST


@pytest.mark.parametrize(("kind", "expected"), [(LISTED, "agrees"), (MEASURED, "undecided"), (INDEXED, "undecided")])
def test_a_record_without_a_usable_tactic_is_judged_by_its_list_alone(kind, expected):
    observation = seen(NOTHING_WORKS, kind=kind, tactic=tactic_to_try(NOTHING_WORKS), output=Output.NOT_COMPARED)
    assert verdict(judge(NOTHING_WORKS, observation)) == expected
    assert (
        verdict(judge(NOTHING_WORKS, replace(observation, space=LONGER)))
        == {
            LISTED: Reason.LIST,
            MEASURED: "undecided",
            INDEXED: Reason.COUNT,
        }[kind]
    )


def test_the_default_proves_positions_only_where_nothing_else_can_be_served():
    assert verdict(judge(ONLY_DEFAULT_WORKS, seen(ONLY_DEFAULT_WORKS, kind=INDEXED, tactic=-1))) == "agrees"


def test_the_tactic_that_proves_most_is_the_best_but_the_default():
    assert tactic_to_try(RECORD) == (1, 2)
    assert tactic_to_try(sample_record(times_ns={-1: 1, 0: 900, 1: 800})) == 1
    assert tactic_to_try(ONLY_DEFAULT_WORKS) == -1
    assert tactic_to_try(NOTHING_WORKS) == -1
