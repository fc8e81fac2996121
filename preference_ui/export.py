"""Reading judgments out of the store as rankings, preference rows and demonstrations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from preference_ui.db import Store
from preference_ui.events import RESTORE
from preference_ui.ids import canonical_json, sha256_text
from preference_ui.models import Annotator, Event, Flag, Item, Judgment, Lease, Prompt, Rating, Response, ResponseEdit
from preference_ui.projects import ProjectInfo, load_project
from preference_ui.ranking import Pair, PairOptions, Ranking, preference_pairs
from rlhf.data.schema import DemonstrationRow, Message, PreferenceRow


@dataclass(frozen=True)
class JudgmentRecord:
    """One current judgment with everything an analysis needs, nothing folded.

    Attributes:
        tiers: response ids, best tier first; ``shown``: response ids by slot.
        margin: the project's margin for the strength given, 0 when none was.
        all_bad: the rater accepts none of the responses.
        created: when this revision was stored; ``first_event``: the chain's position of the rater's first one.
        answered: when the answer was first given; a change of mind, or setting it aside and back, does not move it.
        retired: a lead has taken the item, or the one that it repeats, out of the queue.
        group: of the item; empty: anybody could take it.
        imported: ranked elsewhere: nobody saw the responses in the order of ``shown``.
        edits: ``(response id, better text)``.
        ratings: ``(response id, axis, value)``.
        flags: ``(response id, code)``; no response: the flag is on the whole item.
    """

    judgment_id: str
    lease_id: str
    item_id: str
    kind: str
    repeat_of_lease_id: str | None
    annotator_id: str
    handle: str
    prompt_sha256: str
    topic: str
    tiers: tuple[tuple[str, ...], ...]
    shown: tuple[str, ...]
    margin: float
    strength: int | None
    all_bad: bool
    rationale: str
    active_ms: int | None
    wall_ms: int
    guideline_version: int
    revision: int
    created: datetime
    answered: datetime
    first_event: int
    retired: bool = False
    imported: bool = False
    group: str = ""
    edits: tuple[tuple[str, str], ...] = ()
    ratings: tuple[tuple[str, str, int], ...] = ()
    flags: tuple[tuple[str | None, str], ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A project's current judgments on one consistent reading, in the order they were stored.

    Attributes:
        texts: per response id; ``lengths``: of the texts, in characters.
        extended: items that were given further votes because their raters disagreed, with the number of votes that
            they were made for.
    """

    project: ProjectInfo
    judgments: list[JudgmentRecord]
    texts: dict[str, str]
    prompts: dict[str, tuple[Message, ...]]
    extended: dict[str, int]
    lengths: dict[str, int]

    def of_kind(self, *kinds: str) -> list[JudgmentRecord]:
        """Judgments of items of the given kinds."""
        return [j for j in self.judgments if j.kind in kinds]

    def without_retired(self, items: Collection[str] | None = None) -> Snapshot:
        """Without the judgments of retired items, or of ``items`` instead: what a lead has condemned trains nothing."""
        left_out = self.retired_items() if items is None else set(items)
        return dataclasses.replace(self, judgments=[j for j in self.judgments if j.item_id not in left_out])

    def retired_items(self) -> set[str]:
        """Retired items that have judgments."""
        return {j.item_id for j in self.judgments if j.retired}


_JUDGMENTS = (
    select(
        Judgment.id, Judgment.lease_id, Judgment.retracted, Judgment.tiers_json, Judgment.strength, Judgment.all_bad,
        Judgment.rationale, Judgment.active_ms, Judgment.wall_ms, Judgment.guideline_version, Judgment.revision,
        Judgment.created, Lease.item_id, Lease.annotator_id, Lease.permutation_json, Item.kind, Item.base_needed,
        Item.needed, Item.repeat_of_lease_id, Item.state, Item.group, Annotator.handle, Prompt.content_sha256,
        Prompt.topic, Prompt.messages_json, Event.seq, Event.action,
    )
    .join(Lease, Lease.id == Judgment.lease_id)
    .join(Item, Item.id == Lease.item_id)
    .join(Annotator, Annotator.id == Lease.annotator_id)
    .join(Prompt, Prompt.id == Item.prompt_id)
    .join(Event, Event.entity_id == Judgment.id)
    .where(Event.entity == "judgment")
    .order_by(Event.seq)
)  # fmt: skip


_WORDS = ("rationale", "messages_json")
IMPORT = "judgment.import"
# Events that store an answer again without asking its author.
_KEPT_AS_THEY_WERE = ("judgment.set_aside", "judgment.restore")


