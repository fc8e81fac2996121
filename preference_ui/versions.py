"""Frozen dataset versions, and reading preferences by name.

A version's rows follow from the judgments up to one event of the chain, and those judgments can no longer be
changed. So a version whose files are lost is rebuilt from the store and checked against its digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from preference_ui import export, formats, ranking
from preference_ui.db import Store, open_store
from preference_ui.errors import DataError, StoreError, WordedDataError
from preference_ui.events import Transaction, event_at, head
from preference_ui.export import Snapshot, preference_rows, read_snapshot
from preference_ui.ids import canonical_json, new_id
from preference_ui.models import DatasetVersion, Event, Item, Judgment, Lease
from preference_ui.projects import ProjectInfo, load_project
from preference_ui.ranking import PairOptions, mean_agreement
from rlhf.data.schema import PreferenceRow

# Others may freeze the same project between the reading and the marking, and then it is read anew.
MAX_TRIES = 5
MAX_FOLDER_BYTES = 200
STALE_SECONDS = 86_400.0
_SPEC = re.compile(r"store:(?:(?P<store>[^#]+)#)?(?P<project>[^@#/]+)(?:@v(?P<number>[0-9]+))?")


@dataclass(frozen=True)
class Version:
    """A frozen version as recorded.

    Attributes:
        sha256: of ``preferences.jsonl``.
        path: directory with preferences.jsonl, preferences.parquet, judgments.jsonl, manifest.json, README.md.
        head_seq, head_hash: the last event the version includes.
    """

    project: str
    number: int
    sha256: str
    num_rows: int
    num_judgments: int
    path: Path
    head_seq: int
    head_hash: str
    created: datetime

    @property
    def name(self) -> str:
        """The spec that loads it."""
        return f"store:{self.project}@v{self.number}"


def _code_digest() -> str:
    digest = hashlib.sha256()
    for module in (ranking, export, formats):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def _options_dict(options: PairOptions, include_edits: bool, snapshot: Snapshot, with_retired: bool) -> dict[str, Any]:
    """All that the rows follow from besides the judgments. Items may be retired, or come back, at any later time."""
    left_out = [] if with_retired else sorted(snapshot.retired_items())
    return dataclasses.asdict(options) | {
        "include_edits": include_edits, "strength_margins": list(snapshot.project.settings.strength_margins),
        "with_retired": with_retired, "retired_left_out": left_out,
    }  # fmt: skip


_NOT_OF_PAIRS = ("strength_margins", "with_retired", "retired_left_out")


def _rows_for(snapshot: Snapshot, options: dict[str, Any]) -> list[PreferenceRow]:
    """Rows by the options of a version; its margins are in the snapshot's records, its items chosen already."""
    values = {name: value for name, value in options.items() if name not in _NOT_OF_PAIRS}
    include_edits = bool(values.pop("include_edits"))
    return preference_rows(snapshot, PairOptions(**values), include_edits=include_edits)


def _card(snapshot: Snapshot, rows: Sequence[PreferenceRow], manifest: dict[str, Any]) -> str:
    records = snapshot.of_kind("normal")
    by_item: dict[str, list[ranking.Tiers]] = {}
    for record in records:
        by_item.setdefault(record.item_id, []).append(record.tiers)
    shared = [tiers for tiers in by_item.values() if len(tiers) > 1]
    agreement = f"{sum(map(mean_agreement, shared)) / len(shared):.1%}" if shared else "not measured (one rater each)"
    guidelines = ", ".join(str(v) for v in sorted({r.guideline_version for r in records})) or "none"
    return f"""# {manifest["name"]}

Human preferences, frozen at event {manifest["head_seq"]} of the store's audit chain.

| | |
|---|---|
| preference rows | {len(rows)} |
| prompts | {len({row.group for row in rows})} |
| judgments | {len(records)} |
| raters | {len({r.annotator_id for r in records})} |
| mean pair agreement of raters on one item | {agreement} |
| share of rows that are exact ties | {sum(r.probability == 0.5 for r in rows) / max(1, len(rows)):.1%} |
| guideline versions | {guidelines} |
| sha256 of preferences.jsonl | `{manifest["sha256"]}` |

`probability` is the share of raters who prefer `chosen`; the weights of a prompt's rows sum to 1; rows with one `group`
belong on the same side of a split. Options: `{canonical_json(manifest["options"])}`.
"""


def _folder_of(store: Store, session: Session, info: ProjectInfo, number: int) -> Path:
    """Where a version lies: under its store's origin, since stores may share a directory."""
    _, chain = event_at(session, 1)
    name = info.name
    if name in (".", "..") or "\\" in name or len(name.encode("utf-8")) > MAX_FOLDER_BYTES:
        name = info.id
    return store.files / chain[:12] / name / f"v{number}"


