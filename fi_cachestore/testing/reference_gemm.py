"""A block-scaled GEMM on CPU, tuned like FlashInfer's: the smallest thing that shows the fault this library exists for.

``out = (a * scale_a) @ (b * scale_b).T`` with one scale per row and 16 columns. The scales of ``a`` lie in one of two swizzled layouts
of TensorRT-LLM: tiles of 128 x 4 or of 8 x 4. Tactics belong to a layout, and one of the other layout raises ``Invalid sf layout in
run``, as FlashInfer's ``TrtllmGemmRunner`` did when vLLM replayed a stored tactic (vllm-project/vllm#43119). As it was then, the
layout is a constructor parameter and nothing else tells the two apart.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from flashinfer.autotuner import ConstraintSpec, DynamicTensorSpec, OptimizationProfile, TunableRunner, TuningConfig

from fi_cachestore.adapter.contracts import Contract
from fi_cachestore.adapter.roles import Role
from fi_cachestore.adapter.sources import implementation_digest, type_name

try:
    from flashinfer.autotuner import make_bucket_mapper
except ImportError:  # FlashInfer before 0.6.14
    from flashinfer.fused_moe.utils import make_bucket_mapper  # type: ignore[attr-defined, no-redef]

BLOCK: Final = 16
"""Columns per scale."""

OP: Final = "reference_block_scaled_gemm"
_CHUNK_ROWS: Final = (0, 64, 16, 4)
"""What the tactics of a layout do: rows per step, 0 for all at once. More steps are slower."""


def sf_tile_rows(*, use_8x4_sf_layout: bool) -> int:
    """Return the rows of one tile of scales."""
    return 8 if use_8x4_sf_layout else 128


def sf_numel(rows: int, columns: int, *, use_8x4_sf_layout: bool) -> int:
    """Return the length of the swizzled buffer for ``rows`` x ``columns`` scales, padded to whole tiles."""
    tile = sf_tile_rows(use_8x4_sf_layout=use_8x4_sf_layout)
    return -(-rows // tile) * tile * -(-columns // 4) * 4


def sf_offsets(rows: int, columns: int, *, use_8x4_sf_layout: bool) -> torch.Tensor:
    """Return where the scale of each (row, column) lies: ``int64[rows, columns]`` offsets into the swizzled buffer.

    128x4: ``((m / 128) * kt + k / 4) * 512 + (m % 32) * 16 + (m % 128 / 32) * 4 + k % 4``; 8x4: ``((m / 8) * kt + k / 4) * 32 +
    (m % 8) * 4 + k % 4`` with ``kt`` tiles per row of tiles (TensorRT-LLM, ``quantization.h``).
    """
    m = torch.arange(rows).unsqueeze(1)
    k = torch.arange(columns).unsqueeze(0)
    tiles_per_row = -(-columns // 4)
    if use_8x4_sf_layout:
        return ((m // 8) * tiles_per_row + k // 4) * 32 + (m % 8) * 4 + k % 4
    return ((m // 128) * tiles_per_row + k // 4) * 512 + (m % 32) * 16 + (m % 128 // 32) * 4 + k % 4


def swizzle(scales: torch.Tensor, *, use_8x4_sf_layout: bool) -> torch.Tensor:
    """Return ``float32[rows, columns]`` scales as a swizzled buffer."""
    rows, columns = scales.shape
    buffer = torch.zeros(sf_numel(rows, columns, use_8x4_sf_layout=use_8x4_sf_layout))
    buffer[sf_offsets(rows, columns, use_8x4_sf_layout=use_8x4_sf_layout)] = scales
    return buffer


class ReferenceGemmRunner(TunableRunner):
    """The GEMM as a runner. Inputs: ``a`` float32[M, K], ``b`` float32[N, K], swizzled scales of ``a``, scales of ``b`` [N, K/16], out."""

    def __init__(self, *, use_8x4_sf_layout: bool) -> None:
        """Work on one of the two layouts."""
        self._use_8x4_sf_layout = use_8x4_sf_layout

    def get_valid_tactics(self, inputs: list[torch.Tensor], profile: OptimizationProfile) -> list[int]:  # noqa: ARG002
        """Return the tactics of the runner's layout: even numbers for 128x4, odd ones for 8x4."""
        return [2 * position + self._use_8x4_sf_layout for position in range(len(_CHUNK_ROWS))]

    def forward(self, inputs: list[torch.Tensor], tactic: Any = -1, do_preparation: bool = False, **_: Any) -> torch.Tensor:  # noqa: FBT001, FBT002
        """Compute into ``out`` and return it.

        Raises:
            RuntimeError: ``tactic`` belongs to the other layout.
        """
        a, b, a_scales, b_scales, out = inputs
        if do_preparation:
            return out
        position, layout = divmod(2 * (len(_CHUNK_ROWS) - 1) + self._use_8x4_sf_layout if tactic == -1 else tactic, 2)
        if bool(layout) != self._use_8x4_sf_layout:
            message = "Check failed: (config.mOptions.mSfLayoutB == mOptions.sfLayoutB) is false: Invalid sf layout in run"
            raise RuntimeError(message)
        offsets = sf_offsets(a.shape[0], a.shape[1] // BLOCK, use_8x4_sf_layout=self._use_8x4_sf_layout)
        scaled_a = a * a_scales[offsets].repeat_interleave(BLOCK, dim=1)
        scaled_b = b * b_scales.repeat_interleave(BLOCK, dim=1)
        step = _CHUNK_ROWS[position] or a.shape[0]
        for row in range(0, a.shape[0], step):
            torch.matmul(scaled_a[row : row + step], scaled_b.T, out=out[row : row + step])
        return out


def tuning_config(*, use_8x4_sf_layout: bool, buckets: tuple[int, ...] = (8, 32, 128)) -> TuningConfig:
    """Return the config that the op is tuned with: M is dynamic; output rows and the length of the scale buffer follow from it."""

    def numel(shapes: tuple[tuple[int, ...], ...]) -> int:
        return sf_numel(shapes[0][0], shapes[0][1] // BLOCK, use_8x4_sf_layout=use_8x4_sf_layout)

    return TuningConfig(
        dynamic_tensor_specs=(DynamicTensorSpec((0,), (0,), buckets, make_bucket_mapper(buckets)),),
        constraint_specs=(ConstraintSpec(2, 0, numel), ConstraintSpec(4, 0, lambda shapes: shapes[0][0])),
    )


def mistaken_contract() -> Contract:
    """Return a contract as a careless reviewer might write it: it calls the layout a value that selects no kernel."""
    digest = implementation_digest(ReferenceGemmRunner, TunableRunner)
    roles = {"_use_8x4_sf_layout": Role.DYNAMIC}
    return Contract(type=type_name(ReferenceGemmRunner), fingerprint=(digest or "")[:16], roles=roles, backends=())


def make_inputs(rows: int, columns: int, depth: int, *, use_8x4_sf_layout: bool, seed: int = 0) -> list[torch.Tensor]:
    """Return inputs for ``M = rows``, ``N = columns``, ``K = depth`` (a multiple of 16)."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, depth, generator=generator)
    b = torch.randn(columns, depth, generator=generator)
    a_scales = torch.rand(rows, depth // BLOCK, generator=generator)
    b_scales = torch.rand(columns, depth // BLOCK, generator=generator)
    return [a, b, swizzle(a_scales, use_8x4_sf_layout=use_8x4_sf_layout), b_scales, torch.empty(rows, columns)]


def plain_result(inputs: list[torch.Tensor], *, use_8x4_sf_layout: bool) -> torch.Tensor:
    """Return the same product by a plain matmul in float64, for checking."""
    a, b, a_scales, b_scales, _ = (item.double() for item in inputs)
    offsets = sf_offsets(a.shape[0], a.shape[1] // BLOCK, use_8x4_sf_layout=use_8x4_sf_layout)
    scales = a_scales[offsets]
    expanded_a = scales.unsqueeze(2).expand(-1, -1, BLOCK).reshape(a.shape)
    expanded_b = b_scales.unsqueeze(2).expand(-1, -1, BLOCK).reshape(b.shape)
    return (a * expanded_a) @ (b * expanded_b).T


def run(rows: int, columns: int, depth: int, *, use_8x4_sf_layout: bool) -> torch.Tensor:
    """Call the op as an engine would: choose a runner and tactic with FlashInfer's tuner, run it, return the result."""
    from flashinfer.autotuner import AutoTuner

    runner = ReferenceGemmRunner(use_8x4_sf_layout=use_8x4_sf_layout)
    inputs = make_inputs(rows, columns, depth, use_8x4_sf_layout=use_8x4_sf_layout)
    chosen, tactic = AutoTuner.get().choose_one(OP, [runner], tuning_config(use_8x4_sf_layout=use_8x4_sf_layout), inputs)
    result: torch.Tensor = chosen(inputs, tactic=tactic)
    return result
