"""Which part of a pass's operations each role asks for.

All roles of a micro-batch run in one pass, so no clock can tell them apart: their time is split by what they compute.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.models.operations import UpdateCosts
from rlhf.models.roles import POLICY, REFERENCE

Shares = dict[str, float]


def pass_shares(
    costs: UpdateCosts, roles: Sequence[str], lengths: Sequence[int], num_response_tokens: int, *, trained: bool
) -> Shares:
    """Shares of a forward pass, or of a forward and backward one, over sequences of these lengths; they add up to 1.

    Every role meets the same tokens in all layers; policy and reference alone need logits. Adapters count as in
    ``UpdateCosts``; roles that are not trained as the first of those that are.
    """
    tokens, pairs = sum(lengths), sum(length**2 for length in lengths)
    passes = 2 if trained else 1
    found: Shares = {}
    for index, role in enumerate(roles):
        adapter = costs.adapters[index] if trained else costs.adapters[0]
        layers = passes * 2 * costs.body * tokens + (6 if trained else 2) * costs.attention * pairs
        layers += (6 if trained else 2) * adapter * tokens
        head = passes * 2 * costs.head * num_response_tokens if role in (POLICY, REFERENCE) else 0
        found[role] = float(layers + head)
    return _normalised(found)


def weight_shares(costs: UpdateCosts, roles: Sequence[str]) -> Shares:
    """Shares of the trained weights: what an optimizer step goes through."""
    return _normalised(dict(zip(roles, map(float, costs.adapters), strict=True)))


def _normalised(parts: Shares) -> Shares:
    whole = sum(parts.values())
    return {role: part / whole for role, part in parts.items()}
