"""The memory of answers: from the fingerprint of a raw call to what it was answered.

One memory holds while nothing changes that answers depend on beside the call itself: sessions, records, rules, verdicts. When one of
these does, the adapter's state starts a new memory; whoever is still working out an answer keeps it in the old one, where nobody looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flashinfer.autotuner import AutoTuner, TunableRunner, TuningConfig

from fi_cachestore.adapter.fingerprint import Fingerprint, Fingerprints, is_sound

_GENERATION_COUNT: Final = 4096
_MAX_FAILURES: Final = 32

Answer = tuple[int, Any]
"""A position in the call's list of runners, and a tactic."""


class Memo:
    """Answers of one state of things, hits and misses alike. Thread-safe without a lock.

    Bounded: of two generations the older one is dropped when the younger is full, and what is asked for moves to the younger.
    """

    def __init__(self, fingerprints: Fingerprints, *, is_open: bool, limit_count: int = _GENERATION_COUNT) -> None:
        """Remember nothing yet; one that is not open never will."""
        self.is_open = is_open
        self._fingerprints = fingerprints
        self._limit_count = limit_count
        self._young: dict[Fingerprint, Answer] = {}
        self._old: dict[Fingerprint, Answer] = {}
        self._failures: dict[str, int] = {}

    def __len__(self) -> int:
        """Return how many answers are remembered."""
        return len({*self._young, *self._old})

    def find(
        self,
        tuner: AutoTuner,
        op: str,
        runners: Sequence[TunableRunner],
        config: TuningConfig,
        inputs: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Answer | None:
        """Return the answer to a call, ``None`` where it is not remembered. Takes no lock, logs nothing; never raises."""
        if not self.is_open:
            return None
        try:
            call = self._fingerprints.of(tuner, op, runners, config, inputs, kwargs)
            known = self._young.get(call)
        except Exception:  # noqa: BLE001 - objects of runners, when they are looked at: describing them meets the same
            return None
        return known if known is not None else self._from_old(call)

    def _from_old(self, call: Fingerprint) -> Answer | None:
        known = self._old.get(call)
        if known is not None:
            self._keep(call, known)
        return known

    def begin(self, *call: Any) -> Fingerprint | None:
        """Return the fingerprint under which the answer to a call may be kept, ``None`` if it has none. Never raises."""
        op, runners = call[1], call[2]
        if not self.is_open or self._failures.get(op, 0) >= _MAX_FAILURES:
            return None
        try:
            call[0]._get_override_stack(), call[0]._get_skip_ops_stack()  # FlashInfer makes them when a thread is first asked for them
            found = self._fingerprints.of(*call)
            if not is_sound(found):
                self._fingerprints.learn(runners)
                found = self._fingerprints.of(*call)
            hash(found)
            if is_sound(found):
                self._failures.pop(op, None)
                return found
        except Exception:  # noqa: BLE001, S110 - as above
            pass
        self._failures[op] = self._failures.get(op, 0) + 1
        return None

    def keep(self, before: Fingerprint | None, answer: Answer, *call: Any) -> None:
        """Remember an answer, if the call still is what it was before it was answered."""
        if before is not None and self.begin(*call) == before:
            self._keep(before, answer)

    def _keep(self, call: Fingerprint, answer: Answer) -> None:
        if len(self._young) >= self._limit_count:
            self._old, self._young = self._young, {}
        self._young[call] = answer
