"""The Store port: what every store promises, and the closed set of answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from fi_cachestore.keys.canonical import Value
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MissReason


class Entry(Protocol):
    """What a store keeps: something with a name that follows from its content."""

    @property
    def digest(self) -> Digest:
        """The name under which the entry is kept."""

    def to_value(self) -> Value:
        """Return the content to be sealed."""


E = TypeVar("E", bound=Entry)
E_co = TypeVar("E_co", bound=Entry, covariant=True)


class Codec(Protocol[E_co]):
    """Turns sealed content back into an entry; raises ``DamagedError`` for anything else. The entry classes themselves fit."""

    def from_body(self, body: bytes) -> E_co:
        """Return the entry in the body of an envelope."""


@dataclass(frozen=True, slots=True)
class Hit(Generic[E_co]):
    """The entry, and where it came from (a path, or ``memory``)."""

    entry: E_co
    source: str


@dataclass(frozen=True, slots=True)
class Miss:
    """Nothing that may be served, why, and one clause for people."""

    reason: MissReason
    detail: str = ""


class Found(NamedTuple, Generic[E_co]):
    """An entry on disk that was checked: with its bytes, its generation, and where it was found."""

    entry: E_co
    data: bytes
    generation: int
    source: str

    @property
    def hit(self) -> Hit[E_co]:
        """The entry without its bytes."""
        return Hit(self.entry, self.source)


@dataclass(frozen=True, slots=True)
class Published:
    """The entry is stored now; nobody had stored this digest before."""

    source: str


@dataclass(frozen=True, slots=True)
class Present(Generic[E_co]):
    """Somebody was first: ``entry`` is theirs, and stays."""

    entry: E_co
    source: str


class Successors(Protocol[E]):
    """Where better measurements of what is stored already go."""

    def supersede(self, entry: E, over: E) -> Published | Present[E]:
        """Store ``entry`` in place of ``over``, if that still serves. ``over`` stays; the first successor wins.

        Raises:
            StoreIOError: the file system refused, or there is no room for another one.
            RecordTooLargeError: the entry exceeds the format's limit.
        """


class Store(Protocol[E]):
    """Entries by digest. Every method is safe from any thread and process; an entry never changes once it is there."""

    def get(self, digest: Digest) -> Hit[E] | Miss:
        """Return the entry or why there is none. Reads only; no stored bytes can make it raise, hang or grow without bound."""

    def publish(self, entry: E) -> Published | Present[E]:
        """Store ``entry`` once. Atomic; the first writer wins.

        Raises:
            StoreIOError: the file system refused, or the store is read-only. Never raised for a lost race.
            RecordTooLargeError: the entry exceeds the format's limit.
        """

    def starting_with(self, prefix: str) -> Iterator[Digest]:
        """Yield every stored digest that starts so, once, in ascending order, without checking the content and only as far as asked."""

    def refresh(self) -> None:
        """Look again for what others have packed. Entries that are already open stay so."""

    def __iter__(self) -> Iterator[Digest]:
        """Yield every stored digest; see ``starting_with``."""

    def __len__(self) -> int:
        """Return how many digests are stored."""
