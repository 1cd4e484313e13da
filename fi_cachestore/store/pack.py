r"""Packs: many sealed entries in one immutable file, ``packs/<digest>.pack``, read in place.

=================  ===========  =====================================================================================
part               size         content
=================  ===========  =====================================================================================
header             20           magic ``\x93FICP\r\n\x1a``, format version, sequence number (4 and 8 bytes)
records            any          sealed entries, the very bytes of their loose files, one after the other
index              48 x count   per record: digest (32), offset (8), length (4), generation (4); ascending
fan-out            4 x (n + 1)  how many digests start with less than 0, 1, ... n; n is a power of two, 256 to 65536
trailer            64           offset of the index (8), count (4), bits of the fan-out (4), check (16), digest (32)
=================  ===========  =====================================================================================

All numbers are big-endian. The check is a BLAKE2b-128 of header, fan-out and the numbers of the trailer, verified when a pack is opened;
the digest is a BLAKE2b-256 of everything before it, the pack's name, and verified by whoever asks for that (``check``). A record is checked
when it is looked up, as a loose one is. The index comes after the records so that a pack of any size is written in one pass.
"""

from __future__ import annotations

import itertools
import re
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.digest import DIGEST_HEX_CHARS, Digest
from fi_cachestore.records.envelope import HEADER_BYTES as SEAL_HEADER_BYTES
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, MissReason
from fi_cachestore.store.filesystem import OpenFile, Reader

PACKS_FOLDER: Final = "packs"
PACK_NAME: Final = re.compile(r"([0-9a-f]{64})\.pack", re.ASCII)
MAGIC: Final = b"\x93FICP\r\n\x1a"
FORMAT_VERSION: Final = 1
HEADER: Final = struct.Struct(">8sIQ")
INDEX_ROW: Final = struct.Struct(">32sQII")
PLACE: Final = struct.Struct(">QII")
TRAILER: Final = struct.Struct(">16s32s")
TRAILER_BYTES: Final = PLACE.size + TRAILER.size
MIN_BITS, MAX_BITS = 8, 16
ROWS_PER_WAY: Final = 64
"""What a look-up reads of the index, at most and on average: more would cost look-ups, fewer the opening, which reads the whole fan-out."""
MAX_GENERATIONS: Final = 64
CONTENT_PERSON: Final = b"fi_cachestore/b1"
CHECK_PERSON: Final = b"fi_cachestore/f1"

