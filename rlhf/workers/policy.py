"""The training rank of PPO: judges sequences, learns from them, publishes the policy adapter."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.algos.losses import sft_anchor_loss
from rlhf.algos.minibatch import Microbatch, MinibatchPlan
from rlhf.config import PpoConfig
from rlhf.engine.gather import whole_state
from rlhf.models import adapters
from rlhf.models.lending import Loan, lend, lendable
from rlhf.models.loading import dtype_name, load_causal_lm
from rlhf.models.roles import CRITIC, POLICY, REFERENCE, REWARD, RolesModel
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.rollout.experience import Experience
from rlhf.weights.parts import split_names
from rlhf.weights.snapshot import Snapshot, pack
from rlhf.workers.context import WorkerContext
from rlhf.workers.heap import give_back, shares_gpu
from rlhf.workers.large_files import large_files
from rlhf.workers.policy_start import place_reward_models, role_init, trained_copy
from rlhf.workers.ppo_loss import Demonstrations, LearnTotals, Outputs, ppo_loss
from rlhf.workers.training_rank import TrainingRank, p_numel, pad_columns, role_scales


class PolicyWorker(TrainingRank):
    """One DeepSpeed rank that holds the base once, with policy, reference, critic and reward adapters on it.

    A critic with a base of its own is not here (``rlhf.workers.critic``).
    """

    def __init__(self, context: WorkerContext, config: PpoConfig) -> None:
        super().__init__(context, config)
        source = resolve_model(config.model.name, config.model.revision)
        self.tokenizer, self.chat = load_chat(source, config.model)
        base = self.on_device(load_causal_lm(source, config.model, self.tokenizer))
        lends = shares_gpu() and config.engine.zero_stage < 3 and config.policy_weights == "adapter"
        self._lendable = lendable(base) if lends else {}
        self.base_name = source.base
        self.policy_config = (
            adapters.read_peft_config(source.adapter) if source.adapter else adapters.peft_config(config.lora)
        )
        models = place_reward_models(config, source, self.chat)
        self.shared_score = models.shared_index
        own = trained_copy(base, source) if config.policy_weights == "full" else None
        init = role_init(config, source, self.policy_config, models, own)
        roles = RolesModel(base, init, suppress_ids=(self.tokenizer.pad_token_id,))
        roles.trains_entropy = config.loss.entropy_coef > 0
        self.build(roles, base, whole_policy=own is not None)
        self.parts = self._snapshot_parts()
        self._published: Snapshot | None = None

    def describe(self) -> dict[str, Any]:
        """What runs here, for the summary and for checks in the driver."""
        return {
            "engine": self.engine.type_name,
            "dtype": dtype_name(self.config.model),
            "zero_stage": self.engine.zero_stage,
            "world_size": self.engine.world_size,
            "chat_fingerprint": self.chat.fingerprint(),
            "trainable": self.trainable(),
            "shared_reward": self.shared_score is not None,
            "packs": self.roles.mixes,
            "snapshot_parts": len(self.parts),
        }

    def lend_base(self) -> Loan | None:
        """The frozen base for the rollout worker on the same GPU; None where there is none to share."""
        return lend(self._lendable)

    @torch.no_grad()
    def judge(
        self, batch: Experience, passes: tuple[Microbatch, ...], *, with_policy: bool = True
    ) -> dict[str, Tensor]:
        """Old and reference log-probs, entropies, values and the shared reward model's scores of the given rows.

        Args:
            batch: the whole step's sequences.
            passes: the rows of this rank, those of one pass together; every rank has equally many passes.
            with_policy: False leaves out what the policy says: ``old_logprobs`` and ``entropy``.

        Returns:
            Tensors with one row per row of ``passes``, padded to the batch's response width; ``scores``, where a reward
            model shares the base, is (rows,).
        """
        width = batch.response_ids.shape[1]
        parts: list[dict[str, Tensor]] = []
        for rows in passes:
            found = self._judge_part(batch.select(rows).to(self.engine.device), with_policy)
            parts.append({k: v if k == "scores" else pad_columns(v, width) for k, v in found.items()})
        return {key: torch.cat([p[key] for p in parts]).cpu() for key in parts[0]}  # no pass waits for one before it

    def learn(
        self,
        batch: Experience,
        epochs: list[list[MinibatchPlan]],
        first_update: int,
        kl_coef: float,
        anchor: Demonstrations | None = None,
    ) -> dict[str, Any]:
        """Trains policy and critic on a judged batch.

        Losses are sums over this rank's rows divided by the global token count of the minibatch, so neither the
        number of ranks nor the micro-batch size changes the gradient.

        Args:
            epochs: ``[epoch][minibatch]`` from ``plan_minibatches``.
            first_update: optimizer steps done before, for the learning-rate schedule; the policy's bytes stay as they
                are while only the critic warms up.
            kl_coef: used when ``kl.mode`` is ``loss``.
            anchor: demonstrations whose log-likelihood joins the loss.

        Returns:
            Metrics, already summed or maximised over ranks; equal on every rank.
        """
        totals, update, epochs_run, started = LearnTotals(), first_update, 0, time.perf_counter()
        self.policy_weight = 1.0 if POLICY in role_scales(self.config, first_update) else 0.0
        for epoch in epochs:
            epoch_totals = LearnTotals()
            for plan in epoch:
                first = update == first_update
                self._minibatch(batch, plan, kl_coef, epoch_totals, first=first, last=anchor is None)
                if anchor is not None:
                    self._anchor(anchor, anchor.plans[update - first_update], epoch_totals)
                with self.spans.span("learn.optimizer"):
                    norms = self.engine.step(role_scales(self.config, update))
                self.count_update(norms, plan, epoch_totals)
                update += 1
            epochs_run += 1
            totals.norms += epoch_totals.norms
            totals.ratio_first = max(totals.ratio_first, epoch_totals.ratio_first)
            totals.ratio_first_mean = max(totals.ratio_first_mean, epoch_totals.ratio_first_mean)
            totals.mismatch_max = max(totals.mismatch_max, epoch_totals.mismatch_max)
            totals.add(**epoch_totals.sums)
            reduced = self.engine.all_reduce_sum({k: float(v) for k, v in epoch_totals.sums.items()})
            stop = self.config.loss.epoch_kl_stop
            if stop is not None and reduced["approx_kl"] / max(1.0, reduced["tokens"]) > stop:
                break
        metrics = self.read_out(totals, started)
        metrics |= {"epochs_run": epochs_run, "policy_trained": self.policy_weight}
        give_back()
        return metrics

    def snapshot(self, version: int, part: int = 0) -> Snapshot | None:
        """A part of the policy's trained tensors as one flat buffer; only rank 0 returns it, all ranks take part."""
        with self.engine.live(self.parts[part].__contains__, self.roles.named_trained()) as state:
            if self.context.rank != 0:
                return None
            tensors = {k.removeprefix(f"{POLICY}."): v for k, v in state.items()}
            self._published = pack(tensors, version, self._published)  # Ray has copied the last one by now
        return self._published

    def canary(self, prompt_ids: list[int], response_ids: list[int]) -> list[float]:
        """Log-probabilities of fixed tokens under the live policy, to compare with the rollout workers'."""
        ids = torch.tensor([prompt_ids + response_ids], device=self.engine.device)
        found, _ = self.engine.evaluate(
            "logprobs",
            role=POLICY,
            input_ids=ids,
            attention_mask=torch.ones(ids.shape, dtype=torch.bool),
            response_ids=ids[:, len(prompt_ids) :],
            temperature=self.config.rollout.temperature,
        )
        return found[0].tolist()

    def save(self, directory: str) -> str | None:
        """Writes adapters in PEFT's format, a whole policy in transformers'; rank 0 writes, all ranks take part."""
        with large_files(self.context, self.config):
            state = whole_state(self.roles.named_trained(), keep=self.context.rank == 0)
            return self._write(state, Path(directory)) if self.context.rank == 0 else None

    def _write(self, state: dict[str, Tensor], target: Path) -> str:
        policy = {k.removeprefix(f"{POLICY}."): v for k, v in state.items() if k.startswith(f"{POLICY}.")}
        if self.roles.policy_copy is not None:
            self.roles.policy_copy.save_pretrained(str(target / "model"), state_dict=self._whole(policy))
        else:
            adapters.save_adapter_file(target / "adapter", self.policy_config, self.base_name, policy)
        if self.roles.has_critic:
            critic = {k.removeprefix(f"{CRITIC}."): v for k, v in state.items() if k.startswith(f"{CRITIC}.")}
            config: Any = self.roles.model.peft_config[CRITIC]
            adapters.save_adapter_file(target / "critic", config, self.base_name, critic)
        self.tokenizer.save_pretrained(str(target / "tokenizer"))
        return str(target)

    def _snapshot_parts(self) -> list[tuple[str, ...]]:
        """Names of the policy's tensors by message: an adapter is one, a whole policy as many as its size asks for."""
        named = [
            (n, p_numel(p) * p.element_size()) for n, p in self.roles.named_trained() if n.startswith(f"{POLICY}.")
        ]
        limit = self.config.sync_chunk_bytes if self.roles.policy_copy is not None else sum(size for _, size in named)
        return split_names(named, limit)

    def _whole(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """Trained tensors, those tied to them under their other names, and buffers: a state to save."""
        model: Any = self.roles.policy_copy
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        tied = {n: names[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}
        whole = {name: trained[own] for name, own in tied.items()}
        return whole | {n: b for n, b in model.state_dict().items() if n not in whole}

    def _judge_part(self, part: Experience, with_policy: bool) -> dict[str, Tensor]:
        roles = [POLICY, REFERENCE] if with_policy else [REFERENCE]
        roles += [CRITIC] if self.roles.has_critic else []
        roles += [REWARD] if self.shared_score is not None else []
        with self.spans.span("judge.pass"):
            told = self.engine.evaluate(
                "read",
                roles=roles,
                input_ids=part.input_ids,
                attention_mask=part.attention_mask,
                response_ids=part.response_ids,
                temperature=self.config.rollout.temperature,
            )
        found = {"ref_logprobs": told[REFERENCE][0]}
        if with_policy:
            found["old_logprobs"], found["entropy"] = told[POLICY]
        if self.roles.has_critic:
            found["values"] = told[CRITIC]
        if self.shared_score is not None:
            found["scores"] = told[REWARD].float()
        return found

    def _minibatch(
        self, batch: Experience, plan: MinibatchPlan, kl_coef: float, totals: LearnTotals, *, first: bool, last: bool
    ) -> None:
        denominator = max(1.0, float(batch.response_mask[list(plan.rows)].sum()))
        mine = plan.ranks[self.context.rank]
        for index, rows in enumerate(mine):
            part = self._part(batch, rows, totals, policy_alone=not self.roles.has_critic)
            logprobs, entropies, values = self._forward(part, want_values=self.roles.has_critic)
            with self.spans.span("learn.loss"):
                outputs = Outputs(logprobs, entropies, values)
                loss, policy = ppo_loss(self.config, part, outputs, denominator, kl_coef, self.policy_weight, totals)
                if first:
                    totals.compare(part, outputs)
                if first and index == 0:
                    totals.start(policy)
            with self.spans.span("learn.backward"):
                self.engine.backward(loss, last=last and index == len(mine) - 1)

    def _anchor(self, anchor: Demonstrations, plan: MinibatchPlan, totals: LearnTotals) -> None:
        """One update's demonstrations: mean negative log-likelihood of their assistant tokens over all ranks."""
        tokens = float(anchor.batch.response_mask[list(plan.rows)].sum())
        mine = plan.ranks[self.context.rank]
        for index, rows in enumerate(mine):
            part = self._part(anchor.batch, rows, totals, policy_alone=True)
            logprobs, _, _ = self._forward(part, want_values=False, temperature=1.0)
            with self.spans.span("learn.loss"):
                loss = sft_anchor_loss(logprobs, part.response_mask, denominator=tokens)
                totals.add(ptx_loss=loss)
            with self.spans.span("learn.backward"):
                self.engine.backward(self.policy_weight * anchor.coef * loss, last=index == len(mine) - 1)

    def _part(self, batch: Experience, rows: Microbatch, totals: LearnTotals, *, policy_alone: bool) -> Experience:
        """Rows of one pass on the engine's device; they are counted before, as a GPU would have to be waited for."""
        part = batch.select(rows)
        operations = self.costs.update(part.lengths, int(part.response_mask.sum()), policy_alone=policy_alone)
        totals.add(operations=operations)
        return part.to(self.engine.device)

    def _forward(
        self, part: Experience, *, want_values: bool, temperature: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probs, entropies and, if wanted, values of one pass with a graph; by default at sampling temperature."""
        with self.spans.span("learn.forward"):
            return self.engine(
                "train",
                input_ids=part.input_ids,
                attention_mask=part.attention_mask,
                response_ids=part.response_ids,
                temperature=self.config.rollout.temperature if temperature is None else temperature,
                want_values=want_values,
            )
