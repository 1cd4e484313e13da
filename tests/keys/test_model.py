import pickle
from dataclasses import replace

import pytest

from fi_cachestore.errors import NotCanonicalError, UnsupportedValueError
from fi_cachestore.keys.canonical import Named, decode, encode
from fi_cachestore.keys.diff import ABSENT, diff
from fi_cachestore.keys.digest import is_digest
from fi_cachestore.keys.model import RunnerIdentity, TuneKey
from fi_cachestore.keys.render import render
from fi_cachestore.testing.samples import sample_key

CHANGES = {
    "environment": {"environment": {"device": "cuda", "gpu_name": "Other GPU", "flashinfer_version": "0.7.2"}},
    "op": {"op": "other_gemm"},
    "runner type": {"runner": RunnerIdentity("other.module:SampleRunner", {"use_8x4_sf_layout": True, "number": 0})},
    "runner params": {"runner": RunnerIdentity("sample.module:SampleRunner", {"use_8x4_sf_layout": False, "number": 0})},
    "inputs": {"inputs": (None, None, 3)},
    "arguments": {"arguments": {"scale": 1}},
    "profile": {"profile": ({"bucket": 64, "rounding": Named("rounding", "ceil")},)},
    "policy": {"policy": {"execution": "cuda graph", "l2": "hot", "replays": 1, "timer": "events"}},
    "extras": {"extras": ()},
}


def test_every_part_of_a_key_is_tried_below():
    assert {name.partition(" ")[0] for name in CHANGES} == {name for name in vars(sample_key()) if name != "canonical"}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_in_any_part_changes_the_digest(name):
    assert sample_key().digest != sample_key(**CHANGES[name]).digest


@pytest.mark.parametrize("name", CHANGES)
def test_a_key_that_shares_parts_with_another_has_the_bytes_it_has_alone(name):
    one = sample_key()
    _ = one.digest
    changed = replace(one, **CHANGES[name]).sharing(one)
    assert changed.canonical == sample_key(**CHANGES[name]).canonical != one.canonical


def test_parts_that_python_takes_for_equal_are_not_shared():
    one = sample_key(arguments={"flag": True}, extras=(1,), profile=({"bucket": 1},))
    _ = one.digest
    changes = {"arguments": {"flag": 1}, "extras": (1.0,), "profile": ({"bucket": True},)}
    assert replace(one, **changes).sharing(one).canonical == sample_key(**changes).canonical


@pytest.mark.parametrize("name", CHANGES)
def test_diff_names_just_the_part_that_changed(name):
    found = diff(sample_key(), sample_key(**CHANGES[name]))
    part = {"runner type": "runner", "runner params": "params"}.get(name, name)
    assert found
    assert {row.path.partition(".")[0].partition("[")[0].partition("<")[0] for row in found} == {part}


def test_equal_keys_have_no_differences():
    assert diff(sample_key(), sample_key()) == ()
    assert sample_key() == sample_key()
    assert hash(sample_key()) == hash(sample_key())


def test_true_and_one_are_different_keys():
    assert sample_key(arguments={"a": True}) != sample_key(arguments={"a": 1})
    (row,) = diff(sample_key(arguments={"a": True}), sample_key(arguments={"a": 1}))
    assert (row.path, row.left, row.right) == ("arguments.a", True, 1)


def test_diff_tells_names_apart_that_python_takes_for_equal():
    left, right = (sample_key(arguments={"table": {name: 0}}) for name in (True, 1))
    assert [(row.path, row.left, row.right) for row in diff(left, right)] == [
        ("arguments.table.True", 0, ABSENT),
        ("arguments.table.1", ABSENT, 0),
    ]


def test_diff_shows_fields_that_only_one_key_has():
    (row,) = diff(sample_key(arguments={}), sample_key(arguments={"a": 1}))
    assert (row.path, row.left, row.right) == ("arguments.a", ABSENT, 1)
    (row,) = diff(sample_key(inputs=(1,)), sample_key(inputs=(1, None)))
    assert (row.path, row.left, row.right) == ("inputs[1]", ABSENT, None)


def test_explanation_has_every_part_with_a_digest_of_its_own():
    explained, other = sample_key().explain(), sample_key(op="other_gemm").explain()
    digests = {part.name: part.digest for part in explained.parts}
    assert set(digests) == {"op", "runner", "params", "inputs", "arguments", "profile", "policy", "extras", "environment"}
    assert all(map(is_digest, digests.values()))
    assert {part.name for part in other.parts if part.digest != digests[part.name]} == {"op"}
    assert "sample_gemm" in str(explained)
    assert explained.digest in str(explained)


def test_what_has_the_form_of_a_digest():
    digest = sample_key().digest
    assert is_digest(digest)
    assert not any(map(is_digest, ["", digest[:-1], digest + "0", digest[:-1] + "g", digest[:-1] + "A", digest[:-1] + "\n"]))


def test_a_key_survives_its_bytes():
    key = TuneKey.from_canonical(sample_key().canonical)
    assert key == sample_key()
    assert key.runner == sample_key().runner
    assert key.digest == sample_key().digest


@pytest.mark.parametrize(
    "value",
    [
        1,
        Named("fi_cachestore.key/2", {}),
        Named("fi_cachestore.key/1", {}),
        Named("fi_cachestore.key/1", [1]),
        Named("fi_cachestore.key/1", {**sample_key().parts(), "more": 1}),
        Named("fi_cachestore.key/1", {**sample_key().parts(), "op": 1}),
        Named("fi_cachestore.key/1", {**sample_key().parts(), "params": {1: 2}}),
        Named("fi_cachestore.key/1", {**sample_key().parts(), "inputs": [1]}),
        Named("fi_cachestore.key/1", {**sample_key().parts(), "runner": None}),
        Named("fi_cachestore.key/1", {**sample_key().parts(), "profile": [{"bucket": 64}]}),
        Named("fi_cachestore.key/1", {**sample_key().parts(), "arguments": None}),
        Named("fi_cachestore.key/1", {**sample_key().parts(), "policy": ()}),
        Named("fi_cachestore.key/1", {**sample_key().parts(), "environment": {b"device": "cpu"}}),
    ],
    ids=range(13),
)
def test_bytes_of_something_else_are_not_a_key(value):
    with pytest.raises(NotCanonicalError):
        TuneKey.from_canonical(encode(value))


def test_the_kind_of_key_is_in_its_bytes():
    assert decode(sample_key().canonical).kind == "fi_cachestore.key/1"


def test_a_value_without_canonical_form_is_named():
    with pytest.raises(UnsupportedValueError, match=r"params\.thing"):
        _ = sample_key(runner=RunnerIdentity("m:R", {"thing": object()})).digest


def test_errors_survive_pickling_with_their_fields():
    error = UnsupportedValueError("a.b", "module.Type", "why")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.path, copy.type_name, copy.why, str(copy)) == (error.path, error.type_name, error.why, str(error))


def test_values_in_words():
    tensor = sample_key().inputs[0]
    assert render(tensor) == "tensor bfloat16[d0 x 4096] row-major on 'cuda'"
    assert render(Named("enum", ("m:Kind", "FAST", 3))) == "Kind.FAST=3"
    assert render((1,)) == "(1,)"
    assert render({"a": [None, True]}) == "{a: [None, True]}"
    assert len(render("x" * 10_000)) < 3000
