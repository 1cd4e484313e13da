"""Three ranks and two keys under many schedules: the real sessions, groups and claims, one step at a time in an order that a seed decides.

Every exchange with the board and every pause is a step. A killed rank does nothing any more, not even in its ``finally`` blocks.
"""

import random
import threading
from dataclasses import replace

import pytest

from fi_cachestore.config import Mode
from fi_cachestore.coordination.agreement import DEFAULT
from fi_cachestore.coordination.board import MemoryBoard
from fi_cachestore.coordination.ranks import Member, Patience, Ranks
from fi_cachestore.errors import BoardLostError
from fi_cachestore.group import Group
from fi_cachestore.records.record import Measurement
from fi_cachestore.session import Ports, Session
from fi_cachestore.store.memory import MemoryStore
from fi_cachestore.testing.samples import sample_record
from fi_cachestore.work import Answered, Limits, Mine, Spent

RANKS, KEYS, MAX_STEPS = 3, 2, 20_000
SCHEDULES = 400


class Killed(BaseException):
    pass


class Stage:
    """Lets one rank at a time take a step, chosen by ``dice``."""

    def __init__(self, dice, *, kill=None, stop=None):
        self.dice, self.kill, self.stop = dice, kill, stop
        self.now_ns = self.step_count = 0
        self.ranks = {}
        self.board = MemoryBoard()
        self._condition = threading.Condition()
        self._waiting, self._done, self._killed = set(), set(), set()
        self._current = None

    def turn(self, rank):
        """Wait for this rank's turn."""
        with self._condition:
            if rank in self._killed:
                raise Killed
            self._waiting.add(rank)
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._current == rank or rank in self._killed)
            self._waiting.discard(rank)
            self._current = None
            if rank in self._killed:
                raise Killed

    def end(self, rank):
        with self._condition:
            self._done.add(rank)
            self._condition.notify_all()

    def run(self, programs):
        threads = [threading.Thread(target=self._run, args=(rank, program), daemon=True) for rank, program in enumerate(programs)]
        for thread in threads:
            thread.start()
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._current is None and len(self._waiting | self._done) == len(programs))
                if len(self._done) == len(programs):
                    return
                self.step_count += 1
                assert self.step_count < MAX_STEPS, "no end in sight: the ranks wait for each other"
                if self.kill is not None and self.step_count == self.kill[1] and self.kill[0] not in self._done:
                    self._killed.add(self.kill[0])
                    self._condition.notify_all()
                    self._condition.wait_for(lambda: self.kill[0] in self._done)
                    continue
                able = [rank for rank in sorted(self._waiting) if not self._is_stopped(rank)]
                if not able:
                    self.now_ns += 10**8
                    continue
                self._current = self.dice.choice(able)
                self._condition.notify_all()

    def _is_stopped(self, rank):
        return self.stop is not None and self.stop[0] == rank and self.stop[1] <= self.step_count < self.stop[2]

    def _run(self, rank, program):
        try:
            program(rank)
        except Killed:
            pass
        finally:
            self.end(rank)

    def pause(self, rank, seconds):
        """Let time pass for all; the living beat."""
        self.now_ns += int(seconds * 1e9)
        for other, ranks in self.ranks.items():
            if other not in self._killed | self._done and not self._is_stopped(other):
                ranks.beat(self.board)
        self.turn(rank)


class Stepped:
    """A rank's clock and board: every exchange and pause is a step.

    ``loses`` is the chance that a value that is put goes missing, ``cut_at`` the step after which the board answers nothing any more.
    """

    def __init__(self, stage, rank, *, loses=0.0, cut_at=None):
        self.stage, self.rank, self.loses, self.cut_at = stage, rank, loses, cut_at

    def step(self):
        self.stage.turn(self.rank)
        if self.cut_at is not None and self.stage.step_count >= self.cut_at:
            raise BoardLostError("test", "cut off")

    def monotonic_ns(self):
        return self.stage.now_ns

    def unix_ns(self):
        return 0

    def sleep(self, seconds):
        self.stage.pause(self.rank, seconds)

    def compare_set(self, *args):
        self.step()
        return self.stage.board.compare_set(*args)

    def put(self, values):
        self.step()
        self.stage.board.put({name: value for name, value in values.items() if self.stage.dice.random() >= self.loses})

    def fetch(self, names):
        self.step()
        return self.stage.board.fetch(names)


