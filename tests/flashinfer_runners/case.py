"""What the recipes are made of: stubs for compiled code, a GPU to ask about, and the recipe table."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from cutlass.cutlass_dsl import CuTeDSL
from flashinfer import utils
from flashinfer.autotuner import TunableRunner, TuningConfig
from flashinfer.cute_dsl import utils as cute_utils

SM_COUNT = 148


class LaunchedError(Exception):
    """A stub was called, and what comes after it needs what it would have returned."""


class Compiled(types.ModuleType):
    """Compiled code, which counts as a resource as TVM-FFI's modules and functions do.

    Every attribute is compiled code again. ``results`` says what a function of some name returns, or raises; ``launches`` collects the
    names that were called, so that a test can tell that a forward call got that far.
    """

    def __init__(self, name: str = "compiled", launches: list[str] | None = None, **results: Any) -> None:
        super().__init__(name)
        self.launches = [] if launches is None else launches
        self._results = results

    def __getattr__(self, name: str) -> Compiled:
        if name.startswith("__"):
            raise AttributeError(name)
        made = Compiled(name, self.launches, **self._results)
        setattr(self, name, made)
        return made

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.launches.append(self.__name__)
        result = self._results.get(self.__name__)
        if isinstance(result, LaunchedError):
            raise result
        return result

    def spec(self, *_: Any, **__: Any) -> SimpleNamespace:
        """Stand in for a ``gen_*`` function: a JIT spec whose build gives this module."""
        return SimpleNamespace(build_and_load=lambda: self, get_library_paths=list)

    def compiler(self, *_: Any, **__: Any) -> Compiled:
        """Stand in for a function that compiles a kernel and returns it."""
        return self


class OnGpu(torch.Tensor):
    """A CPU tensor that says it lies on a GPU, for forward calls that look."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    def get_device(self) -> int:
        return 0


@dataclass
class Case:
    """One call of ``choose_one``, and how to run it.

    ``forward`` has the arguments that a forward call needs besides ``arguments``; ``other_inputs`` are what it runs on where that is not
    what the key is for, as while tuning; ``on_gpu`` says that it wants tensors on a GPU.
    """

    runner: TunableRunner
    op: str
    config: TuningConfig
    inputs: list[Any]
    launches: list[str]
    arguments: dict[str, Any] = field(default_factory=dict)
    forward: dict[str, Any] = field(default_factory=dict)
    other_inputs: list[Any] | None = None
    on_gpu: bool = False

    def run(self) -> None:
        """Run the runner on its inputs, as a tuned call does."""
        with contextlib.suppress(LaunchedError):
            self.runner(self.tensors(self.other_inputs or self.inputs), **self.arguments, **self.forward)

    def tensors(self, inputs: list[Any]) -> list[Any]:
        """Return inputs for a method of the runner."""
        return [item.as_subclass(OnGpu) if self.on_gpu and isinstance(item, torch.Tensor) else item for item in inputs]


@dataclass(frozen=True)
class Recipe:
    """How to build one runner class.

    ``differs`` has parameters whose change must change the digest, ``same`` those that must not. ``fills`` names what a forward call fills.
    """

    type: str
    name: str
    build: Callable[..., AbstractContextManager[Case]]
    differs: Mapping[str, Mapping[str, Any]]
    same: Mapping[str, Mapping[str, Any]]
    fills: str | None


RECIPES: dict[str, Recipe] = {}


def recipe(
    runner_type: str,
    *,
    differs: Mapping[str, Mapping[str, Any]],
    same: Mapping[str, Mapping[str, Any]] | None = None,
    fills: str | None = None,
) -> Callable[[Callable[..., Iterator[Case]]], Callable[..., AbstractContextManager[Case]]]:
    """Register a generator that builds a case, under its own name."""

    def register(generator: Callable[..., Iterator[Case]]) -> Callable[..., AbstractContextManager[Case]]:
        build = contextmanager(generator)
        name = generator.__name__
        assert name not in RECIPES
        RECIPES[name] = Recipe(runner_type, name, build, differs, same or {}, fills)
        return build

    return register


@contextmanager
def gpu(capability: tuple[int, int] = (10, 0)) -> Iterator[None]:
    """Answer every question about the CUDA device as a GPU of this capability would."""
    major, minor = capability
    properties = SimpleNamespace(major=major, minor=minor, multi_processor_count=SM_COUNT, name="a GPU")
    cuda = {
        "device": lambda _: contextlib.nullcontext(),
        "current_blas_handle": lambda: 1,
        "current_device": lambda: 0,
        "current_stream": lambda *_: MagicMock(cuda_stream=0),
        "get_device_capability": lambda *_: capability,
        "get_device_properties": lambda *_: properties,
        "is_current_stream_capturing": lambda: False,
        "stream": lambda _: contextlib.nullcontext(),
    }
    with ExitStack() as stack:
        for name, answer in cuda.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch.object(CuTeDSL._get_dsl().envar, "arch", f"sm_{major}{minor}a"))
        everywhere(stack, "get_compute_capability", utils.get_compute_capability, lambda _: capability)
        everywhere(stack, "get_device_sm_count", utils.get_device_sm_count, lambda _: SM_COUNT)
        everywhere(stack, "get_max_active_clusters", cute_utils.get_max_active_clusters, lambda _: SM_COUNT)
        yield


def everywhere(stack: ExitStack, name: str, original: object, answer: Callable[..., Any]) -> None:
    """Replace a function in every module of FlashInfer that has imported it."""
    for module in _holders(name, original, len(sys.modules)):
        stack.enter_context(patch.object(module, name, answer))


@functools.cache
def _holders(name: str, original: object, module_count: int) -> list[types.ModuleType]:
    flashinfer = [module for key, module in list(sys.modules.items()) if key.partition(".")[0] == "flashinfer"]
    return [module for module in flashinfer if vars(module).get(name) is original]


def fresh(factory: Any, *arguments: Any) -> Any:
    """Call a cached factory without its cache, so that what it makes holds this test's stub and nobody else sees it."""
    return factory.__wrapped__(*arguments)


def uint8(*shape: int) -> torch.Tensor:
    """Return bytes: packed values, scales or a workspace. Nothing reads them."""
    return torch.empty(shape, dtype=torch.uint8)


def bf16(*shape: int) -> torch.Tensor:
    """Return a bfloat16 tensor that nothing reads."""
    return torch.empty(shape, dtype=torch.bfloat16)


def fp8(*shape: int) -> torch.Tensor:
    """Return a float8 tensor that nothing reads."""
    return torch.empty(shape, dtype=torch.float8_e4m3fn)


def one() -> torch.Tensor:
    """Return a scale."""
    return torch.ones(1)
