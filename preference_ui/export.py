"""Reading judgments out of the store as rankings, preference rows and demonstrations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from preference_ui.db import Store
from preference_ui.ids import sha256_text
from preference_ui.models import Annotator, Event, Item, Judgment, Lease, Prompt, Response, ResponseEdit
from preference_ui.projects import ProjectInfo, load_project
from preference_ui.ranking import Pair, PairOptions, Ranking, preference_pairs
from rlhf.data.schema import DemonstrationRow, Message, PreferenceRow


@dataclass(frozen=True)
class JudgmentRecord:
    """One current judgment with everything an analysis needs, nothing folded.

    Attributes:
        tiers: response ids, best tier first; ``shown``: response ids by slot.
        margin: the project's margin for the strength given, 0 when none was.
        edits: ``(response id, better text)``.
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
    edits: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A project's current judgments on one consistent reading, in the order they were stored."""

    project: ProjectInfo
    judgments: list[JudgmentRecord]
    texts: dict[str, str]
    prompts: dict[str, tuple[Message, ...]]

    def of_kind(self, *kinds: str) -> list[JudgmentRecord]:
        """Judgments of items of the given kinds."""
        return [j for j in self.judgments if j.kind in kinds]


def read_snapshot(session: Session, project: str, up_to_event: int | None = None) -> Snapshot:
    """Read the newest, not retracted judgment of every lease.

    Args:
        up_to_event: as the store stood after this event; a lease's later revisions are not seen.
    """
    info = load_project(session, project)
    query = (
        select(Judgment, Lease, Item, Annotator.handle, Prompt, Event.seq)
        .join(Lease, Lease.id == Judgment.lease_id)
        .join(Item, Item.id == Lease.item_id)
        .join(Annotator, Annotator.id == Lease.annotator_id)
        .join(Prompt, Prompt.id == Item.prompt_id)
        .join(Event, Event.entity_id == Judgment.id)
        .where(Item.project_id == info.id, Event.entity == "judgment")
        .order_by(Event.seq)
    )
    if up_to_event is not None:
        query = query.where(Event.seq <= up_to_event)
    newest = {row[1].id: row for row in session.execute(query)}
    rows = sorted((row for row in newest.values() if not row[0].retracted), key=lambda row: row[5])
    edits: dict[str, list[tuple[str, str]]] = {}
    for edit in session.scalars(select(ResponseEdit).order_by(ResponseEdit.response_id)):
        edits.setdefault(edit.judgment_id, []).append((edit.response_id, edit.text))
    margins = info.settings.strength_margins
    judgments = [
        JudgmentRecord(
            judgment_id=j.id,
            lease_id=lease.id,
            item_id=item.id,
            kind=item.kind,
            repeat_of_lease_id=item.repeat_of_lease_id,
            annotator_id=lease.annotator_id,
            handle=handle,
            prompt_sha256=prompt.content_sha256,
            topic=prompt.topic,
            tiers=tuple(tuple(t) for t in json.loads(j.tiers_json)),
            shown=tuple(json.loads(lease.permutation_json)),
            margin=margins[j.strength] if j.strength is not None and j.strength < len(margins) else 0.0,
            strength=j.strength,
            all_bad=j.all_bad,
            rationale=j.rationale,
            active_ms=j.active_ms,
            wall_ms=j.wall_ms,
            guideline_version=j.guideline_version,
            revision=j.revision,
            edits=tuple(edits.get(j.id, ())),
        )
        for j, lease, item, handle, prompt, _ in rows
    ]
    prompts = {row[4].content_sha256: _messages(row[4].messages_json) for row in rows}
    found = session.execute(
        select(Response.id, Response.text)
        .join(Item, Item.prompt_id == Response.prompt_id)
        .where(Item.project_id == info.id)
    )
    texts = {row.id: row.text for row in found}
    return Snapshot(info, judgments, texts, prompts)


def _messages(text: str) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in json.loads(text))


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
            rows.append(DemonstrationRow(id=f"{record.judgment_id}-{response_id[:8]}", messages=messages))
    return rows


def export_preferences(
    store: Store, project: str, options: PairOptions | None = None, *, include_edits: bool = True
) -> list[PreferenceRow]:
    """Preference rows of a project as it stands now, read in one transaction."""
    with store.read() as session:
        snapshot = read_snapshot(session, project)
    return preference_rows(snapshot, options, include_edits=include_edits)
