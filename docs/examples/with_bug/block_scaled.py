import torch
from flashinfer.autotuner import AutoTuner, DynamicTensorSpec, TunableRunner, TuningConfig

BUCKETS = (16, 64, 256)
CONFIG = TuningConfig(dynamic_tensor_specs=(DynamicTensorSpec((0,), (0,), BUCKETS, lambda m: max(b for b in BUCKETS if b <= max(m, 16))),))


class BlockScaledRunner(TunableRunner):
    """Kernels belong to one layout of the scale factors: 0, 2, 4 to tiles of 128x4, and 1, 3, 5 to tiles of 8x4."""

    def __init__(self):
        self.use_8x4_sf_layout = False

    def with_layout(self, use_8x4_sf_layout):
        self.use_8x4_sf_layout = use_8x4_sf_layout
        return self

    def get_valid_tactics(self, inputs, profile):
        return [2 * number + self.use_8x4_sf_layout for number in range(3)]

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        if tactic != -1 and tactic % 2 != self.use_8x4_sf_layout:
            raise RuntimeError("Invalid sf layout in run")
        a, b = inputs
        return a @ b


def runner_for(use_8x4_sf_layout):
    return BlockScaledRunner().with_layout(use_8x4_sf_layout)


def block_scaled_gemm(a, b, *, use_8x4_sf_layout):
    runner, tactic = AutoTuner.get().choose_one("block_scaled_gemm", [runner_for(use_8x4_sf_layout)], CONFIG, [a, b])
    return runner([a, b], tactic=tactic)


def make_inputs(rows, dtype=torch.float32):
    return [torch.ones(rows, 32, dtype=dtype), torch.ones(32, 64, dtype=dtype)]
