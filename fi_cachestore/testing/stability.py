"""Whether a call has one key everywhere: described anew by fresh processes that differ in whatever a key must not depend on."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fi_cachestore.config import environment_with
from fi_cachestore.errors import IncompleteKeyError
from fi_cachestore.keys.diff import diff
from fi_cachestore.keys.model import TuneKey
from fi_cachestore.testing import elsewhere
from fi_cachestore.testing.calls import TunedCall

_OTHERWISE: Final = (
    {"PYTHONHASHSEED": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "29501"},
    {"PYTHONHASHSEED": "4294967295", "RANK": "3", "LOCAL_RANK": "3", "MASTER_PORT": "29502"},
)
_TIMEOUT_S: Final = 300.0


def assert_key_stable(call: Callable[[], TunedCall] | str) -> None:
    """Check that a call has the same key in fresh processes with other hash seeds, ranks, ports and working directories.

    ``call`` is a function without parameters that can be imported (not a lambda, not local to a test), or its name as ``"module:name"``.

    Raises:
        AssertionError: the key differs (names the fields), or there is none.
        ValueError: ``call`` is not such a function.
    """
    __tracebackhide__ = True
    place = elsewhere.place_of(call)
    try:
        here = elsewhere.called(place).key()
    except IncompleteKeyError as error:
        raise AssertionError(f"{place.name}: {error}") from error
    with tempfile.TemporaryDirectory(prefix="fi_cachestore_") as folder:
        children = [_start(place, Path(folder), changes) for changes in _OTHERWISE]
        answers = [_answer(child) for child in children]
    for changes, answer in zip(_OTHERWISE, answers, strict=True):
        _compare(place, here, answer, changes)


def _start(place: elsewhere.Place, folder: Path, changes: dict[str, str]) -> subprocess.Popen[str]:
    path = ":".join(str(Path(entry).absolute()) for entry in sys.path)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = environment_with({**changes, "PYTHONPATH": path})
    command = [sys.executable, "-m", elsewhere.__name__, *place]
    return subprocess.Popen(command, text=True, cwd=folder, env=environment, **pipes)  # noqa: S603 - this very interpreter


def _answer(child: subprocess.Popen[str]) -> dict[str, str]:
    __tracebackhide__ = True
    with child:
        try:
            said, complaints = child.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
    if child.returncode != 0:
        raise AssertionError(f"describing the call in a fresh process failed:\n{complaints[-4000:]}")
    answer: dict[str, str] = json.loads(said.splitlines()[-1])
    return answer


def _compare(place: elsewhere.Place, here: TuneKey, answer: dict[str, str], changes: dict[str, str]) -> None:
    __tracebackhide__ = True
    setting = ", ".join(f"{name}={text}" for name, text in changes.items())
    if "incomplete" in answer:
        raise AssertionError(f"{place.name} has a key in this process and none in another ({setting}): {answer['incomplete']}")
    there = TuneKey.from_canonical(bytes.fromhex(answer["canonical"]))
    if there == here:
        return
    lines = [f"{place.name} has another key in a fresh process ({setting})", *(f"  {difference}" for difference in diff(here, there))]
    raise AssertionError("\n".join(lines))
