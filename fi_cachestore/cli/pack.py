"""``pack``: loose records into one file, by hand; and bundles of some of them, to be named by their digest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fi_cachestore import config
from fi_cachestore.cli.opened import directories, json_option, open_records, root_option, root_path
from fi_cachestore.cli.output import note, print_json, print_lines
from fi_cachestore.cli.records import matches
from fi_cachestore.coordination.files import FileCoordinator
from fi_cachestore.coordination.packing import TURN
from fi_cachestore.coordination.port import Busy, Unavailable
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.record import Record
from fi_cachestore.store.bundle import FirstOf, write_bundle
from fi_cachestore.store.pack import Pack
from fi_cachestore.store.packing import Packing, PackingPlan
from fi_cachestore.store.port import Hit, Store
from fi_cachestore.store.roots import CLAIMS_FOLDER, check_root, packed_reader, packer_of


@click.command("pack")
@click.option("--into-one", is_flag=True, help="Merge all packs into one, however large they are.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write a bundle into this folder and leave the root as it is."
)
@click.option("--op", help="With --out: only ops that match this pattern (* and ?).")
@click.option("--runner", help="With --out: only runner types that contain this text.")
@click.option("--environment", help="With --out: only records with this facet (name=value) or this environment digest (prefix).")
@click.option("--yes", is_flag=True, help="Do it; without this, only say what would be done.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, also with --yes.")
@root_option
@json_option
def pack_command(  # noqa: PLR0913 - one parameter per option
    root: Path | None,
    out: Path | None,
    op: str | None,
    runner: str | None,
    environment: str | None,
    *,
    into_one: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Put the loose records of a root into one file, and small packs into larger ones. Safe while engines work with the root.

    With --out, what the root and its layers serve is put into a bundle: one file, named by the digest of its content.
    Exit code 1 if another process is packing.
    """
    is_meant = yes and not dry_run
    if out is not None:
        return _bundle(root, out, (op, runner, environment), is_meant=is_meant, as_json=as_json)
    if op or runner or environment:
        raise click.UsageError("--op, --runner and --environment choose records for --out")
    path = root_path(root)
    packer = packer_of(path)
    plan = packer.plan_one_pack() if into_one else packer.plan()
    done, holder = None, None
    if not as_json:
        print_lines(_plan_lines(plan))
    if is_meant and not plan.is_empty:
        check_root(path, trusted=config.load(root=path).trusted.value)
        with _turn(path) as holder:
            done = packer.pack(plan) if holder is None else None
    if as_json:
        print_json("pack/1", {"root": str(path), "plan": _plan_document(plan), "done": None if done is None else _document(done)})
    note(_outcome(plan, done, holder, is_meant=is_meant))
    return 1 if holder is not None or (done is not None and done.why_not) else 0


@contextmanager
def _turn(path: Path) -> Iterator[str | None]:
    """Keep other packers off; give who is at it already, if somebody is."""
    claim = FileCoordinator(path / CLAIMS_FOLDER).claim(TURN, "packing")
    if isinstance(claim, Busy | Unavailable):
        yield claim.holder if isinstance(claim, Busy) else None
        return
    try:
        yield None
    finally:
        claim.release()


def _outcome(plan: PackingPlan, done: Packing | None, holder: str | None, *, is_meant: bool) -> str:
    if plan.is_empty:
        return "nothing to pack"
    if not is_meant:
        return "nothing was changed; pass --yes to do it"
    if done is None:
        return f"nothing was changed: {holder} is packing"
    stopped = f"; stopped: {done.why_not}" if done.why_not else ""
    return f"{done.record_count} records in {done.path or 'no new pack'}, {done.removed_count} loose files removed{stopped}"


def _plan_lines(plan: PackingPlan) -> Iterator[str]:
    yield f"loose records  {len(plan.loose)}"
    for word, packs in (("merge", plan.merged), ("leave", plan.kept)):
        yield from (f"{word}          {pack.path.name[:12]}  {pack.count} records, {pack.size_bytes} bytes" for pack in packs)


def _plan_document(plan: PackingPlan) -> dict[str, Any]:
    merged, kept = ([_pack_document(pack) for pack in packs] for packs in (plan.merged, plan.kept))
    return {"loose_count": len(plan.loose), "merged": merged, "kept": kept}


def _pack_document(pack: Pack) -> dict[str, Any]:
    return {"digest": pack.digest, "record_count": pack.count, "size_bytes": pack.size_bytes, "sequence": pack.sequence}


def _document(done: Packing) -> dict[str, Any]:
    return {
        "path": done.path,
        "record_count": done.record_count,
        "size_bytes": done.size_bytes,
        "removed_count": done.removed_count,
        "merged": done.merged,
        "why_not": done.why_not,
    }


def _bundle(root: Path | None, out: Path, chosen: tuple[str | None, ...], *, is_meant: bool, as_json: bool) -> int:
    path, records = open_records(root)
    digests = list(_chosen(records, *chosen))
    pack = None
    if is_meant and digests:
        pack = write_bundle(out.absolute(), FirstOf([packed_reader(layer) for layer in directories(root)]), digests)
    if as_json:
        print_json("bundle/1", {"root": str(path), "record_count": len(digests), "done": None if pack is None else _pack_document(pack)})
    elif pack is not None:
        print_lines([str(pack.path)])
    note(f"{len(digests)} records" + ("" if pack is not None else "; nothing was written" + ("" if is_meant else "; pass --yes to do it")))
    return 0


def _chosen(records: Store[Record], op: str | None, runner: str | None, environment: str | None) -> Iterator[Digest]:
    for digest in records:
        if isinstance(hit := records.get(digest), Hit) and matches(hit.entry.key, op, runner, environment):
            yield digest
