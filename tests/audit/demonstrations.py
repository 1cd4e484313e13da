"""Pairs of calls that show, on a CPU and with FlashInfer's own classes, what its persisted keys miss. Only compiled code is stubbed.

Each demonstration tunes one call, saves with FlashInfer's ``autotune(cache=...)`` or ``autotune_v2``, starts over with a new ``AutoTuner`` that
loads what was saved, and makes the other call. A made-up timer decides which tactic is fastest; keys, tactic lists, files and look-ups
are FlashInfer's. Run one or all with ``python -m tests.audit.demonstrations [NAME ...]``.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from flashinfer.autotune_cache import autotune_v2
from flashinfer.autotuner import AutoTuner, autotune, autotuner
from flashinfer.gemm import gemm_base, gemm_bf16_fp4_cute_dsl, gemm_mm_mxfp8_cute_dsl
from flashinfer.grouped_mm.cute_sm120_fp8_groupwise import core as groupwise

from fi_cachestore.adapter.tactics import own_list
from fi_cachestore.testing.cpu_timing import cpu_timing
from tests.flashinfer_runners import RECIPES
from tests.flashinfer_runners.case import Case, Compiled, bf16, fp8, gpu, one, uint8
from tests.flashinfer_runners.gemm_compiled import bias_at

METADATA = {"flashinfer_version": "0.7.2.post1", "cuda_version": "13.0", "cublas_version": "13", "cudnn_version": "92000", "gpu": "a GPU"}


class Effect(StrEnum):
    """What happens to the second call."""

    ILLEGAL = "a tactic is served that the runner's own list rejects for this call"
    NEVER_RACED = "a tactic is served that was never timed for this call: slower at worst"
    LOST = "what was tuned is not found after the restart: the default is served"


Made = Callable[[], AbstractContextManager[Case]]


@dataclass(frozen=True)
class Demonstration:
    """Two calls, ``tuned`` before and ``served`` after the restart.

    ``prefer`` chooses the tactic that the timer makes fastest; ``kernel`` says what a tactic launches, for calls with equal lists; ``tune``
    has arguments for ``autotune``; ``runs`` says that a launch needs no GPU, ``stores`` which of
    FlashInfer's two can be tuned into. ``differs`` is in words, ``caught`` what FlashInfer itself does about it.
    """

    name: str
    runner: str
    differs: str
    effect: Effect
    caught: str
    tuned: Made
    served: Made
    prefer: Callable[[list[Any], list[Any]], Any] = lambda tuned, served: next((item for item in tuned if item not in served), tuned[-1])
    kernel: Callable[[Case, Any], Any] | None = None
    tune: dict[str, Any] = field(default_factory=dict)
    runs: bool = True
    stores: tuple[str, ...] = ("v1", "v2")


@dataclass(frozen=True)
class Shown:
    """What a demonstration showed."""

    tuned_key: str
    served_key: str
    tuned_list: list[Any]
    served_list: list[Any]
    fastest: Any
    served: Any
    was_hit: bool
    tuned_kernel: Any
    served_kernel: Any
    error: str


# -- how a demonstration runs ---------------------------------------------------------------------------------------------------------


def file_key(case: Case) -> str:
    """Return FlashInfer's persisted key of a call."""
    shapes = tuple(AutoTuner.get()._get_input_sizes(case.inputs))
    extras = case.runner.get_cache_key_extras(case.tensors(case.inputs))
    config = AutoTuner.get()._apply_tuning_overrides(case.config)
    return AutoTuner._get_cache_key(case.op, case.runner, shapes, config, extras).file_key


def listed(case: Case) -> list[Any]:
    """Return the runner's own tactics for the very call."""
    found = own_list(case.runner, case.tensors(case.inputs), AutoTuner.get()._get_input_sizes(case.inputs))
    return [] if found is None else found


