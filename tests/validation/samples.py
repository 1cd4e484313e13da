"""Sides, observations and every kind of verdict, small and complete."""

from fi_cachestore.keys.schema import left_out_digest, left_out_value
from fi_cachestore.records.mark import Mark
from fi_cachestore.records.observation import Observation, Output, Sample, Side, SpaceKind
from fi_cachestore.records.overview import Glance
from fi_cachestore.records.verdict import Override, Quarantine, Refusal, Validation, Word
from fi_cachestore.testing.samples import sample_record, sample_schema
from fi_cachestore.validation.evidence import Contradiction, Reason

SCHEMA = sample_schema()
RECORD = sample_record()
NOW_NS = 1_790_000_000_000_000_000
CONTRADICTION = Contradiction(Reason.LIST, "2 tactics recorded, 3 here")


def left_out(rank=0):
    return {"tp_rank": left_out_value("placement", rank)}


def side(rank=0, process="boot 1 4242 1000"):
    return Side(process, "sample-host", left_out(rank))


def digest_of(rank=0):
    return left_out_digest(left_out(rank))


def seen(record=RECORD, **changes):
    fields = {
        "key": record.digest,
        "kind": SpaceKind.LISTED,
        "space": record.space,
        "tactic": (1, 2),
        "validates": True,
        "failure": None,
        "output": Output.EQUAL,
    }
    return Observation(**(fields | changes))


def validation(rank=0, schema=SCHEMA):
    return Validation(schema, left_out(rank), side(0), side(rank, "boot 1 17 2000"), (Sample(RECORD.space, seen()),), NOW_NS)


def quarantine(schema=SCHEMA):
    sample = Sample(RECORD.space, seen(space=None, failure="RuntimeError", validates=None, output=Output.NOT_COMPARED))
    return Quarantine(schema.digest, schema, "the tactic raises", "RuntimeError", side(0), side(1, "boot 1 17 2000"), sample, NOW_NS)


def override(number=0, word=Word.TRUSTED):
    return Override(SCHEMA.digest, number, word, "root@sample-host", "checked by hand", NOW_NS)


def refusal():
    return Refusal(RECORD.digest, RECORD.content, "2 processes died", NOW_NS)


def mark():
    return Mark(RECORD.digest, RECORD.content, "sample_gemm", (1, 2), "boot 1 4242 1000", "sample-host", NOW_NS)


def overview():
    """Two schemas: one that is validated for two sets of values, one with a bad validation, a quarantine and an operator's word."""
    sound, bad = ({f"validation-{digest_of(rank)}" for rank in ranks} for ranks in ((0, 1), (2,)))
    return {
        SCHEMA.digest: Glance(NOW_NS, frozenset(sound), frozenset(sound)),
        sample_schema(2).digest: Glance(NOW_NS + 1, frozenset({*bad, "quarantine", "override-00000000"}), frozenset()),
    }


VERDICTS = {"validation": validation, "quarantine": quarantine, "override": override, "refusal": refusal}
