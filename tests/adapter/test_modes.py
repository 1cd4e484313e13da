"""Modes pin and refresh, through FlashInfer's own tuner."""

import pytest
from flashinfer import autotune as flashinfer_autotune
from flashinfer.autotuner import AutoTuner

import fi_cachestore
from fi_cachestore.adapter import attach as attach_module
from fi_cachestore.errors import ConfigError, NoSuchBundleError, PinnedMissError, RootRefusedError
from fi_cachestore.store.bundle import write_bundle
from fi_cachestore.store.fsck import verify
from fi_cachestore.store.layers import ReadOnly
from fi_cachestore.store.roots import packed_reader
from tests.adapter.believing import believe
from tests.adapter.processes import fresh
from tests.adapter.runners import PlainRunner, choose, config, matrix, no_measurement, timed
from tests.adapter.test_sizes import with_contract


class Timed(PlainRunner):
    """A runner whose times are told."""

    def __init__(self, times_ms):
        self.time_ms_cache = times_ms  # what ends so is no parameter

    def time_ms(self, tactic):
        return self.time_ms_cache[tactic]


def tune(root, times_ms, mode="auto", op="op", rows=100):
    """Tune in a fresh process as an engine would; return what was served and the report."""
    with timed() as measured, fi_cachestore.autotune(root=root, mode=mode) as session:
        inside = choose(op, [Timed(times_ms)], [matrix(rows)], config())
    outside = choose(op, [Timed(times_ms)], [matrix(rows)], config())
    assert inside == outside
    return inside[1], len(measured), session.report().to_json()


def serve(root, mode="replay", op="op", rows=100, **kwargs):
    with no_measurement():
        fi_cachestore.attach(mode, root=root, **kwargs)
        return choose(op, [Timed({})], [matrix(rows)], config())[1]


OLD = {-1: 9.0, 0: 1.0, 1: 5.0, 2: 5.0}


def tree(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*")) if path.is_file()}


def bundle(root, out):
    """Make a bundle of all that is stored now, in a root of its own; return its digest."""
    reader = packed_reader(root)
    return write_bundle(out / "packs", reader, list(reader)).digest


# -- refresh ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("today", "served", "renewed"),
    [
        (OLD, 0, 0),
        ({tactic: time_ms / 3 for tactic, time_ms in OLD.items()}, 0, 0),  # all faster: the same tactic
        ({-1: 9.0, 0: 1.0, 1: 0.99, 2: 5.0}, 0, 0),  # within the tie band
        ({-1: 9.0, 0: 30.0, 1: 5.0, 2: 20.0}, 1, 3),  # slower than what is stored, and the best there is today
        ({-1: 9.0, 0: 1.0, 1: 0.5, 2: 5.0}, 1, 3),
    ],
    ids=str,
)
def test_a_refresh_measures_everything_and_keeps_what_is_better(tmp_path, today, served, renewed):
    assert fresh(tune, tmp_path, OLD)[:2] == (0, 12)
    before = tree(tmp_path / "objects")
    tactic, measured_count, report = fresh(tune, tmp_path, today, "refresh")
    assert (tactic, measured_count, report["renewed_count"], report["hit_count"]) == (served, 12, renewed, 0)
    after = tree(tmp_path / "objects")
    assert before.items() <= after.items()
    believe(tmp_path)
    assert fresh(serve, tmp_path) == served
    assert verify(tmp_path).findings == ()


def test_refreshes_follow_each_other(tmp_path):
    fresh(tune, tmp_path, OLD)
    for best in (1, 2, 0, 2):
        today = {-1: 9.0, 0: 5.0, 1: 5.0, 2: 5.0, best: 1.0}
        assert fresh(tune, tmp_path, today, "refresh")[0] == best
        believe(tmp_path)
        assert fresh(serve, tmp_path) == best


def test_a_refresh_of_an_empty_root_tunes_it(tmp_path):
    tactic, measured_count, report = fresh(tune, tmp_path, OLD, "refresh")
    assert (tactic, measured_count, report["tuned_count"], report["renewed_count"]) == (0, 12, 3, 0)
    believe(tmp_path)
    assert fresh(serve, tmp_path) == 0


# -- pin --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pinned(tmp_path):
    """A bundle in a root of its own, and the root it was made from, which has gone on since."""
    root, out = tmp_path / "root", tmp_path / "bundles"
    fresh(tune, root, OLD)
    digest = bundle(root, out)
    fresh(tune, root, {-1: 9.0, 0: 5.0, 1: 1.0, 2: 5.0}, "refresh")
    fresh(tune, root, OLD, op="later")
    believe(root)
    return root, out, digest


