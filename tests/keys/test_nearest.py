"""Ranking stored keys by likeness."""

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fi_cachestore.keys import nearest as module
from fi_cachestore.keys.canonical import Named, encode
from fi_cachestore.keys.model import RunnerIdentity, TuneKey
from fi_cachestore.keys.nearest import nearest
from fi_cachestore.testing.samples import sample_key

ASKED = sample_key()
TYPE = ASKED.runner.type


def params(**changes):
    return RunnerIdentity(TYPE, {**ASKED.runner.params, **changes})


def profile(bucket, rounding="floor"):
    return ({"bucket": bucket, "rounding": Named("rounding", rounding)},)


ONE_FIELD = {
    "op": {"op": "other_gemm"},
    "runner": {"runner": RunnerIdentity("other:Runner", ASKED.runner.params)},
    "source of the runner": {"runner": RunnerIdentity(f"{TYPE} 0123", ASKED.runner.params)},
    "parameter": {"runner": params(use_8x4_sf_layout=False)},
    "parameter of another type": {"runner": params(use_8x4_sf_layout=1)},
    "one parameter more": {"runner": params(extra=None)},
    "input": {"inputs": (ASKED.inputs[0], None, 4)},
    "input of another type": {"inputs": (ASKED.inputs[0], None, 3.0)},
    "one input more": {"inputs": (*ASKED.inputs, None)},
    "argument": {"arguments": {"scale": 2.5}},
    "bucket": {"profile": profile(128)},
    "rounding": {"profile": profile(64, "ceil")},
    "policy": {"policy": {**ASKED.policy, "l2": "cold"}},
    "extras": {"extras": (False, ASKED.extras[1])},
    "environment": {"environment": {**ASKED.environment, "gpu_name": "Other GPU"}},
}


def best(candidates, asked=ASKED, limit=3):
    return nearest([asked], [key.canonical for key in candidates], limit)[0]


@pytest.mark.parametrize("name", [name for name in ONE_FIELD if name not in ("op", "runner")])
def test_a_key_with_one_other_field_comes_before_all_with_more(name):
    near = sample_key(**ONE_FIELD[name])
    others = [sample_key(**{**ONE_FIELD[one], **ONE_FIELD[two]}) for one in ONE_FIELD for two in ONE_FIELD if not_same_part(one, two)]
    for candidates in ([*others, near], [near, *others]):
        first = best(candidates)[0]
        assert first.key == near
        assert len(first.differences) == 1


def not_same_part(one, two):
    return one < two and not ONE_FIELD[one].keys() & ONE_FIELD[two].keys()


def test_op_and_runner_come_before_the_number_of_fields():
    same_runner = sample_key(arguments={}, policy={}, extras=None, inputs=(), environment={})
    other_runner, other_op = sample_key(**ONE_FIELD["runner"]), sample_key(**ONE_FIELD["op"])
    other_source = sample_key(**ONE_FIELD["source of the runner"], **ONE_FIELD["bucket"])
    found = best([other_op, other_runner, same_runner, other_source], limit=4)
    assert [near.key for near in found] == [other_source, same_runner, other_runner, other_op]


def test_of_several_buckets_the_nearest_comes_first():
    found = best([sample_key(profile=profile(bucket)) for bucket in (2, 4096, 16, 128, 2**90)], limit=5)
    assert [near.key.profile[0]["bucket"] for near in found] == [128, 16, 2, 4096, 2**90]


def test_differences_are_told_from_the_key_asked_for():
    [near] = best([sample_key(profile=profile(256))])
    assert [(row.path, row.left, row.right) for row in near.differences] == [("profile[0].bucket", 64, 256)]


def test_the_key_itself_is_left_out():
    assert best([ASKED, ASKED]) == ()


def test_several_keys_are_ranked_in_one_pass():
    stored = [sample_key(number, profile=profile(128)) for number in range(5)]
    found = nearest([sample_key(3), sample_key(1)], (key.canonical for key in stored), 1)
    assert [near.key for [near] in found] == [stored[3], stored[1]]


def test_limits_and_nothing_at_all():
    assert best([]) == ()
    assert len(best([sample_key(number) for number in range(1, 20)], limit=5)) == 5
    assert nearest([], [ASKED.canonical], 3) == []


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"junk",
        b"\xc1",
        encode(7),
        encode([]),
        encode(Named("fi_cachestore.key/1", {})),
        encode(Named("fi_cachestore.key/1", {"op": "sample_gemm", "runner": TYPE})),
        encode(Named("fi_cachestore.key/1", {"op": 1, "runner": TYPE})),
        ASKED.canonical[:-1],
        ASKED.canonical + b"\x00",
        msgpack.packb([3, "fi_cachestore.key/1", [2, "op"]]),
        msgpack.packb([3, "fi_cachestore.key/1", [2, ["a"], 1]]),
        b"\x91" * 1023 + b"\xc0",
    ],
    ids=repr,
)
def test_what_is_no_key_is_passed_over(junk):
    near = sample_key(profile=profile(128))
    assert [found.key for [found] in nearest([ASKED], [junk, near.canonical, junk], 3)] == [near]


def test_the_short_list_holds_what_it_says_and_finds_the_one_among_many():
    near = sample_key(profile=profile(128))
    many = [sample_key(number, environment={}, policy={}) for number in range(1, 10 * module._SHORT_LIST)]
    assert best([*many[:300], near, *many[300:]])[0].key == near


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "b"]) | st.just(1.0),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.sampled_from("xyz"), inner),
    max_leaves=6,
)
PARTS = st.fixed_dictionaries({"arguments": st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3), "extras": VALUES})


@given(PARTS, st.lists(PARTS, max_size=8), st.sampled_from(sorted(set(ONE_FIELD) - {"op", "runner", "argument", "extras"})))
def test_whatever_the_others_are_none_with_more_differences_comes_first(parts, others, name):
    asked = sample_key(**parts)
    near = replace_parts(asked, ONE_FIELD[name])
    found = best([*(sample_key(**other, policy={}) for other in others), near], asked=asked, limit=10)
    assert found[0].key == near
    counts = [len(row.differences) for row in found if row.key.op == asked.op and row.key.runner.type == TYPE]
    assert counts == sorted(counts)


def replace_parts(key: TuneKey, changes):
    return replace(key, **changes)
