"""Putting files into a project: items, and the rankings that came with them."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import func, select

from preference_ui import leases, places
from preference_ui.db import Store
from preference_ui.errors import DataError
from preference_ui.events import Transaction
from preference_ui.export import IMPORT
from preference_ui.groups import checked_group
from preference_ui.ids import new_id
from preference_ui.models import GoldKey, Item, ItemResponse, Lease, Response
from preference_ui.people import ensure_annotator
from preference_ui.projects import ProjectInfo, add_items, check_spec, get_project
from preference_ui.records import Candidate, read_candidates
from preference_ui.settings import ProjectSettings
from preference_ui.votes import Vote, check_vote, insert_judgment

# Half a second of the store's one write lock on a busy machine; whoever waits for it looks every 20 ms.
_BATCH = 50
_PAUSE_SECONDS = 0.03


@dataclass(frozen=True)
class ImportReport:
    """Outcome of an import: items given, those of them that are new, rankings stored as votes, what was left out."""

    num_items: int
    num_new: int
    num_rankings: int
    left_out: list[str] = field(default_factory=list)


def import_file(
    store: Store,
    project: str,
    path: str | Path,
    *,
    file_format: str | None = None,
    keep_rankings: bool = True,
    rater: str | None = None,
    group: str = "",
    actor: str = "system",
    shown: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Import a JSONL, JSON, CSV or parquet file; importing it again adds nothing.

    Args:
        shown: the file's name in messages, sources and the default rater; default: its path.
        progress: hears after each batch how many items are stored, and of how many.
        file_format: ``native``, ``trl``, ``hh`` or ``oasst``; default: seen from the first record.
        keep_rankings: store rankings found in the file as votes; otherwise people rank these items anew.
        rater: account that imported votes belong to; default ``import:<file name>``. It cannot log in.
        group: of every item of the file; a row with another one is refused, before anything is stored.

    Raises:
        DataError: naming file, line and field; batches before the faulty one stay.
    """
    info = get_project(store, project)
    result = read_candidates(Path(path), file_format, shown=shown)
    result.candidates = _in_group(result.candidates, group)
    ranked, before = 0, _num_items(store, info)
    handle = rater or f"import:{Path(shown or path).name}"[:64]
    for start in range(0, len(result.candidates), _BATCH):
        if start:
            time.sleep(_PAUSE_SECONDS)
        batch = result.candidates[start : start + _BATCH]
        item_ids = _add(store, info, batch, actor)
        result.left_out.extend(_unused_gold(store, list(zip(item_ids, batch, strict=True))))
        result.left_out.extend(_unused_groups(store, list(zip(item_ids, batch, strict=True))))
        votes = [(i, c) for i, c in zip(item_ids, batch, strict=True) if c.tiers and c.spec.gold_tiers is None]
        if keep_rankings and votes:
            rater_id = ensure_annotator(store, handle).id
            ranked += _record_all(store, info, rater_id, votes)
        if progress is not None:
            progress(start + len(batch), len(result.candidates))
    return ImportReport(len(result.candidates), _num_items(store, info) - before, ranked, result.left_out)


def check_file(path: str | Path, file_format: str | None = None, group: str = "") -> None:
    """Reads a file as ``import_file`` does, and stores nothing.

    Raises:
        DataError: naming file, line and field.
    """
    for candidate in _in_group(read_candidates(Path(path), file_format).candidates, group):
        check_spec(candidate.spec, candidate.where)


def _in_group(candidates: list[Candidate], group: str) -> list[Candidate]:
    """All in the group that was given for the whole file; neither a row's nor the file's wins over the other."""
    word = checked_group(group, "--group")
    if not word:
        return candidates
    for candidate in candidates:
        if candidate.spec.group not in ("", word):
            raise DataError(
                f"{candidate.where}: field 'group' is {candidate.spec.group!r}, and --group {word!r} was given for the "
                "whole file; leave one of them out"
            )
    return [dataclasses.replace(c, spec=dataclasses.replace(c.spec, group=word)) for c in candidates]


def _num_items(store: Store, project: ProjectInfo) -> int:
    with store.read() as session:
        given = select(func.count()).where(Item.project_id == project.id, Item.kind != "repeat")
        return session.scalar(given) or 0


def _add(store: Store, project: ProjectInfo, batch: Sequence[Candidate], actor: str) -> list[str]:
    try:
        return add_items(store, project.id, [c.spec for c in batch], actor=actor)
    except DataError as error:
        # The error counts from the batch's start; the file's place is what its owner can look up.
        for candidate in batch:
            try:
                add_items(store, project.id, [candidate.spec], actor=actor)
            except DataError as single:
                raise DataError(f"{candidate.where}: {str(single).removeprefix('item 0: ')}") from error
        raise


