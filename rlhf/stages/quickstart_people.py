"""The people of the quickstart: candidates into the queue, simulated votes out of it, and what the votes allow."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preference_ui.db import Store
from preference_ui.export import Snapshot, read_snapshot
from preference_ui.importing import import_file
from preference_ui.projects import create_project, list_projects
from preference_ui.ranking import place, preference
from preference_ui.settings import ProjectSettings
from preference_ui.simulate import run_pool
from rlhf.data.helpline.agreement import JudgedPair, pair_agreement_ceiling
from rlhf.data.helpline.annotators import SimulatedAnnotator, default_pool
from rlhf.data.helpline.judge import score
from rlhf.data.schema import Message

GUIDELINE = """\
# What makes a good answer

1. **Right** comes first: the fact asked for, and no other.
2. **Kind** comes second: a caller is a person.
3. **Short** comes third: no stories about the neighbour's garden.

These texts are synthetic and are not medical advice.
"""


@dataclass(frozen=True)
class PairVotes:
    """Two candidates of one prompt and everybody's votes: 1 for the first, -1 for the second, 0 a tie."""

    group: str
    prompt: tuple[Message, ...]
    first: str
    second: str
    votes: tuple[int, ...]


class _Person:
    """Gives a simulated annotator the queue's call signature."""

    def __init__(self, annotator: SimulatedAnnotator) -> None:
        self.name = annotator.name
        self._annotator, self._generator = annotator, annotator.generator()

    def rank(self, prompt: tuple[Message, ...], responses: Sequence[str], rng: random.Random) -> list[list[int]]:
        return self._annotator.rank(prompt[-1].content, responses, self._generator)


def fill_queue(store: Store, candidates: Path, *, overlap: int) -> tuple[str, int]:
    """Makes a project and imports the candidates, one item per prompt.

    Returns:
        The project's name (``helpline``, or ``helpline-2`` and so on when that is taken) and the number of items.
    """
    name = _free_name("helpline", {p.name for p in list_projects(store)})
    create_project(store, name, guideline=GUIDELINE, settings=ProjectSettings(overlap=overlap))
    return name, import_file(store, name, candidates).num_items


def queue_comparison(store: Store, answers: Path, *, like: str, runs: Mapping[str, str], folder: Path) -> str:
    """Makes a project of held-out prompts that two policies answered differently, for whoever runs the quickstart.

    Args:
        answers: the evaluation's samples.
        like: project whose name the new one extends.
        runs: the run behind each of the two answers.

    Returns:
        The project's name, such as ``helpline-compare``.
    """
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    items = [
        {
            "id": f"compare-{index}",
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "responses": [{"text": row["answers"][name], "run": run} for name, run in runs.items()],
        }
        for index, row in enumerate(rows)
        if len({row["answers"][name] for name in runs}) == len(runs)
    ]
    file = folder / "compare.jsonl"
    file.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    name = _free_name(f"{like}-compare", {p.name for p in list_projects(store)})
    create_project(store, name, guideline=GUIDELINE, settings=ProjectSettings(overlap=1))
    import_file(store, name, file)
    return name


def simulate(store: Store, project: str, *, seed: int) -> dict[str, int]:
    """Lets the pool of simulated people vote until the queue is empty; votes per person."""
    return run_pool(store, project, [_Person(a) for a in default_pool(seed)], seed=seed).per_annotator


def num_votes(store: Store, project: str) -> int:
    """Rankings that people have given so far."""
    with store.read() as session:
        return len(read_snapshot(session, project).of_kind("normal"))


def pair_votes(store: Store, project: str) -> list[PairVotes]:
    """Every pair of candidates that somebody has judged."""
    with store.read() as session:
        snapshot: Snapshot = read_snapshot(session, project)
    tally: dict[tuple[str, str, str], list[int]] = {}
    for record in snapshot.of_kind("normal"):
        places = place(record.tiers)
        ordered = sorted(places)
        for index, first in enumerate(ordered):
            for second in ordered[index + 1 :]:
                vote = round(2 * preference(places, first, second) - 1)
                tally.setdefault((record.prompt_sha256, first, second), []).append(vote)
    return [
        PairVotes(group, snapshot.prompts[group], snapshot.texts[a], snapshot.texts[b], tuple(votes))
        for (group, a, b), votes in sorted(tally.items())
    ]


def vote_accuracy(pairs: Sequence[PairVotes], first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Agreement of scores with the votes that are not ties, with a bootstrap interval by prompt."""
    judged = [JudgedPair(a, b, p.votes) for p, a, b in zip(pairs, first, second, strict=True)]
    found = pair_agreement_ceiling(judged)
    low, high = _interval(pairs, first, second)
    return {
        "accuracy": found.ceiling,
        "ci_low": low,
        "ci_high": high,
        "num_votes": found.num_votes,
        "agreement": found.agreement,
        "estimated_ceiling": found.estimated_ceiling,
    }


def gold_scores(pairs: Sequence[PairVotes]) -> tuple[list[float], list[float]]:
    """The gold judge's totals of both candidates of every pair."""
    first = [score(p.prompt[-1].content, p.first).total for p in pairs]
    second = [score(p.prompt[-1].content, p.second).total for p in pairs]
    return first, second


def annotator_table(store: Store, project: str, votes: Mapping[str, int], seed: int) -> list[dict[str, Any]]:
    """One row per person: votes, the reliability they were made with, and how often they agree with the true order.

    Args:
        votes: votes per simulated person; empty when real people voted, whose reliability nobody planted.
    """
    with store.read() as session:
        snapshot = read_snapshot(session, project)
    planted = {a.name: a.reliability for a in default_pool(seed)} if votes else {}
    votes = votes or Counter(record.handle for record in snapshot.of_kind("normal"))
    right: dict[str, list[float]] = {}
    for record in snapshot.of_kind("normal"):
        places = place(record.tiers)
        prompt = snapshot.prompts[record.prompt_sha256][-1].content
        gold = {name: score(prompt, snapshot.texts[name]).total for name in places}
        ordered = sorted(places)
        for index, a in enumerate(ordered):
            for b in ordered[index + 1 :]:
                vote = preference(places, a, b)
                if vote != 0.5 and gold[a] != gold[b]:
                    right.setdefault(record.handle, []).append(float((vote == 1) == (gold[a] > gold[b])))
    return [
        {
            "annotator": name,
            "votes": votes.get(name, 0),
            "planted reliability": planted.get(name),
            "agrees with the true order": float(np.mean(right[name])) if right.get(name) else None,
        }
        for name in sorted(set(planted) | set(votes))
    ]


def _interval(pairs: Sequence[PairVotes], first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    hits: dict[str, list[float]] = {}
    for pair, a, b in zip(pairs, first, second, strict=True):
        for vote in pair.votes:
            if vote:
                hits.setdefault(pair.group, []).append(0.5 if a == b else float((a > b) == (vote > 0)))
    groups = list(hits.values())
    sums, counts = np.array([sum(g) for g in groups]), np.array([len(g) for g in groups])
    picks = np.random.default_rng(0).integers(0, len(groups), size=(1000, len(groups)))
    low, high = np.quantile(sums[picks].sum(1) / counts[picks].sum(1), [0.025, 0.975])
    return float(low), float(high)


def _free_name(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name
