"""The pieces of a session among ranks, each for itself, over a board in memory."""

import logging
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fi_cachestore.coordination.agreement import (
    DEFAULT,
    call_id,
    disputed,
    pack_choices,
    pack_pairs,
    pair_of,
    settle,
    shared_count,
    unpack_choices,
    unpack_pairs,
)
from fi_cachestore.coordination.board import DeadlineBoard, MemoryBoard
from fi_cachestore.coordination.local import LocalCoordinator
from fi_cachestore.coordination.port import Busy, SystemClock, Unavailable
from fi_cachestore.coordination.ranks import Heart, Layered, Member, Patience, Ranks
from fi_cachestore.errors import BoardLostError
from fi_cachestore.group import Group
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import seal
from fi_cachestore.records.record import Measurement
from fi_cachestore.store.memory import MemoryStore
from fi_cachestore.testing.samples import sample_record

MEMBERS = [Member(rank, f"host{rank}", 100 + rank) for rank in range(3)]
KEYS = [Digest(letter * 64) for letter in "abcd"]
PAIRS = [pair_of(key, b"tactic") for key in KEYS]
CALLS = [call_id([key]) for key in KEYS]


class ManualClock:
    def __init__(self):
        self.now_ns = 0
        self._lock = threading.Lock()

    def monotonic_ns(self):
        return self.now_ns

    def unix_ns(self):
        return 0

    def sleep(self, seconds):
        with self._lock:
            self.now_ns += int(seconds * 1e9)


class LostBoard:
    """A board that nobody reaches."""

    def _fail(self, *args):
        raise BoardLostError("test", "gone")

    compare_set = put = fetch = _fail


@pytest.fixture
def world():
    board, clock = MemoryBoard(), ManualClock()
    ranks = [Ranks(board, rank, MEMBERS, clock, Patience(5.0, 60.0)) for rank in range(3)]
    for one in ranks:
        one.beat(board)
    return board, clock, ranks


# -- the agreement ----------------------------------------------------------------------------------------------------------------

pairs = st.lists(st.sampled_from(PAIRS), unique=True)


@given(st.dictionaries(st.integers(0, 7), pairs, min_size=1))
def test_what_is_settled_every_rank_can_use(options):
    found = settle(options)
    everywhere = set.intersection(*(set(of_rank) for of_rank in options.values()))
    assert found in everywhere if everywhere else found == DEFAULT
    if found != DEFAULT:
        best = options[min(options)]
        assert all(pair not in everywhere for pair in best[: best.index(found)])


def test_nobody_settles_the_default():
    assert settle({}) == DEFAULT


choices = st.dictionaries(st.sampled_from(CALLS), st.sampled_from(PAIRS))


@given(choices, pairs)
def test_choices_and_pairs_survive_the_wire(found, some):
    assert unpack_choices(pack_choices(found)) == found
    assert unpack_pairs(pack_pairs(some)) == some


@given(st.binary(max_size=200))
def test_rubbish_is_no_choice(data):
    if len(data) % 64:
        assert unpack_choices(data) == {}
    if len(data) % 32:
        assert unpack_pairs(data) == []


@given(st.dictionaries(st.integers(0, 5), choices))
def test_a_dispute_is_a_call_of_several_ranks_with_several_answers(by_rank):
    answers = {call: [of[call] for of in by_rank.values() if call in of] for of in by_rank.values() for call in of}
    assert disputed(by_rank) == sorted(call for call, found in answers.items() if len(set(found)) > 1)
    assert shared_count(by_rank) == sum(len(found) > 1 for found in answers.values())


def test_pairs_and_calls_tell_keys_tactics_and_order_apart():
    assert len({pair_of(key, tactic) for key in KEYS for tactic in (b"", b"1", b"2")}) == len(KEYS) * 3
    assert call_id(KEYS[:2]) != call_id(KEYS[1::-1])
    assert DEFAULT not in PAIRS


# -- claims -----------------------------------------------------------------------------------------------------------------------


def test_a_claim_is_one_ranks_and_free_when_released(world):
    _, _, ranks = world
    ranks[0].note("op tactic 3")
    ranks[0].beat(world[0])
    claim = ranks[0].claim(KEYS[0], "op")
    busy = ranks[1].claim(KEYS[0], "op")
    assert isinstance(busy, Busy)
    assert "rank 0 on host0, at op tactic 3" in busy.holder
    claim.release()
    claim.release()
    assert not isinstance(ranks[1].claim(KEYS[0], "op"), Busy | Unavailable)
    claim.release()
    assert isinstance(ranks[2].claim(KEYS[0], "op"), Busy), "a claim that was given back cannot free another's"


