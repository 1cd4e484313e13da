"""What trust costs at a start: a validated store against one without checks, and the first start, which verifies.

Each start is a process of its own, forked from one that has imported everything and used nothing: it enters a session, asks for every
profile of every op of the store, and leaves. CPU time, medians of starts in pairs, each side first in every other one; and the median of
the pairs' ratios, which a machine that gets slower or faster meanwhile changes less. All of them on one core, so that none is
moved to another one and begins there with cold caches. 50 ops, each a schema, with 20 records each; kernels are simulated.

Usage: python benchmarks/bench_trust.py [--starts 301] [--schemas 50] [--out FILE]
"""

import argparse
import importlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import Row, print_table, save

RECORDS_PER_SCHEMA = 20
SAMPLE = 2
TARGET = "<= 1.02 x"
FORK = multiprocessing.get_context("fork")


def runners(count: int) -> list[Any]:
    """Return one runner per op; with the op each has a schema of its own."""
    from flashinfer.autotuner import TunableRunner

    class Runner(TunableRunner):
        def __init__(self, number: int) -> None:
            self.number, self.tp_rank = number, 0

        def get_valid_tactics(self, inputs: Any, profile: Any) -> list[Any]:
            return [(self.number, tactic) for tactic in range(8)]

        def forward(self, inputs: Any, tactic: Any = -1, do_preparation: bool = False, **kwargs: Any) -> Any:
            return inputs[0]

    return [Runner(number) for number in range(count)]


def start(root: Path, schema_count: int, *, checks: bool) -> dict[str, float]:
    """Make one start; return its CPU time in seconds and what the session reports."""
    import torch
    from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TuningConfig, make_bucket_mapper

    import fi_cachestore
    from fi_cachestore.adapter import opening
    from fi_cachestore.testing.cpu_timing import cpu_timing

    torch.set_num_threads(1)
    if not checks:
        opening.checks = lambda *_: (None, None)  # type: ignore[assignment]
    buckets = tuple(1 << power for power in range(RECORDS_PER_SCHEMA))
    config = TuningConfig(dynamic_tensor_specs=(DynamicTensorSpec((0,), (0,), buckets, make_bucket_mapper(buckets)),))
    calls = [(f"op{number}", [runner], [torch.zeros(1, 1)]) for number, runner in enumerate(runners(schema_count))]
    with cpu_timing(lambda _run, _runner, tactic: 1.0 if tactic == -1 else 1.0 / (1 + tactic[1])):
        begun = time.process_time()
        with fi_cachestore.autotune(root=root) as session:
            for op, offered, inputs in calls:
                AutoTuner.get().choose_one(op, offered, config, inputs)
        spent = time.process_time() - begun
    report = session.report()
    names = ("tuned_count", "hit_count", "verified_count", "listing_count", "run_count")
    return {"cpu_s": spent, **{name: getattr(report, name) for name in names}}


def in_a_process(root: Path, schema_count: int, *, checks: bool) -> dict[str, float]:
    """Return what one start in a process of its own gives."""
    ours, theirs = FORK.Pipe(duplex=False)

    def run() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # FlashInfer's log and bars
        theirs.send(start(root, schema_count, checks=checks))

    process = FORK.Process(target=run)
    process.start()
    theirs.close()
    found: dict[str, float] = ours.recv()
    process.join()
    return found


def main() -> None:
    """Measure, and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=301)
    parser.add_argument("--schemas", type=int, default=50)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    for module in ("fi_cachestore.adapter.attach", "fi_cachestore.testing.cpu_timing"):
        importlib.import_module(module)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as base:
        root = Path(base)
        cold = in_a_process(root, given.schemas, checks=True)
        first = in_a_process(root, given.schemas, checks=True)
        found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        for number in range(given.starts):
            for checks in (True, False) if number % 2 else (False, True):
                found[checks].append(in_a_process(root, given.schemas, checks=checks))
    if any(one["hit_count"] != given.schemas * RECORDS_PER_SCHEMA or one["listing_count"] or one["run_count"] for one in found[True]):
        sys.exit(f"a validated store is not what these starts met: {found[True]}")
    ours, plain = (statistics.median(one["cpu_s"] for one in found[checks]) for checks in (True, False))
    ratio = statistics.median(one["cpu_s"] / other["cpu_s"] for one, other in zip(found[True], found[False], strict=True))
    bound, records = SAMPLE * given.schemas, f"{cold['tuned_count']} records, {given.schemas} schemas"
    rows = [
        Row(f"start on a validated store, {records}", ours, plain, "no checks", "s CPU", TARGET, f"the pairs' median ratio: {ratio:.3f}"),
        Row("first start on it: records tried", first["verified_count"], None, "", "records", f"<= {bound}"),
        Row("first start on it: tactic lists", first["listing_count"], None, "", "lists", f"<= {bound}"),
        Row("first start on it: runs", first["run_count"], None, "", "runs", f"<= {3 * bound}", "the default twice beside the tactic"),
        Row("first start on it", first["cpu_s"], plain, "no checks", "s CPU"),
    ]
    print_table(rows)
    if given.out is not None:
        save(rows, given.out)


if __name__ == "__main__":
    main()