def play(seed, *, one_root, kill=None, stop=None, loses=0.0, cut=(None, None)):
    """Return, by rank that lived to the end, what it serves and holds for each key; who measured what; and the number of steps."""
    dice = random.Random(seed)
    stage = Stage(dice, kill=kill, stop=stop)
    stores = [MemoryStore()] * RANKS if one_root else [MemoryStore() for _ in range(RANKS)]
    members = [Member(rank, "host", rank) for rank in range(RANKS)]
    served, measured, in_memory_only = {}, [], set()
    for rank in range(RANKS):
        stepped = Stepped(stage, rank, loses=loses, cut_at=cut[1] if rank == cut[0] else None)
        stage.ranks[rank] = Ranks(stepped, rank, members, stepped, Patience(dead_after_s=1.0, stall_s=30.0))
        stage.ranks[rank].beat(stage.board)

    def program(rank):
        stepped = Stepped(stage, rank)
        roots = ["root"] * RANKS if one_root else [f"root {number}" for number in range(RANKS)]
        group = Group(stage.ranks[rank], roots)
        group.level(stores[rank])
        ports = Ports(stores[rank], None, stage.ranks[rank], stepped, MemoryStore(), group)
        session = Session(Mode.AUTO, ports, Limits(max_wait_s=60.0, stall_s=20.0))
        records = [sample_record(number) for number in range(KEYS)]
        records = [
            replace(record, measurements=tuple(Measurement(t, 10**6 + (7 * rank + 3 * t) % 5 * 10**5) for t in range(3)))
            for record in records
        ]
        pending = {record.digest: record for record in records[rank % KEYS :] + records[: rank % KEYS]}
        while pending:
            for digest, record in list(pending.items()):
                answer = session.begin(record.key)
                if isinstance(answer, Mine):
                    stage.ranks[rank].note(f"measuring {digest[:8]}")
                    stepped.sleep(0.01)
                    measured.append((digest, rank, answer.share))
                    session.finish(answer, record)
                    in_memory_only.update({digest} if not answer.share else ())
                if isinstance(answer, Mine | Answered | Spent):
                    del pending[digest]
            if pending:
                session.await_any([record.key for record in pending.values()])
        for record in records:
            session.choices.note((record.digest,))
        session.commit()
        pairs = [session.choices.settled((r.digest,)) or (session.choices.options_of((r.digest,)) or [DEFAULT])[0] for r in records]
        served[rank] = pairs, [session.find(r.digest).entry.measurements for r in records if r.digest not in in_memory_only]

    stage.run([program] * RANKS)
    return served, measured, stage.step_count


@pytest.mark.parametrize("one_root", [True, False], ids=["one root", "a root each"])
def test_every_schedule_ends_with_one_measurement_and_one_answer(one_root):
    for seed in range(SCHEDULES):
        served, measured, _ = play(seed, one_root=one_root)
        assert len(served) == RANKS, seed
        assert len({digest for digest, *_ in measured}) == len(measured) == KEYS, seed
        assert served[0] == served[1] == served[2], seed


@pytest.mark.parametrize("one_root", [True, False], ids=["one root", "a root each"])
def test_a_rank_that_dies_at_any_step_takes_nobody_with_it(one_root):
    for seed in range(SCHEDULES):
        step_count = play(seed, one_root=one_root)[2]
        victim = seed % RANKS
        served, measured, _ = play(seed, one_root=one_root, kill=(victim, 1 + random.Random(-seed).randrange(step_count)))
        left = [found for rank, found in sorted(served.items()) if rank != victim]
        assert len(left) == RANKS - 1, seed
        assert left[0] == left[1], seed
        assert len(measured) <= KEYS + 1, "what the dead one had in work is measured once more, and nothing else"


@pytest.mark.parametrize("one_root", [True, False], ids=["one root", "a root each"])
def test_a_rank_that_stands_still_for_long_is_overtaken_and_serves_what_the_others_do(one_root):
    for seed in range(SCHEDULES // 2):
        step_count = play(seed, one_root=one_root)[2]
        begin = 1 + random.Random(-seed).randrange(step_count)
        served, _, _ = play(seed, one_root=one_root, stop=(seed % RANKS, begin, begin + 3000))
        assert len(served) == RANKS, seed
        assert served[0] == served[1] == served[2], seed


@pytest.mark.parametrize("one_root", [True, False], ids=["one root", "a root each"])
def test_values_that_go_missing_cost_time_and_never_an_end(one_root):
    for seed in range(SCHEDULES // 4):
        served, measured, _ = play(seed, one_root=one_root, loses=0.2)
        assert len(served) == RANKS, seed
        assert {digest for digest, *_ in measured} == {sample_record(number).digest for number in range(KEYS)}


@pytest.mark.parametrize("one_root", [True, False], ids=["one root", "a root each"])
def test_a_rank_that_is_cut_off_ends_by_itself_and_the_others_agree(one_root):
    for seed in range(SCHEDULES // 2):
        step_count = play(seed, one_root=one_root)[2]
        lonely = seed % RANKS
        served, _, _ = play(seed, one_root=one_root, cut=(lonely, random.Random(-seed).randrange(step_count)))
        assert len(served) == RANKS, seed
        left = [found for rank, found in sorted(served.items()) if rank != lonely]
        assert left[0] == left[1], seed
