"""Keys and records for tests: small, complete, different where asked to be."""

from __future__ import annotations

from typing import Any

from fi_cachestore.keys.canonical import Named, Value
from fi_cachestore.keys.digest import part_digest
from fi_cachestore.keys.model import RunnerIdentity, TuneKey
from fi_cachestore.keys.schema import KeySchema, left_out_value
from fi_cachestore.records.record import Evidence, Measurement, Provenance, Record, TacticSpace


def sample_key(number: int = 0, **changes: Any) -> TuneKey:
    """Return a complete key; another ``number`` gives another key, ``changes`` replace parts."""
    tensor: Value = Named(
        "tensor",
        {
            "dtype": Named("dtype", "torch.bfloat16"),
            "shape": (Named("dim", "d0"), 4096),
            "layout": Named("layout", {"order": (0, 1), "strides": None}),
            "device": "cuda",
        },
    )
    parts: dict[str, Any] = {
        "environment": {"device": "cuda", "gpu_name": "Sample GPU", "flashinfer_version": "0.7.2"},
        "op": "sample_gemm",
        "runner": RunnerIdentity("sample.module:SampleRunner", {"use_8x4_sf_layout": True, "number": number}),
        "inputs": (tensor, None, 3),
        "arguments": {"scale": 1.5},
        "profile": ({"bucket": 64, "rounding": Named("rounding", "floor")},),
        "policy": {"execution": "eager", "l2": "hot", "replays": 1, "timer": "events"},
        "extras": (True, Named("dtype", "torch.float8_e4m3fn")),
    }
    return TuneKey(**(parts | changes))


def sample_record(number: int = 0, *, times_ns: dict[Any, int | None] | None = None, key: TuneKey | None = None) -> Record:
    """Return a record with the given times per tactic; ``None`` is a tactic that failed."""
    times: dict[Any, int | None] = {-1: 2000, 0: 1500, (1, 2): 1000} if times_ns is None else times_ns
    measurements = tuple(Measurement(tactic, time_ns, None if time_ns is not None else "RuntimeError") for tactic, time_ns in times.items())
    provenance = Provenance(1_790_000_000_000_000_000, 5_000_000, "sample-host", 4242, "fi_cachestore 0.1.0", performance={"driver": "580"})
    space = TacticSpace.of([tactic for tactic in times if tactic != -1])
    evidence = Evidence(sample_schema().digest, "sample-boot 4026531836 4242 1000", {"tp_rank": left_out_value("placement", 0)})
    return Record(key or sample_key(number), measurements, space, provenance, evidence, default_raced=-1 in times)


def sample_schema(number: int = 0) -> KeySchema:
    """Return a complete key schema; another ``number`` gives another one."""
    parameters = (("number", "int", "semantic"), ("tp_rank", "int", "placement"), ("use_8x4_sf_layout", "bool", "semantic"))
    environment: dict[str, Value] = {"device": "cuda", "gpu_name": "Sample GPU", "flashinfer_version": "0.7.2"}
    return KeySchema("sample_gemm", f"sample.module:SampleRunner{number or ''}", parameters, part_digest(b"sample"), environment)
