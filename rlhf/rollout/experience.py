"""A step's sequences and everything known about them, as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf.models.moving import moved
from rlhf.rollout.protocol import Rollout


@dataclass(frozen=True)
class Experience:
    """One step's batch. Prompts are padded on the left, responses on the right.

    Attributes:
        input_ids / attention_mask: (batch, prompt + response).
        response_ids / response_mask: (batch, response); the mask keeps the stop token and nothing after it.
        finished: (batch,) ended by a stop token.
        behaviour_logprobs: (batch, response) as the rollout engine reported them.
        old_logprobs, ref_logprobs, values, advantages, returns: (batch, response), filled in while judging,
            None before.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    finished: Tensor
    behaviour_logprobs: Tensor
    old_logprobs: Tensor | Any = None
    ref_logprobs: Tensor | Any = None
    values: Tensor | Any = None
    advantages: Tensor | Any = None
    returns: Tensor | Any = None

    @property
    def num_sequences(self) -> int:
        """Rows of the batch."""
        return self.input_ids.shape[0]

    @property
    def lengths(self) -> list[int]:
        """Real tokens per row."""
        return self.attention_mask.sum(dim=1).tolist()

    def with_judgement(self, **tensors: Any) -> Experience:
        """A copy with more tensors filled in."""
        return replace(self, **tensors)

    def select(self, rows: Sequence[int]) -> Experience:
        """The given rows, with columns that only hold padding cut off on both sides."""
        index = torch.as_tensor(list(rows), dtype=torch.long)
        num_response = self.response_ids.shape[1]
        width = self.input_ids.shape[1] - num_response
        kept = max(1, int(self.attention_mask[index, width:].sum(dim=1).max()))
        prompt = int(self.attention_mask[index, :width].sum(dim=1).max())
        cut: dict[str, Any] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor is None:
                cut[field.name] = None
            elif field.name in ("input_ids", "attention_mask"):
                cut[field.name] = tensor[index][:, width - prompt : width + kept]
            elif tensor.dim() == 2:
                cut[field.name] = tensor[index][:, :kept]
            else:
                cut[field.name] = tensor[index]
        return Experience(**cut)

    def to(self, device: torch.device) -> Experience:
        """A copy on another device; ``attention_mask`` stays in main memory, where passes make their indices of it."""
        tensors: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        stays = ("attention_mask",)
        there = {k: v if v is None or k in stays else moved(v, device) for k, v in tensors.items()}
        return Experience(**there)


def collect(rollouts: Sequence[Rollout], pad_id: int) -> Experience:
    """Pads rollouts into one batch, row order kept."""
    num_rows = len(rollouts)
    width = max(len(r.prompt_ids) for r in rollouts)
    num_response = max(1, max(len(r.response_ids) for r in rollouts))
    input_ids = torch.full((num_rows, width + num_response), pad_id)
    attention = torch.zeros_like(input_ids, dtype=torch.bool)
    behaviour = torch.zeros((num_rows, num_response))
    for row, rollout in enumerate(rollouts):
        sequence = rollout.prompt_ids + rollout.response_ids
        start = width - len(rollout.prompt_ids)
        input_ids[row, start : start + len(sequence)] = torch.tensor(sequence)
        attention[row, start : start + len(sequence)] = True
        behaviour[row, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs)
    return Experience(
        input_ids=input_ids,
        attention_mask=attention,
        response_ids=input_ids[:, width:].clone(),
        response_mask=attention[:, width:].clone(),
        finished=torch.tensor([r.finished for r in rollouts]),
        behaviour_logprobs=behaviour,
    )
