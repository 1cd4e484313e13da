"""A call described in a process of its own: ``python -m fi_cachestore.testing.elsewhere MODULE FILE NAME``."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from fi_cachestore.errors import IncompleteKeyError
from fi_cachestore.testing.calls import TunedCall


class Place(NamedTuple):
    """Where a function is found in any process: its module, that module's file (empty where the name says it), and its name there."""

    module: str
    file: str
    name: str


def place_of(call: Callable[[], TunedCall] | str) -> Place:
    """Return where ``call``, a function or ``"module:name"``, is to be found.

    Raises:
        ValueError: no other process can find it.
    """
    if isinstance(call, str):
        module, colon, name = call.partition(":")
        if not colon or not module or not name:
            raise ValueError(f"{call!r} is not of the form module:name")
        return Place(module, "", name)
    module, name = getattr(call, "__module__", ""), getattr(call, "__qualname__", "")
    file = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" or file is None or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{module}:{name} cannot be imported by another process; define it at the top of a module")
    return Place(module, file, name)


def called(place: Place) -> TunedCall:
    """Import and call the function.

    Raises:
        TypeError: what it gives is no ``TunedCall``.
    """
    function: object = _module(place)
    for part in place.name.split("."):
        function = getattr(function, part)
    call = function() if callable(function) else function
    if not isinstance(call, TunedCall):
        raise TypeError(f"{place.module}:{place.name} gives a {type(call).__name__}, not a TunedCall")
    return call


def _module(place: Place) -> ModuleType:
    """Return the module, under the name that it has in the process that asks: the name of a runner's module is part of its key."""
    if not place.file:
        return importlib.import_module(place.module)
    try:
        found = importlib.import_module(place.module)
    except ModuleNotFoundError:
        found = None
    if found is not None and getattr(found, "__file__", None) == place.file:
        return found
    spec = importlib.util.spec_from_file_location(place.module, place.file)
    assert spec is not None  # noqa: S101 - a source file has a loader
    assert spec.loader is not None  # noqa: S101
    module = sys.modules[place.module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Print the canonical bytes of the key as the last line, or why there is none."""
    call = called(Place(*sys.argv[1:]))
    try:
        answer = {"canonical": call.key().canonical.hex()}
    except IncompleteKeyError as error:
        answer = {"incomplete": str(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
