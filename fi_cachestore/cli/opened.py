"""Opening roots for looking at them: read-only, whoever owns them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fi_cachestore import config
from fi_cachestore.cli.output import note
from fi_cachestore.errors import NoSuchRecordError, RootRefusedError
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MissReason
from fi_cachestore.records.record import Record
from fi_cachestore.store.open import layer_paths
from fi_cachestore.store.port import Hit, Store
from fi_cachestore.store.roots import OpenRoot, check_root, open_read_only

_SHORTEST_PREFIX = 4


def root_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--root``."""
    text = "Cache directory; default: FI_CACHESTORE_DIR, else $XDG_CACHE_HOME/fi_cachestore, else ~/.cache/fi_cachestore."
    return click.option("--root", type=click.Path(path_type=Path), help=text)(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document with raw units.")(command)


def root_path(root: Path | None) -> Path:
    """Return the directory to look at.

    Raises:
        RootRefusedError: no directory is named and none can be found.
    """
    settings = config.load(root=root)
    if settings.root.value is None:
        raise RootRefusedError("(none)", settings.root.source, "pass --root or set FI_CACHESTORE_DIR")
    return settings.root.value


def directories(root: Path | None) -> tuple[Path, ...]:
    """Return the root and its read-only layers, in the order of search.

    Raises:
        RootRefusedError: no directory is named and none can be found.
    """
    before, after = layer_paths(config.load(root=root))
    return (*before, root_path(root), *after)


def open_for_looking(root: Path | None) -> OpenRoot:
    """Return the root as it is, read-only layers included. Looking is allowed where serving would be refused; a note says so.

    Raises:
        RootRefusedError: no directory is named and none can be found.
    """
    path = root_path(root)
    before, after = layer_paths(config.load(root=root))
    for directory in (*before, path, *after):
        try:
            check_root(directory)
        except RootRefusedError as error:
            note(f"note: engines would not use this root: {error}")
    return open_read_only(path, before=before, after=after)


def open_records(root: Path | None) -> tuple[Path, Store[Record]]:
    """Return the root and its records; see ``open_for_looking``.

    Raises:
        RootRefusedError: no directory is named and none can be found.
    """
    opened = open_for_looking(root)
    return opened.path, opened.records


def find_record(records: Store[Record], prefix: str) -> Hit[Record]:
    """Return the one record whose digest starts with ``prefix``.

    Raises:
        NoSuchRecordError: there is none, or more than one, or it is not readable.
    """
    if len(prefix) < _SHORTEST_PREFIX:
        raise NoSuchRecordError(prefix, (), f"at least {_SHORTEST_PREFIX} digits are needed")
    matches = tuple(records.starting_with(prefix.lower()))
    if len(matches) != 1:
        raise NoSuchRecordError(prefix, matches, MissReason.ABSENT)
    answer = records.get(Digest(matches[0]))
    if isinstance(answer, Hit):
        return answer
    raise NoSuchRecordError(matches[0], (), f"{answer.reason}: {answer.detail}")
