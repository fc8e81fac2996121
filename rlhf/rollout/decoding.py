"""Continuous decoding: a fixed number of running samples, refilled from a queue as they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.config import SamplingConfig
from rlhf.errors import NumericsError
from rlhf.models.moving import moved
from rlhf.rollout.graphs import Captures, StepGraphs
from rlhf.rollout.protocol import PromptTask
from rlhf.rollout.sampling import draw, uniforms
from rlhf.rollout.slots import GROW, SlotCache, slot_attention
from rlhf.rollout.steps import LayerSteps

REFILL_SHARE = 8
"""A refill waits until one slot in this many is free: a pass over one short prompt costs as much as over several."""
CLOSE_SHARE = 4
"""Without a queue, gaps are closed when one slot in this many is free: closing copies keys and values.

Where steps are replayed, when one in this many is left: a GPU reads the weights at every step whatever the number of
slots, and each number is captured anew.
"""
LOOK_EVERY = {"cpu": 1, "cuda": 8}
"""Steps between two looks at what has ended: on a GPU a look waits for it. Ended slots stand still meanwhile."""


PASS_TOKENS = 1 << 14
"""Tokens of prompts that are read in one pass, padding included."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one task: tokens, their log-probabilities, and whether the last one is a stop token."""

    tokens: list[int]
    logprobs: list[float]
    finished: bool


