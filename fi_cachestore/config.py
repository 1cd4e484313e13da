"""Settings: the only reader of environment variables, and where each value came from.

Precedence: argument, environment variable (an empty one counts as unset), default.

==========================  ==============================================================================================
variable                    meaning
==========================  ==============================================================================================
FI_CACHESTORE_DIR           the writable root; default ``$XDG_CACHE_HOME/fi_cachestore``, else ``~/.cache/fi_cachestore``
FI_CACHESTORE_PATH          read-only roots, separated by ``:``; an entry ``@`` marks where the writable root is searched
FI_CACHESTORE_TRUST         roots used although someone else owns them or everyone may write to them, separated by ``:``
FI_CACHESTORE_MODE          ``auto``, ``replay``, ``pin``, ``refresh``, ``ephemeral`` or ``off``
FI_CACHESTORE_PIN           the digest of the one bundle that mode ``pin`` serves
FI_CACHESTORE_STRICT        ``1`` or ``0`` (default): whether what the pinned bundle lacks is an error, and not served by the default
FI_CACHESTORE_DURABLE       ``1`` (default) or ``0``: whether a published record survives a power cut
FI_CACHESTORE_MAX_WAIT_S    longest wait for a profile that another process measures, in seconds
FI_CACHESTORE_STALL_S       longest wait for a rank that stays at the same tactic, in seconds
FI_CACHESTORE_DEAD_AFTER_S  how long a rank without a sign of life counts as alive, in seconds
FI_CACHESTORE_ADDRESS       address of this host for the ranks on others; by default several are tried
FI_CACHESTORE_STATE_DIR     where the last sessions' misses are kept for ``fi-cachestore why``; default ``$XDG_STATE_HOME/fi_cachestore``,
                            else ``~/.local/state/fi_cachestore``; ``/dev/null`` keeps none
FI_CACHESTORE_MAX_VALUES    values of one parameter in one op beyond which it is reported as probably dynamic
FI_CACHESTORE_MAX_KEYS      keys of one op in one process beyond which its new calls are tuned in memory
==========================  ==============================================================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from fnmatch import translate
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

from fi_cachestore.errors import ConfigError

T = TypeVar("T")

PREFIX: Final = "FI_CACHESTORE_"
_NAMES: Final = tuple(
    PREFIX + name
    for name in (
        "DIR",
        "PATH",
        "TRUST",
        "MODE",
        "PIN",
        "STRICT",
        "DURABLE",
        "MAX_WAIT_S",
        "STALL_S",
        "DEAD_AFTER_S",
        "ADDRESS",
        "STATE_DIR",
        "MAX_VALUES",
        "MAX_KEYS",
    )
)
WRITABLE_MARK = "@"
_FOLDER: Final = "fi_cachestore"
DEFAULT_MAX_WAIT_S = 600.0
DEFAULT_STALL_S = 120.0
DEFAULT_DEAD_AFTER_S = 15.0
DEFAULT_MAX_VALUES = 256
DEFAULT_MAX_KEYS = 16384


class Mode(StrEnum):
    """What a session may read, tune and publish."""

    AUTO = "auto"
    REPLAY = "replay"
    PIN = "pin"
    REFRESH = "refresh"
    EPHEMERAL = "ephemeral"
    OFF = "off"

    @property
    def publishes(self) -> bool:
        """Whether what is measured goes to the writable root."""
        return self in (Mode.AUTO, Mode.REFRESH)

    @property
    def only_reads(self) -> bool:
        """Whether nothing is measured, and nothing created or written."""
        return self in (Mode.REPLAY, Mode.PIN)


class Setting(NamedTuple, Generic[T]):
    """One value and where it came from: ``argument``, an environment variable's name, or ``default``."""

    value: T
    source: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. ``root`` is ``None`` when no directory can be found, which makes the mode ephemeral."""

    root: Setting[Path | None]
    path: Setting[tuple[str, ...]]
    trusted: Setting[tuple[Path, ...]]
    mode: Setting[Mode]
    pin: Setting[str | None]
    strict: Setting[bool]
    durable: Setting[bool]
    max_wait_s: Setting[float]
    stall_s: Setting[float]
    dead_after_s: Setting[float]
    address: Setting[str | None]
    state: Setting[Path | None]
    max_values: Setting[int]
    max_keys: Setting[int]
    master_address: str | None = None
    """Where torch.distributed meets, if a launcher said so (``MASTER_ADDR``): one more address at which the first rank may be reached."""

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return name, plain value and source of every setting, for people and for JSON."""
        plain = {
            "root": None if self.root.value is None else str(self.root.value),
            "path": list(self.path.value),
            "trusted": [str(root) for root in self.trusted.value],
            "mode": self.mode.value.value,
            "pin": self.pin.value,
            "strict": self.strict.value,
            "durable": self.durable.value,
            "max_wait_s": self.max_wait_s.value,
            "stall_s": self.stall_s.value,
            "dead_after_s": self.dead_after_s.value,
            "address": self.address.value,
            "state": None if self.state.value is None else str(self.state.value),
            "max_values": self.max_values.value,
            "max_keys": self.max_keys.value,
        }
        return {name: {"value": value, "source": getattr(self, name).source} for name, value in plain.items()}