def _clear(session: Session, folder: Path) -> None:
    """Remove what crashes left: files at the place of a version that no store knows yet, and parts of a day ago.

    Raises:
        StoreError: it is not this store's: its manifest names no event of this chain.
    """
    for part in folder.parent.glob(".v*.partial"):
        if time.time() - part.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(part, ignore_errors=True)
    if not folder.exists():
        return
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        noted = manifest["head_seq"], manifest["head_hash"]
    except (OSError, ValueError, KeyError, TypeError):
        noted = 0, ""
    if noted[0] < 1 or event_at(session, noted[0]) != noted:
        raise StoreError(f"{folder} holds something that this store did not write; move it away and freeze again")
    shutil.rmtree(folder)


def _write_files(partial: Path, snapshot: Snapshot, rows: list[PreferenceRow], manifest: dict[str, Any]) -> None:
    formats.write_file(partial / "preferences.jsonl", formats.to_jsonl(rows))
    formats.write_file(partial / "preferences.parquet", formats.to_parquet(rows))
    formats.write_file(partial / "judgments.jsonl", export.judgment_lines(snapshot))
    formats.write_file(partial / "README.md", _card(snapshot, rows, manifest).encode("utf-8"))
    formats.write_file(partial / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode("utf-8"))


def freeze(
    store: Store,
    project: str,
    options: PairOptions | None = None,
    *,
    include_edits: bool = True,
    with_retired: bool = False,
    only_new: bool = False,
    actor: str = "system",
) -> Version:
    """Freeze the project's judgments as the next version; they cannot be changed from now on.

    The votes are read at one event of the chain, and the files written, while people go on voting; only the marking
    holds the write lock. An answer that its author changes meanwhile is frozen as it was at that event and stays free.

    Args:
        with_retired: those on retired items too.
        only_new: refuse a version that would follow from the same votes and options as the newest one.

    Raises:
        DataError: no such project, or nothing to freeze, or nothing new.
        StoreError: a folder that is not this store's is in the way, or others keep freezing the same project.
    """
    for _ in range(MAX_TRIES):
        version = _try_freeze(
            store, project, options or PairOptions(), include_edits, actor, with_retired=with_retired, only_new=only_new
        )
        if version is not None:
            return version
    raise StoreError(f"project {project!r} is being frozen by others all the time; wait for them and freeze again")


def _try_freeze(
    store: Store,
    project: str,
    options: PairOptions,
    include_edits: bool,
    actor: str,
    *,
    with_retired: bool,
    only_new: bool,
) -> Version | None:
    """One try; None when another version was frozen meanwhile."""
    with store.read() as session:
        info = load_project(session, project)
        head_seq, head_hash = head(session)
        snapshot = read_snapshot(session, info.id, head_seq)
        settings = _options_dict(options, include_edits, snapshot, with_retired)
        snapshot = snapshot.without_retired(settings["retired_left_out"])
        parent = _find(session, info.id, None)
        if only_new and parent is not None and not _is_news(session, info.id, parent, settings):
            raise WordedDataError(
                f"version v{parent.number} of project {info.name!r} holds these votes with these options already",
                "nothing_new",
                number=parent.number,
            )
        number = parent.number + 1 if parent else 1
        folder = _folder_of(store, session, info, number)
    rows = _rows_for(snapshot, settings)
    if not rows:
        raise WordedDataError(f"project {info.name!r} has no preferences to freeze yet", "nothing_to_freeze")
    version_id, created = new_id(), store.clock()
    digest = hashlib.sha256(formats.to_jsonl(rows)).hexdigest()
    manifest = {
        "name": f"{info.name}@v{number}", "sha256": digest, "num_rows": len(rows),
        "num_judgments": len(snapshot.judgments), "num_tasks": len({j.item_id for j in snapshot.judgments}),
        "head_seq": head_seq, "head_hash": head_hash, "options": settings, "code_sha256": _code_digest(),
        "created": created.isoformat(), "parent": parent.number if parent else None,
    }  # fmt: skip
    row = {
        "id": version_id, "project_id": info.id, "number": number, "parent_id": parent.id if parent else None,
        "options_json": canonical_json(settings), "code_sha256": manifest["code_sha256"], "num_rows": len(rows),
        "num_judgments": len(snapshot.judgments), "sha256": digest, "path": str(folder), "head_seq": head_seq,
        "head_hash": head_hash, "created": created,
    }  # fmt: skip

    def change(tx: Transaction) -> bool:
        newest = _find(tx.session, info.id, None)
        if (newest.number if newest else 0) != number - 1:
            return False
        tx.session.execute(insert(DatasetVersion).values(row))
        _clear(tx.session, folder)  # nobody else has this number from here on
        tx.run(_MARK, {"version": version_id, "project": info.id, "head": head_seq})
        if left_out := [{"version": version_id, "item": item} for item in settings["retired_left_out"]]:
            tx.run(_UNMARK, left_out)
        tx.record(actor, "dataset.freeze", "dataset_version", version_id, manifest)
        return True

    partial = folder.with_name(f".{folder.name}.{version_id}.partial")
    try:
        _write_files(partial, snapshot, rows, manifest)
        if not store.transact(change):
            return None
        # Were it to end here, the version would be there without its files, and they follow from the store.
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return get_version(store, project, number)


