"""Which part of a pass's operations each role asks for.

All roles of a micro-batch run in one pass, so no clock can tell them apart: their time is split by what they compute.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.models.operations import UpdateCosts
from rlhf.models.roles import POLICY, REFERENCE, REWARD

Shares = dict[str, float]


def pass_shares(
    costs: UpdateCosts, roles: Sequence[str], lengths: Sequence[int], num_response_tokens: int, *, trained: bool
) -> Shares:
    """Shares of a pass, forward or forward and backward, over sequences of these lengths; they add up to 1."""
    return _normalised(pass_operations(costs, roles, lengths, num_response_tokens, trained=trained))


def pass_operations(
    costs: UpdateCosts, roles: Sequence[str], lengths: Sequence[int], num_response_tokens: int, *, trained: bool
) -> dict[str, float]:
    """Operations of each role: policy and reference alone need logits, the reward model reads one token per sequence.

    In a forward pass alone all adapters count as large as the first.
    """
    return {
        role: costs.role(
            number if trained else 0,
            lengths,
            len(lengths) if role == REWARD else num_response_tokens,
            trained=trained,
            logits=role in (POLICY, REFERENCE),
            whole=costs.whole_policy and role == POLICY,
            to_end=role == REWARD,
        )
        for number, role in enumerate(roles)
    }


def weight_shares(costs: UpdateCosts, roles: Sequence[str]) -> Shares:
    """Shares of the trained weights: what an optimizer step goes through."""
    return _normalised(dict(zip(roles, map(float, costs.adapters), strict=True)))


def _normalised(parts: Shares) -> Shares:
    whole = sum(parts.values())
    return {role: part / whole for role, part in parts.items()}