def test_progress_is_a_change_of_what_is_done_and_not_a_beat(world):
    board, _, ranks = world
    ranks[0].note("op tactic 3")
    ranks[0].claim(KEYS[0], "op")
    ranks[0].beat(board)
    first = ranks[1].claim(KEYS[0], "op").progress
    ranks[0].beat(board)
    assert ranks[1].claim(KEYS[0], "op").progress == first
    ranks[0].note("op tactic 4")
    ranks[0].beat(board)
    assert ranks[1].claim(KEYS[0], "op").progress != first


def test_the_claim_of_a_rank_without_a_beat_is_taken_over_by_one(world, caplog):
    board, clock, ranks = world
    ranks[0].claim(KEYS[0], "op")
    assert isinstance(ranks[1].claim(KEYS[0], "op"), Busy)
    clock.sleep(6)
    for living in ranks[1:]:
        living.beat(board)
    assert isinstance(ranks[2].claim(KEYS[0], "op"), Busy), "seen for the first time just now"
    taken = ranks[1].claim(KEYS[0], "op")
    assert not isinstance(taken, Busy | Unavailable)
    assert isinstance(ranks[2].claim(KEYS[0], "op"), Busy)
    assert "rank 0 on host0 is gone" in caplog.text


def test_a_rank_that_left_is_gone_at_once(world):
    _, _, ranks = world
    ranks[0].claim(KEYS[0], "op")
    ranks[0].leave()
    assert not isinstance(ranks[1].claim(KEYS[0], "op"), Busy | Unavailable)


def test_without_a_board_there_are_no_claims():
    alone = Ranks(LostBoard(), 0, MEMBERS, ManualClock())
    assert isinstance(alone.claim(KEYS[0], "op"), Unavailable)
    alone.leave()


def test_a_claim_holds_in_all_layers_or_in_none(world):
    _, _, ranks = world
    host = LocalCoordinator()
    other_engine = host.claim(KEYS[0], "another engine on this host")
    layered = Layered(ranks[0], host)
    assert isinstance(layered.claim(KEYS[0], "op"), Busy)
    assert not isinstance(ranks[1].claim(KEYS[0], "op"), Busy), "the other layer's claim was given back"
    other_engine.release()
    both = layered.claim(KEYS[1], "op")
    assert isinstance(ranks[1].claim(KEYS[1], "op"), Busy)
    assert isinstance(host.claim(KEYS[1], "op"), Busy)
    both.release()
    assert not isinstance(host.claim(KEYS[1], "op"), Busy)
    assert isinstance(Layered(Ranks(LostBoard(), 0, MEMBERS, ManualClock())).claim(KEYS[2], "op"), Unavailable)


def test_a_heart_beats_until_it_is_stopped(world):
    board, _, ranks = world
    before = board.fetch(["beat/0"])
    heart = Heart(ranks[0], board, 0.001)
    for _ in range(5000):
        if board.fetch(["beat/0"])[0].partition(b"|")[0] not in (before[0].partition(b"|")[0], b"2"):
            break
        threading.Event().wait(0.001)
    assert int(board.fetch(["beat/0"])[0].partition(b"|")[0]) > 2
    heart.stop()


# -- records ----------------------------------------------------------------------------------------------------------------------


def groups_of(ranks, roots=("a", "b", "c")):
    return [Group(one, roots) for one in ranks]


def test_the_first_record_that_is_put_forward_counts_for_all(world):
    first, second, _ = groups_of(world[2])
    mine = sample_record(0)
    theirs = replace(mine, measurements=(Measurement(5, 123),))
    assert first.offer(mine) is mine
    assert second.offer(theirs) == mine
    assert second.find([mine.digest, sample_record(1).digest]) == {mine.digest: mine}


@pytest.mark.parametrize("held", [b"rubbish", seal(sample_record(1).to_value())], ids=["no record", "another record"])
def test_bytes_that_are_not_the_record_are_not_believed(world, held):
    board, _, ranks = world
    record = sample_record(0)
    board.put({f"value/{record.digest}": held})
    group = groups_of(ranks)[0]
    assert group.find([record.digest]) == {}
    assert group.offer(record) == record


