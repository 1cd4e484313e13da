"""What is timed in a process of its own, for ``bench_store.py``."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flashinfer.autotune_cache import ManagedAutotuneCache, _hydrate_from_store
from flashinfer.autotuner import AutoTuner
from process_memory import memory
from store_peers import MANIFEST, OPENERS, POLICY, fields
from store_records import Records

import fi_cachestore
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.records.record import Record
from fi_cachestore.store.open import open_store
from fi_cachestore.store.port import Hit, Store
from fi_cachestore.testing.samples import sample_record

LOOKUPS = 20_000
FORK = multiprocessing.get_context("fork")


def attach(side: str, place: str, count: str) -> dict[str, float]:
    """Milliseconds from a process that has probed its environment to the answer of one look-up, and the memory that takes."""
    target, digest = Path(place), Records().digest(int(count) // 3)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as empty:
        fi_cachestore.attach(root=empty).detach()  # probes, contracts: what both sides have done already
    tuner = AutoTuner.get()
    gc.collect()
    before = memory("Rss")
    started = time.perf_counter_ns()
    kept: object
    match side:
        case "ours":
            kept = fi_cachestore.attach(root=target)
            found: Any = AutoTuner.get().state.attached[0].session.find(digest)  # type: ignore[attr-defined]
            if not isinstance(found, Hit):
                raise SystemExit(f"not found: {found}")
        case "v1":
            kept = tuner.load_configs(str(target))
            if str(fields(int(count) // 3)) not in tuner._file_configs:  # noqa: SLF001 - no public way
                raise SystemExit("v1: not found")
        case "v2":
            kept = ManagedAutotuneCache(MANIFEST, root=target)
            _hydrate_from_store(tuner, kept)
            if len(tuner._managed_decoded) != int(count):  # noqa: SLF001
                raise SystemExit("v2: not all entries were read")
        case _:
            kept = OPENERS[side](target)
            kept(digest)
    return {"ms": (time.perf_counter_ns() - started) / 1e6, "mib": (memory("Rss") - before) / 1024}


def lookups(side: str, place: str, count: str) -> dict[str, float]:
    """Microseconds per look-up of distinct records at random, in a process that has looked up nothing before."""
    records, numbers = Records(), chosen(0, int(count), LOOKUPS)
    digests = [records.digest(number) for number in numbers]
    if side == "v2":
        store = ManagedAutotuneCache(MANIFEST, root=place)
        keys = [str(fields(number)) for number in numbers]
        return {"us": per_call(lambda key: store.lookup(key) or missing(key), keys)}
    if side != "ours":
        return {"us": per_call(OPENERS[side](Path(place)), digests)}
    ours = open_store(place, read_only=True)
    return {"us": per_call(lambda digest: isinstance(ours.get(digest), Hit) or missing(digest), digests)}


def chosen(seed: int, count: int, wanted: int) -> list[int]:
    return random.Random(seed).sample(range(count), min(wanted, count))  # noqa: S311 - which records, not a secret


def per_call(call: Callable[[Any], object], arguments: list[Any]) -> float:
    started = time.perf_counter_ns()
    for argument in arguments:
        call(argument)
    return (time.perf_counter_ns() - started) / 1e3 / len(arguments)


def missing(name: str) -> None:
    raise SystemExit(f"not found: {name}")


def rank_memory(side: str, place: str, count: str, rank_count: str) -> dict[str, float]:
    """MiB that all ranks of one host together have more after attaching, with shared pages counted once."""
    ready, done = FORK.Barrier(int(rank_count)), FORK.Queue()

    def rank() -> None:
        ready.wait()  # all are there: a page that one more process shares counts less for the others
        before = memory("Pss")
        ready.wait()
        if side == "ours":
            kept: object = open_store(place, read_only=True)
            records = Records()
            for number in chosen(os.getpid(), int(count), 100):
                kept.get(records.digest(number))  # type: ignore[attr-defined]
        else:
            kept = ManagedAutotuneCache(MANIFEST, root=place)
            _hydrate_from_store(AutoTuner.get(), kept)
        ready.wait()
        done.put(memory("Pss") - before)
        ready.wait()

    ranks = [FORK.Process(target=rank) for _ in range(int(rank_count))]
    for process in ranks:
        process.start()
    total = sum(done.get() for _ in ranks)
    for process in ranks:
        process.join()
    return {"mib": total / 1024}


def publish_many(side: str, place: str, process_count: str, each: str) -> dict[str, float]:
    """Records per second, from the moment that all processes are ready to the end of the last; nothing may be lost."""
    count, own = int(process_count), int(each)
    ready, ends = FORK.Barrier(count + 1), FORK.Queue()
    root = Path(place)

    def publisher(index: int) -> None:
        numbers = range(index * own, (index + 1) * own)
        publish = publisher_of(side, root, list(numbers))
        ready.wait()
        for number in numbers:
            publish(number)
        ends.put(time.monotonic_ns())

    processes = [FORK.Process(target=publisher, args=(index,)) for index in range(count)]
    for process in processes:
        process.start()
    ready.wait()
    started = time.monotonic_ns()
    last = max(ends.get() for _ in processes)
    for process in processes:
        process.join()
    stored = (
        len(open_store(root, read_only=True))
        if side == "ours"
        else len(list(ManagedAutotuneCache(MANIFEST, root=root).entries_dir.iterdir()))
    )
    if stored != count * own:
        raise SystemExit(f"{side}: {stored} of {count * own} records are there")
    return {"per_s": count * own / ((last - started) / 1e9)}


def publisher_of(side: str, root: Path, numbers: list[int]) -> Callable[[int], object]:
    """Return what publishes one entry; the key of ours is known already, as it is after the look-up that has missed."""
    if side == "v2":
        v2 = ManagedAutotuneCache(MANIFEST, root=root)
        return lambda number: v2.publish(str(fields(number)), "Runner", 1, fields(number), POLICY)
    store, made = undurable(root), {number: fresh_record(number) for number in numbers}
    return lambda number: store.publish(made[number])


def undurable(root: Path) -> Store[Record]:
    from fi_cachestore.store.roots import open_root

    return open_root(root, durable=False).records


def fresh_record(number: int) -> Record:
    """Return a record as a session makes it: its key is known, everything else still has to be encoded."""
    key = TuneKey.from_canonical(Records().key(number))
    return sample_record(key=key, times_ns={-1: 20000, 0: 15000, 1: 16000, 2: 14000})


TASKS: dict[str, Callable[..., dict[str, float]]] = {
    "attach": attach,
    "lookups": lookups,
    "rank_memory": rank_memory,
    "publish_many": publish_many,
}


def run_task(pipe: Any, name: str, arguments: tuple[str, ...]) -> None:
    """Run a task and send what it found."""
    pipe.send(TASKS[name](*arguments))
