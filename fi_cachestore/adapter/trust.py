"""Trust in stored records for one runner of one call: the schema of its keys, and what the process has for everything left out."""

from __future__ import annotations

from fi_cachestore.adapter.introspect import RunnerView
from fi_cachestore.adapter.roles import Role
from fi_cachestore.environment.process import process_identity
from fi_cachestore.keys.canonical import encode
from fi_cachestore.keys.digest import part_digest
from fi_cachestore.keys.schema import KeySchema
from fi_cachestore.records.record import Evidence


def evidence_of(view: RunnerView) -> Evidence:
    """Return what this process can say about a record that it measures for ``view``."""
    return Evidence(schema_of(view).digest, process_identity(), {})


def schema_of(view: RunnerView) -> KeySchema:
    """Return the schema of a view's keys."""
    semantic = [(name, type(value).__name__, Role.SEMANTIC.value) for name, value in view.params.items()]
    arguments = [(f"argument.{name}", type(value).__name__, Role.SEMANTIC.value) for name, value in view.arguments.items()]
    left_out = [(path, "", role.value) for path, role in view.left_out]
    contract = part_digest(encode((view.contract.type, view.contract.fingerprint)))
    return KeySchema(view.call.op, str(view.type), tuple(sorted([*semantic, *arguments, *left_out])), contract, view.environment)
