"""Refusing numbers that are none, where they first appear: later they are only a NaN loss."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.algos.masks import require_mask
from rlhf.errors import NumericsError

_SHOWN = 8


def require_finite(name: str, tensor: Tensor, mask: Tensor | None = None) -> None:
    """Refuse NaN and infinity in kept slots.

    Args:
        name: what it is, for the message, e.g. ``"the score"``.
        tensor: ``(batch, ...)``.
        mask: bool, same shape, True = keep; padding may hold anything.

    Raises:
        NumericsError: naming the rows.
    """
    bad = ~torch.isfinite(tensor)
    if mask is not None:
        require_mask(mask, tensor)
        bad = bad & mask
    rows = bad.flatten(1).any(dim=1) if tensor.dim() > 1 else bad
    if not bool(rows.any()):
        return
    found = rows.nonzero().flatten().tolist()
    shown = ", ".join(map(str, found[:_SHOWN])) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    raise NumericsError(
        f"{name} is not finite in {len(found)} of {tensor.shape[0]} rows ({shown}): "
        "nothing can be learnt from it; look at the step before, and lower optim.learning_rate if the policy diverged"
    )
