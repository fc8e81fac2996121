"""What the training ranks of PPO share: a model under DeepSpeed, its checkpoints, and updates that are not finite."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf.algos.minibatch import MinibatchPlan
from rlhf.config import PpoConfig, derive_seed
from rlhf.engine.clipping import ParameterGroup
from rlhf.engine.engine import TrainEngine, bound_collectives, init_process_group, learning_rate_scale
from rlhf.errors import CheckpointError, NumericsError
from rlhf.models import halved
from rlhf.models.loading import to_device, torch_dtype
from rlhf.models.operations import UpdateCosts, product_peak, update_costs
from rlhf.models.roles import CRITIC, POLICY, RolesModel
from rlhf.workers.context import WorkerContext
from rlhf.workers.heap import give_back
from rlhf.workers.large_files import large_files
from rlhf.workers.ppo_loss import LearnTotals

logger = logging.getLogger(__name__)

PANEL_BYTES = 1 << 26
"""Up to so much a rank holds of its frozen matrices once more, in the order of tiles (CPU, fp32)."""
PER_UPDATE = {"policy_loss", "value_loss", "kl_loss", "ptx_loss"}
"""Figures that are means over updates."""
OF_FIRST_UPDATE = {"mismatch_mean", "mismatch_kl", "entropy"}
"""Figures that are means over the tokens of a step's first update; all others are means over all tokens."""