_MAX_COUNT: Final = 1 << 28
_MAX_BUCKET_ROWS: Final = 16384  # a small pack may have all of its digests start alike
_DIGEST_BYTES: Final = 32
_SCAN_ROWS: Final = 1024
_CHUNK_BYTES: Final = 1 << 20
_RANGE: Final = struct.Struct(">II")
_END_BYTES: Final = 4 * ((1 << MIN_BITS) + 1) + TRAILER_BYTES


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a pack: whose, which generation, and where its sealed bytes are."""

    digest: Digest
    generation: int
    offset: int
    size_bytes: int


def fan_out_bits(count: int) -> int:
    """Return how many leading bits of a digest the fan-out of a pack of ``count`` records tells apart."""
    return max(MIN_BITS, min((count // ROWS_PER_WAY).bit_length(), MAX_BITS))


def way_of(digest: bytes | bytearray, bits: int) -> int:
    """Return the leading bits of a digest, of which its first two bytes are enough."""
    return int.from_bytes(digest[:2], "big") >> (MAX_BITS - bits)


def front_check(header: bytes, fan_out: bytes, place: bytes) -> bytes:
    """Return the check over what a reader needs before it finds any record."""
    check = blake2b(header, digest_size=16, person=CHECK_PERSON)
    check.update(fan_out)  # as it is: a copy would cost as much as reading it
    check.update(place)
    return check.digest()


class Pack:
    """An open pack. Holds the file and the fan-out; safe from any thread; goes on to be readable when the file is unlinked.

    ``size_bytes`` is what the file had when it was opened.
    """

    def __init__(self, path: Path, reader: Reader) -> None:
        """Open and check what look-ups lean on: a few reads, whatever the size.

        Raises:
            FileNotFoundError: nothing is there.
            DamagedError: not a pack, or not the one that its name says.
        """
        self.path = path
        self._file: OpenFile = reader.open(path)
        self.size_bytes: Final = self._file.size_bytes
        header = self._file.read_at(0, HEADER.size)
        self.sequence = _sequence(header)
        end = self._file.read_at(max(0, self.size_bytes - _END_BYTES), _END_BYTES)
        trailer = end[-TRAILER_BYTES:]
        self._index_offset, self.count, self._bits, fan_out_offset = _places(trailer, self.size_bytes)
        check, content = TRAILER.unpack_from(trailer, PLACE.size)
        is_read = self._bits == MIN_BITS
        self._fan_out = end[:-TRAILER_BYTES] if is_read else self._file.read_at(fan_out_offset, 4 * ((1 << self._bits) + 1))
        if front_check(header, self._fan_out, trailer[: PLACE.size]) != check:
            raise DamagedError(MissReason.CORRUPT, "checksum of the pack's index differs")
        self.digest = Digest(content.hex())
        named = PACK_NAME.fullmatch(path.name)
        if named is not None and named[1] != self.digest:
            raise DamagedError(MissReason.FOREIGN, f"holds the pack {self.digest[:12]}")

    @property
    def age_order(self) -> tuple[int, Digest]:
        """What newer packs have more of: the sequence number, between equal ones the name. The same on every host."""
        return self.sequence, self.digest

    def find(self, digest: Digest) -> list[Row]:
        """Return the rows of a digest, one per generation. One read.

        Raises:
            DamagedError: the index cannot be read.
        """
        try:
            raw = bytes.fromhex(digest)
        except ValueError:
            return []
        if len(raw) != _DIGEST_BYTES:
            return []
        rows = self._bucket(raw)
        at = rows.find(raw)
        while at >= 0 and at % INDEX_ROW.size:  # the bytes of a digest, but not in a digest's place
            at = rows.find(raw, at + 1)
        found: list[Row] = []
        while at >= 0 and rows[at : at + _DIGEST_BYTES] == raw and len(found) < MAX_GENERATIONS:
            _, offset, size_bytes, generation = INDEX_ROW.unpack_from(rows, at)
            found.append(Row(digest, generation, offset, size_bytes))
            at += INDEX_ROW.size
        return found

    def _bucket(self, raw: bytes) -> bytes:
        start, end = _RANGE.unpack_from(self._fan_out, 4 * way_of(raw, self._bits))
        if start == end:
            return b""
        if not start < end <= self.count or end - start > _MAX_BUCKET_ROWS:
            raise DamagedError(MissReason.CORRUPT, f"{self.path}: a fan-out that does not fit the index")
        return self._index(start, end - start)

    def _index(self, first: int, row_count: int) -> bytes:
        wanted = row_count * INDEX_ROW.size
        rows = self._file.read_at(self._index_offset + first * INDEX_ROW.size, wanted)
        if len(rows) != wanted:
            raise DamagedError(MissReason.CORRUPT, f"{self.path}: shorter than it was")
        return rows

    def sealed(self, row: Row) -> bytes:
        """Return the sealed bytes of a record, unchecked. One read.

        Raises:
            DamagedError: the row points nowhere, or the file has become shorter.
        """
        fits = HEADER.size <= row.offset and row.offset + row.size_bytes <= self._index_offset
        if not fits or not SEAL_HEADER_BYTES <= row.size_bytes <= MAX_SEALED_BYTES:
            raise DamagedError(MissReason.CORRUPT, f"{self.path}: an index that points nowhere")
        data = self._file.read_at(row.offset, row.size_bytes)
        if len(data) != row.size_bytes:
            raise DamagedError(MissReason.CORRUPT, f"{self.path}: shorter than it was")
        return data

    def rows(self, prefix: str = "") -> Iterator[Row]:
        """Yield the rows whose digest starts with ``prefix``, in order, reading some at a time.

        Raises:
            DamagedError: the index cannot be read.
        """
        first = self._first(prefix) if prefix else 0
        while first < self.count:
            row_count = min(_SCAN_ROWS, self.count - first)
            for raw, offset, size_bytes, generation in INDEX_ROW.iter_unpack(self._index(first, row_count)):
                digest = raw.hex()
                if not digest.startswith(prefix):
                    return
                yield Row(Digest(digest), generation, offset, size_bytes)
            first += row_count

    def _first(self, prefix: str) -> int:
        """Return the number of the first row that is not before ``prefix``."""
        return bisect_left(range(self.count), prefix, key=lambda number: self._index(number, 1)[:_DIGEST_BYTES].hex())

    def check(self) -> None:
        """Read the whole file: what is in it has its name, and the index is in order. A millisecond per megabyte or two.

        Raises:
            DamagedError: it is not so.
        """
        content = blake2b(digest_size=32, person=CONTENT_PERSON)
        for at in range(0, end := self.size_bytes - _DIGEST_BYTES, _CHUNK_BYTES):
            content.update(self._file.read_at(at, min(_CHUNK_BYTES, end - at)))
        if content.hexdigest() != self.digest:
            raise DamagedError(MissReason.CORRUPT, "the content is not what the name says")
        if any((a.digest, a.generation) >= (b.digest, b.generation) for a, b in itertools.pairwise(self.rows())):
            raise DamagedError(MissReason.CORRUPT, "an index that is not in order")
        self._check_fan_out()

    def _check_fan_out(self) -> None:
        counted = [0] * ((1 << self._bits) + 1)
        for row in self.rows():
            counted[way_of(bytes.fromhex(row.digest[:4]), self._bits) + 1] += 1
        if list(itertools.accumulate(counted)) != list(struct.unpack(f">{len(counted)}I", self._fan_out)):
            raise DamagedError(MissReason.CORRUPT, "a fan-out that does not fit the index")


def _sequence(header: bytes) -> int:
    """Return the sequence number in a header.

    Raises:
        DamagedError: not the header of a pack that this version reads.
    """
    if len(header) != HEADER.size:
        raise DamagedError(MissReason.CORRUPT, "too short for a pack")
    magic, version, sequence = HEADER.unpack(header)
    if magic != MAGIC or version == 0:
        raise DamagedError(MissReason.CORRUPT, "not a pack of this library")
    if version > FORMAT_VERSION:
        raise DamagedError(MissReason.FUTURE_FORMAT, f"format {version}, this version reads {FORMAT_VERSION}")
    return int(sequence)


def _places(trailer: bytes, file_bytes: int) -> tuple[int, int, int, int]:
    """Return offset of the index, count, bits and offset of the fan-out; nothing is read or allocated by numbers that do not fit the file.

    Raises:
        DamagedError: they do not.
    """
    if len(trailer) != TRAILER_BYTES:
        raise DamagedError(MissReason.CORRUPT, "too short for a pack")
    index_offset, count, bits = PLACE.unpack_from(trailer)
    if MIN_BITS <= bits <= MAX_BITS and count <= _MAX_COUNT:
        fan_out_offset = file_bytes - TRAILER_BYTES - 4 * ((1 << bits) + 1)
        if HEADER.size <= index_offset and index_offset + count * INDEX_ROW.size == fan_out_offset:
            return index_offset, count, bits, fan_out_offset
    raise DamagedError(MissReason.CORRUPT, "parts of a pack that do not fit together")


def pack_path(root: Path, digest: str) -> Path:
    """Return where a pack lives."""
    return root / PACKS_FOLDER / f"{digest[:DIGEST_HEX_CHARS]}.pack"
