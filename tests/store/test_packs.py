"""Packs as files: their bytes, what is found in them, and what becomes of bad ones."""

import os
import pickle
import random
import struct
from pathlib import Path

import pytest

from fi_cachestore.errors import DamagedError, NoSuchBundleError, StoreIOError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MissReason, seal
from fi_cachestore.store import pack_writer
from fi_cachestore.store.bundle import Bundle, open_bundle, write_bundle
from fi_cachestore.store.fsck import LEFTOVER, STRAY, verify
from fi_cachestore.store.open import open_store
from fi_cachestore.store.pack import (
    HEADER,
    INDEX_ROW,
    MAGIC,
    MAX_BITS,
    MIN_BITS,
    PLACE,
    ROWS_PER_WAY,
    TRAILER_BYTES,
    Pack,
    fan_out_bits,
    front_check,
)
from fi_cachestore.store.pack_writer import Sealed
from fi_cachestore.store.port import Hit, Miss, Present, Published
from fi_cachestore.store.roots import packed_reader as root_reader
from fi_cachestore.testing.samples import sample_record

from .packs import FILES, CountingReader, make_pack, packed_reader, packed_store, sealed

GOLDEN = Path(__file__).parent.parent / "golden"
RECORDS = [sample_record(number) for number in range(5)]
ABSENT = Miss(MissReason.ABSENT)
LARGE_COUNT = ROWS_PER_WAY << MIN_BITS
"""The smallest pack whose fan-out is not the smallest."""


def test_bytes_of_a_pack_are_those_on_disks(tmp_path):
    """If this fails, the format has changed: raise its version, do not change the file."""
    pack = make_pack(tmp_path, [*RECORDS[:3], sealed(sample_record(1, times_ns={0: 5}), 2)], sequence=7)
    data = (GOLDEN / "pack-v1.pack").read_bytes()
    assert pack.path.read_bytes() == data
    assert pack.path.name == f"{data[-32:].hex()}.pack"
    opened = Pack(GOLDEN / "pack-v1.pack", FILES)
    assert (opened.sequence, opened.count) == (7, 4)
    assert opened.sealed(opened.find(RECORDS[1].digest)[1]) == seal(sample_record(1, times_ns={0: 5}).to_value())


def test_what_is_in_a_pack_are_the_very_bytes_of_the_loose_files(tmp_path):
    store = packed_store(tmp_path)
    for record in RECORDS:
        store.publish(record)
    loose = {path.name[:64]: path.read_bytes() for path in (tmp_path / "objects").rglob("*.rec")}
    pack = make_pack(tmp_path, RECORDS)
    assert {row.digest: pack.sealed(row) for row in pack.rows()} == loose
    assert list(loose) != []


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_every_record_is_found_and_nothing_else(tmp_path, count):
    records = [sample_record(number) for number in range(count)]
    pack = make_pack(tmp_path, records)
    store = packed_reader(tmp_path)
    assert [store.get(record.digest).entry for record in records] == records
    assert store.get(sample_record(count).digest) == ABSENT
    for near in (Digest(record.digest[:-1] + ("0" if record.digest[-1] != "0" else "1")) for record in records):
        assert store.get(near) == ABSENT
    assert list(store) == sorted(record.digest for record in records)
    assert len(store) == count == pack.count
    pack.check()


@pytest.mark.parametrize("name", ["", "xyz", "ab", "g" * 64, "0" * 63, "0" * 65, "é" * 64])
def test_what_is_no_digest_is_absent(tmp_path, name):
    make_pack(tmp_path, RECORDS)
    assert packed_reader(tmp_path).get(name) == ABSENT


def bits_of(pack):
    return PLACE.unpack_from(pack.path.read_bytes(), pack.size_bytes - TRAILER_BYTES)[2]


