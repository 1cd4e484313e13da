"""The pytest plug-in: fixtures ``key_guard`` and ``legacy_key_guard``, and an option that guards a whole run.

Loaded by every pytest run where this package is installed, so it imports nothing but pytest; what costs is imported when a guard starts.

``key_guard`` fails the test that uses it when two calls made through FlashInfer's tuner, during the test, share a key and their
runners offer different tactics. ``legacy_key_guard`` does the same for FlashInfer's own persisted keys. With ``--key-guard``, or
``key_guard = true`` in the configuration file, one guard spans all tests of the process (each worker of pytest-xdist has its own), from
the end of collection on; the test that completes such a pair fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from fi_cachestore.testing.guard import KeyGuard


_MAX_SHOWN: Final = 5


class _Watch:
    """One guard, and how many of its conflicts have been told."""

    def __init__(self, guard: KeyGuard) -> None:
        self.guard = guard
        self.told_count = 0

    def news(self) -> list[str]:
        """Return the conflicts that are new."""
        new = self.guard.conflicts[self.told_count :]
        self.told_count += len(new)
        return list(map(str, new))


_OF_RUN = pytest.StashKey[_Watch]()
_OF_TEST = pytest.StashKey[list[_Watch]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and its setting."""
    text = "fail tests in which two calls of FlashInfer's tuner share a key and have different tactics"
    parser.getgroup("fi_cachestore").addoption("--key-guard", action="store_true", default=False, help=text)
    parser.addini("key_guard", type="bool", default=False, help=text)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Guard the whole run, where that was asked for."""
    config = session.config
    if not (config.getoption("key_guard") or config.getini("key_guard")) or config.option.collectonly:
        return (yield)
    with _guard() as guard:
        config.stash[_OF_RUN] = _Watch(guard)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that would have passed, so that it can also be expected to fail."""
    yield
    _check(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Look at what came after the test's own code, or before it failed."""
    yield
    _check(item)


def _check(item: pytest.Item) -> None:
    __tracebackhide__ = True
    of_run = item.config.stash.get(_OF_RUN, None)
    watches = [*([] if of_run is None else [of_run]), *item.stash.get(_OF_TEST, [])]
    new = list(dict.fromkeys(text for watch in watches for text in watch.news()))
    if new:
        more = [f"and {len(new) - _MAX_SHOWN} more"] if len(new) > _MAX_SHOWN else []
        pytest.fail("\n".join([*new[:_MAX_SHOWN], *more]), pytrace=False)


@pytest.fixture
def key_guard(request: pytest.FixtureRequest) -> Iterator[KeyGuard]:
    """Fail the test if two of its calls share a key of this library and have different tactics."""
    yield from _guarding(request, _guard())


@pytest.fixture
def legacy_key_guard(request: pytest.FixtureRequest) -> Iterator[KeyGuard]:
    """Fail the test if two of its calls share a persisted key of FlashInfer's and have different tactics."""
    yield from _guarding(request, _guard(legacy=True))


def _guard(*, legacy: bool = False) -> KeyGuard:
    """Import what a guard needs, now; what those libraries warn of as they are imported is nothing of the test's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fi_cachestore.testing.calls import legacy_key
        from fi_cachestore.testing.guard import KeyGuard, cachestore_key
    return KeyGuard(legacy_key if legacy else cachestore_key)


def _guarding(request: pytest.FixtureRequest, guard: KeyGuard) -> Iterator[KeyGuard]:
    request.node.stash.setdefault(_OF_TEST, []).append(_Watch(guard))
    with guard:
        yield guard
