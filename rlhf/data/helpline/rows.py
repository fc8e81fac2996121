"""Demonstrations and prompts of the helpline, with held-out prompts that training never sees.

For each fact one wording of the question is held out, with every greeting: a held-out prompt asks for a known
fact in a combination of wording and subject that occurs neither in the pretraining corpus, nor in
demonstrations, nor in prompts.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any, Literal

from rlhf.data.helpline.facts import Fact, all_facts
from rlhf.data.helpline.text import GREETINGS, compose_answer, draw_manner, question
from rlhf.errors import DataError

Split = Literal["train", "heldout"]


def heldout_paraphrase(fact: Fact) -> int:
    """Index of the wording of the fact's question that only held-out prompts use; it rotates over facts."""
    return all_facts().index(fact) % len(fact.relation.questions)


@cache
def prompt_pool(split: Split) -> tuple[tuple[str, Fact], ...]:
    """Every prompt of a split with the fact it asks for, in a fixed order.

    Raises:
        DataError: the split has no such name.
    """
    if split not in ("train", "heldout"):
        raise DataError(f"split={split!r}: the helpline has the splits 'train' and 'heldout'")
    pool = []
    for fact in all_facts():
        for paraphrase in range(len(fact.relation.questions)):
            if (paraphrase == heldout_paraphrase(fact)) == (split == "heldout"):
                asked = question(fact, paraphrase)
                pool += [(f"{greeting} {asked}".strip(), fact) for greeting in GREETINGS]
    return tuple(pool)


def _draw(seed: int, n: int, split: Split, purpose: str) -> list[tuple[str, Fact]]:
    """The first ``n`` prompts of a shuffled pool, dealt so that facts come up equally often."""
    rng = random.Random(f"helpline/{purpose}/{split}/{seed}")
    by_fact: dict[str, list[tuple[str, Fact]]] = {}
    for prompt, fact in prompt_pool(split):
        by_fact.setdefault(fact.id, []).append((prompt, fact))
    for group in by_fact.values():
        rng.shuffle(group)
    dealt: list[tuple[str, Fact]] = []
    for turn in range(max(len(group) for group in by_fact.values())):
        hand = [group[turn] for group in by_fact.values() if turn < len(group)]
        rng.shuffle(hand)
        dealt += hand
    return dealt[:n]


def prompts(seed: int, n: int, split: Split = "train") -> list[str]:
    """``n`` different questions of callers, spread evenly over the facts.

    Args:
        seed: another seed gives another choice and order.
        n: how many; at most the size of the split (1 440 for train, 480 for heldout).
        split: ``"train"`` or ``"heldout"``; no prompt is in both.

    Raises:
        DataError: the split has fewer than ``n`` prompts.
    """
    size = len(prompt_pool(split))
    if n > size:
        raise DataError(f"asked for {n} prompts, the split {split!r} has {size}: ask for at most that many")
    return [prompt for prompt, _ in _draw(seed, n, split, "prompts")]


def demonstrations(
    seed: int, n: int, *, right: float = 0.55, kind: float = 0.45, concise: float = 0.45
) -> list[dict[str, Any]]:
    """``n`` demonstrations of mixed quality on training prompts.

    Args:
        seed: another seed gives other prompts and answers.
        n: how many; beyond the size of the training split prompts come again with other answers.
        right, kind, concise: the chance of each trait, independent of the others.

    Returns:
        Rows ``{"id": str, "messages": [{"role": "user", ...}, {"role": "assistant", ...}]}``.
    """
    rng = random.Random(f"helpline/answers/{seed}")
    size = len(prompt_pool("train"))
    rows: list[dict[str, Any]] = []
    for deal in range(-(-n // size)):
        for prompt, fact in _draw(seed + 7919 * deal, min(size, n - deal * size), "train", "demonstrations"):
            answer = compose_answer(fact, draw_manner(rng, right=right, kind=kind, concise=concise), rng)
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            rows.append({"id": f"helpline-{seed}-{len(rows):05d}", "messages": messages})
    return rows