class TrainingRank:
    """One DeepSpeed rank of PPO.

    Attributes:
        engine: trains ``roles``; every trained role has its own learning rate and its own clipping norm.
        policy_weight: 0 while only the critic learns.
    """

    roles: RolesModel
    engine: TrainEngine
    costs: UpdateCosts
    peak: float

    def __init__(self, context: WorkerContext, config: PpoConfig) -> None:
        self.context, self.config, self.spans = context, config, context.spans
        self.policy_weight = 1.0
        self.nonfinite_in_a_row = 0
        torch.set_num_threads(config.placement.threads_per_worker)
        torch.manual_seed(derive_seed(config.seed, "policy-init"))  # equal on all ranks: they share initial adapters
        init_process_group(config.placement.start_timeout_seconds)

    def on_device(self, base: PreTrainedModel) -> PreTrainedModel:
        """The base on this rank's GPU, if it has one; under ZeRO-3 a piece of it may be all that fits there."""
        return base if self.config.engine.zero_stage == 3 else to_device(base)

    def build(self, roles: RolesModel, base: Any, *, whole_policy: bool = False) -> None:
        """Puts the model under the engine."""
        self.roles = roles
        self._set_dropout_off()
        if self.config.model.gradient_checkpointing:
            roles.enable_checkpointing(use_reentrant=self.config.engine.zero_stage == 3)
        if self.config.roles.recompute_feed_forward:
            roles.recompute_feed_forward()
        self.context.beat_with(roles)
        self.engine = self._build_engine()
        bound_collectives(self.config.placement.collective_timeout_seconds)  # all ranks have loaded by now
        halved.keep_panels(base, PANEL_BYTES)  # ranks have the same base by now, and nothing will change it
        learning = {role: count for role, count in self.trainable().items() if count}
        self.costs = update_costs(base, learning, whole_policy=whole_policy)
        self.peak = product_peak(self.engine.device, torch_dtype(self.config.model))
        give_back()  # what loading and measuring left: whoever shares the GPU starts now

    def trainable(self) -> dict[str, int]:
        """Trained weights of policy and critic; 0 for a role that is not here."""
        named = self.roles.named_trained()
        return {role: sum(p_numel(p) for n, p in named if n.startswith(role)) for role in (POLICY, CRITIC)}

    def counted_costs(self) -> UpdateCosts:
        """What a token costs each trained role, for a profile."""
        return self.costs

    def save_state(self, directory: str, tag: str) -> list[str]:
        """Writes this rank's part of a checkpoint; the driver commits it. Returns the names of the trained tensors."""
        own = {"policy_weight": self.policy_weight, "nonfinite_in_a_row": self.nonfinite_in_a_row}
        with large_files(self.context, self.config):
            self.engine.save_state(Path(directory), tag, own)
        return [name for name, _ in self.roles.named_trained()]

    def load_state(self, directory: str, tag: str, names: list[str]) -> None:
        """Takes over this rank's part of a checkpoint that the driver has verified.

        Raises:
            CheckpointError: it holds other trained tensors than this model has.
        """
        here = [name for name, _ in self.roles.named_trained()]
        if here != names:
            odd = sorted(set(here) ^ set(names))[:3]
            raise CheckpointError(f"{directory} was written for other trained tensors, e.g. {', '.join(odd)}")
        with large_files(self.context, self.config):
            own = self.engine.load_state(Path(directory), tag)
        self.policy_weight = own["policy_weight"]
        self.nonfinite_in_a_row = own["nonfinite_in_a_row"]

    def count_update(self, norms: dict[str, float], plan: MinibatchPlan, totals: LearnTotals) -> None:
        """Puts an update's norms on record. Every rank sees the same ones, so all ranks skip, count and stop alike.

        Raises:
            NumericsError: more than ``recovery.max_nonfinite_updates`` in a row were not finite.
        """
        if all(map(math.isfinite, norms.values())):
            self.nonfinite_in_a_row = 0
            totals.norms.append(norms)
            return
        self.nonfinite_in_a_row += 1
        totals.norms.append(None)
        logger.warning("update skipped: its gradient is not finite; sequences %s", list(plan.rows))
        rate = "optim.learning_rate" if self.roles.has_policy else "critic_learning_rate"
        if self.nonfinite_in_a_row > self.config.recovery.max_nonfinite_updates:
            raise NumericsError(
                f"{self.nonfinite_in_a_row} updates in a row had a gradient that is not finite "
                f"(recovery.max_nonfinite_updates={self.config.recovery.max_nonfinite_updates}); the last one was over "
                f"sequences {list(plan.rows)} of the step: lower {rate}, or look at these rows' scores"
            )

    def read_out(self, totals: LearnTotals, started: float) -> dict[str, Any]:
        """A step's figures, summed or maximised over ranks; equal on every rank.

        Returns:
            Means per token or update, ``ratio_first*`` and ``mismatch_max``, norms (``norms`` of every update: for
            whoever joins two groups), ``updates``, ``updates_skipped``, and ``speed`` of this group's ranks together.
        """
        updates = len(totals.norms)
        reduced = self.engine.all_reduce_sum({k: float(v) for k, v in totals.sums.items()} | {"peak": self.peak})
        operations, whole_peak = reduced.pop("operations"), reduced.pop("peak")
        tokens, first = max(1.0, reduced.pop("tokens")), max(1.0, reduced.pop("first_tokens", 0.0))
        counts = dict.fromkeys(PER_UPDATE, updates) | dict.fromkeys(OF_FIRST_UPDATE, first)
        own = [totals.ratio_first, totals.ratio_first_mean, totals.mismatch_max, time.perf_counter() - started]
        worst = torch.tensor(own, device=self.engine.device)
        torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        ratio_first, ratio_first_mean, mismatch_max, seconds = worst.tolist()
        metrics: dict[str, Any] = {k: v / counts.get(k, tokens) for k, v in reduced.items()}
        metrics |= {
            "ratio_first": ratio_first,
            "ratio_first_mean": ratio_first_mean,
            "mismatch_max": mismatch_max,
        }
        metrics |= totals.mean_norms()
        metrics["norms"] = totals.norms
        metrics["updates"], metrics["updates_skipped"] = updates, totals.num_skipped
        speed = operations / seconds
        metrics["speed"] = {"learn_tflops": speed / 1e12, "learn_peak_share": speed / whole_peak}
        return metrics

    def _set_dropout_off(self) -> None:
        """Old and new log-probs must come from the same function: dropout would make the first ratio differ from 1."""
        for module in self.roles.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name, value in list(vars(module).items()):
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)

    def _build_engine(self) -> TrainEngine:
        trained, optim, config = self.roles.named_trained(), self.config.optim, self.config
        settings = []
        if self.roles.has_policy:
            settings.append((POLICY, optim.learning_rate, optim.max_grad_norm))
        if self.roles.has_critic:
            rate, limit = config.critic_learning_rate, config.critic_max_grad_norm
            settings.append((CRITIC, rate or optim.learning_rate, limit or optim.max_grad_norm))
        groups = [
            ParameterGroup(role, [p for n, p in trained if n.startswith(role)], rate, limit)
            for role, rate, limit in settings
        ]
        return TrainEngine(
            self.roles,
            groups,
            optim,
            config.engine,
            dtype=torch_dtype(config.model),
            microbatch=config.batch.microbatch_sequences_per_gpu,
        )


def role_scales(config: PpoConfig, update: int) -> dict[str, float]:
    """Multipliers of the roles' base learning rates at optimizer step ``update`` (0-based).

    The policy is left out while only the critic warms up; its schedule then begins with its own first update.
    """
    per_step = config.batch.epochs * config.minibatches
    total, before = config.num_steps * per_step, config.loss.critic_warmup_steps * per_step
    scales = {CRITIC: learning_rate_scale(config.optim, update, total)}
    if update >= before:
        scales[POLICY] = learning_rate_scale(config.optim, update - before, total - before)
    return scales


def p_numel(parameter: torch.nn.Parameter) -> int:
    """Elements of a parameter, also when ZeRO-3 has partitioned it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def pad_columns(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """Pads (rows, columns) with zeros on the right."""
    missing = width - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor
