"""How well pairs are ordered, as the workers that train on pairs tell it."""

from __future__ import annotations

from torch import Tensor

from rlhf.workers.trl_common import sum_over_ranks


def held_out_shares(difference: Tensor, probability: Tensor) -> dict[str, float]:
    """``accuracy`` where a pair has a majority, ``vote_accuracy`` where votes differ: what can be told."""
    found = {}
    if len(correct := correct_against_majority(difference, probability)):
        found["accuracy"] = float(correct.mean())
    if bool(((probability > 0) & (probability < 1)).any()):
        found["vote_accuracy"] = float((0.5 + difference.sign() * (probability - 0.5)).mean())
    return found


def correct_against_majority(difference: Tensor, probability: Tensor) -> Tensor:
    """1 where the sign agrees with the majority of the votes, 0.5 for a difference of 0; (decided pairs,) float32.

    Pairs without a majority (probability 0.5) say nothing here and are left out.
    """
    decided = probability != 0.5
    return 0.5 + 0.5 * difference[decided].sign().float() * (probability[decided] - 0.5).sign().float()


def step_figures(difference: Tensor, probability: Tensor, **more: Tensor) -> dict[str, list[float]]:
    """Means and accuracy over the present pairs of all ranks, each as often as there are pairs that count.

    A trainer's log takes the mean of what a step's micro-batches leave: in this form it is a mean over pairs. All ranks
    must call it.

    Args:
        difference: ``(n,)``, score of chosen minus that of rejected, detached.
        probability: ``(n,)``, share of votes for chosen.
        more: ``(n,)`` each, of what else the mean is wanted, detached.

    Returns:
        ``difference``, ``accuracy`` and those by name; no ``accuracy`` where no pair has a majority. No list is empty:
        the trainer's log divides by its length.
    """
    correct = correct_against_majority(difference, probability)
    means = {"difference": difference, **more}
    sums = {f"sum of {name}": float(values.sum()) for name, values in means.items()}
    counts = {"pairs": float(len(difference)), "decided": float(len(correct)), "correct": float(correct.sum())}
    total = sum_over_ranks({**sums, **counts}, difference.device)
    pairs, decided = int(total["pairs"]), int(total["decided"])
    found = {name: [total[f"sum of {name}"] / pairs] * pairs for name in means}
    return {**found, "accuracy": [total["correct"] / decided] * decided} if decided else found