def pin(root, digest, *, strict=False, op="op", rows=100, tuning=False, times_ms=OLD):
    with timed() as measured:
        session = fi_cachestore.attach("pin", root=root, pin=digest, strict=strict)
        if tuning:
            with flashinfer_autotune(True):
                found = choose(op, [Timed(times_ms)], [matrix(rows)], config())
        else:
            found = choose(op, [Timed(times_ms)], [matrix(rows)], config())
    assert len(measured) == 0
    assert session.mode == "pin"
    return found[1]


@pytest.mark.parametrize("tuning", [False, True])
def test_exactly_the_bundle_is_served_and_nothing_measured_or_written(pinned, tuning):
    _, out, digest = pinned
    before = tree(out)
    assert fresh(pin, out, digest, tuning=tuning) == 0
    assert fresh(pin, out, digest, tuning=tuning, op="later") == -1
    assert tree(out) == before


def test_what_a_root_has_beside_the_bundle_is_not_served(pinned):
    root, out, digest = pinned
    (root / "packs").mkdir(exist_ok=True)
    (root / "packs" / f"{digest}.pack").write_bytes((out / "packs" / f"{digest}.pack").read_bytes())
    assert fresh(serve, root) == 1
    assert fresh(serve, root, op="later") == 0
    assert fresh(pin, root, digest) == 0
    assert fresh(pin, root, digest, op="later") == -1


def test_a_bundle_can_be_named_as_a_file(pinned):
    _, out, digest = pinned
    assert fresh(pin, out / "packs" / f"{digest}.pack", digest) == 0


def test_a_bundle_is_found_in_a_read_only_layer(pinned, tmp_path, monkeypatch):
    _, out, digest = pinned
    monkeypatch.setenv("FI_CACHESTORE_PATH", str(out))
    monkeypatch.setenv("FI_CACHESTORE_MODE", "pin")
    monkeypatch.setenv("FI_CACHESTORE_PIN", digest)
    monkeypatch.setenv("FI_CACHESTORE_STRICT", "1")
    with timed() as measured, fi_cachestore.autotune(root=tmp_path / "none") as session:
        assert choose("op", [Timed(OLD)], [matrix(100)], config()) == (0, 0)
        with pytest.raises(PinnedMissError):
            choose("later", [Timed(OLD)], [matrix(100)], config())
    session.detach()
    assert len(measured) == 0
    assert not (tmp_path / "none").exists()


def strict_miss(root, digest, tuning):
    try:
        pin(root, digest, strict=True, op="later", tuning=tuning)
    except PinnedMissError as error:
        return error


@pytest.mark.parametrize("tuning", [False, True])
def test_a_strict_miss_names_the_key(pinned, tuning):
    root, out, digest = pinned
    error = fresh(strict_miss, out, digest, tuning)
    assert (error.op, error.bundle, error.exit_code) == ("later", digest, 21)
    assert "Timed" in error.runner
    assert error.digest in list(packed_reader(root))  # the key under which the root that has it keeps it
    assert error.digest in str(error)
    assert fresh(pin, out, digest, strict=True) == 0


class Opaque(PlainRunner):
    def __init__(self):
        self.thing = object()


def pin_opaque(root, digest, strict):
    fi_cachestore.attach("pin", root=root, pin=digest, strict=strict)
    with timed() as measured, flashinfer_autotune(True):
        try:
            return choose("op", [Opaque()], [matrix(100)], config())[1], len(measured)
        except PinnedMissError as error:
            return error.digest, error.why


def test_a_call_without_a_key_is_a_miss(pinned):
    _, out, digest = pinned
    assert fresh(pin_opaque, out, digest, strict=False) == (-1, 0)
    found, why = fresh(pin_opaque, out, digest, strict=True)
    assert found == ""
    assert "thing" in why


def test_a_strict_bundle_that_is_not_there_is_an_error(pinned, tmp_path):
    _, out, digest = pinned
    other = "ab" * 32
    with pytest.raises(NoSuchBundleError):
        fi_cachestore.attach("pin", root=out, pin=other, strict=True)
    with pytest.raises(ConfigError, match="FI_CACHESTORE_PIN"):
        fi_cachestore.attach("pin", root=out, strict=True)
    with pytest.raises(ConfigError, match="FI_CACHESTORE_PIN"):
        fi_cachestore.attach("pin", root=out, pin="../../etc/passwd", strict=True)
    path = out / "packs" / f"{digest}.pack"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(NoSuchBundleError):
        fi_cachestore.attach("pin", root=out, pin=digest, strict=True)
    out.chmod(0o777)
    with pytest.raises(RootRefusedError):
        fi_cachestore.attach("pin", root=out, pin=digest, strict=True)
    assert not (tmp_path / "xdg").exists()


