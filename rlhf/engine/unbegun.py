"""Groups that have not begun to learn: the optimizer must not count the steps in which they stay as they are.

Adam (arXiv:1412.6980, sec. 3) divides its moments by 1 - beta^t to undo that they start at zero. A group that is
stepped on zero gradients keeps zero moments while t grows: its first real updates would be too large, four times after
hundreds of such steps at the usual betas.
"""

from __future__ import annotations

from typing import Any

import torch


class UnbegunGroups:
    """Sets the count of steps back to zero after every step in which a group had not begun.

    The group keeps its state, with moments of zero: DeepSpeed saves that of all groups by the names in the first one's.
    A hook, since ZeRO steps with a piece of one group at a time, and the pieces are out of reach afterwards.

    Attributes:
        names: of these groups, for the coming step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.names: frozenset[str] = frozenset()
        optimizer.register_step_post_hook(self.forget)

    def forget(self, optimizer: Any, *_: Any) -> None:
        """The step that was just taken does not count for them."""
        for group in optimizer.param_groups:
            if group["name"] not in self.names:
                continue
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if "step" in state:
                    state["step"] *= 0  # a tensor, which others may look into, stays the same one