def test_a_fan_out_grows_with_its_pack_so_that_a_look_up_reads_a_few_rows():
    counts = [2**power + more for power in range(29) for more in (-1, 0, 1)]
    for count in counts:
        bits = fan_out_bits(count)
        assert MIN_BITS <= bits <= MAX_BITS
        assert count < ROWS_PER_WAY << bits or bits == MAX_BITS
        assert count >= ROWS_PER_WAY << (bits - 1) or bits == MIN_BITS


@pytest.mark.parametrize("bits", [None, *range(MIN_BITS, MAX_BITS + 1)])
def test_a_large_pack_has_a_finer_fan_out_and_the_same_answers(tmp_path, monkeypatch, bits):
    """Records are not decoded here: many small seals under made-up digests. Packs with any fan-out are read."""
    if bits is not None:
        monkeypatch.setattr(pack_writer, "fan_out_bits", lambda count: bits)
    numbers = random.Random(0)
    data = seal("x")
    digests = sorted({numbers.randbytes(32).hex() for _ in range(LARGE_COUNT)})
    pack = make_pack(tmp_path, [Sealed(digest, 0, data, "") for digest in digests])
    assert bits_of(pack) == (bits or 9)
    assert [row.digest for row in pack.rows()] == digests
    assert all(pack.find(digest)[0].digest == digest for digest in digests[::97])
    assert pack.find(Digest("0" * 64)) == []
    pack.check()
    for prefix in ("a", "ab", "abc", "fff", digests[100], "0" * 64):
        assert [row.digest for row in pack.rows(prefix)] == [digest for digest in digests if digest.startswith(prefix)]


def test_a_small_pack_whose_digests_all_start_alike_is_read(tmp_path):
    data = seal("x")
    digests = [f"ab{number:062x}" for number in range(LARGE_COUNT - 1)]
    pack = make_pack(tmp_path, [Sealed(digest, 0, data, "") for digest in digests])
    assert bits_of(pack) == MIN_BITS
    assert pack.find(digests[-1])[0].digest == digests[-1]


def test_bytes_of_a_digest_in_the_wrong_place_of_the_index_are_not_taken_for_it(tmp_path):
    """The second digest also stands inside the first one's row: from its second byte on, up to the first of the offset."""
    first, second = "abab" + "ac" * 30, "ab" + "ac" * 30 + "00"
    data = seal("x")
    assert make_pack(tmp_path / "one", [Sealed(first, 0, data, "")]).find(second) == []
    (found,) = make_pack(tmp_path / "two", [Sealed(first, 0, data, ""), Sealed(second, 3, data, "")]).find(second)
    assert (found.digest, found.generation) == (second, 3)


# -- generations and packs side by side ------------------------------------------------------------------------------------------------


def test_the_highest_valid_generation_serves_wherever_it_is(tmp_path):
    versions = [sample_record(1, times_ns={0: number + 1}) for number in range(4)]
    digest = versions[0].digest
    make_pack(tmp_path, [versions[0]], sequence=1)
    make_pack(tmp_path, [sealed(versions[2], 2)], sequence=0)
    store = packed_store(tmp_path)
    assert store.get(digest).entry == versions[2]
    path = tmp_path / "objects" / digest[:2] / f"{digest}.3.rec"
    path.parent.mkdir(parents=True)
    path.write_bytes(seal(versions[3].to_value()))
    assert store.get(digest).entry == versions[3]
    path.write_bytes(b"bad")
    assert store.get(digest).entry == versions[2]
    assert list(store) == [digest]


def test_a_bad_generation_gives_way_to_the_one_before(tmp_path):
    good, bad = sample_record(1, times_ns={0: 1}), sealed(sample_record(1, times_ns={0: 2}), 1)
    make_pack(tmp_path, [good, Sealed(bad.digest, 1, bad.data[:-1] + b"?", "")])
    assert packed_reader(tmp_path).get(good.digest).entry == good


def test_of_equal_generations_the_newest_pack_serves_by_number_not_by_time(tmp_path):
    old, new = (sample_record(1, times_ns={0: number}) for number in (1, 2))
    newest = make_pack(tmp_path, [new], sequence=5)
    oldest = make_pack(tmp_path, [old], sequence=4)
    os.utime(newest.path, (1, 1))
    assert packed_reader(tmp_path).get(new.digest).entry == new
    os.utime(oldest.path, (1, 1))
    assert packed_reader(tmp_path).get(new.digest).entry == new


