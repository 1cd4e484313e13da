"""Whether functions have the code and defaults that they had, told of a whole row by one look.

Python announces each reading of ``__code__`` and ``__defaults__`` to audit hooks. From CPython 3.12 on filelock has one, in Python, which
makes a reading take several times as long. What the garbage collector says of a row of functions is announced once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from gc import get_referents
from itertools import chain
from operator import attrgetter, is_
from types import FunctionType
from typing import Final

from fi_cachestore.adapter.readings import getter

Same = Callable[[Sequence[FunctionType]], bool]
"""Whether as many functions have the code and defaults of those that were looked at: the same objects, in the same order."""

_head: Final = attrgetter("__code__", "__globals__", "__builtins__", "__module__")
_body: Final = attrgetter("__code__", "__defaults__", "__kwdefaults__")


def same_as(functions: Sequence[FunctionType]) -> Same:
    """Return what tells whether functions are like these. It keeps none of them."""
    return _by_referents(functions) or same_as_read(functions)


def _by_referents(functions: Sequence[FunctionType]) -> Same | None:
    """Compare what functions refer to; ``None`` where this Python does not tell that as CPython 3.11 to 3.14 do.

    These name, in this order, what is there of: code, globals, builtins, module, defaults, keyword defaults, documentation, name, and more
    (``func_traverse`` in Objects/funcobject.c). Globals and builtins are always there. With the rest in its place up to the documentation,
    no defaults have come in between.
    """
    objects: list[int] = []
    texts: list[int] = []
    count = 0
    for function in functions:
        found = get_referents(function)
        items = [*_head(function)]
        items += [item for item in (function.__defaults__, function.__kwdefaults__) if item is not None]
        items += [function.__doc__, function.__name__]
        if len(found) < len(items) or not all(map(is_, items, found)):
            return None
        if type(function.__module__) is not str or type(function.__doc__) not in (str, type(None)):
            return None
        texts += [count + 3, count + len(items) - 2]
        objects += [count, *range(count + 4, count + len(items) - 2)]
        count += len(found)
    objects_of, texts_of = getter(objects), getter(texts)
    found = get_referents(*functions)
    known, told = objects_of(found), texts_of(found)

    def is_same(others: Sequence[FunctionType]) -> bool:
        found = get_referents(*others)
        return len(found) == count and texts_of(found) == told and False not in map(is_, objects_of(found), known)

    return is_same


def same_as_read(functions: Sequence[FunctionType]) -> Same:
    """Return what ``same_as`` does. It is made in less time, and takes more to tell: for what is asked once or twice."""
    known = [*map(_body, functions)]

    def is_same(others: Sequence[FunctionType]) -> bool:
        return len(others) == len(known) and all(map(is_, chain(*map(_body, others)), chain(*known)))

    return is_same