def _unused_gold(store: Store, pairs: Sequence[tuple[str, Candidate]]) -> list[str]:
    """Which ``gold_tiers`` were given for tasks that were there before, as normal ones or with another key."""
    given = {item_id: candidate for item_id, candidate in pairs if candidate.spec.gold_tiers is not None}
    with store.read() as session:
        keys = {key.item_id: key for key in session.scalars(select(GoldKey).where(GoldKey.item_id.in_(given)))}
        texts = session.execute(
            select(ItemResponse.item_id, Response.id, Response.text)
            .join(Response, Response.id == ItemResponse.response_id)
            .where(ItemResponse.item_id.in_(given))
        ).all()
    names = {(item_id, text): response_id for item_id, response_id, text in texts}
    problems = []
    for item_id, candidate in given.items():
        if item_id not in keys:
            problems.append(
                f"{candidate.where}: gold_tiers: the project has this task as a normal one, and it stays so"
            )
            continue
        stored = [set(tier) for tier in json.loads(keys[item_id].tiers_json)]
        responses = candidate.spec.responses
        if stored != [{names[item_id, responses[i].text] for i in tier} for tier in candidate.spec.gold_tiers or ()]:
            problems.append(f"{candidate.where}: gold_tiers: the project has this task with other ones, and they stay")
    return problems


def _unused_groups(store: Store, pairs: Sequence[tuple[str, Candidate]]) -> list[str]:
    """Which groups were given for tasks that were there before, in another group or in none."""
    with store.read() as session:
        rows = session.execute(select(Item.id, Item.group).where(Item.id.in_([item_id for item_id, _ in pairs])))
        groups: dict[str, str] = {row.id: row.group for row in rows}
    return [
        f"{candidate.where}: field 'group': the project has this task in "
        f"{f'the group {groups[item_id]!r}' if groups[item_id] else 'no group'}, and it stays so"
        for item_id, candidate in pairs
        if candidate.spec.group not in ("", groups[item_id])
    ]


def _record_all(store: Store, project: ProjectInfo, rater_id: str, votes: Sequence[tuple[str, Candidate]]) -> int:
    def change(tx: Transaction) -> int:
        return sum(record_ranking(tx, project, rater_id, item_id, c) for item_id, c in votes)

    return store.transact(change)


def check_ranking(candidate: Candidate, settings: ProjectSettings) -> None:
    """Raises a DataError that begins with the place of a ranking which is no vote that the project takes."""
    try:
        check_vote(Vote(tiers=candidate.tiers or ()), len(candidate.spec.responses), settings)
    except DataError as error:
        raise DataError(f"{candidate.where}: {error}") from error


def record_ranking(tx: Transaction, project: ProjectInfo, rater_id: str, item_id: str, candidate: Candidate) -> bool:
    """Store a ranking made elsewhere as a vote; False when this rater has one or the item needs no more."""
    item = tx.session.scalars(select(Item).where(Item.id == item_id).with_for_update()).one()
    seen = tx.session.scalar(select(Lease.id).where(Lease.item_id == item_id, Lease.annotator_id == rater_id))
    if seen or item.state != "open" or item.active + item.done >= item.needed:
        return False
    lease = leases.lease_item(tx, rater_id, project, item, [])
    by_text = {
        text: response_id
        for response_id, text in tx.session.execute(
            select(Response.id, Response.text)
            .join(ItemResponse, ItemResponse.response_id == Response.id)
            .where(ItemResponse.item_id == item_id)
        )
    }
    check_ranking(candidate, project.settings)
    order = leases.shown_order(lease)
    slot = {response_id: index for index, response_id in enumerate(order)}
    ids = [by_text[r.text] for r in candidate.spec.responses]
    vote = Vote(tiers=[[slot[ids[i]] for i in tier] for tier in candidate.tiers or ()])
    judgment_id = new_id()
    columns = {
        "id": judgment_id, "lease_id": lease.id, "revision": 1, "retracted": False, "supersedes": None,
        "guideline_version": lease.guideline_version, "wall_ms": 0,
    }  # fmt: skip
    digest = insert_judgment(tx, vote, order, columns)
    lease.revision, lease.state, lease.decided_at = 1, "done", tx.now
    places.move_item(tx, item, active=-1, done=1)
    tx.record(
        rater_id, IMPORT, "judgment", judgment_id,
        {"lease": lease.id, "item": item.id, "revision": 1, "state": "done", "digest": digest,
         "source": candidate.where},
    )  # fmt: skip
    return True
