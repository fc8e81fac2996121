"""What the lead's pictures show beyond the quality report: counts over time, by place, by length, by topic."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from preference_ui.db import Store
from preference_ui.events import head
from preference_ui.export import JudgmentRecord, Snapshot, read_snapshot
from preference_ui.models import Item, Prompt
from preference_ui.projects import ProjectInfo
from preference_ui.ranking import strict_pairs
from preference_ui.takers import num_takers
from preference_ui.zones import zone_of

DAYS_SHOWN = 30
# Upper edges of how many times longer the longer text is; the last class is open.
LENGTH_EDGES = (1.1, 1.25, 1.5, 2.0, 4.0)


@dataclass(frozen=True)
class GroupCoverage:
    """Votes given and asked for on a group's normal items, and how many people get them."""

    done: int
    needed: int
    people: int

    @property
    def is_stuck(self) -> bool:
        """Whether votes are missing that nobody can give."""
        return self.done < self.needed and not self.people


@dataclass(frozen=True)
class Overview:
    """Series for pictures.

    Attributes:
        per_day: votes per day, oldest first, days without votes included.
        first_by_place: share of votes that put the response shown at this place alone on top.
        first_expected: the same share if places did not matter.
        longer_wins: ``(times longer up to, share of pairs the longer won, number of pairs)``.
        seconds: time in use per vote, where it was measured.
        topics: ``topic -> (votes given, votes asked for)``.
        groups: coverage by group, where there are groups.
        head_seq: position of the event chain that all this was read at.
        zone / day: where the project counts days, and which it was when all this was read.
    """

    per_day: list[tuple[date, int]]
    today: int
    done: int
    needed: int
    first_by_place: list[float]
    first_expected: float
    longer_wins: list[tuple[float, float, int]]
    seconds: list[float]
    topics: dict[str, tuple[int, int]]
    groups: dict[str, GroupCoverage]
    head_seq: int
    zone: tzinfo
    day: date

    def is_of(self, now: datetime) -> bool:
        """Whether its day is still today."""
        return now.astimezone(self.zone).date() == self.day


def head_of(store: Store) -> int:
    """How many events the store holds: it grows with every change."""
    with store.read() as session:
        return head(session)[0]


@dataclass(frozen=True)
class Coverage:
    """What is counted where the snapshot was read: ``topic -> (votes given, votes asked for)``, and the chain's end.

    Attributes:
        groups: with ``""`` for the items of none; empty where no item has a group.
    """

    topics: dict[str, tuple[int, int]]
    groups: dict[str, GroupCoverage]
    head_seq: int


def coverage_of(session: Session, project: ProjectInfo) -> Coverage:
    """Counts of the normal items that are asked for."""
    rows = session.execute(
        select(Prompt.topic, Item.group, func.sum(Item.done), func.sum(Item.needed))
        .join(Prompt, Prompt.id == Item.prompt_id)
        .where(Item.project_id == project.id, Item.kind == "normal", Item.state != "retired")
        .group_by(Prompt.topic, Item.group)
        .order_by(Prompt.topic, Item.group)
    ).all()
    topics: dict[str, tuple[int, int]] = {}
    groups: dict[str, tuple[int, int]] = {}
    for topic, group, done, needed in rows:
        for table, key in ((topics, topic), (groups, group)):
            before = table.get(key, (0, 0))
            table[key] = (before[0] + int(done), before[1] + int(needed))
    people = {group: num_takers(session, project, group) for group in groups} if groups.keys() - {""} else {}
    by_group = {group: GroupCoverage(*groups[group], people[group]) for group in sorted(people)}
    return Coverage(topics, by_group, head(session)[0])


def overview_of(snapshot: Snapshot, coverage: Coverage, now: datetime) -> Overview:
    """All series, of what one session has read. Days are the project's."""
    zone = zone_of(snapshot.project.settings.time_zone)
    today = now.astimezone(zone).date()
    records = snapshot.of_kind("normal")
    counts = Counter(record.answered.astimezone(zone).date() for record in snapshot.judgments)
    start = max(min(counts, default=today), today - timedelta(days=DAYS_SHOWN - 1))
    days = [start + timedelta(days=n) for n in range((today - start).days + 1)]
    shares, expected = _first_by_place(records)
    return Overview(
        per_day=[(day, counts[day]) for day in days],
        today=counts[today],
        done=sum(done for done, _ in coverage.topics.values()),
        needed=sum(needed for _, needed in coverage.topics.values()),
        first_by_place=shares,
        first_expected=expected,
        longer_wins=_longer_wins(records, snapshot.lengths),
        seconds=[r.active_ms / 1000 for r in records if r.active_ms],
        topics=coverage.topics,
        groups=coverage.groups,
        head_seq=coverage.head_seq,
        zone=zone,
        day=today,
    )


def overview(store: Store, project: str) -> Overview:
    """All series as the store stands now."""
    with store.read() as session:
        snapshot = read_snapshot(session, project, texts=False)
        coverage = coverage_of(session, snapshot.project)
    return overview_of(snapshot, coverage, store.clock())


def _first_by_place(records: Sequence[JudgmentRecord]) -> tuple[list[float], float]:
    """Over the most common number of responses, so that places compare; imported rankings have no places."""
    given = [r for r in records if not r.imported]
    sizes = Counter(len(r.shown) for r in given)
    if not sizes:
        return [], 0.0
    size = sizes.most_common(1)[0][0]
    chosen = [r for r in given if len(r.shown) == size]
    wins = Counter(r.shown.index(r.tiers[0][0]) for r in chosen if len(r.tiers[0]) == 1)
    total = sum(wins.values())
    return ([wins[place] / total for place in range(size)], 1 / size) if total else ([], 1 / size)


def _longer_wins(records: Sequence[JudgmentRecord], lengths: dict[str, int]) -> list[tuple[float, float, int]]:
    wins = [0] * (len(LENGTH_EDGES) + 1)
    pairs = [0] * (len(LENGTH_EDGES) + 1)
    for record in records:
        for better, worse in strict_pairs(record.tiers):
            long, short = lengths[better], lengths[worse]
            if long == short:
                continue
            bin_ = bisect_left(LENGTH_EDGES, (long if long > short else short) / max(1, min(long, short)))
            pairs[bin_] += 1
            wins[bin_] += long > short
    edges = [*LENGTH_EDGES, float("inf")]
    return [(edge, won / n, n) for edge, won, n in zip(edges, wins, pairs, strict=True) if n]
