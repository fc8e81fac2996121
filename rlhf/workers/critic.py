"""The training rank of a critic on a base of its own: judges values and learns them, beside the policy's ranks."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.algos.minibatch import Microbatch, MinibatchPlan
from rlhf.config import PpoConfig
from rlhf.engine.gather import whole_state
from rlhf.models import adapters
from rlhf.models.loading import load_causal_lm
from rlhf.models.roles import CRITIC, RolesModel
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.rollout.experience import Experience
from rlhf.workers.context import WorkerContext
from rlhf.workers.critic_start import critic_init, critic_tokenizer, open_critic
from rlhf.workers.heap import give_back
from rlhf.workers.ppo_loss import LearnTotals, value_term
from rlhf.workers.training_rank import TrainingRank, pad_columns, role_scales


class CriticWorker(TrainingRank):
    """One DeepSpeed rank that holds the critic's base with an adapter and a value head on it."""

    def __init__(self, context: WorkerContext, config: PpoConfig) -> None:
        super().__init__(context, config)
        source = resolve_model(config.model.name, config.model.revision)
        tokenizer, self.chat = load_chat(source, config.model)
        origin = open_critic(config, tokenizer, self.chat)
        own = critic_tokenizer(origin.source, origin.model, self.chat)
        base = self.on_device(load_causal_lm(origin.source, origin.model, own))
        self.base_name = origin.source.base
        self.build(RolesModel(base, critic_init(config, origin.source)), base)

    def describe(self) -> dict[str, Any]:
        """What runs here, for the summary and for checks in the driver."""
        return {
            "engine": self.engine.type_name,
            "world_size": self.engine.world_size,
            "chat_fingerprint": self.chat.fingerprint(),
            "trainable": self.trainable(),
            "packs": self.roles.mixes,
        }

    @torch.no_grad()
    def judge(self, batch: Experience, passes: tuple[Microbatch, ...]) -> dict[str, Tensor]:
        """``values`` of the given rows, one row per row of ``passes``, padded to the batch's response width.

        Args:
            batch: the whole step's sequences.
            passes: the rows of this rank, those of one pass together; every rank has equally many passes.
        """
        width, parts = batch.response_ids.shape[1], []
        for rows in passes:
            part = batch.select(rows).to(self.engine.device)
            with self.spans.span("judge.pass"):
                told = self.engine.evaluate("read", **self._words(part))
            parts.append(pad_columns(told[CRITIC], width))
        return {"values": torch.cat(parts).cpu()}

    def learn(self, batch: Experience, epochs: list[list[MinibatchPlan]], first_update: int) -> dict[str, Any]:
        """Trains the critic on a judged batch, in the same minibatches as the policy's ranks theirs.

        The loss is a sum over this rank's rows divided by the global token count of the minibatch, so neither the
        number of ranks nor the micro-batch size changes the gradient.

        Args:
            epochs: ``[epoch][minibatch]`` from ``plan_minibatches``.
            first_update: optimizer steps done before, for the learning-rate schedule.

        Returns:
            Metrics, already summed or maximised over ranks; equal on every rank.
        """
        totals, started = LearnTotals(), time.perf_counter()
        for update, plan in enumerate(chain.from_iterable(epochs), first_update):
            self._minibatch(batch, plan, totals)
            with self.spans.span("learn.optimizer"):
                norms = self.engine.step(role_scales(self.config, update))
            self.count_update(norms, plan, totals)
        metrics = self.read_out(totals, started)
        give_back()
        return metrics

    def save(self, directory: str) -> str | None:
        """Writes the adapter with its value head in PEFT's format; rank 0 writes, all ranks take part."""
        state = whole_state(self.roles.named_trained(), keep=self.context.rank == 0)
        if self.context.rank != 0:
            return None
        target = Path(directory) / "critic"
        config: Any = self.roles.model.peft_config[CRITIC]
        named = {name.removeprefix(f"{CRITIC}."): value for name, value in state.items()}
        adapters.save_adapter_file(target, config, self.base_name, named)
        return str(target)

    def _minibatch(self, batch: Experience, plan: MinibatchPlan, totals: LearnTotals) -> None:
        denominator = max(1.0, float(batch.response_mask[list(plan.rows)].sum()))
        mine = plan.ranks[self.context.rank]
        for index, rows in enumerate(mine):
            part = batch.select(rows)
            tokens = int(part.response_mask.sum())  # before the rows go to a GPU, which would have to be waited for
            totals.add(operations=self.costs.role(0, part.lengths, tokens, trained=True), tokens=float(tokens))
            part = part.to(self.engine.device)
            with self.spans.span("learn.forward"):
                values = self.engine("read", **self._words(part))[CRITIC]
            with self.spans.span("learn.loss"):
                loss = value_term(self.config, part, values, denominator, totals)
            with self.spans.span("learn.backward"):
                self.engine.backward(loss, last=index == len(mine) - 1)

    @staticmethod
    def _words(part: Experience) -> dict[str, Any]:
        return {
            "roles": [CRITIC],
            "input_ids": part.input_ids,
            "attention_mask": part.attention_mask,
            "response_ids": part.response_ids,
            "temperature": 1.0,
        }
