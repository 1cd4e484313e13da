"""How many values a parameter takes in one op, and how many keys an op has.

A parameter that never stops taking new values is data and no configuration: every value is measured anew, and nothing is ever found.
Counting is for calls that are looked at for the first time, never for one whose answer is remembered.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from flashinfer.autotuner import TunableRunner

from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.adapter.sources import implementation_digest, type_name
from fi_cachestore.config import Settings
from fi_cachestore.keys.canonical import Named, Value, encode
from fi_cachestore.keys.digest import part_digest
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.session import Session

if TYPE_CHECKING:
    from fi_cachestore.adapter.serve import Description
    from fi_cachestore.adapter.state import AdapterState

logger: Final = logging.getLogger("fi_cachestore")

TOO_MANY_KEYS: Final = "too many keys"
_MAX_PLACES: Final = 65536
_FINGERPRINT_DIGITS: Final = 16
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a runner's keys something stands. ``table`` is that of a contract, ``inputs`` where no contract speaks."""

    op: str
    runner: str
    table: str
    path: str


@dataclass(slots=True)
class _Values:
    """The values seen at one place: digests until there are too many, then nothing."""

    digests: set[str] = field(default_factory=set)
    are_numbers: bool = True
    is_reported: bool = False


class Cardinality:
    """Counts values per place and keys per op. Thread-safe; its memory is bounded by the limits."""

    def __init__(self, max_values: int, max_keys: int) -> None:
        """Report a place with more than ``max_values``; an op with more than ``max_keys`` is full."""
        self.max_values, self.max_keys = max_values, max_keys
        self._places: dict[Place, _Values] = {}
        self._keys: dict[str, set[str]] = {}
        self._full: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def within(cls, settings: Settings) -> Self:
        """Return one with the limits of the settings."""
        return cls(settings.max_values.value, settings.max_keys.value)

    def is_full(self, op: str) -> bool:
        """Whether the op has had more keys than it may have."""
        return op in self._full

    def count(self, key: TuneKey) -> list[tuple[Place, bool]]:
        """Count a key; return the places that have just had too many values, each once, and whether all of them were numbers."""
        with self._lock:
            self._count_key(key)
            return [(place, values.are_numbers) for place, values in self._counted(key) if values.is_reported]

    def _count_key(self, key: TuneKey) -> None:
        if key.op in self._full:
            return
        keys = self._keys.setdefault(key.op, set())
        keys.add(key.digest)
        if len(keys) > self.max_keys:
            self._full.add(key.op)
            del self._keys[key.op]

    def _counted(self, key: TuneKey) -> Iterator[tuple[Place, _Values]]:
        """Count the values of a key; yield the places where something new was counted."""
        for table, path, value in _leaves_of(key):
            place = Place(key.op, key.runner.type, table, path)
            values = self._places.get(place)
            if values is None:
                if len(self._places) >= _MAX_PLACES:
                    continue
                values = self._places[place] = _Values()
            if values.is_reported:
                continue
            values.digests.add(part_digest(encode(value)))
            values.are_numbers &= type(value) in (int, float)
            if len(values.digests) > self.max_values:
                values.is_reported = True
                values.digests.clear()
            yield place, values


def note(state: AdapterState, described: Description) -> None:
    """Count the keys of a call that is complete, and report what takes too many values, once per place."""
    bucket = described.calls[0].bucket()
    for index in range(len(described.runners)):
        view = described.view(0, index)
        key = view.keys(bucket, serving=True)[0]
        if not isinstance(key, TuneKey):
            continue
        for place, are_numbers in state.cardinality.count(key):
            name = f"{place.op}: {place.path} of {type_name(type(view.runner))}"
            advice = _advice(view, place, varies=are_numbers)
            state.current.session.recorder.varying(name, advice)
            logger.warning("%s has had more than %d values and is probably dynamic; %s", name, state.cardinality.max_values, advice)


def stays_in_memory(state: AdapterState, session: Session, op: str) -> bool:
    """Whether calls of an op that are new to this process are tuned by it for itself: the op has too many keys.

    Among ranks they are not: each counts its own keys, and none may go its own way.
    """
    return session.group is None and state.cardinality.is_full(op)


def _advice(view: RunnerView, place: Place, *, varies: bool) -> str:
    if place.table == "inputs":
        return "declare the dim in the op's TuningConfig, or pass the value as a keyword argument, of which a contract can speak"
    name = place.path if _BARE.fullmatch(place.path) else json.dumps(place.path)
    more = ", varies = true" if varies else ""
    line = f'{place.table}.{name} = {{ role = "dynamic", why = "changes from call to call"{more} }}'
    if view.contract.type:
        return f"if so, its contract says: {line}"
    digest = implementation_digest(type(view.runner), TunableRunner) or ""
    row = f'[[runner]]\ntype = "{type_name(type(view.runner))}"\nfingerprint = "{digest[:_FINGERPRINT_DIGITS]}"'
    return f"if so, its contract says:\n{row}\n{line}"


def _leaves_of(key: TuneKey) -> Iterator[tuple[str, str, Value]]:
    for table, parts in (("parameters", key.runner.params), ("arguments", key.arguments)):
        for name, value in parts.items():
            yield from ((table, path, leaf) for path, leaf in _leaves(name, value))
    for index, value in enumerate(key.inputs):
        yield from (("inputs", path, leaf) for path, leaf in _input_leaves(f"inputs[{index}]", value))
    if isinstance(key.extras, tuple):
        yield from (("extras", str(position), value) for position, value in enumerate(key.extras))


def _leaves(path: str, value: Value) -> Iterator[tuple[str, Value]]:
    """Yield the values that a contract can speak of one by one: fields of configuration objects, and what functions close over."""
    match value:
        case Named("dataclass", (_, dict(fields))) | Named("namespace", dict(fields)):
            for name, item in fields.items():
                yield from _leaves(f"{path}.{name}", item)
        case Named("function", {"closure": dict(cells)}):
            for name, item in cells.items():
                yield from _leaves(f"{path}.closure.{name}", item)
        case _:
            yield path, value


def _input_leaves(path: str, value: Value) -> Iterator[tuple[str, Value]]:
    match value:
        case Named("tensor", {"shape": tuple(sizes)}):
            yield from ((f"{path}.shape[{dim}]", size) for dim, size in enumerate(sizes) if isinstance(size, int))
        case _:
            yield path, value
