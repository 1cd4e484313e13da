"""Fresh processes for restarts: forked from a server that has imported torch and FlashInfer and run nothing."""

import multiprocessing
import os
import traceback

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "flashinfer.autotuner", "flashinfer.autotune_cache", "fi_cachestore.adapter.attach"])


def _run(pipe, environ, function, args, kwargs):
    os.environ.clear()  # the server has that of the test which was the first to need it
    os.environ.update(environ)
    try:
        pipe.send((True, function(*args, **kwargs)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        raise


class Fresh:
    """A function running in a fresh process."""

    def __init__(self, function, *args, **kwargs):
        self._pipe, theirs = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_run, args=(theirs, dict(os.environ), function, args, kwargs))
        self.process.start()
        theirs.close()

    def result(self, timeout_s=120):
        """The function's result; an exception in it is raised here with its traceback."""
        if not self._pipe.poll(timeout_s):
            self.process.kill()
            message = f"no result after {timeout_s} s"
            raise TimeoutError(message)
        try:
            ok, value = self._pipe.recv()
        except EOFError:
            self.process.join(30)
            message = f"the process ended with {self.process.exitcode}"
            raise ChildProcessError(message) from None
        self.process.join(30)
        if not ok:
            raise AssertionError(value)
        return value


def fresh(function, *args, **kwargs):
    """Run a function in a fresh process and return its result."""
    return Fresh(function, *args, **kwargs).result()
