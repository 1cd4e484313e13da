"""``env``: effective settings and where each came from, and the facets of a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fi_cachestore import config
from fi_cachestore.cli.opened import json_option, root_option
from fi_cachestore.cli.output import note, print_json, print_table
from fi_cachestore.environment.facets import Device, Environment
from fi_cachestore.environment.identity import Environments
from fi_cachestore.errors import ConfigError, RootRefusedError
from fi_cachestore.store.roots import check_root


@click.command("env")
@root_option
@click.option("--device", "device_text", help="cpu, cuda or cuda:N; default: cuda if there is a GPU, else cpu.")
@json_option
def env_command(root: Path | None, device_text: str | None, *, as_json: bool) -> None:
    """Show the settings in force, where each came from, and what the environment of a device is known by."""
    settings = config.load(root=root)
    refusal = _refusal(settings.root.value, settings.trusted.value)
    environment = Environments().of(_device(device_text))
    if as_json:
        content = {"settings": settings.rows(), "root_refused": refusal, "device": environment.device.type, "facets": _facets(environment)}
        print_json("env/1", content)
        return
    rows = [(name, str(row["value"]), row["source"]) for name, row in settings.rows().items()]
    print_table(("setting", "value", "from"), rows)
    facets = [(f.name, f.role.value, f.value if isinstance(f.value, str) else f"unknown: {f.hint}") for f in environment.facets]
    print_table((f"facet ({environment.device.type})", "role", "value"), facets)
    if refusal is not None:
        note(f"note: {refusal}")
    if environment.unknown():
        note("note: a facet that cannot be determined makes the keys that need it ephemeral")


def _refusal(root: Path | None, trusted: tuple[Path, ...]) -> str | None:
    if root is None:
        return "there is no root: every session is ephemeral"
    try:
        check_root(root, trusted=trusted)
    except RootRefusedError as error:
        return str(error)
    return None


def _device(text: str | None) -> Device:
    if text is None:
        import torch

        return Device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else Device("cpu")
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ConfigError("--device", text, "argument", "cpu, cuda or cuda:N")
    return Device(kind, int(index or 0)) if kind == "cuda" else Device("cpu")


def _facets(environment: Environment) -> dict[str, dict[str, Any]]:
    return {
        f.name: {"role": f.role.value, "value": f.value if isinstance(f.value, str) else None, "hint": f.hint} for f in environment.facets
    }
