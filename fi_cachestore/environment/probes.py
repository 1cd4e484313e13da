"""Probes: how each facet is determined. They start no process, and import torch and flashinfer only when called."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from fi_cachestore.config import declared
from fi_cachestore.environment.facets import ABSENT, Device, Role

KERNEL_VARIABLES: Final = (
    "B12X_*",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUTE_DSL_ARCH",
    "FLASHINFER_AUTOTUNE_TIMER",
    "FLASHINFER_B12X_FORCE_MOE_W4A16",
    "FLASHINFER_B12X_MICRO_SHARE_INPUT",
    "FLASHINFER_B12X_STATIC_COMPACT_CUTOVER_PAIRS",
    "FLASHINFER_CONFIDENTIAL_COMPUTE",
    "FLASHINFER_CUBINS_REPOSITORY",
    "FLASHINFER_CUBIN_CHECKSUM_DISABLED",
    "FLASHINFER_CUDA_ARCH_LIST",
    "FLASHINFER_CUDNN_FROST_PTXAS",
    "FLASHINFER_DISABLE_TINYGEMM2_SM100",
    "FLASHINFER_EXTRA_CFLAGS",
    "FLASHINFER_EXTRA_CUDAFLAGS",
    "FLASHINFER_JIT_DEBUG",
    "FLASHINFER_NVCC",
    "FLASHINFER_NVFP4_*",
    "FLASHINFER_PRIMS_TS_COMPILE_OPTIONS",
    "FLASHINFER_PRIMS_TS_DEBUG_CHECKS",
    "FLASHINFER_SPECIALIZED_KERNEL_DISABLE",
    "NVIDIA_TF32_OVERRIDE",
    "TRTLLM_ENABLE_PDL",
)
"""Environment variables that change kernels or candidates of tunable ops, found by reading FlashInfer 0.7.2.post1.

``*`` stands for a library with switches of its own: one that changes nothing costs a new tuning, one that is overlooked a wrong tactic.
"""

_DIRECTORIES: Final = "_DIR"

_CUTLASS_DSL_PACKAGES: Final = tuple(f"nvidia-cutlass-dsl{part}" for part in ("", "-libs-base", "-libs-core", "-libs-cu12", "-libs-cu13"))
_KERNEL_PACKAGES: Final = ("flashinfer-cubin", "flashinfer-jit-cache")


@dataclass(frozen=True, slots=True)
class Probe:
    """One facet and how to determine it: ``function`` returns text, or ``None`` (or raises) where it cannot."""

    name: str
    role: Role
    function: Callable[[Device], str | None]


def default_probes(device: Device) -> tuple[Probe, ...]:
    """Return the probes for a kind of device."""
    return CUDA_PROBES if device.type == "cuda" else CPU_PROBES


def _flashinfer_version(_: Device) -> str | None:
    from flashinfer.version import __version__

    return None if "unknown" in __version__ else str(__version__)


def _flashinfer_commit(_: Device) -> str | None:
    from flashinfer import version

    commit = getattr(version, "__git_commit__", None) or getattr(version, "__git_version__", "unknown")
    return None if commit == "unknown" else str(commit)


def _kernel_artifacts(_: Device) -> str | None:
    from flashinfer.artifacts import CheckSumHash

    sums = "\n".join(f"{name}={digest}" for name, digest in sorted(CheckSumHash.map_checksums.items()))
    packages = ";".join(f"{name}=={_package(name)}" for name in _KERNEL_PACKAGES)
    return blake2b(f"{sums}\n{packages}".encode(), digest_size=16).hexdigest()


def _variables(_: Device) -> str:
    found = sorted(declared(KERNEL_VARIABLES).items())
    return ";".join(f"{name}={value}" for name, value in found if not name.endswith(_DIRECTORIES))


def _cuda_runtime(_: Device) -> str | None:
    import torch

    return torch.version.cuda


def _gpu_name(device: Device) -> str | None:
    import torch

    return torch.cuda.get_device_name(device.index) or None


def _compute_capability(device: Device) -> str:
    return "{}.{}".format(*_cuda_properties(device, "major", "minor"))


def _sm_count(device: Device) -> str:
    return str(_cuda_properties(device, "multi_processor_count")[0])


def _cuda_properties(device: Device, *names: str) -> tuple[Any, ...]:
    import torch

    properties = torch.cuda.get_device_properties(device.index)
    return tuple(getattr(properties, name) for name in names)


def _cublas(_: Device) -> str | None:
    """The library that torch has loaded; asking it costs no process and no guess about search paths."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if "/libcublas.so" in f"/{path}":
            library = ctypes.CDLL(f"/{path}")
            number = ctypes.c_int()
            parts = []
            for which in range(3):  # MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL of libraryPropertyType
                if library.cublasGetProperty(which, ctypes.byref(number)) != 0:
                    return None
                parts.append(str(number.value))
            return ".".join(parts)
    return None


