"""Every error the library raises: one root, fields instead of prose, a documented exit code.

Arguments go to ``super().__init__`` and the sentence to ``__str__``, so that an error survives pickling
(``multiprocessing`` sends exceptions between processes) with its fields intact.

Exit codes: 0 fine, 1 findings, 2 usage, 10 configuration, 11 input/output, 20 damaged data, 21 key problem, 70 internal.
"""

from __future__ import annotations

from dataclasses import dataclass


class CacheStoreError(Exception):
    """Root of all errors of this library. ``exit_code`` is what the command line ends with."""

    exit_code = 70


class UnsupportedValueError(CacheStoreError):
    """A value outside the closed set that has canonical bytes."""

    exit_code = 21

    def __init__(self, path: str, type_name: str, why: str = "") -> None:
        """Name the field (``path``), the offending type and, where it helps, why."""
        super().__init__(path, type_name, why)
        self.path, self.type_name, self.why = path, type_name, why

    def __str__(self) -> str:
        """Return what, where and what next."""
        why = f" ({self.why})" if self.why else ""
        return f"{self.path}: a value of type {self.type_name} has no canonical form{why}; convert it to plain data first"


class NotCanonicalError(CacheStoreError):
    """Bytes that no encoder of this library wrote."""

    exit_code = 20

    def __init__(self, reason: str, size_bytes: int) -> None:
        """Keep why they were refused and how many bytes there were."""
        super().__init__(reason, size_bytes)
        self.reason, self.size_bytes = reason, size_bytes

    def __str__(self) -> str:
        """Return what was found."""
        return f"{self.size_bytes} bytes are not canonical: {self.reason}"


@dataclass(frozen=True, slots=True)
class Gap:
    """One reason why a call has no shareable key.

    ``subject`` is the runner type, ``"environment"`` or the op; ``field`` the path of the parameter; ``type_name`` what stood there.
    """

    subject: str
    field: str
    type_name: str
    why: str

    def __str__(self) -> str:
        """Return the gap as one clause."""
        return f"{self.subject}: {self.field} ({self.type_name}): {self.why}"


class IncompleteKeyError(CacheStoreError):
    """The call cannot be described completely, so nothing about it may be shared."""

    exit_code = 21

    def __init__(self, op: str, gaps: tuple[Gap, ...]) -> None:
        """Name the op and everything that is missing."""
        super().__init__(op, gaps)
        self.op, self.gaps = op, gaps

    def __str__(self) -> str:
        """Return all gaps, one after the other."""
        return f"{self.op}: no complete key; " + "; ".join(map(str, self.gaps)) + "; give the runner a contract or plain-data fields"


class ConfigError(CacheStoreError):
    """A setting that cannot be understood."""

    exit_code = 10

    def __init__(self, name: str, value: str, source: str, expected: str) -> None:
        """Name the setting, what it was set to, by whom, and what would be right."""
        super().__init__(name, value, source, expected)
        self.name, self.value, self.source, self.expected = name, value, source, expected

    def __str__(self) -> str:
        """Return what to change and where."""
        return f"{self.name} = {self.value!r} (from {self.source}) is not valid; expected {self.expected}"


class RootRefusedError(CacheStoreError):
    """A cache directory that must not be believed or cannot be used."""

    exit_code = 10

    def __init__(self, root: str, reason: str, advice: str) -> None:
        """Name the directory, what is wrong with it and what to do."""
        super().__init__(root, reason, advice)
        self.root, self.reason, self.advice = root, reason, advice

    def __str__(self) -> str:
        """Return what, where, why and what next."""
        return f"{self.root}: not used as a cache root: {self.reason}; {self.advice}"


class StoreIOError(CacheStoreError):
    """The file system refused an operation."""

    exit_code = 11

    def __init__(self, path: str, operation: str, reason: str) -> None:
        """Name the file, the operation and the system's answer."""
        super().__init__(path, operation, reason)
        self.path, self.operation, self.reason = path, operation, reason

    def __str__(self) -> str:
        """Return what failed where."""
        return f"{self.path}: {self.operation} failed: {self.reason}; check space, quota and permissions"


class RecordTooLargeError(CacheStoreError):
    """A record over the size limit of the format."""

    exit_code = 21

    def __init__(self, digest: str, size_bytes: int, limit_bytes: int) -> None:
        """Keep which record and by how much."""
        super().__init__(digest, size_bytes, limit_bytes)
        self.digest, self.size_bytes, self.limit_bytes = digest, size_bytes, limit_bytes

    def __str__(self) -> str:
        """Return the sizes."""
        return f"record {self.digest[:12]} has {self.size_bytes} bytes, more than the {self.limit_bytes} of the format; it stays in memory"


class DamagedError(CacheStoreError):
    """Stored bytes that must not be served. Raised and caught inside the store; look-ups turn it into a miss."""

    exit_code = 20

    def __init__(self, reason: str, detail: str) -> None:
        """``reason`` is a ``MissReason`` value, ``detail`` one clause for people."""
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        """Return the detail."""
        return f"{self.reason}: {self.detail}"