@contextmanager
def process(store: str, folder: Path, *, tunes: bool, **options: Any) -> Iterator[None]:
    """Be a process: a tuner of its own, which saves or loads with FlashInfer's first or second kind of store."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(AutoTuner, "_instance", AutoTuner()))
        stack.enter_context(patch.object(autotuner, "_collect_metadata", lambda: dict(METADATA)))
        stack.enter_context(patch.object(AutoTuner, "_create_tensor_like", _zeros))
        stack.enter_context(patch.object(AutoTuner, "_prepare_input_tensors_with_batches", lambda _, tensors, __: [tensors]))
        if store == "v1":
            stack.enter_context(autotune(tunes, cache=str(folder / "v1.json"), **options))
        else:
            stack.enter_context(autotune_v2("tune" if tunes else "replay", cache_root=folder / "v2", **options))
        yield


def _zeros(self: AutoTuner, origin: torch.Tensor, dims: Any, initializer: Any) -> torch.Tensor:
    return torch.zeros([autotuner._get_opt(dim) for dim in dims], dtype=origin.dtype)


def show(demonstration: Demonstration, store: str, folder: Path) -> Shown:
    """Tune, restart, serve."""
    with demonstration.served() as case:
        served_list = listed(case)
    with process(store, folder, tunes=True, **demonstration.tune), demonstration.tuned() as case:
        tuned_list, tuned_key = listed(case), file_key(case)
        fastest = demonstration.prefer(tuned_list, served_list)
        with cpu_timing(lambda _, runner, tactic: 1.0 if tactic == fastest else 2.0):
            chosen = AutoTuner.get().choose_one(case.op, [case.runner], case.config, case.tensors(case.inputs), **case.arguments)
        assert chosen == (case.runner, fastest)
        tuned_kernel = demonstration.kernel(case, fastest) if demonstration.kernel is not None else None
    with process(store, folder, tunes=False, **demonstration.tune), demonstration.served() as case:
        inputs = case.tensors(case.inputs)
        served_key, shapes = file_key(case), tuple(AutoTuner.get()._get_input_sizes(inputs))
        config = AutoTuner.get()._apply_tuning_overrides(case.config)
        was_hit = AutoTuner.get().search_cache(case.op, [case.runner], shapes, config, inputs=inputs)[0]
        _, served = AutoTuner.get().choose_one(case.op, [case.runner], case.config, inputs, **case.arguments)
        error = ""
        served_kernel = None
        try:
            served_kernel = demonstration.kernel(case, served) if demonstration.kernel is not None else None
            if demonstration.runs:
                case.runner(inputs, **{**case.arguments, **case.forward, "tactic": served})
        except Exception as raised:  # noqa: BLE001 - what a runner raises is what is shown
            error = f"{type(raised).__name__}: {raised}"
    return Shown(tuned_key, served_key, tuned_list, served_list, fastest, served, was_hit, tuned_kernel, served_kernel, error)


# -- calls ----------------------------------------------------------------------------------------------------------------------------


def call(name: str, change: Callable[[Case], None] | None = None, **options: Any) -> Made:
    """Return a recipe's call, changed."""

    @contextmanager
    def made() -> Iterator[Case]:
        with RECIPES[name].build(**options) as case:
            if change is not None:
                change(case)
            yield case

    return made


def fp8_bmm(rows: int, out_dtype: torch.dtype = torch.bfloat16) -> Made:
    """Return a call of ``bmm_fp8(backend="cute-dsl")`` on SM107, which wants M, N and K to be multiples of 16."""
    return call("cute_fp8", rows=rows, out_dtype=out_dtype)


def mxfp8_sm107(*, contiguous: bool) -> Made:
    """Return what ``mm_mxfp8(backend="cute-dsl")`` builds of this class on SM107: for an output that is dense, or a slice of a larger one."""

    def change(case: Case) -> None:
        if not contiguous:
            case.inputs[5] = bf16(32, 2 * case.inputs[5].shape[1])[:, : case.inputs[5].shape[1]]

    return call("cute_mxfp8", change, rows=32, low_m_only=contiguous)


