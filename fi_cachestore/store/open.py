"""From settings or a path to an opened store."""

from __future__ import annotations

import os
from pathlib import Path

from fi_cachestore.config import WRITABLE_MARK, Mode, Settings
from fi_cachestore.errors import ConfigError, NoSuchBundleError, RootRefusedError
from fi_cachestore.keys.digest import is_digest
from fi_cachestore.records.record import Record
from fi_cachestore.store.bundle import open_bundle
from fi_cachestore.store.layers import ReadOnly
from fi_cachestore.store.memory import MemoryStore
from fi_cachestore.store.port import Store
from fi_cachestore.store.roots import OpenRoot, check_root, open_read_only, open_root, packed_reader
from fi_cachestore.store.rules_log import RulesLog


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
    """Return the root and the read-only layers that the settings name. In modes ``replay`` and ``pin`` nothing is created or written.

    Raises:
        RootRefusedError: there is no root, or it is not to be believed, or cannot be created.
        NoSuchBundleError: the pinned bundle is nowhere.
        ConfigError: nothing is pinned in mode ``pin``.
    """
    if settings.mode.value is Mode.PIN:
        return _open_pinned(settings)
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


def _open_pinned(settings: Settings) -> OpenRoot:
    """Return one bundle and nothing else: its digest is the operator's word, so no verdict is asked for and nothing settled counts."""
    digest = settings.pin.value or ""
    if not is_digest(digest):
        raise ConfigError("FI_CACHESTORE_PIN", digest, settings.pin.source, "the digest of a bundle, 64 lower-case hexadecimal digits")
    missing: NoSuchBundleError | None = None
    layers = tuple(read_only_paths(settings))
    for place in [path for path in (settings.root.value, *layers) if path is not None]:
        if not place.is_file():
            check_root(place, trusted=settings.trusted.value)
        try:
            return OpenRoot(place, open_bundle(place, digest), RulesLog(place), MemoryStore(), None, layers=layers)
        except NoSuchBundleError as error:
            missing = missing or error
    raise missing or NoSuchBundleError("(none)", digest, "there is no root to look in")


def open_nothing(place: Path) -> OpenRoot:
    """Return a root without content, for a session that must not measure and has nothing to serve."""
    return OpenRoot(place, MemoryStore(), RulesLog(place), MemoryStore(), None)


def read_only_paths(settings: Settings) -> list[Path]:
    """Return the read-only roots, in the order of search."""
    before, after = layer_paths(settings)
    return [*before, *after]


def layer_paths(settings: Settings) -> tuple[list[Path], list[Path]]:
    """Return the read-only roots searched before and after the writable one; without a mark it is searched first."""
    entries = settings.path.value
    if not entries:
        return [], []
    at = entries.index(WRITABLE_MARK) if WRITABLE_MARK in entries else 0
    paths = [Path(entry).absolute() for entry in entries if entry != WRITABLE_MARK]
    return paths[:at], paths[at:]
