"""Bytes that are on disks now. If one of these tests fails, the format has changed: raise its version, do not change the file."""

from pathlib import Path

import pytest

from fi_cachestore.coordination.agreement import call_id, pair_of
from fi_cachestore.keys.canonical import Named, decode, encode
from fi_cachestore.keys.digest import (
    Digest,
    content_digest,
    key_digest,
    left_out_digest_of,
    part_digest,
    rules_digest,
    schema_digest,
    source_digest,
    tactics_digest,
)
from fi_cachestore.records.envelope import body_of, seal, unseal
from fi_cachestore.records.mark import Mark
from fi_cachestore.records.missed import Beyond, InMemory, Missed, MissedSession
from fi_cachestore.records.overview import overview_from, overview_value
from fi_cachestore.records.record import Record
from fi_cachestore.records.rules import Rule, SessionRules
from fi_cachestore.records.settlement import Settlement
from fi_cachestore.records.verdict import verdict_from
from fi_cachestore.testing.samples import sample_key, sample_record
from tests.validation import samples

GOLDEN = Path(__file__).parent.parent / "golden"

VALUES = {
    "c0": None,
    "c2": False,
    "c3": True,
    "00": 0,
    "7f": 127,
    "cc80": 128,
    "cd0100": 256,
    "ce00010000": 65536,
    "cf0000000100000000": 2**32,
    "cfffffffffffffffff": 2**64 - 1,
    "c70902010000000000000000": 2**64,
    "ff": -1,
    "d0df": -33,
    "d38000000000000000": -(2**63),
    "c70902ff7fffffffffffffff": -(2**63) - 1,
    "c714013078312e30303030303030303030303030702b30": 1.0,
    "c70601" + b"0x0.0p+0".hex(): None,  # replaced below: spelled out for the reader
    "a0": "",
    "a161": "a",
    "a2c3a9": "é",
    "c400": b"",
    "c40161": b"a",
    "9100": (),
    "920001": (1,),
    "9101": [],
    "920101": [1],
    "9102": {},
    "9502a16101a16202": {"b": 2, "a": 1},
    "9303a56474797065ae746f7263682e62666c6f61743136": Named("dtype", "torch.bfloat16"),
}
del VALUES["c70601" + b"0x0.0p+0".hex()]
VALUES |= {"d701" + b"0x0.0p+0".hex(): 0.0, "c70901" + b"-0x0.0p+0".hex(): -0.0, "c70301" + b"nan".hex(): float("nan")}
VALUES |= {"c70301" + b"inf".hex(): float("inf"), "d601" + b"-inf".hex(): float("-inf")}


@pytest.mark.parametrize("hexadecimal", VALUES)
def test_canonical_bytes(hexadecimal):
    assert encode(VALUES[hexadecimal]).hex() == hexadecimal
    assert encode(decode(bytes.fromhex(hexadecimal))).hex() == hexadecimal


BY_BYTES = (key_digest, part_digest, rules_digest, tactics_digest, schema_digest, left_out_digest_of, content_digest)


def test_digests_of_each_purpose():
    found = {f.__name__: f(b"abc") for f in BY_BYTES} | {
        "source_digest": source_digest("abc"),
        "call_id": call_id([Digest("ab" * 32), Digest("cd" * 32)]).hex(),
        "pair_of": pair_of(Digest("ab" * 32), b"abc").hex(),
    }
    assert found == dict(line.split() for line in (GOLDEN / "digests.txt").read_text().splitlines())
    assert len(set(found.values())) == len(found)


def test_key_bytes_and_digest():
    key = sample_key()
    assert key.canonical == (GOLDEN / "key-v1.bin").read_bytes()
    assert key.digest == (GOLDEN / "key-v1.digest").read_text().strip()


def test_record_bytes():
    data = (GOLDEN / "record-v1.rec").read_bytes()
    assert seal(sample_record().to_value()) == data
    assert Record.from_body(body_of(data)) == sample_record()


def test_rules_bytes():
    rules = SessionRules(
        {"device": "cuda", "gpu_name": "Sample GPU"},
        (Rule(), Rule(buckets=(1, 2, 4), round_up=True, replays=20, execution="eager", cold_l2=False, timer="auto")),
    )
    data = (GOLDEN / "rules-v1.rec").read_bytes()
    assert seal(rules.to_value()) == data
    assert SessionRules.from_value(unseal(data)) == rules


def test_settlement_bytes():
    settlement = Settlement(Digest("ab" * 32), bytes(range(32)), 4, 1_790_000_000_000_000_000)
    data = (GOLDEN / "settlement-v1.rec").read_bytes()
    assert seal(settlement.to_value()) == data
    assert Settlement.from_body(body_of(data)) == settlement


def test_bytes_of_kept_misses():
    session = MissedSession(
        library="fi_cachestore 0.1.0",
        host="sample-host",
        pid=4242,
        mode="replay",
        roots=("/var/cache/engine",),
        started_unix_ns=1_790_000_000_000_000_000,
        ended_unix_ns=1_790_000_000_000_000_001,
        decided_count=7,
        dropped_count=0,
        missed=(Missed(sample_key().canonical, "absent", "", 2, is_covered=False),),
        in_memory=(InMemory("sample_gemm", "incomplete key", ("a gap",), 3),),
        beyond=(Beyond("sample_gemm", 0, 256, 5000, 4),),
    )
    data = (GOLDEN / "missed-v1.rec").read_bytes()
    assert seal(session.to_value()) == data
    assert MissedSession.from_value(unseal(data)) == session


@pytest.mark.parametrize("name", samples.VERDICTS)
def test_verdict_bytes(name):
    verdict = samples.VERDICTS[name]()
    data = (GOLDEN / f"{name}-v1.rec").read_bytes()
    assert seal(verdict.to_value()) == data
    assert verdict_from(unseal(data)) == verdict


def test_overview_bytes():
    data = (GOLDEN / "overview-v2.rec").read_bytes()
    assert seal(overview_value(samples.overview())) == data
    assert overview_from(unseal(data)) == samples.overview()


def test_mark_bytes():
    data = (GOLDEN / "mark-v1.rec").read_bytes()
    assert seal(samples.mark().to_value()) == data
    assert Mark.from_value(unseal(data)) == samples.mark()


def test_schema_and_left_out_digests():
    assert samples.SCHEMA.digest == (GOLDEN / "schema-v1.digest").read_text().strip()
    assert samples.digest_of() == (GOLDEN / "left-out-v1.digest").read_text().strip()
