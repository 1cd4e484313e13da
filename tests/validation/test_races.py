"""Promote, quarantine, override and refuse at the same time, from eight real processes."""

import multiprocessing
from pathlib import Path

import pytest

from fi_cachestore.records.verdict import Override, Quarantine, Refusal, Validation, Word
from fi_cachestore.store.fsck import verify
from fi_cachestore.store.roots import open_root
from fi_cachestore.testing.samples import sample_record, sample_schema
from fi_cachestore.validation.ledger import Ledger, Standing
from tests.validation.samples import CONTRADICTION, NOW_NS, RECORD, digest_of, seen, side

FORK = multiprocessing.get_context("fork")
PROCESSES = 8
SCHEMAS = [sample_schema(number) for number in range(1, 5)]
RANKS = range(6)


def work(root, number, start, results):
    """Each process validates everything, and half of them find a contradiction somewhere in between."""
    ledger = Ledger(open_root(Path(root), durable=False).verdicts)
    start.wait(60)
    try:
        for at, schema in enumerate(SCHEMAS[:-1]):  # the last one is only ever validated
            for rank in RANKS:
                ledger.promote(schema, side(rank), side((rank + number) % len(RANKS)), [(RECORD, seen())], NOW_NS + number)
                if number % 2 and rank == (at + number) % len(RANKS):
                    ledger.quarantine(schema, side(0), side(rank), RECORD, seen(space=None), CONTRADICTION, NOW_NS + number)
                    assert ledger.standing(schema.digest, digest_of(rank)) is Standing.QUARANTINED
        for rank in RANKS:
            ledger.promote(SCHEMAS[-1], side(rank), side(rank), [(RECORD, seen())], NOW_NS)
        ledger.override(sample_schema(9).digest, Word.TRUSTED if number else Word.DISTRUSTED, f"process {number}", "a race", NOW_NS)
        ledger.refuse(sample_record(number % 3), "it kills", NOW_NS)
    except BaseException as error:
        results.put((number, repr(error)))
        raise
    results.put((number, None))


@pytest.mark.parametrize("attempt", range(4))
def test_a_quarantine_wins_and_nothing_is_lost(tmp_path, attempt):
    root = tmp_path / "root"
    start, results = FORK.Barrier(PROCESSES), FORK.Queue()
    processes = [FORK.Process(target=work, args=(str(root), number, start, results)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    answers = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert answers == [(number, None) for number in range(PROCESSES)]
    ledger = Ledger(open_root(root).verdicts)
    for schema in SCHEMAS[:-1]:
        assert {ledger.standing(schema.digest, digest_of(rank)) for rank in RANKS} == {Standing.QUARANTINED}
    assert {ledger.standing(SCHEMAS[-1].digest, digest_of(rank)) for rank in RANKS} == {Standing.VALIDATED}
    assert all(ledger.is_refused(sample_record(number)) for number in range(3))
    found = [verdict for _, verdict in ledger.entries()]
    assert sum(isinstance(verdict, Quarantine) for verdict in found) == len(SCHEMAS) - 1
    assert sum(isinstance(verdict, Validation) and verdict.schema == SCHEMAS[-1] for verdict in found) == len(RANKS)
    assert sum(isinstance(verdict, Refusal) for verdict in found) == 3
    overrides = [verdict for verdict in found if isinstance(verdict, Override)]
    assert [verdict.number for verdict in overrides] == list(range(PROCESSES))
    assert {verdict.who for verdict in overrides} == {f"process {number}" for number in range(PROCESSES)}
    latest = Standing.VALIDATED if overrides[-1].word is Word.TRUSTED else Standing.QUARANTINED
    assert ledger.standing(sample_schema(9).digest, digest_of(0)) is latest
    assert verify(root).findings == ()
