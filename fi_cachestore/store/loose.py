"""Loose entries: one file per digest and generation, ``<folder>/ab/<digest>.<generation>.rec``, created once and never changed."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final, Generic

from fi_cachestore.errors import (
    DamagedError,
    RecordTooLargeError,
    StoreIOError,
    UnsupportedValueError,
)
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.envelope import MAX_SEALED_BYTES, MissReason, body_of, seal
from fi_cachestore.store.filesystem import OsFileSystem, Reader, Writer
from fi_cachestore.store.pack import MAX_GENERATIONS
from fi_cachestore.store.port import Codec, E, Found, Hit, Miss, Present, Published
from fi_cachestore.store.publish import create_once

ENTRY_NAME: Final = re.compile(r"([0-9a-f]{64})\.(0|[1-9][0-9]{0,5})\.rec", re.ASCII)
FAN_OUT_NAME: Final = re.compile(r"[0-9a-f]{2}", re.ASCII)
QUARANTINE: Final = "quarantine"
_PUBLISH_ATTEMPTS: Final = 3


def entry_path(folder: Path, digest: Digest, generation: int) -> Path:
    """Return where an entry lives."""
    return folder / f"{digest[:2]}/{digest}.{generation}.rec"


class LooseReader(Generic[E]):
    """The reading side of a directory of loose entries. Never writes, locks or creates anything; safe from any thread and process."""

    def __init__(self, root: Path, folder: str, codec: Codec[E], *, reader: Reader | None = None) -> None:
        """Read entries of one kind under ``root/folder``; nothing needs to exist."""
        self.root, self.folder = root, root / folder
        self._prefix = str(self.folder)
        self._codec = codec
        self._reader: Reader = OsFileSystem() if reader is None else reader

    def get(self, digest: Digest) -> Hit[E] | Miss:
        """Return the highest valid generation; without one, why the first was refused."""
        found = self.serving(digest)
        return found if isinstance(found, Miss) else found.hit

    def serving(self, digest: Digest, first_generation: int = 0) -> Found[E] | Miss:
        """Return the highest valid generation from ``first_generation`` on, with its bytes."""
        best: Found[E] | None = None
        first_miss: Miss | None = None
        for generation in range(first_generation, MAX_GENERATIONS):
            match self._load(digest, generation):
                case Miss(MissReason.ABSENT):
                    break
                case Miss() as miss:
                    first_miss = first_miss or miss
                case found:
                    best = found
        return best or first_miss or Miss(MissReason.ABSENT)

    def has(self, digest: Digest, generation: int) -> bool:
        """Whether there is a file in the place of an entry, whatever it holds."""
        return self._reader.exists(self._path(digest, generation))

    def _path(self, digest: Digest, generation: int) -> str:
        return f"{self._prefix}/{digest[:2]}/{digest}.{generation}.rec"  # ``entry_path``, at half the cost of a look-up

    def _load(self, digest: Digest, generation: int) -> Found[E] | Miss:
        path = self._path(digest, generation)
        try:
            data = self._reader.read(path, MAX_SEALED_BYTES)
            return Found(self.check(data, digest), data, generation, path)
        except FileNotFoundError:
            return Miss(MissReason.ABSENT)
        except DamagedError as damage:
            return Miss(MissReason(damage.reason), f"{path}: {damage.detail}")

    def check(self, data: bytes, digest: Digest) -> E:
        """Return the entry sealed in ``data``.

        Raises:
            DamagedError: the bytes are not such an entry, or are that of another digest (``foreign``).
        """
        entry = self._codec.from_body(body_of(data))
        if entry.digest != digest:
            raise DamagedError(MissReason.FOREIGN, f"holds the entry {entry.digest[:12]}")
        return entry

    def files(self, prefix: str = "") -> Iterator[tuple[Path, Digest | None, int]]:
        """Yield every name below the folder with the digest and generation it claims; no digest for names that no entry has.

        With ``prefix`` only entries whose digest starts so.
        """
        for fan_out in sorted(self._reader.names(self.folder)):
            if prefix and not fan_out.startswith(prefix[:2]):
                continue
            if FAN_OUT_NAME.fullmatch(fan_out) is None:
                yield self.folder / fan_out, None, 0
                continue
            for name in sorted(name for name in self._reader.names(self.folder / fan_out) if name.startswith(prefix)):
                found = ENTRY_NAME.fullmatch(name)
                path = self.folder / fan_out / name
                is_entry = found is not None and found[1].startswith(fan_out)
                yield (path, Digest(found[1]), int(found[2])) if found is not None and is_entry else (path, None, 0)

    def starting_with(self, prefix: str) -> Iterator[Digest]:
        """Yield every digest that has a file and starts so, once, in order."""
        last = None
        for _, digest, _ in self.files(prefix):
            if digest is not None and digest != last:
                yield digest
                last = digest

    def refresh(self) -> None:
        """Do nothing: files are looked up where they are."""

    def __iter__(self) -> Iterator[Digest]:
        """Yield every digest that has a file, once, in order."""
        return self.starting_with("")

    def __len__(self) -> int:
        """Return how many digests have a file."""
        return sum(1 for _ in self)


class LooseStore(LooseReader[E]):
    """Reads and publishes loose entries. All state is in the directory."""

    def __init__(
        self,
        root: Path,
        folder: str,
        codec: Codec[E],
        *,
        durable: bool = True,
        reader: Reader | None = None,
        writer: Writer | None = None,
    ) -> None:
        """Keep entries of one kind under ``root/folder``. ``durable`` costs two ``fsync`` per published entry."""
        super().__init__(root, folder, codec, reader=reader)
        self._durable = durable
        self._writer: Writer = OsFileSystem() if writer is None else writer

    def publish(self, entry: E) -> Published | Present[E]:
        """Store ``entry`` unless a valid one is there; see ``Store.publish``. A bad file in its place goes to ``quarantine/``."""
        digest = entry.digest
        path = entry_path(self.folder, digest, 0)
        data = self._sealed(entry)
        for _ in range(_PUBLISH_ATTEMPTS):
            if create_once(self._writer, path, data, durable=self._durable):
                return Published(str(path))
            match self._load(digest, 0):
                case Found() as theirs:
                    return Present(theirs.entry, theirs.source)
                case Miss(MissReason.CORRUPT | MissReason.FOREIGN):
                    self._quarantine(path, digest)
                case Miss(MissReason.ABSENT):
                    continue
                case Miss(reason, detail):
                    raise StoreIOError(str(path), "publishing", f"the name is taken by a file that is {reason} ({detail})")
        raise StoreIOError(str(path), "publishing", "the name stays taken by a bad file")

    def publish_after(self, entry: E, generation: int) -> tuple[Published | Present[E], int]:
        """Store ``entry`` as the generation after ``generation``, and return which one that is; the first writer of a generation wins.

        A name that a bad file has taken is left to it: the next one counts.

        Raises:
            StoreIOError: the file system refused, or there are no generations left.
            RecordTooLargeError: the entry exceeds the format's limit.
        """
        digest = entry.digest
        data = self._sealed(entry)
        for number in range(generation + 1, MAX_GENERATIONS):
            path = entry_path(self.folder, digest, number)
            if create_once(self._writer, path, data, durable=self._durable):
                return Published(str(path)), number
            if isinstance(theirs := self._load(digest, number), Found):
                return Present(theirs.entry, theirs.source), number
        raise StoreIOError(str(self.folder), "publishing", f"the key {digest[:12]} has no generation left")

    def _sealed(self, entry: E) -> bytes:
        try:
            return seal(entry.to_value())
        except UnsupportedValueError as error:
            raise RecordTooLargeError(entry.digest, MAX_SEALED_BYTES + 1, MAX_SEALED_BYTES) from error

    def withdraw(self, digest: Digest, generation: int, data: bytes) -> None:
        """Remove the file of an entry if it holds ``data``. Best effort: a file that stays is of no consequence where this is called."""
        path = entry_path(self.folder, digest, generation)
        with contextlib.suppress(OSError, DamagedError):
            if self._reader.read(path, MAX_SEALED_BYTES) == data:
                self._writer.unlink(path)

    def _quarantine(self, path: Path, digest: Digest) -> None:
        """Move a bad file out of the way, named by its content. A good one that took its place meanwhile goes back."""
        shelf = self.root / QUARANTINE
        moved = shelf / f"{secrets.token_hex(8)}.moving"
        try:
            self._writer.make_dirs(shelf)
            self._writer.rename(path, moved)
            try:
                data = self._reader.read(moved, MAX_SEALED_BYTES)
                self.check(data, digest)
            except DamagedError:
                with contextlib.suppress(DamagedError):
                    name = blake2b(self._reader.read(moved, MAX_SEALED_BYTES), digest_size=32).hexdigest()
                    self._writer.rename(moved, shelf / f"{name}.bad")
                return
            with contextlib.suppress(FileExistsError):
                self._writer.link(moved, path)
            self._writer.unlink(moved)
        except FileNotFoundError:
            return  # somebody else moved it
        except OSError as error:
            raise StoreIOError(str(path), "quarantining", error.strerror or type(error).__name__) from error
