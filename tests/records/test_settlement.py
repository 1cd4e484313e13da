import pytest

from fi_cachestore.errors import DamagedError
from fi_cachestore.keys.canonical import Named, encode
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.settlement import Settlement

GOOD = {"call": "ab" * 32, "pair": bytes(32), "rank_count": 4, "settled_unix_ns": 17}


def value(**changes):
    return Named("fi_cachestore.settlement/1", {**GOOD, **changes})


def test_a_settlement_comes_back_equal_and_is_named_by_its_call():
    found = Settlement.from_body(encode(value()))
    assert found == Settlement(Digest("ab" * 32), bytes(32), 4, 17)
    assert Settlement.from_body(encode(found.to_value())) == found
    assert found.digest == "ab" * 32


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        {},
        Named("fi_cachestore.record/1", GOOD),
        Named("fi_cachestore.settlement/1", [1]),
        Named("fi_cachestore.settlement/1", {name: GOOD[name] for name in list(GOOD)[1:]}),
        value(more=1),
        value(call="AB" * 32),
        value(call=b"ab"),
        value(pair=bytes(31)),
        value(pair="0" * 32),
        value(rank_count=-1),
        value(rank_count=True),
        value(settled_unix_ns=1.0),
    ],
    ids=str,
)
def test_anything_else_is_damage(damaged):
    with pytest.raises(DamagedError):
        Settlement.from_body(encode(damaged))