def read_snapshot(
    session: Session,
    project: str,
    up_to_event: int | None = None,
    *,
    margins: Sequence[float] | None = None,
    item_ids: Sequence[str] | None = None,
    texts: bool = True,
) -> Snapshot:
    """Read the newest, not retracted judgment of every lease.

    Args:
        up_to_event: as the store stood after this event; a lease's later revisions are not seen.
        margins: per strength; None: the project's own.
        item_ids: only these items (a few); None: all.
        texts: without them, rationales, prompts, edits and flags are left out too: what statistics ask for.
    """
    info = load_project(session, project)
    wanted = Item.project_id == info.id
    if item_ids is not None:
        wanted &= Item.id.in_(item_ids)
    query = _JUDGMENTS.where(wanted)
    if not texts:
        query = query.with_only_columns(*(c for c in query.selected_columns if c.key not in _WORDS))
    if up_to_event is not None:
        query = query.where(Event.seq <= up_to_event)
    newest: dict[str, Any] = {}
    first: dict[str, int] = {}
    answered: dict[str, datetime] = {}
    imported: dict[str, bool] = {}
    for row in session.execute(query):
        before = newest.get(row.lease_id)
        if before is None or (before.retracted and row.action != RESTORE):
            answered[row.lease_id] = row.created
        newest[row.lease_id] = row
        first.setdefault(row.lease_id, row.seq)
        if row.action not in _KEPT_AS_THEY_WERE:
            imported[row.lease_id] = row.action == IMPORT
    rows = sorted((row for row in newest.values() if not row.retracted), key=lambda row: row.seq)
    ratings = _details(session, wanted, Rating.judgment_id, Rating.response_id, Rating.axis, Rating.value)
    edits: _Details = {}
    flags: _Details = {}
    if texts:
        edits = _details(session, wanted, ResponseEdit.judgment_id, ResponseEdit.response_id, ResponseEdit.text)
        flags = _details(session, wanted, Flag.judgment_id, Flag.response_id, Flag.code)
    if margins is None:
        margins = info.settings.strength_margins
    retired = {row.lease_id for row in rows if row.state == "retired"}
    judgments = [
        JudgmentRecord(
            judgment_id=row.id,
            lease_id=row.lease_id,
            item_id=row.item_id,
            kind=row.kind,
            repeat_of_lease_id=row.repeat_of_lease_id,
            annotator_id=row.annotator_id,
            handle=row.handle,
            prompt_sha256=row.content_sha256,
            topic=row.topic,
            group=row.group,
            tiers=tuple(tuple(t) for t in json.loads(row.tiers_json)),
            shown=tuple(json.loads(row.permutation_json)),
            margin=margins[row.strength] if row.strength is not None and row.strength < len(margins) else 0.0,
            strength=row.strength,
            all_bad=row.all_bad,
            rationale=row.rationale if texts else "",
            active_ms=row.active_ms,
            wall_ms=row.wall_ms,
            guideline_version=row.guideline_version,
            revision=row.revision,
            created=row.created,
            answered=answered[row.lease_id],
            first_event=first[row.lease_id],
            retired=row.lease_id in retired or row.repeat_of_lease_id in retired,
            imported=imported.get(row.lease_id, False),
            edits=tuple(edits.get(row.id, ())),
            ratings=tuple(ratings.get(row.id, ())),
            flags=tuple(flags.get(row.id, ())),
        )
        for row in rows
    ]
    prompts = {r.content_sha256: r.messages_json for r in rows} if texts else {}
    words = select(Response.id, Response.text if texts else func.length(Response.text))
    found: dict[str, Any] = {
        row[0]: row[1] for row in session.execute(words.join(Item, Item.prompt_id == Response.prompt_id).where(wanted))
    }
    return Snapshot(
        project=info,
        judgments=judgments,
        texts=found if texts else {},
        prompts={digest: _messages(text) for digest, text in prompts.items()},
        extended={row.item_id: row.base_needed for row in rows if row.needed > row.base_needed},
        lengths={response: len(text) for response, text in found.items()} if texts else found,
    )


_Details = dict[str, list[tuple[Any, ...]]]


def _details(session: Session, wanted: ColumnElement[bool], key: Any, *columns: Any) -> _Details:
    """What hangs on judgments, by judgment id: an item's flags first, then by response."""
    query = (
        select(key, *columns)
        .join(Judgment, Judgment.id == key)
        .join(Lease, Lease.id == Judgment.lease_id)
        .join(Item, Item.id == Lease.item_id)
        .where(wanted)
    )
    table: _Details = {}
    for judgment_id, *values in session.execute(query):
        table.setdefault(judgment_id, []).append(tuple(values))
    for values in table.values():
        values.sort(key=lambda row: tuple("" if value is None else value for value in row))
    return table


def _messages(text: str) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in json.loads(text))


