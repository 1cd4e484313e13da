import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fi_cachestore.keys.canonical import encode
from fi_cachestore.keys.model import RunnerIdentity
from fi_cachestore.records.choosing import TIE_BAND, Candidate, preference, ranked, supersedes
from fi_cachestore.records.record import TacticSpace
from fi_cachestore.testing.samples import sample_key, sample_record


def candidate(index, name, times_ns):
    key = sample_key(runner=RunnerIdentity(f"module:{name}", {}))
    return Candidate(index, sample_record(key=key, times_ns=times_ns))


def choices(*candidates):
    return [(choice.runner_index, choice.tactic) for choice in preference(candidates)]


def test_the_fastest_comes_first():
    assert choices(candidate(0, "A", {-1: 3000, 0: 2000}), candidate(1, "B", {5: 1000})) == [(1, 5), (0, 0), (0, -1)]


def test_failed_tactics_are_no_choice():
    assert choices(candidate(0, "A", {-1: None, 0: None})) == []
    assert choices(candidate(0, "A", {-1: None, 0: 10})) == [(0, 0)]


def test_within_the_tie_band_the_default_of_the_call_wins():
    assert choices(candidate(0, "A", {0: 1000, -1: 1020}))[0] == (0, -1)
    assert choices(candidate(0, "A", {0: 1000, -1: 1021}))[0] == (0, 0)


def test_the_default_of_another_runner_has_no_such_right():
    assert choices(candidate(0, "B", {3: 1000}), candidate(1, "A", {0: 1000, -1: 1000}))[0] == (1, 0)  # by runner name, then bytes
    assert choices(candidate(0, "A", {3: 1000}), candidate(1, "B", {-1: 990}))[0] == (0, 3)


def test_within_the_band_runners_go_by_name_and_tactics_by_their_bytes():
    assert choices(candidate(0, "Z", {0: 1000}), candidate(1, "A", {7: 1010}))[0] == (1, 7)
    tactics = [(3, 1), 2, -5, (1,), "x"]
    times_ns = dict.fromkeys(tactics, 1000)
    assert choices(candidate(0, "A", times_ns)) == [(0, tactic) for tactic in sorted(tactics, key=encode)]


def test_within_the_band_runners_of_one_name_go_by_their_keys():
    records = [sample_record(number, times_ns={7: 1000}) for number in range(4)]
    first = min(records, key=lambda record: record.digest)
    for order in itertools.permutations(records):
        found = [Candidate(index, record) for index, record in enumerate(order)]
        assert next(preference(found)).record == first


def test_only_the_integer_is_the_default():
    assert choices(candidate(0, "A", {0: 1000, -1.0: 1010}))[0] == (0, 0)
    assert sample_record(times_ns={-1.0: 1}).default_time_ns is None


def test_the_band_is_measured_from_the_fastest_not_from_neighbour_to_neighbour():
    assert choices(candidate(0, "A", {9: 1000, 5: 1019, 1: 1038}))[0] == (0, 5)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 6), st.none() | st.integers(0, 2000)), max_size=12, unique_by=lambda t: t[:2]),
    st.randoms(use_true_random=False),
)
def test_neither_order_of_tuning_nor_order_of_tactics_matters(rows, shuffler):
    def made(order):
        found = []
        for index, group in itertools.groupby(sorted(order, key=lambda row: row[0]), key=lambda row: row[0]):
            items = list(group)
            shuffler.shuffle(items)
            found.append(candidate(index, f"Runner{index}", {tactic: time_ns for _, tactic, time_ns in items}))
        shuffler.shuffle(found)
        return found

    first, second = made(rows), made(rows)
    assert choices(*first) == choices(*second)
    assert sorted(choices(*first), key=repr) == sorted(((i, t) for i, t, time_ns in rows if time_ns is not None), key=repr)


def test_noise_below_the_band_does_not_change_the_choice():
    """A hundred re-measurements with 0.9 % noise either way of near-ties pick one tactic; a clear winner stays the winner."""
    noise = random.Random(1)
    winners = set()
    for _ in range(100):
        times_ns = {tactic: round(100_000 * (1 + noise.uniform(-0.009, 0.009))) for tactic in range(5)}
        times_ns[99] = round(112_000 * (1 + noise.uniform(-0.009, 0.009)))
        winners.add(choices(candidate(0, "A", times_ns))[0])
    assert winners == {(0, 0)}


def test_the_band_is_two_percent():
    assert pytest.approx(0.02) == TIE_BAND


def test_a_ranking_is_by_time_and_leaves_out_the_raced_default():
    record = sample_record(times_ns={-1: 1, 2: 30, 1: 20, 0: 30, 5: None})
    assert record.default_raced
    assert ranked(record) == [1, 0, 2]


def test_a_default_of_the_runners_own_is_ranked():
    record = sample_record(times_ns={-1: 1, 2: 30})
    own = replace(record, default_raced=False)
    assert ranked(own) == [-1, 2]


def test_a_tactic_list_in_another_order_is_another_list():
    assert TacticSpace.of([1, (2, 3)]) == TacticSpace.of([1, (2, 3)])
    assert TacticSpace.of([1, (2, 3)]) != TacticSpace.of([(2, 3), 1])
    assert TacticSpace.of([1, 2]) != TacticSpace.of([(1, 2)])


@pytest.mark.parametrize(
    ("new", "old", "is_better"),
    [
        ({0: 100}, {0: 100}, False),
        ({0: 50}, {0: 100}, False),  # the same tactic, faster today: nothing would be served that is not served now
        ({0: 200}, {0: 100}, False),
        ({0: 100, 1: 98}, {0: 100, 1: 200}, True),  # 100 is more than 2 % above 98
        ({0: 100, 1: 99}, {0: 100, 1: 200}, False),
        ({0: 1000, 1: 900}, {0: 10, 1: 20}, True),  # by today's times, whatever those of another driver were
        ({0: 102, 1: 100}, {0: 1, 1: 2}, False),
        ({1: 100}, {0: 1}, True),  # the old tactic is not listed any more
        ({0: None, 1: 100}, {0: 1}, True),  # or does not run any more
        ({0: None}, {0: 1}, False),
        ({0: 5}, {0: None}, True),
        ({0: None}, {0: None}, False),
        ({-1: 100, 0: 99}, {-1: 100, 0: 150}, False),
    ],
    ids=str,
)
def test_what_is_worth_a_new_generation(new, old, is_better):
    assert supersedes(sample_record(times_ns=new), sample_record(times_ns=old)) is is_better