class NoSuchRecordError(CacheStoreError):
    """No record, or more than one, has this digest prefix."""

    exit_code = 1

    def __init__(self, prefix: str, matches: tuple[str, ...], reason: str) -> None:
        """Keep the prefix asked for, what it matched, and the miss reason."""
        super().__init__(prefix, matches, reason)
        self.prefix, self.matches, self.reason = prefix, matches, reason

    def __str__(self) -> str:
        """Return how to ask better."""
        if self.matches:
            return f"{self.prefix}: {len(self.matches)} records start so ({', '.join(m[:16] for m in self.matches[:4])}); give more digits"
        return f"{self.prefix}: no record ({self.reason}); `fi-cachestore ls` lists what is there"


class NoSuchSourceError(CacheStoreError):
    """Nothing to audit: no package of that name, or no source at that path."""

    exit_code = 11

    def __init__(self, name: str, reason: str) -> None:
        """Name what was asked for and what was found instead."""
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        """Return what to give instead."""
        return f"{self.name}: no source to audit: {self.reason}; name an installed package, a module's file or a directory"


class NoSuchBundleError(CacheStoreError):
    """The one pack that was asked for by its digest is not there."""

    exit_code = 20

    def __init__(self, path: str, digest: str, reason: str) -> None:
        """Name the file, the digest asked for, and what was found instead."""
        super().__init__(path, digest, reason)
        self.path, self.digest, self.reason = path, digest, reason

    def __str__(self) -> str:
        """Return what is wrong and what next."""
        return f"{self.path}: not the bundle {self.digest[:12]}: {self.reason}; `fi-cachestore pack --out` makes bundles"


class PinnedMissError(CacheStoreError):
    """A call that the pinned bundle does not answer, in strict mode."""

    exit_code = 21

    def __init__(self, op: str, runner: str, digest: str, bundle: str, why: str) -> None:
        """Name the call by op, first runner and the digest of its key (empty where it has none), the bundle, and what is wrong."""
        super().__init__(op, runner, digest, bundle, why)
        self.op, self.runner, self.digest, self.bundle, self.why = op, runner, digest, bundle, why

    def __str__(self) -> str:
        """Return what is missing and what next."""
        key = f"key {self.digest}" if self.digest else "a call without a complete key"
        return (
            f"{self.op}: the pinned bundle {self.bundle[:12]} does not answer {key} of {self.runner} ({self.why}); "
            "tune it and make another bundle, or unset FI_CACHESTORE_STRICT to have the default served"
        )


class NoSuchSchemaError(CacheStoreError):
    """No key schema, or more than one, has this digest prefix."""

    exit_code = 1

    def __init__(self, prefix: str, matches: tuple[str, ...]) -> None:
        """Keep the prefix asked for and what it matched."""
        super().__init__(prefix, matches)
        self.prefix, self.matches = prefix, matches

    def __str__(self) -> str:
        """Return how to ask better."""
        if self.matches:
            return f"{self.prefix}: {len(self.matches)} schemas start so ({', '.join(m[:16] for m in self.matches[:4])}); give more digits"
        return f"{self.prefix}: no schema starts with these digits (at least four); `fi-cachestore trust` lists what is there"


class NoSuchSessionError(CacheStoreError):
    """No session of this user is kept at this place in the order."""

    exit_code = 1

    def __init__(self, back: int, folder: str, kept_count: int) -> None:
        """Keep which one was asked for, where they are, and how many there are."""
        super().__init__(back, folder, kept_count)
        self.back, self.folder, self.kept_count = back, folder, kept_count

    def __str__(self) -> str:
        """Return what is there, and when something would be."""
        found = f"{self.folder} keeps {self.kept_count}" if self.folder else "no directory for them was found (FI_CACHESTORE_STATE_DIR)"
        return f"session {self.back} from the end is not kept: {found}; a process keeps its misses when it commits, detaches or exits"


class UnsupportedFlashInferError(CacheStoreError):
    """The installed FlashInfer lacks something the adapter leans on."""

    exit_code = 10

    def __init__(self, version: str, missing: tuple[str, ...]) -> None:
        """Keep the version and every missing symbol."""
        super().__init__(version, missing)
        self.version, self.missing = version, missing

    def __str__(self) -> str:
        """Return what is missing and what follows."""
        return f"flashinfer {self.version} lacks {', '.join(self.missing)}; fi_cachestore stays out of the way, FlashInfer is untouched"


class BoardLostError(CacheStoreError):
    """The values that the ranks of a session share cannot be reached any more."""

    exit_code = 30

    def __init__(self, operation: str, reason: str) -> None:
        """Name what was tried and how it ended."""
        super().__init__(operation, reason)
        self.operation, self.reason = operation, reason

    def __str__(self) -> str:
        """Return what follows from it."""
        return f"the ranks' shared store is lost ({self.operation}: {self.reason}); this rank goes on by itself"


class RankTimeoutError(CacheStoreError):
    """A rank that was waited for made no progress. Logged, never raised into an engine."""

    exit_code = 30

    def __init__(self, rank: int, host: str, op: str, age_s: float) -> None:
        """Name the rank, its host, what it was last seen at, and for how long nothing has changed."""
        super().__init__(rank, host, op, age_s)
        self.rank, self.host, self.op, self.age_s = rank, host, op, age_s

    def __str__(self) -> str:
        """Return whom was waited for and what follows."""
        doing = f", last seen at {self.op}" if self.op else ""
        return f"rank {self.rank} on {self.host} made no progress for {self.age_s:.0f} s{doing}; going on without it"
