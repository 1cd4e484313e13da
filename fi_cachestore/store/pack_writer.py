"""Writing a pack: one pass over entries in order, never more than a megabyte of them in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.store.filesystem import Reader, Writer
from fi_cachestore.store.pack import (
    CONTENT_PERSON,
    FORMAT_VERSION,
    HEADER,
    INDEX_ROW,
    MAGIC,
    PLACE,
    Pack,
    fan_out_bits,
    front_check,
    way_of,
)
from fi_cachestore.store.publish import create_named_by_content

_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Sealed:
    """The bytes of one entry as they stand on disk, checked; ``source`` is where they were found."""

    digest: Digest
    generation: int
    data: bytes
    source: str


@dataclass(slots=True)
class PackBytes:
    """The bytes of a pack, made while they are read: ``digest`` and ``count`` are right after the last chunk."""

    entries: Iterable[Sealed]
    sequence: int
    count: int = 0
    digest: str = ""
    _index: bytearray = field(default_factory=bytearray)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks. ``entries`` must come in ascending order of (digest, generation), each once."""
        content = blake2b(digest_size=32, person=CONTENT_PERSON)
        for chunk in self._parts():
            content.update(chunk)
            yield chunk
        self.digest = content.hexdigest()
        yield content.digest()

    def _parts(self) -> Iterator[bytes]:
        header = HEADER.pack(MAGIC, FORMAT_VERSION, self.sequence)
        offset, parts, size_bytes = 0, [header], len(header)
        for entry in self.entries:
            self._index += INDEX_ROW.pack(bytes.fromhex(entry.digest), offset + size_bytes, len(entry.data), entry.generation)
            parts.append(entry.data)
            size_bytes += len(entry.data)
            if size_bytes >= _CHUNK_BYTES:
                yield b"".join(parts)
                offset, parts, size_bytes = offset + size_bytes, [], 0
        yield b"".join(parts)
        self.count = len(self._index) // INDEX_ROW.size
        bits = fan_out_bits(self.count)
        fan_out, place = self._fan_out(bits), PLACE.pack(offset + size_bytes, self.count, bits)
        yield b"".join([self._index, fan_out, place, front_check(header, fan_out, place)])

    def _fan_out(self, bits: int) -> bytes:
        counted = [0] * ((1 << bits) + 1)
        for at in range(0, len(self._index), INDEX_ROW.size):
            counted[way_of(self._index[at : at + 2], bits) + 1] += 1
        return b"".join(total.to_bytes(4, "big") for total in itertools.accumulate(counted))


def write_pack(folder: Path, entries: Iterable[Sealed], sequence: int, *, reader: Reader, writer: Writer) -> Pack:
    """Create a pack of ``entries``, on the medium when this returns, and return it, opened. What ``entries`` raises leaves nothing behind.

    A pack of the same content counts if it is sound.

    Raises:
        StoreIOError: the file system refused.
        DamagedError: something else has the name of this pack.
    """
    made = PackBytes(entries, sequence)
    path, created = create_named_by_content(writer, folder, made, lambda: f"{made.digest}.pack")
    try:
        pack = Pack(path, reader)
        if not created:
            pack.check()
    except FileNotFoundError as error:
        raise DamagedError(MissReason.ABSENT, f"{path} was removed at once") from error
    return pack