def _is_news(session: Session, project_id: str, before: DatasetVersion, settings: dict[str, Any]) -> bool:
    """Whether rows could differ from a version's: other options, or a vote of the project that came or went since."""
    since = (
        select(Event.seq)
        .join(Judgment, Judgment.id == Event.entity_id)
        .join(Lease, Lease.id == Judgment.lease_id)
        .join(Item, Item.id == Lease.item_id)
        .where(Event.seq > before.head_seq, Event.entity == "judgment", Item.project_id == project_id)
    )
    return before.options_json != canonical_json(settings) or session.scalar(since.limit(1)) is not None


# Answers changed since the event that the version was read at are in it as they were; they are not what it holds.
_MARK = text(
    """UPDATE lease SET frozen_in = :version WHERE frozen_in IS NULL
    AND item_id IN (SELECT id FROM item WHERE project_id = :project)
    AND EXISTS (
        SELECT 1 FROM judgment JOIN event ON event.entity_id = judgment.id AND event.entity = 'judgment'
        WHERE judgment.lease_id = lease.id AND judgment.revision = lease.revision AND event.seq <= :head
        AND NOT judgment.retracted)"""
)

_UNMARK = text("UPDATE lease SET frozen_in = NULL WHERE frozen_in = :version AND item_id = :item")


def _find(session: Session, project_id: str, number: int | None) -> DatasetVersion | None:
    query = select(DatasetVersion).where(DatasetVersion.project_id == project_id)
    if number is not None:
        query = query.where(DatasetVersion.number == number)
    return session.scalar(query.order_by(DatasetVersion.number.desc()).limit(1))


def _version_of(name: str, row: DatasetVersion) -> Version:
    return Version(
        name, row.number, row.sha256, row.num_rows, row.num_judgments, Path(row.path), row.head_seq, row.head_hash,
        row.created)  # fmt: skip


def list_versions(store: Store, project: str) -> list[Version]:
    """All frozen versions, oldest first."""
    with store.read() as session:
        info = load_project(session, project)
        rows = session.scalars(
            select(DatasetVersion).where(DatasetVersion.project_id == info.id).order_by(DatasetVersion.number)
        )
        return [_version_of(info.name, row) for row in rows]


def get_version(store: Store, project: str, number: int | None = None) -> Version:
    """A frozen version, by default the newest.

    Raises:
        DataError: there is none of that number.
    """
    known = list_versions(store, project)
    found = [v for v in known if number is None or v.number == number]
    if not found:
        names = ", ".join(f"v{v.number}" for v in known) or "none; freeze one with `rlhf prefs freeze`"
        raise DataError(
            f"project {project!r} has no version {'' if number is None else f'v{number}'}; there are: {names}"
        )
    return found[-1]


def load_version(store: Store, project: str, number: int) -> list[PreferenceRow]:
    """Rows of a frozen version, from its file or else rebuilt from the store; either way checked by digest.

    Raises:
        DataError: the file was altered or lost, and the store cannot give the same rows again.
    """
    version = get_version(store, project, number)
    file = version.path / "preferences.jsonl"
    if file.exists():
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() == version.sha256:
            return formats.from_jsonl(data)
    with store.read() as session:
        row = _find(session, load_project(session, project).id, number)
        if row is None:
            raise DataError(f"version v{number} of {project!r} is gone")
        options = json.loads(row.options_json)
        # Versions of earlier programs did not note their margins: today's are tried, and the digest decides.
        snapshot = read_snapshot(session, project, row.head_seq, margins=options.get("strength_margins"))
        rows = _rows_for(snapshot.without_retired(options.get("retired_left_out", ())), options)
    if hashlib.sha256(formats.to_jsonl(rows)).hexdigest() != version.sha256:
        state = "was altered" if file.exists() else "is lost"
        raise DataError(
            f"{file} {state}, and this version of the program builds other rows; restore the file from a backup "
            f"(sha256 {version.sha256})"
        )
    return rows


def load_preferences(
    spec: str, store: Store | str | Path | None = None, options: PairOptions | None = None
) -> list[PreferenceRow]:
    """Read preferences by name, as ``data.preferences`` of a training config gives it.

    Args:
        spec: ``store:helpline@v3`` for a frozen version, ``store:helpline`` for the votes of this moment, or
            ``store:<path or URL>#helpline@v3`` to say which store.
        store: an open store, its path or its URL; default: the spec's, ``$RLHF_STORE``, or the default file.
        options: how live votes become rows; a frozen version has its own.

    Raises:
        DataError: the spec, the project or the version does not exist.
        StoreError: there is no store there.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise DataError(f"{spec!r} does not name preferences; write store:<project> or store:<project>@v<number>")
    if isinstance(store, Store):
        return _load(store, match["project"], match["number"], options)
    opened = open_store(store or match["store"], create=False)
    try:
        return _load(opened, match["project"], match["number"], options)
    finally:
        opened.close()


def _load(store: Store, project: str, number: str | None, options: PairOptions | None) -> list[PreferenceRow]:
    if number is not None:
        if options is not None:
            raise DataError("a frozen version keeps the options it was frozen with; leave them out")
        return load_version(store, project, int(number))
    rows = export.export_preferences(store, project, options)
    if not rows:
        raise DataError(f"project {project!r} has no votes yet")
    return rows