def mxfp8_beside_warp(*, contiguous: bool) -> Made:
    """Return the class as it is beside the warp split-K runner, and as it is alone, where the output is a slice of a larger one."""

    def change(case: Case) -> None:
        case.on_gpu = True
        if not contiguous:
            case.inputs[5] = bf16(8, 2 * case.inputs[5].shape[1])[:, : case.inputs[5].shape[1]]

    return call("cute_mxfp8", change, rows=8, beside_warp=contiguous)


def launched(case: Case, tactic: Any) -> Any:
    """Return which compiled function is called on outputs of which dtype, and with which other settings."""
    calls: list[Any] = []

    def spy(self: Compiled, *arguments: Any, **named: Any) -> Any:
        plain = tuple(str(item.dtype) if isinstance(item, torch.Tensor) else item for item in (*arguments, *named.values()))
        calls.append((self.__name__, tuple(item for item in plain if isinstance(item, str | bool))))
        return self._results.get(self.__name__)

    with patch.object(Compiled, "__call__", spy):
        case.runner(case.tensors(case.inputs), **{**case.arguments, **case.forward, "tactic": tactic})
    return calls


def compiled(case: Case, tactic: Any) -> Any:
    """Return the key under which the class keeps the kernel that it compiles for a tactic."""
    keys: list[Any] = []

    def compile_gemm(_: Any, key: Any, *__: Any, **___: Any) -> Any:
        keys.append(key)
        return Compiled(), None

    with ExitStack() as stack:
        for owner in (gemm_base, gemm_mm_mxfp8_cute_dsl):
            stack.enter_context(patch.object(owner, "_compile_block_scaled_gemm", compile_gemm))
        case.runner(case.tensors(case.inputs), tactic=tactic)
    return keys[-1]


