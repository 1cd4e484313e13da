"""How many records a change of the environment has left behind, told by a small sample; and the environments that roots have described."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from fi_cachestore.errors import DamagedError
from fi_cachestore.records.record import Record
from fi_cachestore.store.filesystem import OsFileSystem, Reader
from fi_cachestore.store.port import Hit, Store
from fi_cachestore.store.roots import MANIFESTS_FOLDER

_MAX_MANIFESTS: Final = 64
_MAX_MANIFEST_BYTES: Final = 64 * 1024
_LISTED_COUNT: Final = 4096
_SAMPLED_COUNT: Final = 64


def manifests(directories: Sequence[Path], reader: Reader | None = None) -> Iterator[bytes]:
    """Yield the manifests under some roots, a bounded number of bounded files. Never raises for what it finds."""
    files: Reader = OsFileSystem() if reader is None else reader
    for directory in directories:
        folder = directory / MANIFESTS_FOLDER
        for name in islice((name for name in files.names(folder) if name.endswith(".json")), _MAX_MANIFESTS):
            with contextlib.suppress(DamagedError, FileNotFoundError):
                yield files.read(folder / name, _MAX_MANIFEST_BYTES)


def about_how_many(records: Store[Record], counts: Callable[[Record], bool]) -> tuple[int, str]:
    """Return how many records ``counts`` says yes to, and the number in words.

    Reads at most 64 records, spread evenly over at most 4096 digests: these are uniform, so the share is that of the whole. Exact for a
    root with no more than 64.
    """
    digests = list(islice(records, _LISTED_COUNT + 1))
    sampled = digests if len(digests) <= _SAMPLED_COUNT else digests[:: len(digests) // _SAMPLED_COUNT][:_SAMPLED_COUNT]
    found = sum(1 for digest in sampled if isinstance(hit := records.get(digest), Hit) and counts(hit.entry))
    if len(sampled) == len(digests):
        return found, f"{found} record{'' if found == 1 else 's'}"
    number = round(found * len(digests) / len(sampled))
    return number, f"at least about {number} records" if len(digests) > _LISTED_COUNT else f"about {number} records"
