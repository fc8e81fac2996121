"""How good a reward model is on held-out pairs, beside chance, a length rule and the annotators themselves."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from rlhf.config import derive_seed

Z95 = 1.959963984540054


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927); (0, 1) for no trials."""
    if count == 0:
        return 0.0, 1.0
    p, z2 = successes / count, Z95**2
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_interval(
    values: Sequence[float], groups: Sequence[str], seed: int, num_draws: int = 2000
) -> tuple[float, float]:
    """95% percentile interval of a mean when whole groups (prompts) are drawn again."""
    sums: dict[str, tuple[float, int]] = {}
    for value, group in zip(values, groups, strict=True):
        total, count = sums.get(group, (0.0, 0))
        sums[group] = (total + value, count + 1)
    members, generator = list(sums.values()), random.Random(derive_seed(seed, "bootstrap"))
    means = []
    for _ in range(num_draws):
        drawn = generator.choices(members, k=len(members))
        means.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    means.sort()
    return means[int(0.025 * num_draws)], means[min(num_draws - 1, int(0.975 * num_draws))]


def pair_accuracy(
    differences: Sequence[float], probabilities: Sequence[float], groups: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """Accuracy of signs against the majority of the votes, and against each vote.

    A difference of 0 counts half. Pairs without a majority (probability 0.5) say nothing about accuracy against the
    majority and are counted apart.

    Returns:
        ``accuracy`` with ``ci_low``/``ci_high`` (bootstrap by prompt) and ``wilson_low``/``wilson_high``;
        ``num_pairs``, ``num_prompts``, ``num_ties``; ``vote_accuracy``, and ``vote_ceiling``: the best that any model
        can do against these votes, which is to agree with every majority.
    """
    rows = list(zip(differences, probabilities, groups, strict=True))
    decided = [(d, p, g) for d, p, g in rows if p != 0.5]
    right = [0.5 if d == 0 else float((d > 0) == (p > 0.5)) for d, p, _ in decided]
    votes = [0.5 if d == 0 else (p if d > 0 else 1 - p) for d, p, _ in rows]
    low, high = bootstrap_interval(right, [g for _, _, g in decided], seed) if decided else (0.0, 1.0)
    wilson = wilson_interval(sum(right), len(right))
    return {
        "accuracy": sum(right) / len(right) if right else None,
        "ci_low": low,
        "ci_high": high,
        "wilson_low": wilson[0],
        "wilson_high": wilson[1],
        "num_pairs": len(right),
        "num_prompts": len({g for _, _, g in decided}),
        "num_ties": len(rows) - len(decided),
        "vote_accuracy": sum(votes) / len(votes) if votes else None,
        "vote_ceiling": sum(max(p, 1 - p) for _, p, _ in rows) / len(rows) if rows else None,
    }


def length_baseline(
    train: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]], *, seed: int
) -> dict[str, Any]:
    """Accuracy of "the longer (or the shorter) response is better", the direction learnt on the training pairs."""
    lean = sum((len(r["chosen_ids"]) > len(r["rejected_ids"])) - (len(r["chosen_ids"]) < len(r["rejected_ids"]))
               for r in train if r["probability"] > 0.5)  # fmt: skip
    sign = 1 if lean >= 0 else -1
    differences = [float(sign * (len(r["chosen_ids"]) - len(r["rejected_ids"]))) for r in held_out]
    found = pair_accuracy(differences, [r["probability"] for r in held_out], [r["group"] for r in held_out], seed=seed)
    keep = ("accuracy", "ci_low", "ci_high", "wilson_low", "wilson_high")
    return {"rule": "longer" if sign > 0 else "shorter", **{key: found[key] for key in keep}}
