"""The serving path under many threads, with a GIL or without: every call gets the answer of its own parameters, whatever others do."""

import itertools
import sys
import threading
from typing import ClassVar

import pytest
import torch
from flashinfer.autotuner import AutoTuner, TunableRunner

import fi_cachestore
from fi_cachestore.adapter import attach as attach_module
from fi_cachestore.adapter import readings, roles, serve, sources, tensors
from fi_cachestore.adapter.frames import OwnObjects
from fi_cachestore.adapter.memo import Memo
from fi_cachestore.adapter.tuner import CacheStoreTuner
from fi_cachestore.belief import Belief
from fi_cachestore.keys.digest import Digest
from tests.adapter.runners import PlainRunner, choose, config, matrix, timed
from tests.together import together

THREADS, ROUNDS, TILES = 16, 40, 6
SETTINGS = config()


class Tiled(PlainRunner):
    """The best tactic follows from the tile."""

    def __init__(self, tile):
        self.tile = tile

    def time_ms(self, tactic):
        return 10.0 if tactic == -1 else 5.0 - ((tactic - self.tile) % 3 == 0)


class Slow(Tiled):
    def time_ms(self, tactic):
        return 9.0 + (tactic == -1)


def made(tile):
    """As most of FlashInfer's: of a class of its own, with a closure."""

    class Made(PlainRunner):
        def time_ms(self, tactic):
            return 10.0 if tactic == -1 else 5.0 - ((tactic - tile) % 3 == 0)

    return Made()


KINDS = {
    "straight": lambda tile: [Tiled(tile)],
    "two": lambda tile: [Slow(tile), Tiled(tile)],
    "made": lambda tile: [made(tile)],
    "mixed": lambda tile: [Slow(tile), made(tile)],
}


@pytest.fixture
def root(tmp_path):
    """A root with records for every kind of call and ``TILES`` tiles."""
    fi_cachestore.detach()
    with timed(), fi_cachestore.autotune(root=tmp_path / "root"):
        for kind, tile in itertools.product(KINDS, range(TILES)):
            choose(kind, KINDS[kind](tile), [matrix(50)], SETTINGS)
    fi_cachestore.detach()
    yield tmp_path / "root"
    fi_cachestore.detach()


