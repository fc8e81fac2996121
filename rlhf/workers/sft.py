"""One DeepSpeed rank of supervised fine-tuning, on TRL's SFTTrainer."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer

from rlhf.config import SftConfig, derive_seed
from rlhf.errors import ConfigError
from rlhf.models import adapters
from rlhf.models.loading import torch_dtype
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer
from rlhf.workers.context import WorkerContext
from rlhf.workers.large_files import large_files
from rlhf.workers.schedule import row_order
from rlhf.workers.trained_policy import policy_to_train, save_policy
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
    sum_over_ranks,
    training_arguments,
)

IGNORED = -100
PROBE_TOLERANCE = 1e-3


class SftCollator:
    """Pads rows on the right, or lays packed rows end to end with positions that begin anew at each part."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids, labels = [row["input_ids"] for row in rows], [row["labels"] for row in rows]
        if "lengths" not in rows[0]:
            return {
                "input_ids": pad_right(ids, self._pad_id),
                "attention_mask": attention_of(ids),
                "labels": pad_right(labels, IGNORED),
            }
        # no attention mask: the model derives who may see whom from the positions
        positions = [position for row in rows for length in row["lengths"] for position in range(length)]
        return {
            "input_ids": torch.tensor([[token for row in ids for token in row]]),
            "labels": torch.tensor([[label for row in labels for label in row]]),
            "position_ids": torch.tensor([positions]),
        }


class SftStageTrainer(ExactTrainer, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer; the divisor of every loss is the number of loss tokens over all ranks and micro-batches."""

    def __init__(self, settings: SftConfig, eval_rows: list[dict[str, Any]], **kwargs: Any) -> None:
        self.settings, self.eval_rows = settings, eval_rows
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # the loss is TRL's own: the token count need not pass the model

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Loss per token and token accuracy over all held-out rows, exact for any number of ranks."""
        model: Any = self.model_wrapped
        device = self.args.device
        sums = {"loss": 0.0, "correct": 0.0, "tokens": 0.0}
        model.eval()
        micro = self.args.per_device_train_batch_size
        for chosen, rows in rank_batches(self.eval_rows, micro, self.args.process_index, self.args.world_size):
            inputs = {key: value.to(device) for key, value in self.data_collator(rows).items()}
            found = model(**inputs, use_cache=False, fused_lm_head=True)
            if chosen:
                sums["loss"] -= float(found.log_probs.double().sum())
                sums["correct"] += float(found.is_top1.sum())
                sums["tokens"] += float(found.label_mask.sum())
        model.train()
        total = sum_over_ranks(sums, device)
        return {"loss": total["loss"] / total["tokens"], "token_accuracy": total["correct"] / total["tokens"]}


class SftWorker:
    """Trains an adapter, or the whole model, on encoded demonstrations.

    Args:
        num_steps: optimizer steps of the run.
        plan: where checkpoints go, and the one to go on from.
    """

    def __init__(self, context: WorkerContext, config: SftConfig, num_steps: int, plan: CheckpointPlan) -> None:
        self.context, self.config, self.num_steps = context, config, num_steps
        self.checkpoints = TrainerCheckpoints(context, plan)
        join_ranks(config, "sft")
        self.arguments = training_arguments(
            TrlSftConfig,
            config,
            context.run_dir,
            microbatch=config.batch.microbatch_sequences_per_gpu,
            num_steps=num_steps,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        self.source = resolve_model(config.model.name, config.model.revision)
        self.tokenizer = load_tokenizer(self.source, config.model)
        self.model = policy_to_train(config, self.source, self.tokenizer)
        context.beat_with(self.model)
        self.watch = Watch(context, config, num_steps)

    def train(self, rows: list[dict[str, Any]], evaluation: list[dict[str, Any]]) -> dict[str, Any]:
        """Trains, restores the best weights where asked, saves; returns the figures of the run.

        Args:
            rows: with ``input_ids`` and ``labels`` (and ``lengths`` when packed).
            evaluation: held-out rows, never packed; may be empty.
        """
        started = time.perf_counter()
        self.trainer = self._build_trainer(rows, evaluation)
        torch.manual_seed(derive_seed(self.config.seed, "sft", self.context.rank))
        self.trainer.train_or_resume()
        if self.checkpoints.stopped_at is not None:
            return {"stopped_at": self.checkpoints.stopped_at}
        seconds = time.perf_counter() - started
        figures = finish_training(self.trainer, self.watch)
        with large_files(self.context, self.config):
            save_policy(self, Path(self.context.run_dir))
        trainable, total = adapters.count_parameters(self.model)
        return {
            **figures,
            "num_ranks": torch.distributed.get_world_size(),
            "trainable_parameters": trainable,
            "parameters": total,
            "train_seconds": seconds,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    def _build_trainer(self, rows: list[dict[str, Any]], evaluation: list[dict[str, Any]]) -> SftStageTrainer:
        count = self.num_steps * self.config.batch.minibatch_sequences
        order = row_order(len(rows), count, self.config.seed, "sft")
        values = keep_trained_values(self.model) if self.config.model.quantization != "none" else {}
        trainer = SftStageTrainer(
            self.config,
            evaluation,
            model=self.model,
            args=self.arguments,
            train_dataset=Dataset.from_list(rows).select(order),
            data_collator=SftCollator(self.tokenizer.pad_token_id),
            processing_class=self.tokenizer,
            callbacks=[self.watch],
        )
        put_back(self.model, values)  # TRL casts the adapter of a quantized base to bfloat16
        self.watch.trainer = trainer
        trainer.watch, trainer.checkpoints = self.watch, self.checkpoints
        if self.config.packing:
            self.watch.before_training = self._refuse_leaking_attention
        return trainer

    def held_out(self) -> dict[str, float]:
        """Evaluates the present weights."""
        return self.trainer.held_out()

    @torch.no_grad()
    def _refuse_leaking_attention(self) -> None:
        """Compares rows laid end to end with the same rows apart: packing needs attention that keeps them apart."""
        vocabulary = self.tokenizer.get_vocab().values()
        tokens = sorted(vocabulary)[:8] * 2
        parts = [tokens[:7], tokens[7:12]]
        model: Any = self.trainer.model_wrapped
        collate: Any = self.trainer.data_collator
        device = self.trainer.args.device
        rows = [{"input_ids": ids, "labels": ids, "lengths": [len(ids)]} for ids in parts]
        model.eval()

        def hidden(batch: list[dict[str, Any]]) -> Tensor:
            inputs = {key: value.to(device) for key, value in collate(batch).items()}
            return model(**inputs, use_cache=False, fused_lm_head=True).log_probs[:, -4:].float()

        difference = float((hidden(rows) - hidden(rows[1:])).abs().max())
        model.train()
        if difference > PROBE_TOLERANCE * (1 if torch_dtype(self.config.model) == torch.float32 else 100):
            raise ConfigError(
                f"packing=true: with model.attention={self.config.model.attention} this model lets packed rows see "
                f"each other (log-probs differ by {difference:.3g}); set packing=false"
            )
