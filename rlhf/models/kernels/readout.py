"""Log-probabilities and entropies from logits: on a CPU in two passes over each row, one on the way back.

Written in torch they are some twelve passes, each with a tensor of all logits for its result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf.algos.logprobs import Ids, LogprobsAndEntropy, logprobs_and_entropy
from rlhf.models.kernels import calls


def read(
    logits: Tensor,
    token_ids: Tensor,
    *,
    temperature: float,
    suppress_ids: Ids = (),
    entropy_graph: bool = True,
) -> LogprobsAndEntropy:
    """Takes and gives what ``logprobs_and_entropy`` does, to which everything goes that the kernel has no way for:
    an entropy with gradients, other devices and types of numbers.

    Raises:
        IndexError: an id is no token of the vocabulary.
    """
    differentiates = torch.is_grad_enabled() and logits.requires_grad and entropy_graph
    if differentiates or not temperature > 0 or not calls.tells(logits):
        words: dict[str, Any] = {"temperature": temperature, "suppress_ids": suppress_ids}
        return logprobs_and_entropy(logits, token_ids, entropy_graph=entropy_graph, **words)
    never = torch.as_tensor(suppress_ids, dtype=torch.long)
    for ids in (token_ids, never):  # the kernel reads and writes where they point
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < logits.shape[-1]:
            raise IndexError(f"token ids must be in 0..{logits.shape[-1] - 1}, got {int(ids.min())}..{int(ids.max())}")
    found = _Readout.apply(logits.flatten(0, -2), token_ids.flatten(), never, 1.0 / temperature)
    return LogprobsAndEntropy(*(one.view(token_ids.shape) for one in found))


class _Readout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, token_ids: Tensor, never: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        logits = logits.contiguous()
        logprobs, entropies, normalizers = calls.tell(logits, token_ids, never, scale)
        ctx.save_for_backward(logits, token_ids, never, normalizers)
        ctx.scale = scale
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None, None, None]:
        logits, token_ids, never, normalizers = ctx.saved_tensors
        back = calls.tell_backward(gradient, logits, token_ids, never, normalizers, ctx.scale)
        return back, None, None, None