def load(
    *,
    root: str | os.PathLike[str] | None = None,
    mode: str | Mode | None = None,
    pin: str | None = None,
    strict: bool | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Return the effective settings. Reads the environment, never the file system beyond the password database.

    Raises:
        ConfigError: a variable or argument that cannot be understood.
    """
    env = os.environ if environ is None else environ
    return Settings(
        root=_place("FI_CACHESTORE_DIR", "XDG_CACHE_HOME", ".cache", env) if root is None else _argument(Path(root).absolute()),
        path=_setting("FI_CACHESTORE_PATH", env, _entries, default=()),
        trusted=_setting("FI_CACHESTORE_TRUST", env, _paths, default=()),
        mode=_setting("FI_CACHESTORE_MODE", env, _mode, default=Mode.AUTO) if mode is None else _argument(_mode("argument", mode)),
        pin=_setting("FI_CACHESTORE_PIN", env, _text, default=None) if pin is None else _argument(pin),
        strict=_setting("FI_CACHESTORE_STRICT", env, _switch, default=False) if strict is None else _argument(strict),
        durable=_setting("FI_CACHESTORE_DURABLE", env, _switch, default=True),
        max_wait_s=_setting("FI_CACHESTORE_MAX_WAIT_S", env, _seconds, default=DEFAULT_MAX_WAIT_S),
        stall_s=_setting("FI_CACHESTORE_STALL_S", env, _seconds, default=DEFAULT_STALL_S),
        dead_after_s=_setting("FI_CACHESTORE_DEAD_AFTER_S", env, _seconds, default=DEFAULT_DEAD_AFTER_S),
        address=_setting("FI_CACHESTORE_ADDRESS", env, _text, default=None),
        state=_place("FI_CACHESTORE_STATE_DIR", "XDG_STATE_HOME", ".local/state", env),
        max_values=_setting("FI_CACHESTORE_MAX_VALUES", env, _count, default=DEFAULT_MAX_VALUES),
        max_keys=_setting("FI_CACHESTORE_MAX_KEYS", env, _count, default=DEFAULT_MAX_KEYS),
        master_address=env.get("MASTER_ADDR") or None,
    )


def load_understood(
    *, root: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None
) -> tuple[Settings, tuple[ConfigError, ...]]:
    """Return the settings that come of the variables that can be understood, and what is wrong with each of the others.

    A variable of ours that this version does not know is one of the others: it has no effect and may be a misspelt name.
    """
    env = os.environ if environ is None else environ
    ours = sorted(name for name, text in env.items() if name.startswith(PREFIX) and text)
    errors = {name: error for name in ours if (error := _misunderstood(name, env[name])) is not None}
    understood = {name: text for name, text in env.items() if name not in errors}
    return load(root=root, environ=understood), tuple(errors.values())


def _misunderstood(name: str, text: str) -> ConfigError | None:
    if name not in _NAMES:
        closest = get_close_matches(name, _NAMES, n=1, cutoff=0.0)[0]
        return ConfigError(name, text, "environment", f"the name of a setting, such as {closest}")
    try:
        load(environ={name: text})
    except ConfigError as error:
        return error
    return None


def declared(patterns: tuple[str, ...]) -> dict[str, str]:
    """Return the environment variables that match and are set to something; the rest count as unset."""
    is_declared = _matcher(patterns)
    return {name: text for name, text in os.environ.items() if text and is_declared(name)}


@lru_cache(maxsize=8)
def _matcher(patterns: tuple[str, ...]) -> Callable[[str], object]:
    """Return what matches a name with all of the patterns at once: one by one, the variables of a container take a millisecond."""
    return re.compile("|".join(map(translate, patterns)) or "(?!)").match


def environment_with(changes: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with changes, for a child."""
    return {**os.environ, **changes}


def _argument(value: T) -> Setting[T]:
    return Setting(value, "argument")


def _setting(name: str, env: Mapping[str, str], parsed: Callable[[str, str], T], *, default: T) -> Setting[T]:
    """Return what a variable says, ``parsed`` by its name and text, and the default where it is not set."""
    text = env.get(name)
    return Setting(parsed(name, text), name) if text else Setting(default, "default")


def _place(name: str, base_name: str, place_in_home: str, env: Mapping[str, str]) -> Setting[Path | None]:
    """Return the directory that a variable names; else ours in the one that ``base_name`` names, or in the user's home."""
    if directory := env.get(name):
        return Setting(Path(directory).absolute(), name)
    if directory := env.get(base_name):
        return Setting(Path(directory, _FOLDER).absolute(), base_name)
    home = env.get("HOME") or _home_of_user()
    if home is None:
        return Setting(None, "default (no HOME and no entry for this user)")
    return Setting(Path(home, place_in_home, _FOLDER).absolute(), "default")


def _home_of_user() -> str | None:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir or None
    except KeyError:
        return None


def _text(_: str, text: str) -> str:
    return text


def _entries(name: str, text: str) -> tuple[str, ...]:
    entries = tuple(entry for entry in text.split(os.pathsep) if entry)
    if entries.count(WRITABLE_MARK) > 1:
        raise ConfigError(name, text, "environment", f"at most one {WRITABLE_MARK!r}")
    return entries


def _paths(name: str, text: str) -> tuple[Path, ...]:
    return tuple(Path(entry).absolute() for entry in _entries(name, text))


def _mode(source: str, text: str | Mode) -> Mode:
    if isinstance(text, Mode):
        return text
    try:
        return Mode(text)
    except ValueError as error:
        raise ConfigError("mode", str(text), source, "one of " + ", ".join(Mode)) from error


def _switch(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise ConfigError(name, text, "environment", "0 or 1")
    return text == "1"


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ConfigError(name, text, "environment", "a whole number, 1 or more")
    return int(text)


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(name, text, "environment", "seconds, 0 or more")
    return seconds
