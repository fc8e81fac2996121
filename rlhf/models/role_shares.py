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
    """Shares of a pass, forward or forward and backward, over sequences of these lengths; they add up to 1."""
    return _normalised(pass_operations(costs, roles, lengths, num_response_tokens, trained=trained))


def pass_operations(
    costs: UpdateCosts, roles: Sequence[str], lengths: Sequence[int], num_response_tokens: int, *, trained: bool
) -> dict[str, float]:
    """Operations of each role: policy and reference alone need logits.

    In a forward pass alone all adapters count as large as the first.
    """
    adapters = costs.adapters if trained else costs.adapters[:1] * len(roles)
    return {
        role: costs.role(
            own,
            lengths,
            num_response_tokens if role in (POLICY, REFERENCE) else 0,
            trained=trained,
            whole=costs.whole_policy and role == POLICY,
        )
        for role, own in zip(roles, adapters, strict=True)
    }


def weight_shares(costs: UpdateCosts, roles: Sequence[str]) -> Shares:
    """Shares of the trained weights: what an optimizer step goes through."""
    return _normalised(dict(zip(roles, map(float, costs.adapters), strict=True)))


def _normalised(parts: Shares) -> Shares:
    whole = sum(parts.values())
    return {role: part / whole for role, part in parts.items()}