@pytest.fixture
def crowded(monkeypatch):
    """Tables that are emptied again and again, and threads that take turns as often as can be."""
    monkeypatch.setitem(Memo.__init__.__kwdefaults__, "limit_count", 24)
    monkeypatch.setattr(readings.kept, "__defaults__", (6,))
    monkeypatch.setattr(tensors, "_MAX_KNOWN", 3)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Caller:
    """One thread's calls: its own mix of runners, sizes and arguments, each with the answer that it must get."""

    shared: ClassVar = {tile: [Tiled(tile)] for tile in range(TILES)}

    def __init__(self, number):
        self.number, self.changing = number, Tiled(0)

    def call(self, turn):
        """Return op, runners, inputs, config, keyword arguments and the answer of one call."""
        tile, kind = (self.number + turn) % (TILES + 2), list(KINDS)[(self.number + turn // 2) % len(KINDS)]
        columns, kwargs = 32 + (turn % 7 == 3), {"scale": 1} if turn % 11 == 5 else {}
        runners = KINDS[kind](tile)
        if kind == "straight" and turn % 3 == 0 and tile < TILES:
            runners = self.shared[tile]
        elif kind == "straight" and turn % 3 == 1:
            self.changing.tile = tile  # of one runner, under its very eyes
            runners = [self.changing]
        rows = 40 + (self.number * 3 + turn) % 9
        inputs = [matrix(rows, columns) if turn % 5 else torch.zeros(columns, rows).t()]
        is_tuned = tile < TILES and columns == 32 and turn % 5 and not kwargs
        return kind, runners, inputs, SETTINGS if turn % 4 else config(), kwargs, (len(runners) - 1, tile % 3) if is_tuned else (0, -1)

    def wrong(self, allowed=()):
        """Make the calls; return those that were answered by anything else."""
        found = []
        for turn in range(ROUNDS):
            op, runners, inputs, settings, kwargs, right = self.call(turn)
            answer = choose(op, runners, inputs, settings, **kwargs)
            if answer != right and answer not in allowed:
                found.append((op, right, answer))
        return found


class Callers:
    """Sixteen callers on as many threads; ``are_done`` when all are."""

    def __init__(self):
        self.are_done, self._left, self._lock = threading.Event(), THREADS, threading.Lock()

    def works(self, allowed=()):
        return [lambda number=number: self._work(number, allowed) for number in range(THREADS)]

    def _work(self, number, allowed):
        try:
            return Caller(number).wrong(allowed)
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    self.are_done.set()


def test_sixteen_threads_get_their_own_answers_while_everything_is_forgotten(root, crowded):
    session, callers = fi_cachestore.attach(root=root), Callers()

    def forget():
        forgotten = itertools.cycle([session.refresh, AutoTuner.get().state.forget])
        while not callers.are_done.wait(0.002):
            next(forgotten)()

    assert not any(together(*callers.works(), forget))
    assert session.report().ephemeral == {}
    assert Caller(0).wrong() == []


def test_sixteen_threads_go_on_while_sessions_come_and_go(root, tmp_path, crowded):
    """What is asked for while nothing is attached has FlashInfer's own answer; nothing of that time stays."""
    callers = Callers()

    def come_and_go(name):
        while not callers.are_done.wait(0.001):
            session = fi_cachestore.attach(root=name)
            callers.are_done.wait(0.002)
            session.detach()

    works = callers.works(allowed=[(0, -1)])
    assert not any(together(*works, lambda: come_and_go(root), lambda: come_and_go(tmp_path / "empty")))
    assert type(AutoTuner.get()) is AutoTuner
    fi_cachestore.attach(root=root)
    for number in range(THREADS):
        assert Caller(number).wrong() == Caller(number).wrong() == []


def test_all_runners_of_a_call_are_looked_up_in_the_same_sessions(root, monkeypatch):
    session, real, seen = fi_cachestore.attach(root=root), serve._record, []

    def record(*args):
        if seen:
            session.detach()  # another thread's doing, just then
        seen.append(args)
        return real(*args)

    monkeypatch.setattr(serve, "_record", record)
    fi_cachestore.attach(root=root.parent / "empty")
    assert choose("two", KINDS["two"](1), [matrix(50)], SETTINGS) == (1, 1)
    assert choose("two", KINDS["two"](1), [matrix(50)], SETTINGS) == (0, -1)


def test_new_threads_are_no_reason_to_stop_remembering(root, monkeypatch):
    described, real = [], serve.describe
    monkeypatch.setattr(serve, "describe", lambda *args: described.append(args) or real(*args))
    fi_cachestore.attach(root=root)
    for _ in range(40):
        together(lambda: choose("straight", [Tiled(1)], [matrix(50)], SETTINGS))
    described.clear()
    for _ in range(3):
        assert choose("straight", [Tiled(1)], [matrix(51)], SETTINGS) == (0, 1)
    assert len(described) == 1


# -- attaching and detaching ------------------------------------------------------------------------------------------------------


def test_a_session_is_served_though_the_one_before_went_while_it_was_opened(root, monkeypatch):
    fi_cachestore.attach(root=root.parent / "empty")
    monkeypatch.setattr(attach_module, "met", lambda *args: fi_cachestore.detach())
    assert fi_cachestore.attach(root=root).is_attached
    with fi_cachestore.autotune(tune_mode=False, root=root.parent / "another", group=object()) as session:
        assert session.is_attached
        assert isinstance(AutoTuner.get(), CacheStoreTuner)


def test_there_is_always_a_session_while_a_pinned_one_goes(root, monkeypatch):
    fi_cachestore.attach(root=root)
    pinned = fi_cachestore.attach("pin", root=root, pin="ab" * 32, strict=False)
    state, counts = AutoTuner.get().state, []
    assert len(state.aside) == 1
    monkeypatch.setattr(
        type(state),
        "__setattr__",
        lambda self, name, value: (counts.append(len(value)) if name == "attached" else None, vars(self).update({name: value})),
    )
    pinned.detach()
    assert counts == [1]
    assert choose("straight", [Tiled(1)], [matrix(50)], SETTINGS) == (0, 1)


def test_what_may_not_be_served_is_heard_of_while_a_session_is_opened(root, monkeypatch):
    fi_cachestore.attach(root=root)
    told, real = AutoTuner.get().state.trust.told, Belief.hold
    told[Digest("ab" * 32)] = "seen here"

    def hold(self, schema, why):
        real(self, schema, why)
        told[Digest("cd" * 32)] = "a session that ends on another thread"

    monkeypatch.setattr(Belief, "hold", hold)
    assert fi_cachestore.attach(root=root).is_attached


def test_no_memory_is_open_after_a_change_that_closes_it(root):
    fi_cachestore.attach(root=root)
    state = AutoTuner.get().state
    for _ in range(500):
        attached = state.current

        def start_tuning(attached=attached):
            attached.tuning_count = 1
            state.forget()

        together(start_tuning, state.forget, state.forget)
        assert not state.memo.is_open
        attached.tuning_count = 0
        state.forget()
        assert state.memo.is_open


def test_what_is_said_once_is_said_by_one_thread(root, caplog):
    fi_cachestore.attach(root=root)
    state = AutoTuner.get().state
    for turn in range(50):
        together(*[lambda turn=turn: state.note_ephemeral(f"op {turn}", "some reason")] * THREADS)
    said = [record.getMessage() for record in caplog.records if "some reason" in record.getMessage()]
    assert len(said) == len(set(said)) == 50


# -- tables that another thread empties -------------------------------------------------------------------------------------------


class Emptied(dict):
    """Another thread empties it as soon as something is in, or was found there."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.clear()

    def __contains__(self, key):
        found = super().__contains__(key)
        self.clear()
        return found


def test_source_text_is_found_in_a_table_that_is_emptied(monkeypatch):
    expected = (
        sources.source_text(Tiled.time_ms),
        sources.implementation_digest(Tiled, TunableRunner),
        roles.mutated_names(Tiled, TunableRunner),
    )
    assert None not in expected
    for module, name in ((sources, "_sources"), (sources, "_implementations"), (roles, "_mutated")):
        monkeypatch.setattr(module, name, Emptied())
    assert sources.source_text(Tiled.time_ms) == expected[0]
    assert sources.implementation_digest(Tiled, TunableRunner) == expected[1]
    assert roles.mutated_names(Tiled, TunableRunner) == expected[2]


def test_a_runners_own_object_is_there_or_not():
    objects = OwnObjects(limit_count=1)
    objects._known = Emptied()
    dict.__setitem__(objects._known, (Digest("ab"), b"value"), "own")
    assert objects.get(Digest("ab"), b"value") == (True, "own")


def test_own_objects_are_asked_for_while_they_are_forgotten():
    objects, digests = OwnObjects(limit_count=2), [Digest(f"{number:064x}") for number in range(4)]

    def ask():
        for turn in range(2000):
            digest = digests[turn % 4]
            objects.remember(digest, {b"value": digest})
            assert objects.get(digest, b"value") in ((True, digest), (False, None))

    together(*[ask] * 4)
