"""Numbered files: a folder of immutable files, the newest with the highest number, the last few kept."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fi_cachestore.errors import StoreIOError
from fi_cachestore.store.filesystem import Reader, Writer
from fi_cachestore.store.publish import create_once

NUMBERED_NAME: Final = re.compile(r"([0-9]{8})\.rec", re.ASCII)
_ATTEMPTS: Final = 16


def numbered(reader: Reader, folder: Path) -> list[int]:
    """Return the numbers taken in ``folder``, ascending."""
    names = map(NUMBERED_NAME.fullmatch, reader.names(folder))
    return sorted(int(found[1]) for found in names if found)


def numbered_path(folder: Path, number: int) -> Path:
    """Return the file of a number."""
    return folder / f"{number:08d}.rec"


def newest_first(reader: Reader, folder: Path, kept_count: int) -> Iterator[Path]:
    """Yield the files that count, newest first."""
    for number in reversed(numbered(reader, folder)[-kept_count:]):
        yield numbered_path(folder, number)


def append(reader: Reader, writer: Writer, folder: Path, data: bytes, *, kept_count: int, durable: bool) -> Path:
    """Create the newest file and drop what is older than the last few. Safe from any process: a number is taken by creating its file.

    Who stalls before that may take a number that was dropped meanwhile; such a file counts as an old one, and the next call drops it.

    Raises:
        StoreIOError: the file system refused.
    """
    for _ in range(_ATTEMPTS):
        numbers = numbered(reader, folder)
        path = numbered_path(folder, numbers[-1] + 1 if numbers else 0)
        if create_once(writer, path, data, durable=durable):
            for old in numbers[: -(kept_count - 1)]:
                with contextlib.suppress(OSError):
                    writer.unlink(numbered_path(folder, old))
            return path
    raise StoreIOError(str(folder), "publishing a numbered file", "other processes took every number tried")
