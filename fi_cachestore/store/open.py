"""From settings or a path to an opened store."""

from __future__ import annotations

import os
from pathlib import Path

from fi_cachestore.config import WRITABLE_MARK, Mode, Settings
from fi_cachestore.errors import RootRefusedError
from fi_cachestore.records.record import Record
from fi_cachestore.store.layers import ReadOnly
from fi_cachestore.store.port import Store
from fi_cachestore.store.roots import OpenRoot, check_root, open_read_only, open_root, packed_reader


def open_store(path: str | os.PathLike[str], *, read_only: bool = False, trusted: bool = False) -> Store[Record]:
    """Return the records under ``path``: ``len``, iteration over digests, ``get``, ``publish``.

    Nothing is created with ``read_only``. ``trusted`` accepts a directory of another user or one that everyone may write to.

    Raises:
        RootRefusedError: the directory is not to be believed, or cannot be created.
    """
    root = Path(path).absolute()
    check_root(root, trusted=(root,) if trusted else ())
    if read_only:
        return ReadOnly(packed_reader(root))
    return open_root(root).records


def open_session_root(settings: Settings) -> OpenRoot:
    """Return the root and the read-only layers that the settings name. In mode ``replay`` nothing is created or written.

    Raises:
        RootRefusedError: there is no root, or it is not to be believed, or cannot be created.
    """
    root = settings.root.value
    if root is None:
        raise RootRefusedError("(none)", f"no directory for it was found: {settings.root.source}", "set FI_CACHESTORE_DIR")
    check_root(root, trusted=settings.trusted.value)
    before, after = layer_paths(settings)
    for layer in (*before, *after):
        check_root(layer, trusted=settings.trusted.value)
    if settings.mode.value is Mode.REPLAY:
        return open_read_only(root, before=before, after=after)
    return open_root(root, before=before, after=after, durable=settings.durable.value)


def read_only_paths(settings: Settings) -> list[Path]:
    """Return the read-only roots, in the order of search."""
    before, after = layer_paths(settings)
    return [*before, *after]


def layer_paths(settings: Settings) -> tuple[list[Path], list[Path]]:
    """Return the read-only roots searched before and after the writable one; without a mark it is searched first."""
    entries = settings.path.value
    at = entries.index(WRITABLE_MARK) if WRITABLE_MARK in entries else 0
    paths = [Path(entry).absolute() for entry in entries if entry != WRITABLE_MARK]
    return paths[:at], paths[at:]
