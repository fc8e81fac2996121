"""One DeepSpeed rank of direct preference optimization, on TRL's DPOTrainer with the losses of ``rlhf.algos``."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import DPOConfig as TrlDpoConfig

from rlhf.algos.losses import pairwise_reward_loss
from rlhf.algos.preferences import hinge_preference_loss, ipo_preference_loss, robust_preference_loss
from rlhf.config import DpoConfig, derive_seed
from rlhf.models import adapters
from rlhf.models.loading import load_causal_lm
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer
from rlhf.workers.context import WorkerContext
from rlhf.workers.large_files import large_files
from rlhf.workers.pair_figures import held_out_shares, step_figures
from rlhf.workers.schedule import row_order
from rlhf.workers.trained_policy import ADAPTER, policy_to_train, save_policy
from rlhf.workers.trl_checkpoint import CheckpointPlan, TrainerCheckpoints
from rlhf.workers.trl_common import (
    ExactTrainer,
    Watch,
    attention_of,
    finish_training,
    join_ranks,
    keep_trained_values,
    pad_right,
    put_back,
    rank_batches,
    training_arguments,
)

if TYPE_CHECKING:

    class DPOTrainer:
        """What is used here of TRL's trainer, which has no types."""

        args: Any
        accelerator: Any
        data_collator: Any
        model: Any
        model_wrapped: Any
        ref_model: Any
        _metrics: dict[str, Any]
        _total_train_tokens: int

        def __init__(self, **kwargs: Any) -> None: ...

else:
    from trl import DPOTrainer

REFERENCE = "ref"
IGNORED = -100
NUMBERS = ("probability", "weight")
PairRow = dict[str, Any]


