"""The ranks of one session: who is there, who does what, and values that all of them see alike. Works over any ``Board``.

Nothing here is a collective, and nothing waits for a rank that is gone: a rank lives while its beat changes, and works while what it
says it is doing changes. Only the observer's own clock is used.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fi_cachestore.coordination.board import Board
from fi_cachestore.coordination.port import Busy, Claim, Clock, Coordinator, Unavailable
from fi_cachestore.errors import BoardLostError, RankTimeoutError
from fi_cachestore.keys.digest import Digest

logger: Final = logging.getLogger("fi_cachestore")

_LEFT: Final = b"left"
_POSTED: Final = b"+"
_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Member:
    """One rank: its number in the group, the host it runs on (a name for people) and its process."""

    rank: int
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a rank without a beat counts as alive, and how long one that beats may stay at the same thing at the end."""

    dead_after_s: float = 15.0
    stall_s: float = 600.0


@dataclass(slots=True)
class _Seen:
    """What an observer last saw of a rank, and since when by its own clock."""

    beat: bytes
    beat_since_ns: int
    work: bytes
    work_since_ns: int


class Ranks:
    """One rank's view of its group. Thread-safe; every rank of the session has one, over the same board."""

    def __init__(self, board: Board, rank: int, members: Sequence[Member], clock: Clock, patience: Patience | None = None) -> None:
        """Be ``rank`` among ``members``, which are in the order of their ranks."""
        self.rank, self.members = rank, tuple(members)
        self._board, self._clock = board, clock
        self._patience = patience or Patience()
        self._tokens = itertools.count()
        self._beats = itertools.count(1)
        self._work = b"0"
        self._work_count = 0
        self._seen: dict[int, _Seen] = {}
        self._absent: set[int] = set()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return len(self.members)

    # -- life -------------------------------------------------------------------------------------------------------------------

    def note(self, work: str) -> None:
        """Say what is being done now. Only a change of it counts as progress."""
        self._work_count += 1
        self._work = f"{self._work_count} {work}".encode()

    def beat(self, board: Board) -> None:
        """Show that this rank is alive, on a board of its own: the other one may be waiting for an answer.

        Raises:
            BoardLostError: nobody can see it.
        """
        board.put({f"beat/{self.rank}": f"{next(self._beats)}|".encode() + self._work})

    def leave(self) -> None:
        """Say that this rank takes no further part. Never raises."""
        try:
            self._board.put({f"beat/{self.rank}": _LEFT})
        except BoardLostError as error:
            logger.debug("%s", error)

    def is_gone(self, rank: int) -> bool:
        """Whether a rank has left or its beat has stopped.

        Raises:
            BoardLostError: nobody can tell.
        """
        seen = self._look(rank)
        return seen.beat == _LEFT or self._clock.monotonic_ns() - seen.beat_since_ns > self._patience.dead_after_s * 1e9

    def _look(self, rank: int) -> _Seen:
        (beat,) = self._board.fetch([f"beat/{rank}"])
        now = self._clock.monotonic_ns()
        work = beat.partition(b"|")[2]
        with self._lock:
            seen = self._seen.setdefault(rank, _Seen(beat, now, work, now))
            if beat != seen.beat:
                seen.beat, seen.beat_since_ns = beat, now
            if work != seen.work:
                seen.work, seen.work_since_ns = work, now
            return seen

    # -- claims -----------------------------------------------------------------------------------------------------------------

    def claim(self, digest: Digest, purpose: str) -> Claim | Busy | Unavailable:
        """Claim ``digest`` for this rank, at once or not at all; the claim of a rank that is gone is taken over."""
        name, token = f"claim/{digest}", f"{self.rank}:{next(self._tokens)}:{purpose[:128]}".encode()
        try:
            held = self._board.compare_set(name, b"", token)
            if held == token:
                return _BoardClaim(self._board, name, token)
            owner = int(held.partition(b":")[0])
            if owner != self.rank and self.is_gone(owner):
                held = self._board.compare_set(name, held, token)
                if held == token:
                    logger.warning("rank %d on %s is gone; its work on %s is taken over", owner, self.members[owner].host, purpose)
                    return _BoardClaim(self._board, name, token)
                owner = int(held.partition(b":")[0] or self.rank)
            work = self._look(owner).work.decode(errors="replace") if owner != self.rank else ""
            return Busy(f"rank {owner} on {self.members[owner].host}, at {work.partition(' ')[2] or purpose}", work)
        except BoardLostError as error:
            return Unavailable(str(error))

    # -- values -----------------------------------------------------------------------------------------------------------------

    def offer(self, name: str, value: bytes) -> bytes:
        """Put a value under a name unless there is one; return the one that all ranks see from now on.

        Raises:
            BoardLostError: the board cannot be reached.
        """
        return self._board.compare_set(f"value/{name}", b"", value)

    def fetch(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Return the values that have been offered under ``names``.

        Raises:
            BoardLostError: the board cannot be reached.
        """
        values = self._board.fetch([f"value/{name}" for name in names])
        return {name: value for name, value in zip(names, values, strict=True) if value}

    def decide(self, name: str, proposal: bytes) -> bytes:
        """Return the proposal that all ranks see: the one made first.

        Raises:
            BoardLostError: the board cannot be reached.
        """
        return self._board.compare_set(f"decided/{name}", b"", _POSTED + proposal)[len(_POSTED) :]

    def decided(self, name: str) -> bytes:
        """Return what was decided under a name, ``b""`` where nothing was.

        Raises:
            BoardLostError: the board cannot be reached.
        """
        (held,) = self._board.fetch([f"decided/{name}"])
        return held[len(_POSTED) :]

    def post(self, name: str, value: bytes) -> None:
        """Show a value of this rank to the others.

        Raises:
            BoardLostError: the board cannot be reached.
        """
        self._board.put({f"{name}/{self.rank}": _POSTED + value})

    def posted(self, name: str, among: Sequence[int]) -> dict[int, bytes]:
        """Return what ranks of ``among`` have posted under a name, without waiting.

        Raises:
            BoardLostError: the board cannot be reached.
        """
        values = self._board.fetch([f"{name}/{rank}" for rank in among])
        return {rank: value[len(_POSTED) :] for rank, value in zip(among, values, strict=True) if value}

    def gather(self, name: str, value: bytes, among: Sequence[int] | None = None, *, past: str | None = None) -> dict[int, bytes]:
        """Return what every rank of ``among`` (all) gathers under ``name``; ranks that are gone or stuck before it are left out.

        A rank that goes on working is waited for, however long it takes. One that was left out once is not waited for again. With
        ``past``, a rank that gathers under that name has gone past this one, and is not waited for.

        Raises:
            BoardLostError: the board cannot be reached.
        """
        self.post(name, value)
        found = {self.rank: value}
        missing = set(range(self.size) if among is None else among) - {self.rank}
        pause_s = _FIRST_PAUSE_S
        while missing:
            found |= self.posted(name, sorted(missing))
            missing -= found.keys()
            gone_past = set() if past is None else self.posted(past, sorted(missing)).keys()
            if all(rank in gone_past or self._is_given_up(rank) for rank in sorted(missing)):
                break
            self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return dict(sorted(found.items()))

    def _is_given_up(self, rank: int) -> bool:
        if rank in self._absent:
            return True
        seen, gone = self._look(rank), self.is_gone(rank)
        stalled_ns = self._clock.monotonic_ns() - seen.work_since_ns
        if not gone and stalled_ns <= self._patience.stall_s * 1e9:
            return False
        self._absent.add(rank)
        work = seen.work.decode(errors="replace").partition(" ")[2]
        age_s = (self._clock.monotonic_ns() - seen.beat_since_ns if gone else stalled_ns) / 1e9
        logger.warning("%s", RankTimeoutError(rank, self.members[rank].host, "left" if seen.beat == _LEFT else work, age_s))
        return True


class _BoardClaim:
    def __init__(self, board: Board, name: str, token: bytes) -> None:
        self._board, self._name, self._token = board, name, token

    def release(self) -> None:
        try:
            self._board.compare_set(self._name, self._token, b"")
        except BoardLostError as error:
            logger.debug("%s", error)


class Heart:
    """Beats for a rank until it is stopped, on a daemon thread."""

    def __init__(self, ranks: Ranks, board: Board, interval_s: float = 0.5) -> None:
        """Beat once now, and then every ``interval_s``."""
        self._ranks, self._board, self._interval_s = ranks, board, interval_s
        self._stopped = threading.Event()
        ranks.beat(board)
        threading.Thread(target=self._run, name="fi_cachestore-heart", daemon=True).start()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                self._ranks.beat(self._board)
            except BoardLostError as error:
                logger.debug("%s", error)
                return


class Layered:
    """Several coordinators as one: a claim holds in all of them or in none. One that does not work is left out."""

    def __init__(self, *layers: Coordinator) -> None:
        """Claim in the order of ``layers``."""
        self._layers = layers

    def claim(self, digest: Digest, purpose: str) -> Claim | Busy | Unavailable:
        """Claim ``digest`` everywhere, or give back what was claimed and return who is in the way."""
        claims: list[Claim] = []
        why: list[str] = []
        for layer in self._layers:
            match layer.claim(digest, purpose):
                case Busy() as busy:
                    for claim in reversed(claims):
                        claim.release()
                    return busy
                case Unavailable(reason):
                    why.append(reason)
                case claim:
                    claims.append(claim)
        return _Claims(tuple(claims)) if claims else Unavailable("; ".join(why))


@dataclass(frozen=True, slots=True)
class _Claims:
    claims: tuple[Claim, ...]

    def release(self) -> None:
        for claim in reversed(self.claims):
            claim.release()
