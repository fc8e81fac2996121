"""A pool of simulated annotators that votes through the real queue, as the quickstart does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from preference_ui import queue
from preference_ui.db import Store
from preference_ui.people import ensure_annotator
from preference_ui.votes import Vote
from rlhf.data.schema import Message


class Ranker(Protocol):
    """Anybody with opinions."""

    name: str

    def rank(self, prompt: tuple[Message, ...], responses: Sequence[str], rng: random.Random) -> list[list[int]]:
        """Tiers of indices into ``responses`` (in the order shown), best first."""
        ...


@dataclass(frozen=True)
class SimulationReport:
    """What a simulated pool did: votes stored, per annotator and in all."""

    votes: int
    per_annotator: dict[str, int]


def run_pool(
    store: Store, project: str, annotators: Sequence[Ranker], *, seed: int = 0, max_votes: int | None = None
) -> SimulationReport:
    """Let the annotators take turns until nobody finds work (or ``max_votes`` are stored).

    Every vote is a committed transaction, the same one a person's click causes. With a store opened with a
    seeded ``rng`` the same seed gives the same votes.
    """
    rng = random.Random(f"simulated annotators {seed}")
    people = [(ensure_annotator(store, a.name).id, a) for a in annotators]
    tasks = {person: queue.claim(store, project, person) for person, _ in people}
    counts = {a.name: 0 for a in annotators}
    total = 0
    # A vote may reopen an item (a disagreement) for somebody who found nothing before: ask until a whole round
    # finds no work.
    working = True
    while working and (max_votes is None or total < max_votes):
        working = False
        for person, annotator in people:
            task = tasks[person] or queue.claim(store, project, person)
            tasks[person] = None
            if task is None or (max_votes is not None and total >= max_votes):
                if task is not None:
                    queue.release(store, person, task.lease_id)
                continue
            tiers = annotator.rank(task.prompt, task.responses, rng)
            receipt = queue.submit(store, person, task.lease_id, Vote(tiers=tiers), task.revision, claim_next=True)
            tasks[person] = receipt.next
            counts[annotator.name] += 1
            total += 1
            working = True
    for person, task in tasks.items():
        if task is not None:
            queue.release(store, person, task.lease_id)
    return SimulationReport(total, counts)