class PreferenceCollator:
    """(2n, longest) token ids, the n chosen first, targets that are -100 off the responses; numbers as (n,) float32.

    They are not called labels: a trainer that finds labels counts their tokens and divides by them.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: list[PairRow]) -> dict[str, Tensor]:
        sequences = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        prompts = [row["num_prompt_tokens"] for row in rows] * 2
        targets = [[IGNORED] * length + ids[length:] for ids, length in zip(sequences, prompts, strict=True)]
        return {
            "input_ids": pad_right(sequences, self._pad_id),
            "attention_mask": attention_of(sequences),
            "targets": pad_right(targets, IGNORED),
            **{key: torch.tensor([float(row[key]) for row in rows]) for key in NUMBERS},
        }


class DpoStageTrainer(ExactTrainer, DPOTrainer):
    """TRL's trainer with soft labels and weights per pair, and its own frozen start as the reference in every pass.

    The reference reads the very batch that the policy reads, on the same base: at the start their log-probs are equal
    to the last bit, in any precision. The divisor of a step's loss is pairs x mean weight of the whole training set, as
    in reward training.
    """

    settings: DpoConfig

    def __init__(self, settings: DpoConfig, eval_rows: list[PairRow], mean_weight: float, **kwargs: Any) -> None:
        self.settings, self.eval_rows, self._mean_weight = settings, eval_rows, mean_weight
        super().__init__(**kwargs)
        self.last_rewards: list[tuple[float, float]] = []
        self._held_out_start: list[Tensor] = []

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        """Rows are tokens already."""
        return dataset

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the micro-batch's pairs; the trainer and the engine average micro-batches and ranks."""
        ratios = self._log_ratios(model, inputs)  # (2 pairs,)
        counts = response_tokens(inputs)
        denominator = inputs["weight"].numel() * self._mean_weight
        loss = self._loss(ratios, counts, inputs["probability"], inputs["weight"], denominator)
        self._note(ratios.detach(), inputs)
        return (loss, None) if return_outputs else loss

    def _loss(
        self, ratios: Tensor, counts: Tensor, probability: Tensor, weight: Tensor, denominator: float | Tensor
    ) -> Tensor:
        """The loss that is configured, of (2n,) log-ratios over responses of so many tokens."""
        settings, beta = self.settings, self.settings.beta
        votes: dict[str, Any] = {"probability": probability, "weight": weight, "denominator": denominator}
        if settings.loss_type == "ipo":
            mean_chosen, mean_rejected = (ratios / counts).chunk(2)
            return ipo_preference_loss(mean_chosen - mean_rejected, beta=beta, **votes)
        chosen, rejected = (beta * ratios).chunk(2)
        if settings.loss_type == "hinge":
            return hinge_preference_loss(chosen - rejected, **votes)
        if settings.loss_type == "robust":
            return robust_preference_loss(chosen - rejected, label_smoothing=settings.label_smoothing, **votes)
        return pairwise_reward_loss(chosen, rejected, **votes).loss

    def _log_ratios(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """log pi - log ref of every sequence's response, (2 pairs,) float32."""
        start = self._start_log_probs(model, inputs)
        return log_probs(model, inputs) - start

    def _start_log_probs(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad(), self._reference(model) as reference:
            return log_probs(reference, inputs)

    @contextmanager
    def _reference(self, model: nn.Module) -> Iterator[nn.Module]:
        """The policy as it was at the start: another whole model, or the same one with another adapter."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        trained, was_training = [p for p in self.model.parameters() if p.requires_grad], model.training
        adapters.select(self.model, REFERENCE, trained)
        model.eval()  # nothing to recompute in a pass without gradients
        try:
            yield model
        finally:
            model.train(was_training)
            adapters.select(self.model, ADAPTER, trained)

    def _note(self, ratios: Tensor, inputs: dict[str, Tensor]) -> None:
        chosen, rejected = (self.settings.beta * ratios).chunk(2)
        metrics = self._metrics["train"]
        means = step_figures(chosen - rejected, inputs["probability"], reward_chosen=chosen, reward_rejected=rejected)
        metrics["reward_margin"] += means.pop("difference")
        for name, values in means.items():
            metrics[name] += values
        self._total_train_tokens += int(self.accelerator.gather(inputs["attention_mask"].sum()).sum())
        metrics["num_tokens"] = [self._total_train_tokens]

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Weighted loss, accuracy and mean implicit rewards over all held-out pairs."""
        ratios, counts = self._held_out_log_ratios()
        votes = {key: torch.tensor([float(row[key]) for row in self.eval_rows]) for key in NUMBERS}
        loss = self._loss(ratios, counts, votes["probability"], votes["weight"], votes["weight"].sum())
        chosen, rejected = (self.settings.beta * ratios).chunk(2)
        self.last_rewards = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
        return {
            "loss": float(loss),
            **held_out_shares(chosen - rejected, votes["probability"]),
            "reward_margin": float((chosen - rejected).mean()),
            "reward_chosen": float(chosen.mean()),
            "reward_rejected": float(rejected.mean()),
        }

    def _held_out_log_ratios(self) -> tuple[Tensor, Tensor]:
        """Log-ratios and numbers of response tokens, (2 rows,) each, the chosen first; equal on every rank."""
        rows = self.eval_rows
        model: Any = self.model_wrapped
        collate: Any = self.data_collator
        device, micro = self.args.device, self.args.per_device_train_batch_size
        found: dict[int, tuple[float, float, int, int]] = {}
        model.eval()
        batches = rank_batches(rows, micro, self.args.process_index, self.args.world_size)
        for number, (chosen, part) in enumerate(batches):
            inputs = {key: value.to(device) for key, value in collate(part).items()}
            if number == len(self._held_out_start):  # these batches are the same ones at every evaluation
                self._held_out_start.append(self._start_log_probs(model, inputs))
            ratios = (log_probs(model, inputs) - self._held_out_start[number]).double().cpu()
            counts = response_tokens(inputs).cpu()
            pairs = torch.stack([*ratios.chunk(2), *counts.double().chunk(2)], dim=1)
            found |= dict(zip(chosen, pairs.tolist(), strict=False))
        model.train()
        parts: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(parts, found)
        whole = {index: numbers for part in parts for index, numbers in part.items()}
        table = torch.tensor([whole[index] for index in range(len(rows))], dtype=torch.float64)  # (rows, 4)
        return table[:, :2].T.reshape(-1), table[:, 2:].T.reshape(-1)


def log_probs(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Sums over the tokens of each response, (sequences,) float32."""
    found = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=inputs["targets"],
        fused_lm_head=True,
        use_cache=False,
    )
    return found.log_probs.float().sum(dim=1)


def response_tokens(inputs: dict[str, Tensor]) -> Tensor:
    """How many tokens each response has, (sequences,); none is empty, each ends with the stop token."""
    return (inputs["targets"] != IGNORED).sum(dim=1)


class DpoWorker:
    """Trains an adapter, or the whole model, on encoded pairs; the policy that it starts from is the reference.

    Args:
        num_steps: optimizer steps of the run.
        plan: where checkpoints go, and the one to go on from.
    """

    def __init__(self, context: WorkerContext, config: DpoConfig, num_steps: int, plan: CheckpointPlan) -> None:
        self.context, self.config, self.num_steps = context, config, num_steps
        self.checkpoints = TrainerCheckpoints(context, plan)
        join_ranks(config, "dpo")
        self.arguments = training_arguments(
            TrlDpoConfig,
            config,
            context.run_dir,
            microbatch=config.batch.microbatch_pairs_per_gpu,
            num_steps=num_steps,
        )
        self.source = resolve_model(config.model.name, config.model.revision)
        self.tokenizer = load_tokenizer(self.source, config.model)
        self.model = policy_to_train(config, self.source, self.tokenizer)
        context.beat_with(self.model)
        self.watch = Watch(context, config, num_steps)

    def train(self, rows: list[PairRow], evaluation: list[PairRow]) -> dict[str, Any]:
        """Trains, restores the best weights where asked, saves; returns the figures of the run.

        Args:
            rows / evaluation: with ``chosen_ids``, ``rejected_ids``, ``num_prompt_tokens``, ``probability`` and
                ``weight``.

        Returns:
            Figures; ``eval_rewards`` holds (chosen, rejected) implicit rewards of the held-out pairs in their order.
        """
        started = time.perf_counter()
        self.trainer = self._build_trainer(rows, evaluation)
        torch.manual_seed(derive_seed(self.config.seed, "dpo", self.context.rank))
        self.trainer.train_or_resume()
        if self.checkpoints.stopped_at is not None:
            return {"stopped_at": self.checkpoints.stopped_at}
        seconds = time.perf_counter() - started
        figures = finish_training(self.trainer, self.watch)
        if evaluation:
            self.trainer.held_out()  # of the weights that are saved
        with large_files(self.context, self.config):
            save_policy(self, Path(self.context.run_dir))
        trainable, total = adapters.count_parameters(self.model)
        return {
            **figures,
            "num_ranks": torch.distributed.get_world_size(),
            "trainable_parameters": trainable,
            "parameters": total
            - (0 if self.config.lora is None else trainable),  # the reference is no part of the model
            "train_seconds": seconds,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "eval_rewards": self.trainer.last_rewards,
        }

    def _build_trainer(self, rows: list[PairRow], evaluation: list[PairRow]) -> DpoStageTrainer:
        order = row_order(len(rows), self.num_steps * self.config.batch.minibatch_pairs, self.config.seed, "dpo")
        values = keep_trained_values(self.model) if self.config.model.quantization != "none" else {}
        whole = self.config.lora is None
        trainer = DpoStageTrainer(
            self.config,
            evaluation,
            sum(row["weight"] for row in rows) / len(rows),
            model=self.model,
            ref_model=load_causal_lm(self.source, self.config.model, self.tokenizer) if whole else None,
            args=self.arguments,
            train_dataset=Dataset.from_list(rows).select(order),
            data_collator=PreferenceCollator(self.tokenizer.pad_token_id),
            processing_class=self.tokenizer,
            callbacks=[self.watch],
        )
        put_back(self.model, values)  # TRL casts the adapter of a quantized base to bfloat16
        if not whole:
            freeze_start(self.model)
        self.watch.trainer = trainer
        trainer.watch, trainer.checkpoints = self.watch, self.checkpoints
        return trainer


def freeze_start(model: Any) -> None:
    """Makes the reference adapter, which TRL has added, the policy's start to the last bit, of the same precision.

    A fresh adapter changes nothing, so this start is the base. A run that goes on from a commit comes here before the
    commit is read.
    """
    start = dict(adapters.adapter_parameters(model, ADAPTER))
    for name, parameter in adapters.adapter_parameters(model, REFERENCE):
        parameter.data = parameter.data.to(start[name].dtype)
        parameter.requires_grad_(False)
    adapters.copy_adapter(model, ADAPTER, REFERENCE)