class SlotDecoder:
    """Draws responses for one list of tasks.

    Slots 0 to n-1 are in use; every tensor of slots is (n,). Results are kept by task, (tasks, response).

    Args:
        model: the causal model, adapters inside.
        num_slots: samples that run together.
        reads_hidden: logits are the output layer's product with the last hidden states, and nothing else.
        steps: a shorter way through the model, one token per slot.
        captures: steps are replayed on a GPU as long as these can be used; None: each is launched by its operations.
        beat: called at every look: a replayed step runs no hooks.
    """

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
        reads_hidden: bool = False,
        steps: LayerSteps | None = None,
        captures: Captures | None = None,
        beat: Callable[[], None] | None = None,
    ) -> None:
        self._model: Any = model
        self._tasks, self._sampling = tasks, sampling
        self._device, self._pad_id, self._reads_hidden, self._beat = model.device, pad_id, reads_hidden, beat
        self._steps = steps
        self._suppress = self._on_device(list(suppress_ids), torch.long)
        self._look_every = LOOK_EVERY.get(self._device.type, 1)
        order = sorted(range(len(tasks)), key=lambda i: (len(tasks[i].prompt_ids), tasks[i].prompt_ids))
        self._queue = order[::-1]  # taken from its end: short prompts first, equal prompts together
        self._num_slots = min(num_slots, len(tasks))
        limit = sampling.max_response_tokens
        numbers = np.zeros((len(tasks), limit + 1))  # the last column is where ended slots write
        for row, task in enumerate(tasks):
            numbers[row, :limit] = uniforms(task.seed, limit)
        self._uniforms = self._on_device(numbers)
        self._tokens = torch.zeros(len(tasks), limit + 1, dtype=torch.long, device=self._device)
        self._logprobs = torch.zeros(len(tasks), limit + 1, device=self._device)
        self._stop = self._on_device(list(stop_ids))
        on_gpu = self._device.type == "cuda"
        # a graph finds keys and values where they were: all columns from the start; else few, as adding copies all
        ahead = limit if on_gpu else min(limit, GROW)
        longest = max(len(t.prompt_ids) for t in tasks)
        self._cache, self._most_columns = SlotCache(self._num_slots, longest + ahead), longest + limit
        self._graphs = StepGraphs(captures) if captures is not None and captures.usable and on_gpu else None
        numbers_of_slots = torch.zeros(4, self._num_slots, dtype=torch.long, device=self._device)
        self._whole = *numbers_of_slots, torch.zeros(self._num_slots, dtype=torch.bool, device=self._device)
        self._begun: list[int] = []  # per slot: column minus number of steps at its start
        self._use(0)
        self._num_steps = 0

    @torch.no_grad()
    def run(self) -> list[Drawn]:
        """Draws everything; results in the order of the tasks.

        Raises:
            NumericsError: when the model's logits are not finite.
        """
        try:
            with slot_attention(self._model):
                self._settle()
                while self._begun:
                    for _ in range(self._look_every):
                        self._advance()
                    if self._beat is not None:
                        self._beat()
                    self._settle()
            return self._results()
        finally:
            self._cache.close()

    def _advance(self) -> None:
        """One token for every slot."""
        self._num_steps += 1
        width = self._width()
        if self._graphs is None:
            self._run_step(width)
        else:
            self._graphs.run(self._run_step, len(self._begun), self._cache.fit(width))

    def _width(self) -> int:
        """Columns that are in use; slots that ended and were not looked at yet count on."""
        return min(self._num_steps + max(self._begun), self._most_columns)

    def _run_step(self, width: int) -> None:
        """The same, with everything that moves written where it stood: a replay finds it there."""
        self._cache.begin_step(self._column, width)
        token, live = self._draw(self._step_logits(width), self._task, self._step)
        self._token.copy_(token)
        self._step += self._live
        self._column += self._live
        self._live &= live

    def _step_logits(self, width: int) -> Tensor:
        """(slots, vocabulary) behind the newest token of every slot."""
        steps = self._steps
        found = None if steps is None or steps.serves is False else steps.logits(self._token, self._column, self._cache)
        if found is not None and steps is not None and steps.serves:
            return found
        columns = torch.arange(width, device=self._device)
        logits = self._model(
            input_ids=self._token[:, None],
            attention_mask=(columns <= self._column[:, None])[:, None, None],  # (slots, 1, 1, columns)
            position_ids=self._column[:, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if steps is not None:
            steps.serves = found is not None and torch.equal(found, logits)
        return logits

    def _draw(self, logits: Tensor, task: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Draws and keeps one token each; returns them and whether the sample goes on."""
        token, logprob = draw(logits, self._uniforms[task, step], self._sampling, self._suppress)
        self._tokens[task, step], self._logprobs[task, step] = token, logprob
        # not isin: with many stop tokens it sorts, and a GPU would be waited for
        stopped = (token[:, None] == self._stop).any(dim=1)
        return token, ~stopped & (step + 1 < self._sampling.max_response_tokens)

    def _settle(self) -> None:
        """Looks at what has ended; refills free slots, or closes the gaps when nothing waits."""
        free = [slot for slot, live in enumerate(self._live.tolist()) if not live]
        free += range(len(self._begun), self._num_slots) if self._queue else ()
        if self._queue and len(free) * REFILL_SHARE >= self._num_slots:
            count = min(len(free), len(self._queue))
            rows = [self._queue.pop() for _ in range(count)]
            for part in self._passes(rows):
                self._fill(free[: len(part)], part)
                free = free[len(part) :]
        if not self._queue and self._closes(len(free)):
            self._close(free)

    def _closes(self, num_free: int) -> bool:
        if self._graphs is None or num_free == len(self._begun):
            return num_free * CLOSE_SHARE >= len(self._begun)
        return (len(self._begun) - num_free) * CLOSE_SHARE <= len(self._begun)

    def _passes(self, rows: list[int]) -> list[list[int]]:
        """Rows whose prompts are read together, within a bound: a layer holds several times as many numbers."""
        parts: list[list[int]] = []
        prompts: set[tuple[int, ...]] = set()
        for row in rows:
            prompts.add(prompt := self._tasks[row].prompt_ids)
            if not parts or len(prompts) * len(prompt) > PASS_TOKENS:  # the newest is the longest
                parts.append([])
                prompts = {prompt}
            parts[-1].append(row)
        return parts

    def _fill(self, slots: list[int], rows: list[int]) -> None:
        """Runs the prompts of new samples, each distinct prompt once, and draws their first tokens."""
        prompts = list(dict.fromkeys(self._tasks[row].prompt_ids for row in rows))
        lengths = [len(prompt) for prompt in prompts]
        ids = torch.full((len(prompts), max(lengths)), self._pad_id)
        for at, prompt in enumerate(prompts):
            ids[at, : len(prompt)] = torch.tensor(prompt)
        self._cache.begin_prefill()
        logits = self._last_logits(ids.to(self._device), lengths)
        number = {prompt: at for at, prompt in enumerate(prompts)}
        source = [number[self._tasks[row].prompt_ids] for row in rows]
        at_source, where, task = self._on_device(source), self._on_device(slots), self._on_device(rows)
        self._cache.place(at_source, where)
        step = torch.zeros_like(task)
        token, live = self._draw(logits[at_source], task, step)
        self._grow(max(slots) + 1)
        column = self._on_device([lengths[at] for at in source])
        self._task[where], self._step[where], self._column[where] = task, step + 1, column
        self._token[where], self._live[where] = token, live
        for slot, at in zip(slots, source, strict=True):
            self._begun[slot] = lengths[at] - self._num_steps

    def _last_logits(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """(prompts, vocabulary) behind the last token of each prompt; padding stands on the right, unseen."""
        words: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": torch.arange(ids.shape[1], device=self._device)[None],
            "past_key_values": self._cache,
            "use_cache": True,
        }
        rows, last = torch.arange(len(lengths), device=self._device), self._on_device(lengths) - 1
        if self._reads_hidden:
            hidden = getattr(self._model, self._model.base_model_prefix)(**words).last_hidden_state
            return self._model.get_output_embeddings()(hidden[rows, last])
        kept = sorted(set(lengths))
        logits = self._model(**words, logits_to_keep=self._on_device(kept) - 1).logits  # (prompts, kept, vocabulary)
        return logits[rows, self._on_device([kept.index(length) for length in lengths])]

    def _grow(self, num_slots: int) -> None:
        more = num_slots - len(self._begun)
        if more > 0:
            for tensor in self._whole:
                tensor[len(self._begun) : num_slots] = 0
            self._begun += [0] * more
            self._use(num_slots)

    def _use(self, num_slots: int) -> None:
        """The first slots, as views."""
        self._task, self._step, self._column, self._token, self._live = (t[:num_slots] for t in self._whole)

    def _close(self, free: list[int]) -> None:
        """Moves the last running samples into the gaps and gives the rest of the slots up."""
        ended = set(free)
        num_left = len(self._begun) - len(ended)
        gaps = [slot for slot in free if slot < num_left]
        movers = [slot for slot in range(num_left, len(self._begun)) if slot not in ended]
        if movers:
            source, target = self._on_device(movers), self._on_device(gaps)
            self._cache.move(source, target, self._width())
            for tensor in self._whole:
                tensor[target] = tensor[source]
            for mover, gap in zip(movers, gaps, strict=True):
                self._begun[gap] = self._begun[mover]
        del self._begun[num_left:]
        self._use(num_left)

    def _results(self) -> list[Drawn]:
        limit = self._sampling.max_response_tokens
        return cut_at_stops(self._tokens[:, :limit], self._logprobs[:, :limit], self._stop)

    def _on_device(self, values: Any, dtype: torch.dtype | None = None) -> Tensor:
        return moved(torch.as_tensor(values, dtype=dtype), self._device)


def cut_at_stops(tokens: Tensor, logprobs: Tensor, stop_ids: Tensor) -> list[Drawn]:
    """Responses up to and with their first stop token.

    Args:
        tokens / logprobs: (rows, limit), anything behind a row's first stop token.

    Raises:
        NumericsError: a log-prob is not finite.
    """
    tokens, logprobs, limit = tokens.cpu(), logprobs.cpu(), tokens.shape[1]
    stops = torch.isin(tokens, stop_ids.cpu())
    finished = stops.any(dim=1)
    lengths = torch.where(finished, stops.int().argmax(dim=1) + 1, limit)
    kept = torch.arange(limit) < lengths[:, None]
    if not torch.isfinite(logprobs[kept]).all():
        raise NumericsError("the policy's logits are not finite: the adapter has diverged")
    rows = zip(tokens.tolist(), logprobs.tolist(), lengths.tolist(), finished.tolist(), strict=True)
    return [Drawn(token[:length], logprob[:length], ended) for token, logprob, length, ended in rows]
