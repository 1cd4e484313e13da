from tests.adapter.runners import LayoutRunner


class TwinRunner(LayoutRunner):
    variant = 1
