"""Decoding batch by batch with the library's own growing cache: for models whose layers do not fit into slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlhf.algos.masks import position_ids
from rlhf.config import SamplingConfig
from rlhf.models.moving import moved
from rlhf.rollout.decoding import LOOK_EVERY, Drawn, cut_at_stops
from rlhf.rollout.protocol import PromptTask
from rlhf.rollout.sampling import draw, uniforms

COMPACT_BELOW = 0.6
"""Finished rows leave the batch when fewer than this share is still running."""


class BatchDecoder:
    """Draws responses for one list of tasks, prompts of similar length together; same results as ``SlotDecoder``."""

    def __init__(
        self,
        model: PreTrainedModel,
        tasks: Sequence[PromptTask],
        sampling: SamplingConfig,
        *,
        stop_ids: Sequence[int],
        pad_id: int,
        num_slots: int,
        suppress_ids: Sequence[int],
    ) -> None:
        self._model: Any = model
        self._tasks, self._sampling, self._num_rows, self._pad_id = tasks, sampling, num_slots, pad_id
        self._suppress = moved(torch.tensor(list(suppress_ids), dtype=torch.long), model.device)
        self._stop_ids = torch.tensor(list(stop_ids), dtype=torch.long)
        self._stop = moved(self._stop_ids, model.device)

    @torch.no_grad()
    def run(self) -> list[Drawn]:
        """Draws everything; results in the order of the tasks.

        Raises:
            NumericsError: when the model's logits are not finite.
        """
        order = sorted(range(len(self._tasks)), key=lambda i: len(self._tasks[i].prompt_ids))
        results: dict[int, Drawn] = {}
        for start in range(0, len(order), self._num_rows):
            rows = order[start : start + self._num_rows]
            results.update(zip(rows, self._batch([self._tasks[i] for i in rows]), strict=True))
        return [results[i] for i in range(len(self._tasks))]

    def _batch(self, tasks: list[PromptTask]) -> list[Drawn]:
        width = max(len(t.prompt_ids) for t in tasks)
        ids = torch.full((len(tasks), width), self._pad_id)
        mask = torch.zeros((len(tasks), width), dtype=torch.bool)
        for row, task in enumerate(tasks):
            ids[row, width - len(task.prompt_ids) :] = torch.tensor(task.prompt_ids)
            mask[row, width - len(task.prompt_ids) :] = True
        numbers = np.stack([uniforms(t.seed, self._sampling.max_response_tokens) for t in tasks])
        return cut_at_stops(*self._decode(ids, mask, torch.from_numpy(numbers)), self._stop_ids)

    def _decode(self, ids: Tensor, mask: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and log-probs, (rows, limit); what stands behind a row's stop token means nothing."""
        device = self._model.device
        num_rows, limit = ids.shape[0], self._sampling.max_response_tokens
        tokens = torch.zeros((num_rows, limit), dtype=torch.long, device=device)
        logprobs = torch.zeros((num_rows, limit), device=device)
        rows = torch.arange(num_rows, device=device)  # which sample each row of the batch is
        running = torch.ones(num_rows, dtype=torch.bool, device=device)
        positions = moved(position_ids(mask), device)
        numbers, mask, step_ids = (moved(one, device) for one in (numbers, mask, ids))
        look_every = LOOK_EVERY.get(device.type, 1)
        cache = DynamicCache()
        for step in range(limit):
            logits = self._model(
                input_ids=step_ids,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]  # (rows, vocabulary)
            token, logprob = draw(logits, numbers[rows, step], self._sampling, self._suppress)
            tokens[rows, step], logprobs[rows, step] = token, logprob
            running = running & ~torch.isin(token, self._stop)
            if (step + 1) % look_every == 0:
                left = running.tolist()
                if not any(left):
                    break
                if sum(left) < COMPACT_BELOW * len(left):
                    index = moved(torch.tensor([row for row, runs in enumerate(left) if runs]), device)
                    cache.batch_select_indices(index)
                    rows, mask, positions, token = rows[index], mask[index], positions[index], token[index]
                    running = running[index]
            step_ids = token[:, None]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return tokens, logprobs
