"""Very many sealed records, quickly: one real record whose bytes are changed in a few places of fixed width, and sealed again.

A million of them are what fifty ops with four kinds of runner, 250 shapes of weights and twenty buckets give. As in a real store,
environment, policy and most tensors are the same in many keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fi_cachestore.keys.canonical import Named, Value
from fi_cachestore.keys.digest import Digest, key_digest
from fi_cachestore.keys.model import RunnerIdentity, TuneKey
from fi_cachestore.records.envelope import seal
from fi_cachestore.records.record import Record
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.loose import entry_path
from fi_cachestore.store.pack import PACKS_FOLDER, Pack
from fi_cachestore.store.pack_writer import Sealed, write_pack
from fi_cachestore.testing.samples import sample_record

OPS, RUNNERS, SHAPES, BUCKETS = 50, 4, 250, 20
_WIDTH, _DEPTH, _BUCKET, _OP, _RUNNER = 0x5A5A, 0x5B5B, 0x5C5C, "op_00", "Backend0"
_CHECK_BYTES = 16

ENVIRONMENT: dict[str, Value] = {
    "device": "cuda",
    "flashinfer_version": "0.7.2.post1",
    "flashinfer_commit": "0123456789abcdef0123456789abcdef01234567",
    "variables": "",
    "kernel_artifacts": "0123456789abcdef0123456789abcdef",
    "cuda_runtime": "13.0",
    "gpu_name": "NVIDIA H200",
    "compute_capability": "9.0",
    "sm_count": "132",
    "cublas": "13.1.0",
    "cudnn": "91400",
    "cudnn_frontend": "1.16.0",
    "cutlass_dsl": "nvidia-cutlass-dsl==4.3.1",
    "cuda_tile": "absent",
}


def tensor(dtype: str, *shape: Value) -> Value:
    layout = Named("layout", {"order": tuple(range(len(shape))), "strides": None})
    return Named("tensor", {"dtype": Named("dtype", f"torch.{dtype}"), "shape": shape, "layout": layout, "device": "cuda"})


def template() -> Record:
    """Return the record that all are made of: a block-scaled GEMM with eight inputs and four tactics."""
    rows = Named("dim", "d0")
    inputs = (
        tensor("uint8", rows, _DEPTH),
        tensor("uint8", _DEPTH, _WIDTH),
        tensor("float8_e4m3fn", rows, 512),
        tensor("float8_e4m3fn", 512, _WIDTH),
        tensor("float32", 1),
        tensor("bfloat16", rows, _WIDTH),
        tensor("uint8", 33554432),
        None,
    )
    parts: dict[str, Any] = {
        "environment": ENVIRONMENT,
        "op": _OP,
        "runner": RunnerIdentity(f"flashinfer.gemm.gemm_base:{_RUNNER}", {"use_8x4_sf_layout": True, "block": 16}),
        "inputs": inputs,
        "arguments": {},
        "profile": ({"bucket": _BUCKET, "rounding": Named("rounding", "floor")},),
        "policy": {"execution": "eager", "l2": "hot", "replays": 1, "timer": "events"},
        "extras": (True, Named("dtype", "torch.bfloat16")),
    }
    return sample_record(key=TuneKey(**parts), times_ns={-1: 20000, 0: 15000, 1: 16000, 2: 14000})


class Records:
    """Records by number; ``sealed`` gives the very bytes that publishing would write."""

    def __init__(self) -> None:
        record = template()
        self._key = record.key.canonical
        self._data = seal(record.to_value())
        start = self._data.index(self._key)
        self._before, self._after = self._data[:start], self._data[start + len(self._key) : -_CHECK_BYTES]

    def key(self, number: int) -> bytes:
        """Return the canonical bytes of a key. All replacements keep their length, so that the bytes stay canonical."""
        bucket, rest = number % BUCKETS, number // BUCKETS
        shape, rest = rest % SHAPES, rest // SHAPES
        op, runner = rest % OPS, rest // OPS
        changes = (
            (_OP.encode(), b"op_%02d" % op),
            (_RUNNER.encode(), b"Backend%d" % runner),
            (b"\xcd" + _WIDTH.to_bytes(2, "big"), b"\xcd" + (1024 + 16 * shape).to_bytes(2, "big")),
            (b"\xcd" + _DEPTH.to_bytes(2, "big"), b"\xcd" + (2048 + 16 * (shape // 5)).to_bytes(2, "big")),
            (b"\xcd" + _BUCKET.to_bytes(2, "big"), b"\xcd" + (256 + 256 * bucket).to_bytes(2, "big")),
        )
        key = self._key
        for old, new in changes:
            key = key.replace(old, new)
        return key

    def digest(self, number: int) -> Digest:
        return key_digest(self.key(number))

    def sealed(self, number: int) -> bytes:
        front = self._before + self.key(number) + self._after
        return front + blake2b(front, digest_size=_CHECK_BYTES, person=b"fi_cachestore/e1").digest()

    def in_order(self, numbers: Iterable[int]) -> Iterator[Sealed]:
        """Yield records in the order of their digests, never holding more than their numbers."""
        for digest, number in sorted((self.digest(number), number) for number in numbers):
            yield Sealed(digest, 0, self.sealed(number), "")


def write_packed(root: Path, count: int) -> Pack:
    """Put ``count`` records into one pack of a root."""
    files = OsFileSystem()
    return write_pack(root / PACKS_FOLDER, Records().in_order(range(count)), 1, reader=files, writer=files)


def write_loose(root: Path, count: int) -> int:
    """Put ``count`` loose records into a root; return their bytes in all."""
    records, size_bytes = Records(), 0
    for number in range(count):
        data = records.sealed(number)
        path = entry_path(root / "objects", records.digest(number), 0)
        try:
            path.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        size_bytes += len(data)
    return size_bytes
