"""Runners of the rank tests."""

from flashinfer.autotuner import TunableRunner


class Backend(TunableRunner):
    """Three tactics whose times lie within the noise."""

    speed = 1.0

    def get_valid_tactics(self, inputs, profile):
        return [0, 1, 2]

    def forward(self, inputs, tactic=-1, do_preparation=False, **kwargs):
        return inputs[0]

    def time_ms(self, tactic):
        return self.speed + 0.01 * (tactic % 3)


class Other(Backend):
    """Another backend, as fast."""

    speed = 1.005