def test_a_pack_serves_before_a_loose_file(tmp_path):
    packed, loose = (sample_record(1, times_ns={0: number}) for number in (1, 2))
    store = packed_store(tmp_path)
    store.publish(loose)
    make_pack(tmp_path, [packed])
    store.refresh()
    assert store.get(packed.digest).entry == packed


def test_digests_that_start_so_come_in_order_and_once(tmp_path):
    records = sorted((sample_record(number) for number in range(60)), key=lambda record: record.digest)
    make_pack(tmp_path, records[::2], sequence=1)
    make_pack(tmp_path, records[::3], sequence=2)
    store = packed_store(tmp_path)
    for record in records[::5]:
        (tmp_path / "objects" / record.digest[:2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "objects" / record.digest[:2] / f"{record.digest}.0.rec").write_bytes(seal(record.to_value()))
    wanted = sorted({record.digest for record in (*records[::2], *records[::3], *records[::5])})
    assert list(store) == wanted
    assert len(store) == len(wanted)
    for length in (1, 2, 3, 64):
        prefix = wanted[7][:length]
        assert list(store.starting_with(prefix)) == [digest for digest in wanted if digest.startswith(prefix)]


# -- the first writer wins, across packs and loose files -----------------------------------------------------------------------------------


def test_a_publisher_who_finds_the_digest_in_a_pack_is_told_whose_it_is(tmp_path):
    first, second = (sample_record(1, times_ns={0: number}) for number in (1, 2))
    make_pack(tmp_path, [first])
    answer = packed_store(tmp_path).publish(second)
    assert isinstance(answer, Present)
    assert answer.entry == first
    assert not (tmp_path / "objects").exists()


def test_a_publisher_whose_listing_is_old_still_comes_second(tmp_path):
    first, second = (sample_record(1, times_ns={0: number}) for number in (1, 2))
    store = packed_store(tmp_path)
    assert store.get(first.digest) == ABSENT
    make_pack(tmp_path, [first])  # its loose file was here and is gone, all since the listing
    answer = store.publish(second)
    assert isinstance(answer, Present)
    assert answer.entry == first
    assert list((tmp_path / "objects").rglob("*.rec")) == []


def test_a_publisher_whose_own_record_is_packed_at_once_has_published(tmp_path):
    record = sample_record(1)
    store = packed_store(tmp_path)
    assert store.get(record.digest) == ABSENT
    make_pack(tmp_path, [record])
    assert isinstance(store.publish(record), Published)


def test_a_record_that_is_bad_in_its_pack_can_be_published_again(tmp_path):
    record, bad = sample_record(1), sealed(sample_record(1))
    make_pack(tmp_path, [Sealed(bad.digest, 0, bad.data[:-1] + b"?", "")])
    store = packed_store(tmp_path)
    assert store.get(record.digest).reason == "corrupt"
    assert isinstance(store.publish(record), Published)
    assert store.get(record.digest).entry == record


def test_a_record_that_was_packed_since_the_listing_is_found(tmp_path):
    record = sample_record(1)
    reader, writer = packed_reader(tmp_path), packed_store(tmp_path)
    assert reader.get(sample_record(2).digest) == ABSENT  # has listed
    writer.publish(record)
    make_pack(tmp_path, [record])
    (tmp_path / "objects" / record.digest[:2] / f"{record.digest}.0.rec").unlink()
    assert reader.get(record.digest).entry == record


# -- what it costs ----------------------------------------------------------------------------------------------------------------------


def test_a_look_up_reads_one_stretch_of_the_index_and_the_record(tmp_path):
    records = [sample_record(number) for number in range(300)]
    make_pack(tmp_path, records)
    files = CountingReader()
    store = packed_reader(tmp_path, reader=files)
    assert files.counts == {}
    store.get(records[0].digest)
    assert files.counts == {"list": 1, "open": 1, "read_at": 2 + 2, "ask": 1}  # is there a newer generation, loose?
    files.counts.clear()
    for record in records:
        store.get(record.digest)
    assert files.counts == {"read_at": 2 * 300, "ask": 300}


def test_opening_lists_once_and_a_miss_once_more(tmp_path):
    make_pack(tmp_path, RECORDS, sequence=1)
    make_pack(tmp_path, RECORDS[:1], sequence=2)
    files = CountingReader()
    store = packed_reader(tmp_path, reader=files)
    store.get(RECORDS[0].digest)
    files.counts.clear()
    assert store.get(sample_record(99).digest) == ABSENT
    assert files.counts["list"] == 1
    assert files.counts["read"] == 1
    assert files.counts["read_at"] <= 2  # one stretch of each index, none where the fan-out says so
    assert files.counts["open"] == 0


# -- bad packs ----------------------------------------------------------------------------------------------------------------------------


def resealed(data, place, *, header=None):
    """Return the bytes of a pack with other numbers in its trailer, its check made to fit."""
    header = header or data[: HEADER.size]
    _, _, bits = PLACE.unpack(place)
    fan_out_bytes = 4 * ((1 << bits) + 1) if MIN_BITS <= bits <= MAX_BITS else 0
    fan_out = data[len(data) - TRAILER_BYTES - fan_out_bytes : len(data) - TRAILER_BYTES]
    return header + data[HEADER.size : -TRAILER_BYTES] + place + front_check(header, fan_out, place) + data[-32:]


def numbers(data):
    return PLACE.unpack_from(data, len(data) - TRAILER_BYTES)


DAMAGES = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "header alone": lambda data: data[: HEADER.size],
    "trailer alone": lambda data: data[-TRAILER_BYTES:],
    "header and trailer": lambda data: data[: HEADER.size] + data[-TRAILER_BYTES:],
    "truncated": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
    "other magic": lambda data: resealed(data, data[-TRAILER_BYTES:][: PLACE.size], header=HEADER.pack(b"\x93FICX\r\n\x1a", 1, 0)),
    "version 0": lambda data: resealed(data, data[-TRAILER_BYTES:][: PLACE.size], header=HEADER.pack(MAGIC, 0, 0)),
    "later version": lambda data: resealed(data, data[-TRAILER_BYTES:][: PLACE.size], header=HEADER.pack(MAGIC, 2, 0)),
    "text transfer": lambda data: data.replace(b"\r\n", b"\n"),
    "huge count": lambda data: resealed(data, PLACE.pack(numbers(data)[0], 2**32 - 1, 8)),
    "count off by one": lambda data: resealed(data, PLACE.pack(numbers(data)[0], numbers(data)[1] + 1, 8)),
    "no records, they say": lambda data: resealed(data, PLACE.pack(numbers(data)[0], 0, 8)),
    "huge offset": lambda data: resealed(data, PLACE.pack(2**64 - 1, *numbers(data)[1:])),
    "offset in the header": lambda data: resealed(data, PLACE.pack(3, *numbers(data)[1:])),
    "other bits": lambda data: resealed(data, PLACE.pack(*numbers(data)[:2], 32)),
    "bits of none": lambda data: resealed(data, PLACE.pack(*numbers(data)[:2], 7)),
    "bits of a large one": lambda data: resealed(data, PLACE.pack(*numbers(data)[:2], 16)),
    "bad check": lambda data: data[:-48] + bytes(16) + data[-32:],
    "bad fan-out": lambda data: data[: -TRAILER_BYTES - 4] + b"\xff\xff\xff\xff" + data[-TRAILER_BYTES:],
    "other digest": lambda data: data[:-32] + bytes(32),
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_pack_is_left_out_and_others_serve(tmp_path, damage):
    bad = make_pack(tmp_path, RECORDS[:3], sequence=9)
    bad.path.write_bytes(DAMAGES[damage](bad.path.read_bytes()))
    make_pack(tmp_path, RECORDS[2:4], sequence=1)
    store = packed_store(tmp_path)
    assert isinstance(store.publish(RECORDS[4]), Published)
    assert store.get(RECORDS[0].digest) == ABSENT
    assert [store.get(record.digest).entry for record in RECORDS[2:]] == RECORDS[2:]
    assert list(store) == sorted(record.digest for record in RECORDS[2:])
    with pytest.raises(NoSuchBundleError):
        open_bundle(tmp_path, bad.digest)


def change_rows(data, change):
    """Return a pack whose index rows went through ``change``; the check does not cover them."""
    offset, count, _ = numbers(data)
    rows = [INDEX_ROW.unpack_from(data, offset + number * INDEX_ROW.size) for number in range(count)]
    packed = b"".join(INDEX_ROW.pack(*change(number, *row)) for number, row in enumerate(rows))
    return data[:offset] + packed + data[offset + len(packed) :]


ROWS = {
    "offset far out": lambda number, raw, offset, size, generation: (raw, 2**63, size, generation),
    "offset in the header": lambda number, raw, offset, size, generation: (raw, 0, size, generation),
    "size of everything": lambda number, raw, offset, size, generation: (raw, offset, 2**32 - 1, generation),
    "size over the limit of records": lambda number, raw, offset, size, generation: (raw, offset, 600_000, generation),
    "no size": lambda number, raw, offset, size, generation: (raw, offset, 0, generation),
    "one byte less": lambda number, raw, offset, size, generation: (raw, offset, size - 1, generation),
    "the neighbour's place": lambda number, raw, offset, size, generation: (raw, HEADER.size, size, generation),
}


@pytest.mark.parametrize("change", ROWS)
def test_an_index_that_lies_gives_misses(tmp_path, change):
    pack = make_pack(tmp_path, RECORDS)
    pack.path.write_bytes(change_rows(pack.path.read_bytes(), ROWS[change]))
    store = packed_reader(tmp_path)
    answers = [store.get(record.digest) for record in RECORDS]
    right = [isinstance(answer, Hit) and answer.entry == record for answer, record in zip(answers, RECORDS, strict=True)]
    assert sum(right) <= 1  # the neighbour itself has its place
    assert {answer.reason for answer in answers if isinstance(answer, Miss)} <= {"corrupt", "foreign"}
    with pytest.raises(DamagedError):
        Pack(pack.path, FILES).check()


def test_any_flipped_byte_gives_the_record_or_a_miss_and_is_found_by_checking(tmp_path):
    pack = make_pack(tmp_path, RECORDS[:2])
    data = pack.path.read_bytes()
    for at in range(0, len(data), 7):
        pack.path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        store = packed_reader(tmp_path)
        for record in RECORDS[:2]:
            answer = store.get(record.digest)
            assert isinstance(answer, Miss) or answer.entry == record
        list(store)
        with pytest.raises(DamagedError):
            Pack(pack.path, FILES).check()


@pytest.mark.parametrize("keep", [0, 5, HEADER.size, 900, -TRAILER_BYTES, -1])
def test_a_pack_that_is_truncated_under_a_reader_gives_misses(tmp_path, keep):
    pack = make_pack(tmp_path, RECORDS)
    store = packed_reader(tmp_path)
    assert store.get(RECORDS[0].digest).entry == RECORDS[0]
    os.truncate(pack.path, keep if keep >= 0 else pack.size_bytes + keep)
    for record in RECORDS:
        answer = store.get(record.digest)
        assert isinstance(answer, Miss) or answer.entry == record
    assert len(store) <= len(RECORDS)


def test_a_pack_that_is_unlinked_under_a_reader_goes_on_to_be_read_until_refresh(tmp_path):
    pack = make_pack(tmp_path, RECORDS)
    store = packed_reader(tmp_path)
    store.get(RECORDS[0].digest)
    pack.path.unlink()
    assert store.get(RECORDS[1].digest).entry == RECORDS[1]
    store.refresh()
    assert store.get(RECORDS[1].digest) == ABSENT


@pytest.mark.parametrize("kind", ["folder", "fifo", "dangling", "loop", "unreadable", "device"])
def test_what_is_no_file_in_the_place_of_a_pack_is_left_out(tmp_path, kind):
    name = tmp_path / "packs" / f"{'ab' * 32}.pack"
    make_pack(tmp_path, RECORDS)
    match kind:
        case "folder":
            name.mkdir()
        case "fifo":
            os.mkfifo(name)
        case "dangling":
            name.symlink_to("nowhere")
        case "loop":
            name.symlink_to(name)
        case "unreadable":
            name.write_bytes(b"x")
            name.chmod(0)
        case "device":
            name.symlink_to("/dev/zero")
    store = packed_reader(tmp_path)
    assert store.get(RECORDS[0].digest).entry == RECORDS[0]
    assert len(store) == len(RECORDS)


def test_a_pack_under_another_name_is_left_out(tmp_path):
    pack = make_pack(tmp_path, RECORDS)
    pack.path.rename(pack.path.with_name(f"{'ab' * 32}.pack"))
    assert packed_reader(tmp_path).get(RECORDS[0].digest) == ABSENT


def test_a_bad_disk_gives_misses(tmp_path, monkeypatch):
    make_pack(tmp_path, RECORDS)
    store = packed_reader(tmp_path)
    store.get(RECORDS[0].digest)

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    answer = store.get(RECORDS[0].digest)
    assert isinstance(answer, Miss)
    assert answer.reason == "unreadable"


def test_a_fan_out_that_is_signed_and_nonsense_gives_misses(tmp_path):
    pack = make_pack(tmp_path, RECORDS)
    data = pack.path.read_bytes()
    place = data[-TRAILER_BYTES:][: PLACE.size]
    for fill in (0xFFFFFFFF, 0, 3):
        fan_out = struct.pack(">I", fill) * 257
        body = data[: -TRAILER_BYTES - len(fan_out)] + fan_out + place
        pack.path.write_bytes(body + front_check(data[: HEADER.size], fan_out, place) + data[-32:])
        store = packed_reader(tmp_path)
        assert all(isinstance(store.get(record.digest), Miss) for record in RECORDS)
        with pytest.raises(DamagedError):
            Pack(pack.path, FILES).check()


# -- bundles --------------------------------------------------------------------------------------------------------------------------------


def test_a_bundle_serves_one_pack_and_nothing_else(tmp_path):
    store = open_store(tmp_path / "root")
    for record in RECORDS:
        store.publish(record)
    chosen = sorted(record.digest for record in RECORDS[:3])
    pack = write_bundle(tmp_path / "out", root_reader(tmp_path / "root"), chosen)
    bundle = open_bundle(pack.path, pack.digest)
    assert list(bundle) == chosen
    assert len(bundle) == 3
    assert [bundle.get(record.digest).entry for record in RECORDS[:3]] == RECORDS[:3]
    assert bundle.get(RECORDS[3].digest) == ABSENT
    with pytest.raises(StoreIOError, match="read-only"):
        bundle.publish(RECORDS[3])
    again = write_bundle(tmp_path / "elsewhere", Bundle(pack), chosen)
    assert again.digest == pack.digest
    assert again.path.read_bytes() == pack.path.read_bytes()


def test_a_bundle_is_found_in_a_root(tmp_path):
    pack = make_pack(tmp_path, RECORDS)
    assert list(open_bundle(tmp_path, pack.digest)) == sorted(record.digest for record in RECORDS)


def test_a_bundle_whose_content_was_changed_is_refused_at_once(tmp_path):
    """Record and seal are sound, and still it is not the bundle that was named."""
    pack, other = make_pack(tmp_path, [RECORDS[0]]), sealed(sample_record(0, times_ns={-1: 2000, 0: 1500, (1, 2): 1001}))
    data = pack.path.read_bytes()
    assert len(other.data) == len(sealed(RECORDS[0]).data)
    pack.path.write_bytes(data[: HEADER.size] + other.data + data[HEADER.size + len(other.data) :])
    assert isinstance(packed_reader(tmp_path).get(RECORDS[0].digest), Hit)
    with pytest.raises(NoSuchBundleError):
        open_bundle(tmp_path, pack.digest)


def test_another_bundle_or_none_is_refused_and_the_error_survives_pickling(tmp_path):
    pack = make_pack(tmp_path, RECORDS)
    for place, digest in ((tmp_path, "0" * 64), (pack.path, "0" * 64), (tmp_path / "no.pack", pack.digest)):
        with pytest.raises(NoSuchBundleError) as caught:
            open_bundle(place, digest)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_pack_that_is_merged_between_listing_and_opening_is_read_from_where_it_went(tmp_path):
    made = make_pack(tmp_path, RECORDS[:2], sequence=1)

    class Merging(CountingReader):
        def names(self, directory):
            found = list(super().names(directory))
            if made.path.exists():
                make_pack(tmp_path, RECORDS, sequence=2)
                made.path.unlink()
            return iter(found)

    store = packed_reader(tmp_path, reader=Merging())
    assert len(store) == len(RECORDS)
    assert [store.get(record.digest).entry for record in RECORDS] == RECORDS


# -- verify ---------------------------------------------------------------------------------------------------------------------------------


def test_verify_counts_packs_and_what_is_in_them_and_overlap_is_no_finding(tmp_path):
    store = packed_store(tmp_path)
    store.publish(RECORDS[0])
    make_pack(tmp_path, RECORDS[:3], sequence=1)
    make_pack(tmp_path, RECORDS[1:4], sequence=2)
    checked = verify(tmp_path)
    assert checked.findings == ()
    assert (checked.record_count, checked.pack_count, checked.packed_record_count) == (1, 2, 6)


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_finds_every_bad_pack(tmp_path, damage):
    bad = make_pack(tmp_path, RECORDS[:3])
    bad.path.write_bytes(DAMAGES[damage](bad.path.read_bytes()))
    good = make_pack(tmp_path, RECORDS[3:])
    checked = verify(tmp_path)
    assert [finding.path for finding in checked.findings] == [str(bad.path)]
    wanted = {"later version": "future-format", "other digest": "foreign"}.get(damage, "corrupt")
    assert checked.findings[0].reason == wanted
    assert (checked.pack_count, checked.packed_record_count) == (1, good.count)


def test_verify_names_the_record_that_is_bad(tmp_path):
    bad, foreign = sealed(RECORDS[0]), sealed(RECORDS[1])
    pack = make_pack(
        tmp_path, [Sealed(bad.digest, 0, bad.data[:-1] + b"?", ""), Sealed(sample_record(9).digest, 1, foreign.data, ""), RECORDS[2]]
    )
    checked = verify(tmp_path)
    assert {(finding.path, finding.reason) for finding in checked.findings} == {
        (f"{pack.path}#{bad.digest}.0", "corrupt"),
        (f"{pack.path}#{sample_record(9).digest}.1", "foreign"),
    }
    assert (checked.pack_count, checked.packed_record_count) == (1, 1)


@pytest.mark.parametrize("change", ROWS)
def test_verify_finds_an_index_that_lies(tmp_path, change):
    pack = make_pack(tmp_path, RECORDS)
    pack.path.write_bytes(change_rows(pack.path.read_bytes(), ROWS[change]))
    assert str(pack.path) in {finding.path for finding in verify(tmp_path).findings}


def test_verify_names_strays_and_leftovers_beside_packs(tmp_path):
    make_pack(tmp_path, RECORDS)
    (tmp_path / "packs" / "notes.txt").write_text("")
    (tmp_path / "packs" / ".host-1-abcd.tmp").write_text("")
    (tmp_path / "packs" / f"{'AB' * 32}.pack").write_text("")
    assert sorted(finding.reason for finding in verify(tmp_path).findings) == [LEFTOVER, STRAY, STRAY]
