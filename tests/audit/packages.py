"""Small packages made of source text, to audit."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

from fi_cachestore.audit.classes import Finder, RunnerClass
from fi_cachestore.audit.tree import open_path


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Write a package ``made`` of these files below ``root``."""
    for name, text in {"__init__.py": "", **files}.items():
        path = root / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), "utf-8")
    return root / "made"


def found(root: Path, files: Mapping[str, str]) -> dict[str, RunnerClass]:
    """Return the runner classes of a made-up package by type, without its name."""
    return {item.type.removeprefix("made."): item for item in Finder(open_path(write(root, files))).classes}
