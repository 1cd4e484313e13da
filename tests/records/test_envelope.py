import struct
from dataclasses import replace
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_cachestore.errors import DamagedError, NotCanonicalError, UnsupportedValueError
from fi_cachestore.keys.canonical import MAX_BYTES, Named, decode, encode
from fi_cachestore.records.envelope import FORMAT_VERSION, HEADER_BYTES, MAGIC, MAX_SEALED_BYTES, body_of, seal
from fi_cachestore.records.record import Record
from fi_cachestore.records.rules import Rule, SessionRules
from fi_cachestore.testing.samples import sample_record

SEALED = seal(sample_record().to_value())
FIELDS = {"key", "measurements", "space", "default_raced", "provenance", "evidence"}


def resealed(front):
    """Bytes with a right checksum, whatever they say."""
    return front + blake2b(front, digest_size=16, person=b"fi_cachestore/e1").digest()


def reason(data):
    with pytest.raises(DamagedError) as caught:
        Record.from_body(body_of(data))
    return caught.value.reason


def test_what_was_sealed_comes_back():
    assert Record.from_body(body_of(SEALED)) == sample_record()


def test_truncation_at_every_length_is_corrupt():
    assert {reason(SEALED[:length]) for length in range(len(SEALED))} == {"corrupt"}


def test_one_flipped_bit_at_every_position_is_corrupt():
    reasons = set()
    for position in range(len(SEALED) * 8):
        changed = bytearray(SEALED)
        changed[position // 8] ^= 1 << position % 8
        reasons.add(reason(bytes(changed)))
    assert reasons == {"corrupt"}


@given(st.binary(max_size=400))
def test_random_bytes_are_corrupt(data):
    assert reason(data) == "corrupt"
    assert reason(resealed(data)) == "corrupt"


def test_more_bytes_after_the_end_are_corrupt():
    assert reason(SEALED + b"\0") == "corrupt"


def test_a_later_format_is_told_from_damage():
    body = SEALED[HEADER_BYTES:-16]
    later = struct.pack(">8sII", MAGIC, FORMAT_VERSION + 1, len(body)) + body
    assert reason(resealed(later)) == "future-format"
    assert reason(later + b"\0" * 16) == "corrupt"
    assert reason(resealed(struct.pack(">8sII", MAGIC, 0, len(body)) + body)) == "corrupt"


def test_a_length_that_lies_is_corrupt():
    body = SEALED[HEADER_BYTES:-16]
    for length in (0, len(body) - 1, len(body) + 1, 2**32 - 1):
        assert reason(resealed(struct.pack(">8sII", MAGIC, FORMAT_VERSION, length) + body)) == "corrupt"


def with_content(**changes):
    value = sample_record().to_value()
    content = {**value.content, **changes}
    return seal(Named(value.kind, {name: item for name, item in content.items() if item != "left out"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "left out"},
        {"key": "text"},
        {"key": b""},
        {"key": b"\xc0"},
        {"measurements": (1, 2)},
        {"measurements": [1]},
        {"measurements": [(1, 2)]},
        {"measurements": [(1, -2, None)]},
        {"measurements": [(1, 2.5, None)]},
        {"measurements": [(1, True, None)]},
        {"measurements": [(1, None, 3)]},
        {"space": 3},
        {"space": (-1, "0")},
        {"space": (1, 2)},
        {"default_raced": 1},
        {"provenance": {}},
        {"provenance": [1]},
        {"provenance": {**sample_record().to_value().content["provenance"], "pid": "1"}},
        {"provenance": {**sample_record().to_value().content["provenance"], "more": 1}},
        {"provenance": {**sample_record().to_value().content["provenance"], "performance": None}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_sound_envelope_around_something_else_is_corrupt(changes):
    assert reason(with_content(**changes)) == "corrupt"


BODY = SEALED[HEADER_BYTES:-16]


def whole(body):
    """Say whether a body is a record by decoding all of it; records that are equal encode to equal bytes."""
    try:
        value = decode(body)
    except NotCanonicalError:
        return None
    return body if isinstance(value, Named) and type(value.content) is dict and set(value.content) == FIELDS else None


def in_parts(body):
    try:
        return encode(Record.from_body(body).to_value())
    except DamagedError:
        return None


@given(st.integers(0, len(BODY) - 1), st.integers(1, 255), st.sampled_from(["flip", "cut", "insert", "swap"]))
@settings(max_examples=600, deadline=None)
def test_a_record_read_in_parts_is_what_its_whole_body_says(at, byte, change):
    changed = {
        "flip": BODY[:at] + bytes([BODY[at] ^ byte]) + BODY[at + 1 :],
        "cut": BODY[:at] + BODY[at + byte % 9 + 1 :],
        "insert": BODY[:at] + bytes([byte]) + BODY[at:],
        "swap": BODY[at:] + BODY[:at],
    }[change]
    assert in_parts(changed) in (None, changed)
    assert whole(changed) == changed or in_parts(changed) is None
    assert in_parts(BODY) == BODY


@pytest.mark.parametrize("inside", ["£key", "¥space", "¨evidence", "ªprovenance", "¬measurements", "\xaddefault_raced"])
def test_the_name_of_a_field_may_stand_inside_another_one(inside):
    """As UTF-8 these end in the byte that msgpack puts before a text of that length, and that text."""
    record = sample_record(times_ns={-1: 20000, inside: 15000})
    record = replace(record, provenance=replace(record.provenance, host=inside), evidence=replace(record.evidence, process=inside))
    body = encode(record.to_value())
    assert inside.encode()[1:] in body
    assert Record.from_body(body) == record


def test_what_records_have_in_common_is_shared():
    first, second = (Record.from_body(encode(sample_record(number).to_value())) for number in (1, 2))
    assert first.evidence is second.evidence
    assert first.space is second.space


def test_an_envelope_of_another_kind_is_not_a_record():
    assert reason(seal(Named("fi_cachestore.record/2", {}))) == "corrupt"
    assert reason(seal(SessionRules({"device": "cpu"}, ()).to_value())) == "corrupt"
    assert reason(seal(None)) == "corrupt"


@pytest.mark.parametrize(
    "row",
    [
        (None, False),
        ((), False, None, None, None, None),
        ((0,), False, None, None, None, None),
        ((1.0,), False, None, None, None, None),
        ([1], False, None, None, None, None),
        (None, 1, None, None, None, None),
        (None, False, 0, None, None, None),
        (None, False, None, "fast", None, None),
        (None, False, None, None, 1, None),
        (None, False, None, None, None, "sundial"),
        (None, False, None, None, None, None, None),
        3,
    ],
    ids=str,
)
def test_rules_of_other_types_are_corrupt(row):
    value = SessionRules({"device": "cpu"}, (Rule(),)).to_value()
    with pytest.raises(DamagedError):
        SessionRules.from_value(Named(value.kind, {**value.content, "rules": [row]}))


@pytest.mark.parametrize("changes", [{"device": 1}, {"rules": None}, {"more": 1}], ids=str)
def test_rules_with_other_fields_are_corrupt(changes):
    value = SessionRules({"device": "cpu"}, (Rule(),)).to_value()
    with pytest.raises(DamagedError):
        SessionRules.from_value(Named(value.kind, {**value.content, **changes}))


def test_what_is_too_large_is_not_sealed():
    with pytest.raises(UnsupportedValueError):
        seal("x" * MAX_BYTES)
    assert len(seal("x" * (MAX_BYTES - 5))) == MAX_SEALED_BYTES