def judgment_lines(snapshot: Snapshot) -> bytes:
    """Every judgment unfolded, one JSON object per line, raters under pseudonyms that hold within the project.

    ``docs/store.md`` lists the fields.
    """
    lines = []
    for record in snapshot.judgments:
        values = dataclasses.asdict(record)
        values["rater"] = sha256_text(f"{snapshot.project.id}/{record.annotator_id}")[:12]
        values["created"], values["answered"] = record.created.isoformat(), record.answered.isoformat()
        values["prompt"] = [m.as_dict() for m in snapshot.prompts[record.prompt_sha256]]
        values["texts"] = {r: snapshot.texts[r] for r in record.shown}
        values["ratings"] = [{"response": r, "axis": axis, "value": value} for r, axis, value in record.ratings]
        values["flags"] = [{"response": r, "code": code} for r, code in record.flags]
        for private in ("annotator_id", "handle"):
            del values[private]
        lines.append(canonical_json(values))
    return "".join(line + "\n" for line in lines).encode("utf-8")


def rankings_of(records: Sequence[JudgmentRecord]) -> list[Ranking]:
    """Judgments as rankings of response ids, grouped by prompt."""
    return [Ranking(j.annotator_id, j.prompt_sha256, j.tiers, j.margin, j.all_bad) for j in records]


def _edit_pairs(records: Sequence[JudgmentRecord], texts: dict[str, str]) -> list[Pair]:
    """A rewritten response is preferred to what it replaces."""
    pairs = []
    for record in records:
        for response_id, better in record.edits:
            if better != texts[response_id]:
                name = f"{record.judgment_id}/{response_id}"
                texts[name] = better
                pairs.append(Pair(record.prompt_sha256, name, response_id, 1.0, 0.0, 1.0, (record.annotator_id,)))
    return pairs


def preference_rows(
    snapshot: Snapshot, options: PairOptions | None = None, *, include_edits: bool = True
) -> list[PreferenceRow]:
    """Preference rows of the normal items; gold and repeated items only measure and are left out.

    Row ids and order depend on the texts alone, so equal votes give equal bytes in any store. The weights of a
    prompt's rows sum to 1, edits included.
    """
    records = snapshot.of_kind("normal")
    texts = dict(snapshot.texts)
    options = options or PairOptions()
    pairs = preference_pairs(rankings_of(records), options)
    if include_edits:
        trusted = [r for r in records if options.reliability.get(r.annotator_id, 1.0) > 0]
        pairs = _with_edits(pairs, _edit_pairs(trusted, texts))
    rows: list[PreferenceRow] = []
    seen: dict[str, int] = {}
    named = sorted(pairs, key=lambda p: (p.group, _content_id(p, texts), p.probability, p.weight))
    for pair in named:
        name = _content_id(pair, texts)
        seen[name] = seen.get(name, 0) + 1
        rows.append(
            PreferenceRow(
                id=f"{name}.{seen[name]}",
                prompt=snapshot.prompts[pair.group],
                chosen=texts[pair.chosen],
                rejected=texts[pair.rejected],
                probability=pair.probability,
                margin=pair.margin,
                weight=pair.weight,
                group=pair.group,
            )
        )
    return rows


def _with_edits(pairs: list[Pair], edits: list[Pair]) -> list[Pair]:
    counts: dict[str, int] = {}
    for pair in pairs:
        counts[pair.group] = counts.get(pair.group, 0) + 1
    extra: dict[str, int] = {}
    for pair in edits:
        extra[pair.group] = extra.get(pair.group, 0) + 1
    result = []
    for pair in pairs + edits:
        before, added = counts.get(pair.group, 0), extra.get(pair.group, 0)
        # Each edit weighs what a mean pair of its prompt weighs; then the sum is 1 again.
        weight = (pair.weight * before if pair.chosen.find("/") < 0 else 1.0) / (before + added)
        result.append(Pair(pair.group, pair.chosen, pair.rejected, pair.probability, pair.margin, weight, pair.raters))
    return result


def _content_id(pair: Pair, texts: Mapping[str, str]) -> str:
    return f"{pair.group[:16]}-{sha256_text(texts[pair.chosen])[:8]}-{sha256_text(texts[pair.rejected])[:8]}"


def demonstrations(snapshot: Snapshot) -> list[DemonstrationRow]:
    """Rewritten responses as demonstrations for supervised training."""
    rows = []
    for record in snapshot.of_kind("normal"):
        for response_id, better in record.edits:
            messages = (*snapshot.prompts[record.prompt_sha256], Message("assistant", better))
            rows.append(DemonstrationRow(id=f"{record.judgment_id}-{response_id}", messages=messages))
    return rows


def export_snapshot(store: Store, project: str, *, with_retired: bool = False) -> Snapshot:
    """What exports are made of: the project as it stands now, read in one transaction.

    Args:
        with_retired: keep the votes on items that a lead has retired.
    """
    with store.read() as session:
        snapshot = read_snapshot(session, project)
    return snapshot if with_retired else snapshot.without_retired()


def export_preferences(
    store: Store,
    project: str,
    options: PairOptions | None = None,
    *,
    include_edits: bool = True,
    with_retired: bool = False,
) -> list[PreferenceRow]:
    """Preference rows of ``export_snapshot``."""
    snapshot = export_snapshot(store, project, with_retired=with_retired)
    return preference_rows(snapshot, options, include_edits=include_edits)
