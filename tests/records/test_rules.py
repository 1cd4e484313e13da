import pytest

from fi_cachestore.records.rules import NO_RULE, Rule, SessionRules

DEVICE = {"device": "cpu"}


def order(*rules):
    return SessionRules(DEVICE, rules).search_order()


def test_no_rules_give_nothing_to_search():
    assert order() == ()
    assert order(NO_RULE) == (NO_RULE,)


def test_rounds_with_different_buckets_cover_one_range_together():
    small, large = Rule((1, 2, 4)), Rule((512, 1024))
    assert order(small, large) == (Rule((1, 2, 4, 512, 1024)), large, small)


def test_rounds_in_another_manner_are_not_mixed():
    floor, ceil = Rule((8, 16)), Rule((32, 64), round_up=True)
    assert order(floor, ceil) == (ceil, floor)
    assert order(ceil, floor) == (floor, ceil)


@pytest.mark.parametrize(
    "manner", [{"round_up": True}, {"replays": 20}, {"execution": "eager"}, {"cold_l2": True}, {"timer": "events"}], ids=str
)
def test_every_part_of_the_manner_keeps_rounds_apart(manner):
    plain, other = Rule((8, 16)), Rule((32, 64), **manner)
    assert order(plain, other) == (other, plain)


def test_a_round_without_buckets_is_not_united_with_others():
    assert order(NO_RULE, Rule((8,))) == (Rule((8,)), NO_RULE)
    assert order(Rule((8,)), NO_RULE) == (NO_RULE, Rule((8,)))


def test_devices_of_one_model_share_rules_and_others_do_not():
    assert SessionRules(DEVICE, ()).digest == SessionRules(dict(DEVICE), (NO_RULE,)).digest
    assert SessionRules(DEVICE, ()).digest != SessionRules({"device": "cuda"}, ()).digest