def gemv(rows: int) -> Made:
    """Return a call of the BF16 x FP4 GEMM on SM12x whose weights are large enough for the matrix-vector kernel."""

    def change(case: Case) -> None:
        columns, k = 16384, 512
        case.inputs[:] = [bf16(rows, k), torch.zeros(k // 16, 2 * columns, dtype=torch.int32), uint8(k // 16, columns), one()]
        case.inputs += [torch.bfloat16, bf16(rows, columns), 16]

    @contextmanager
    def made() -> Iterator[Case]:
        kernel = patch.object(gemm_bf16_fp4_cute_dsl, "_get_cute_dsl_bf16_fp4_gemv", lambda *_, **__: Compiled())
        with (
            kernel,
            patch.object(gemm_bf16_fp4_cute_dsl, "_get_cache_buf", lambda *_: uint8(1024)),
            call("cute_bf16_fp4", change)() as case,
        ):
            yield case

    return made


def is_gemv(tactics: list[Any], _: list[Any]) -> Any:
    """Return a tactic that is the matrix-vector kernel."""
    configs = gemm_bf16_fp4_cute_dsl._bf16_fp4_cute_dsl_tactic_configs(16384, 512, 148)
    return next(tactic for tactic in tactics if configs[tactic][7] == "gemv")


def moe_on_device(index: int) -> Made:
    """Return a call of the SM120 groupwise MoE GEMM on one of a host's equal GPUs."""

    @contextmanager
    def made() -> Iterator[Case]:
        module = Compiled()
        experts, n, k = 4, 256, 4096
        inputs = [fp8(64, k), fp8(experts, n, k), torch.zeros(k // 128, 64), torch.zeros(experts, k // 128, n // 128)]
        inputs.append(torch.zeros(experts + 1, dtype=torch.int32))
        runner = groupwise._CuteSm120Fp8MoeRunner(bf16(64, n), False, (1, 128, 128), "MN")
        stub = patch.object(groupwise, "get_gemm_sm120_module_cute_fp8", lambda: module)
        with gpu((12, 0)), stub, patch.object(torch.cuda, "current_device", lambda: index):
            yield Case(runner, "cute_sm120_fp8_groupwise_moe", groupwise._FP8_MOE_TUNING_CONFIG, inputs, module.launches)

    return made


def _give_tactics(case: Case) -> None:
    """Let the stubbed module have four kernels."""
    module = next(
        cell.cell_contents
        for method in (type(case.runner).get_valid_tactics, type(case.runner).forward)
        for cell in method.__closure__ or ()
        if isinstance(cell.cell_contents, Compiled)
    )
    module._results |= dict.fromkeys((f"{kind}_gemm_tactic_num" for kind in ("fp8", "bf16", "fp4", "mxfp8", "tgv")), 4)
    for name in tuple(vars(module)):
        if name.endswith("_tactic_num"):
            delattr(module, name)


def _tgv_kernel(case: Case, tactic: Any) -> Any:
    from flashinfer.gemm.kernels import tgv_gemm_cute_ext

    asked: list[Any] = []

    def get(*arguments: Any, **named: Any) -> Any:
        asked.append((*arguments, *sorted(named.items())))
        return Compiled()

    with patch.object(tgv_gemm_cute_ext, "_get_compiled_cute_ext_kernel", get):
        case.runner(case.tensors(case.inputs), tactic=tactic)
    return asked[-1]


DEMONSTRATIONS: tuple[Demonstration, ...] = (
    Demonstration(
        "fp8-size",
        "CuteDslFp8GemmRunner",
        "M: 256, the bucket that is tuned, against 208, which maps to it",
        Effect.ILLEGAL,
        "nothing: the launch indexes the table of configurations; the class's comment says that such a configuration is an illegal instruction",
        fp8_bmm(256),
        fp8_bmm(208),
        stores=("v1",),  # autotune_v2 prepares the default at every bucket, which raises where no configuration fits, at M = 1
    ),
    Demonstration(
        "fp8-out-dtype",
        "CuteDslFp8GemmRunner",
        "the output's dtype, bfloat16 against float16",
        Effect.NEVER_RACED,
        "nothing: another kernel is compiled for the same tactic",
        fp8_bmm(512),
        fp8_bmm(512, torch.float16),
        kernel=launched,
        stores=("v1",),
    ),
    Demonstration(
        "bf16-fp4-rounding",
        "CuteDslBf16Fp4Runner",
        "M: 1 against 5, with FlashInfer's own tuning_buckets=(1, 64), which round down",
        Effect.ILLEGAL,
        "nothing before the launch; forward raises ValueError, which ends the call",
        gemv(1),
        gemv(5),
        is_gemv,
        tune={"tuning_buckets": (1, 64)},
    ),
    Demonstration(
        "sm90-moe-experts",
        "CuteDslFusedMoESm90Runner",
        "num_experts: 8 against 64, with as many local experts",
        Effect.NEVER_RACED,
        "nothing",
        call("cute_moe_sm90", rows=64, num_experts=8),
        call("cute_moe_sm90", rows=64, num_experts=64),
    ),
    Demonstration(
        "mxfp8-low-m-only",
        "CuteDSLMxfp8GemmRunner",
        "low_m_only, which mm_mxfp8 sets on SM107 where the output is contiguous",
        Effect.NEVER_RACED,
        "forward takes its fallback for split-K tactics and tiles that do not fit, not for tactics of the other list",
        mxfp8_sm107(contiguous=False),
        mxfp8_sm107(contiguous=True),
    ),
    Demonstration(
        "mxfp8-beside-warp",
        "CuteDSLMxfp8GemmRunner",
        "whether the warp split-K runner stands beside it, which depends on the output's being contiguous",
        Effect.NEVER_RACED,
        "nothing: one tactic was timed where the class alone has over a hundred",
        mxfp8_beside_warp(contiguous=True),
        mxfp8_beside_warp(contiguous=False),
        lambda tuned, _: tuned[0],
        runs=False,
    ),
    *(
        Demonstration(
            f"{name.replace('_', '-')}-out-dtype",
            runner,
            "the output's dtype, bfloat16 against float16",
            Effect.NEVER_RACED,
            "nothing: tactics are positions in one table, whose kernels are compiled per output dtype",
            call(name, _give_tactics),
            call(name, _give_tactics, out_dtype=torch.float16),
            kernel=launched,
        )
        for name, runner in (
            ("cutlass_fp8_sm100", "CutlassFp8GemmRunner"),
            ("cutlass_bf16", "CutlassBf16GemmRunner"),
            ("cutlass_fp4", "CutlassFp4GemmRunner"),
            ("cutlass_mxfp8", "CutlassMxfp8GemmRunner"),
        )
    ),
    *(
        Demonstration(
            f"{name.replace('_', '-')}-{what.replace('_', '-')}",
            runner,
            words,
            Effect.NEVER_RACED,
            "nothing: another kernel is compiled for the same tactic",
            call(name),
            call(name, **{what: value}),
            kernel=compiled,
        )
        for name, runner in (("b12x_fp4", "B12xFp4GemmRunner"), ("b12x_mxfp8", "B12xMxfp8GemmRunner"))
        for what, value, words in (
            ("out_dtype", torch.float16, "the output's dtype, bfloat16 against float16"),
            ("enable_pdl", False, "enable_pdl, which mm_fp4 takes from its caller"),
        )
        if (name, what) != ("b12x_mxfp8", "enable_pdl")  # mm_mxfp8 passes True always
    ),
    Demonstration(
        "tgv-pdl",
        "TGVRunner",
        "pdl, which mm_bf16 takes from its caller",
        Effect.NEVER_RACED,
        "nothing: another kernel is compiled for the same tactic",
        call("tgv"),
        call("tgv", pdl=True),
        kernel=_tgv_kernel,
    ),
    Demonstration(
        "tgv-cpp-pdl",
        "TGVGemmRunner",
        "pdl, which tgv_gemm_sm100 takes from its caller",
        Effect.NEVER_RACED,
        "nothing: the same tactic is launched in another way",
        call("tgv_cpp", _give_tactics),
        call("tgv_cpp", _give_tactics, pdl=True),
        kernel=launched,
    ),
    Demonstration(
        "cublaslt-size",
        "CublasltBf16GemmRunner",
        "M: 128 against 100, which maps to it: the raw M is in the extras",
        Effect.LOST,
        "nothing: only sizes that were tuned themselves are found; a tactic of another M would index another list, so finding it would be worse",
        call("cublaslt_bf16", rows=128),
        call("cublaslt_bf16", rows=100),
        lambda tuned, _: tuned[1],
    ),
    Demonstration(
        "cublaslt-alignment",
        "CublasltBf16GemmRunner",
        "the bias's address: a multiple of 256 bytes against one of 2",
        Effect.LOST,
        "nothing; cuBLASLt may list other algorithms there, so finding it would be worse",
        call("cublaslt_bf16", rows=128, bias=bias_at(256)),
        call("cublaslt_bf16", rows=128, bias=bias_at(2)),
        lambda tuned, _: tuned[1],
    ),
    Demonstration(
        "sm120-moe-device",
        "_CuteSm120Fp8MoeRunner",
        "the device's index: 0 against 1, GPUs of one kind",
        Effect.LOST,
        "nothing: what one rank of a host tunes no other finds",
        moe_on_device(0),
        moe_on_device(1),
    ),
)


def main() -> None:
    """Run the demonstrations named on the command line, or all, and print what they show."""
    wanted = sys.argv[1:]
    for demonstration in DEMONSTRATIONS:
        if wanted and demonstration.name not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            shown = show(demonstration, "v1", Path(folder))
        lengths = f"{len(shown.tuned_list)} and {len(shown.served_list)}"
        print(f"{demonstration.name}: {demonstration.runner}")
        print(f"  differs        {demonstration.differs}")
        print(f"  key            {shown.served_key}")
        print(f"  same key       {shown.tuned_key == shown.served_key}")
        print(f"  lists          {lengths} tactics, equal: {shown.tuned_list == shown.served_list}")
        print(f"  tuned          {shown.fastest!r} {shown.tuned_kernel or ''}")
        print(f"  after restart  {shown.served!r} {shown.served_kernel or ''} {shown.error}")
        print(f"  effect         {demonstration.effect}")
        print(f"  caught         {demonstration.caught}")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