def test_a_record_too_large_to_be_sealed_stays_with_its_rank(world):
    group = groups_of(world[2])[0]
    large = replace(sample_record(0), measurements=tuple(Measurement("x" * 1000 + str(number), 1) for number in range(600)))
    assert group.offer(large) is large
    assert group.find([large.digest]) == {}
    assert not group.is_lost


def test_a_lost_board_is_said_once_and_the_rank_goes_on(caplog):
    group = Group(Ranks(LostBoard(), 0, MEMBERS, ManualClock()), ("a", "b", "c"))
    record = sample_record(0)
    with caplog.at_level(logging.WARNING):
        assert group.offer(record) is record
        assert group.find([record.digest]) == {}
        assert group.level(MemoryStore()) == 0
        assert group.commit({CALLS[0]: PAIRS[0]}, lambda _: PAIRS, None, {}).local_count == 1
    assert caplog.text.count("goes on by itself") == 1


@pytest.mark.parametrize(
    ("roots", "is_one", "writers"), [(("a", "a", "a"), True, [0]), (("a", "b", "a"), False, [0, 1]), (("", "", ""), False, [0])]
)
def test_one_rank_writes_to_each_root(world, roots, is_one, writers):
    groups = groups_of(world[2], roots)
    assert {group.is_one_root for group in groups} == {is_one}
    assert [group.ranks.rank for group in groups if group.is_writer()] == writers


# -- the end ----------------------------------------------------------------------------------------------------------------------


def commit_in_threads(groups, choices_by_rank, options):
    found = {}

    def run(group, mine):
        found[group.ranks.rank] = group.commit(mine, lambda _: options[group.ranks.rank], None, {"rank": group.ranks.rank})

    threads = [threading.Thread(target=run, args=(group, mine)) for group, mine in zip(groups, choices_by_rank, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_ranks_that_answer_differently_settle_on_one(world):
    options = {0: [PAIRS[2], PAIRS[0]], 1: [PAIRS[0], PAIRS[1]], 2: [PAIRS[1]]}
    calls = [{CALLS[0]: PAIRS[2], CALLS[1]: PAIRS[3]}, {CALLS[0]: PAIRS[0], CALLS[1]: PAIRS[3]}, {CALLS[2]: PAIRS[1]}]
    board, _, _ = world
    ranks = [Ranks(board, rank, MEMBERS, SystemClock(), Patience(30.0, 60.0)) for rank in range(3)]
    found = commit_in_threads(groups_of(ranks), calls, options)
    assert found[0].settled == found[1].settled == {CALLS[0]: PAIRS[0]}
    assert found[2].settled == {}
    assert [(found[rank].shared_count, found[rank].local_count) for rank in range(3)] == [(2, 0), (2, 0), (2, 1)]
    assert found[1].rank_stats == {rank: {"rank": rank} for rank in range(3)}


def test_a_rank_that_was_given_up_takes_the_word_of_the_others(world, caplog):
    _, _, ranks = world
    theirs = {CALLS[0]: PAIRS[0], CALLS[1]: PAIRS[3]}
    ranks[1].post("choices", pack_choices(theirs))
    ranks[1].post("told", b"{}\n")
    ranks[1].post("done", b"")
    found = Group(ranks[0], ("a", "b", "c")).commit(theirs, lambda _: [PAIRS[0]], None, {})
    assert (found.settled, found.shared_count) == ({}, 2)
    assert "rank 2 on host2 made no progress" in caplog.text
    options = [PAIRS[1], PAIRS[0]]
    late = Group(ranks[2], ("a", "b", "c")).commit({CALLS[0]: PAIRS[1], CALLS[1]: PAIRS[1]}, lambda _: options, None, {})
    assert late.settled == {CALLS[0]: PAIRS[0], CALLS[1]: DEFAULT}, "what it can use of theirs, else the default"


def test_a_board_that_answers_late_is_lost_for_good():
    release = threading.Event()

    class Slow(MemoryBoard):
        def fetch(self, names):
            release.wait(30)
            return super().fetch(names)

    board = DeadlineBoard(Slow(), 0.1)
    assert board.compare_set("a", b"", b"1") == b"1"
    with pytest.raises(BoardLostError, match="no answer"):
        board.fetch(["a"])
    release.set()
    with pytest.raises(BoardLostError):
        board.put({"a": b"2"})
    board.close()