def _cudnn(_: Device) -> str | None:
    import torch

    if not torch.backends.cudnn.is_available():
        return ABSENT
    version = torch.backends.cudnn.version()
    return str(version) if version else None


@lru_cache(maxsize=64)
def _package(name: str) -> str:
    """Return the version of a package. Asked once per process: each question reads directories, and what is imported does not change."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ABSENT


def _cudnn_frontend(_: Device) -> str:
    return _package("nvidia-cudnn-frontend")


def _cuda_tile(_: Device) -> str:
    return _package("cuda-tile")


def _cutlass_dsl(_: Device) -> str:
    return ";".join(f"{name}=={_package(name)}" for name in _CUTLASS_DSL_PACKAGES)


def _torch_version(_: Device) -> str:
    import torch

    return str(torch.__version__)


def _nvml(device: Device) -> tuple[Any, Any]:
    import pynvml
    import torch

    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device.index).uuid}")


def _driver(device: Device) -> str:
    nvml, _ = _nvml(device)
    return str(nvml.nvmlSystemGetDriverVersion())


def _power_limit(device: Device) -> str:
    nvml, handle = _nvml(device)
    return f"{nvml.nvmlDeviceGetEnforcedPowerLimit(handle)} mW"


def _maximum_clocks(device: Device) -> str:
    nvml, handle = _nvml(device)
    clocks = (nvml.nvmlDeviceGetMaxClockInfo(handle, kind) for kind in (nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM))
    return "SM {} MHz, memory {} MHz".format(*clocks)


def _processor(_: Device) -> str | None:
    """The model name of x86, else the implementer and part numbers of Arm."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, colon, text = line.partition(":")
        fields.setdefault(name.strip(), text.strip() if colon else "")
    if model := fields.get("model name"):
        return model
    arm = [fields.get(name) for name in ("CPU implementer", "CPU part", "CPU variant", "CPU revision")]
    return " ".join(part for part in arm if part) or None


def _thread_count(_: Device) -> str:
    import torch

    return str(torch.get_num_threads())


_COMMON: Final = (
    Probe("flashinfer_version", Role.VALIDITY, _flashinfer_version),
    Probe("flashinfer_commit", Role.VALIDITY, _flashinfer_commit),
    Probe("variables", Role.VALIDITY, _variables),
)
CUDA_PROBES: Final = (
    *_COMMON,
    Probe("kernel_artifacts", Role.VALIDITY, _kernel_artifacts),
    Probe("cuda_runtime", Role.VALIDITY, _cuda_runtime),
    Probe("gpu_name", Role.VALIDITY, _gpu_name),
    Probe("compute_capability", Role.VALIDITY, _compute_capability),
    Probe("sm_count", Role.VALIDITY, _sm_count),
    Probe("cublas", Role.BACKEND, _cublas),
    Probe("cudnn", Role.BACKEND, _cudnn),
    Probe("cudnn_frontend", Role.BACKEND, _cudnn_frontend),
    Probe("cutlass_dsl", Role.BACKEND, _cutlass_dsl),
    Probe("cuda_tile", Role.BACKEND, _cuda_tile),
    Probe("driver", Role.PERFORMANCE, _driver),
    Probe("power_limit", Role.PERFORMANCE, _power_limit),
    Probe("maximum_clocks", Role.PERFORMANCE, _maximum_clocks),
    Probe("torch", Role.PERFORMANCE, _torch_version),
)
CPU_PROBES: Final = (
    *_COMMON,
    Probe("processor", Role.VALIDITY, _processor),
    Probe("thread_count", Role.VALIDITY, _thread_count),
    Probe("torch", Role.VALIDITY, _torch_version),
)