def test_a_bundle_that_is_not_there_means_defaults(tmp_path, caplog):
    with timed() as measured, fi_cachestore.autotune(root=tmp_path, mode="pin", pin="ab" * 32) as session:
        assert choose("op", [Timed(OLD)], [matrix(100)], config()) == (0, -1)
    session.detach()
    assert len(measured) == 0
    assert "every call is served by its default" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_needs_no_verdict(pinned):
    """Its digest is the operator's word."""
    root, out, digest = pinned
    (record, *_) = [ReadOnly(packed_reader(root)).get(found).entry for found in packed_reader(root)]
    from fi_cachestore.records.verdict import Word
    from fi_cachestore.store.roots import open_root
    from fi_cachestore.validation.ledger import Ledger

    Ledger(open_root(out).verdicts).override(record.evidence.schema, Word.DISTRUSTED, "me", "a test", 1)
    assert fresh(pin, out, digest) == 0


def two_sessions(root, out, digest):
    with no_measurement():
        outer = fi_cachestore.attach("replay", root=root)
        inner = fi_cachestore.attach("pin", root=out, pin=digest)
        beside = [choose(op, [Timed(OLD)], [matrix(100)], config())[1] for op in ("op", "later")]
        attached = outer.is_attached, inner.is_attached
        inner.detach()
        after = [choose(op, [Timed(OLD)], [matrix(100)], config())[1] for op in ("op", "later")]
        fi_cachestore.attach("pin", root=out, pin=digest)
        fi_cachestore.detach()
    return beside, attached, after, type(AutoTuner.get()) is AutoTuner, outer.is_attached


def test_other_sessions_stand_aside(pinned):
    root, out, digest = pinned
    beside, attached, after, is_plain, outer_attached = fresh(two_sessions, root, out, digest)
    assert beside == [0, -1]
    assert attached == (True, True)
    assert after == [1, 0]
    assert is_plain
    assert not outer_attached


def two_pins(out, digest, other_out, other):
    with no_measurement():
        fi_cachestore.attach("pin", root=out, pin=digest)
        first = choose("op", [Timed(OLD)], [matrix(100)], config())[1]
        fi_cachestore.attach("pin", root=other_out, pin=other)
        return first, choose("op", [Timed(OLD)], [matrix(100)], config())[1]


def test_another_pin_remembers_nothing_of_the_first(pinned, tmp_path):
    root, out, digest = pinned
    (out / "packs" / "keep").write_bytes(b"")
    other = bundle(root, out)
    assert other != digest
    assert fresh(two_pins, out, digest, out, other) == (0, 1)


def pin_collective(out, digest):
    with_contract(attach_module, Timed, collective=True)
    with timed() as measured, flashinfer_autotune(True):
        fi_cachestore.attach("pin", root=out, pin=digest, strict=True)
        return choose("op", [Timed(OLD)], [matrix(100)], config())[1], len(measured)


def test_ops_that_communicate_get_their_default(pinned):
    _, out, digest = pinned
    assert fresh(pin_collective, out, digest) == (-1, 0)


def rank_pinned(out, digest, op):
    fi_cachestore.attach("pin", root=out, pin=digest, strict=True)
    with timed() as measured, flashinfer_autotune(True):
        return AutoTuner.get().rank_tactics(op, [Timed(OLD)], config(), [matrix(100)], k=3), len(measured)


@pytest.mark.skipif(not hasattr(AutoTuner, "rank_tactics"), reason="FlashInfer 0.6.14 and later")
def test_a_ranking_has_what_is_pinned_and_is_no_error(pinned):
    _, out, digest = pinned
    assert fresh(rank_pinned, out, digest, "op") == ([0], 0)
    assert fresh(rank_pinned, out, digest, "later") == ([-1], 0)


def test_what_modes_do():
    assert [mode.value for mode in fi_cachestore.Mode] == ["auto", "replay", "pin", "refresh", "ephemeral", "off"]
    assert [mode.value for mode in fi_cachestore.Mode if mode.publishes] == ["auto", "refresh"]
    assert [mode.value for mode in fi_cachestore.Mode if mode.only_reads] == ["replay", "pin"]
