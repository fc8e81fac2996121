"""Scalar heads of reward model and critic: in float32 whatever the precision of the base.

A score in bfloat16 has three digits, and normalization then takes a mean off it: what is left of a difference between
two responses would be steps of 1/128 and more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def read_scalars(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., hidden) to (..., 1), float32; ``weight`` is (1, hidden), ``bias`` (1,)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.float(), weight.float(), None if bias is None else bias.float())


class ScalarHead(nn.Linear):
    """A layer with one output that computes in float32; its weights are of the type that the engine wants."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., hidden) to (..., 1), float32."""
        return read_scalars(hidden, self.weight, self.bias)
