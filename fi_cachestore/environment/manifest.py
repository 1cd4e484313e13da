"""The environment as a JSON file, for people, and to tell them what has changed: records carry their own facets."""

from __future__ import annotations

import json

from fi_cachestore.environment.facets import Environment
from fi_cachestore.keys.canonical import encode
from fi_cachestore.keys.digest import part_digest

SCHEMA = "fi_cachestore.environment/1"


def manifest(environment: Environment) -> tuple[str, bytes]:
    """Return file name and content. Equal facets give the same name on every machine; an unknown facet is ``null``."""
    facets = {f.name: {"role": f.role.value, "value": f.value if f.is_known else None, "hint": f.hint} for f in environment.facets}
    known = {f.name: f.value for f in environment.facets if isinstance(f.value, str)}
    name = part_digest(encode({"device": environment.device.type, **known}))[:32]
    content = {"schema": SCHEMA, "device": environment.device.type, "facets": facets}
    return f"{name}.json", (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
