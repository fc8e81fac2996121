"""One DeepSpeed rank of reward-model training, on TRL's RewardTrainer with the loss of ``rlhf.algos``."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer

from rlhf.algos.losses import centering_loss, pairwise_reward_loss
from rlhf.config import RewardConfig, derive_seed
from rlhf.config.held import held_of
from rlhf.engine.gather import whole_state
from rlhf.errors import CheckpointError, NumericsError
from rlhf.models import adapters
from rlhf.models.loading import torch_dtype
from rlhf.models.scorer import ADAPTER, HEAD, RewardSettings, build_reward_model, load_scorer
from rlhf.models.source import ModelSource, resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.workers.context import WorkerContext
from rlhf.workers.large_files import large_files
from rlhf.workers.pair_figures import held_out_shares, step_figures
from rlhf.workers.schedule import row_order
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

NUM_CHECKED = 4
PairRow = dict[str, Any]


class PairCollator:
    """(2n, longest) token ids, the n chosen first; labels, margins and weights as (n,) float32."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[PairRow]) -> dict[str, Tensor]:
        sequences = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        numbers = {key: torch.tensor([float(row[key]) for row in rows]) for key in ("probability", "margin", "weight")}
        return {"input_ids": pad_right(sequences, self.pad_id), "attention_mask": attention_of(sequences), **numbers}


class RewardStageTrainer(ExactTrainer, RewardTrainer):  # type: ignore[misc]
    """TRL's trainer with soft labels, margins and weights per pair.

    The divisor of a step's loss is pairs x mean weight of the whole training set, a constant: a prompt weighs the same
    in whichever minibatch its pairs fall, for any number of ranks and micro-batches.
    """

    settings: RewardConfig

    def __init__(self, settings: RewardConfig, eval_rows: list[PairRow], mean_weight: float, **kwargs: Any) -> None:
        self.settings, self.eval_rows, self._mean_weight = settings, eval_rows, mean_weight
        super().__init__(**kwargs)
        self.last_scores: list[tuple[float, float]] = []

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the micro-batch's pairs; the trainer and the engine average micro-batches and ranks."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        chosen, rejected = outputs.logits[:, 0].float().chunk(2)  # (pairs,) each
        denominator = len(chosen) * self._mean_weight
        found = pairwise_reward_loss(
            chosen,
            rejected,
            denominator=denominator,
            probability=inputs["probability"],
            margin=inputs["margin"],
            weight=inputs["weight"],
        )
        loss = found.loss
        if self.settings.centering > 0:
            loss = loss + self.settings.centering * centering_loss(chosen, rejected, denominator=len(chosen))
        self._note(chosen.detach(), rejected.detach(), inputs["probability"])
        return (loss, outputs) if return_outputs else loss

    def _note(self, chosen: Tensor, rejected: Tensor, probability: Tensor) -> None:
        metrics, means = self._metrics["train"], step_figures(chosen - rejected, probability)
        metrics["score_difference"] += means.pop("difference")
        for name, values in means.items():
            metrics[name] += values

    @torch.no_grad()
    def score_all(self, sequences: list[list[int]]) -> list[float]:
        """Raw scores of sequences, spread over the ranks; equal on every rank. All ranks must call it."""
        model: Any = self.model_wrapped
        collator: Any = self.data_collator
        device = self.args.device
        model.eval()
        micro = 2 * self.args.per_device_train_batch_size
        found: list[tuple[int, float]] = []
        for chosen, rows in rank_batches(sequences, micro, self.args.process_index, self.args.world_size):
            ids, mask = pad_right(rows, collator.pad_id), attention_of(rows)
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            found += zip(chosen, logits[: len(chosen), 0].float().tolist(), strict=True)
        model.train()
        parts: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(parts, found)
        scores = dict(pair for part in parts for pair in part)
        return [scores[index] for index in range(len(sequences))]

    def held_out(self) -> dict[str, float]:
        """Weighted loss over all held-out pairs, accuracy over those with a majority, and over single votes."""
        rows = self.eval_rows
        scores = self.score_all([row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows])
        chosen, rejected = torch.tensor(scores, dtype=torch.float64).chunk(2)
        self.last_scores = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
        numbers = {key: torch.tensor([float(row[key]) for row in rows]) for key in ("probability", "margin", "weight")}
        found = pairwise_reward_loss(chosen, rejected, denominator=numbers["weight"].sum(), **numbers)
        return {"loss": float(found.loss), **held_out_shares(chosen - rejected, numbers["probability"])}


class RewardWorker:
    """Trains a scalar head and an adapter (or the whole model) on encoded pairs.

    Args:
        num_steps: optimizer steps of the run.
        plan: where checkpoints go, and the one to go on from.
    """

    def __init__(self, context: WorkerContext, config: RewardConfig, num_steps: int, plan: CheckpointPlan) -> None:
        self.context, self.config, self.num_steps = context, config, num_steps
        self.checkpoints = TrainerCheckpoints(context, plan)
        join_ranks(config, "reward")
        self.arguments = training_arguments(
            TrlRewardConfig,
            config,
            context.run_dir,
            microbatch=config.batch.microbatch_pairs_per_gpu,
            num_steps=num_steps,
            disable_dropout=False,
        )
        self.source = resolve_model(config.model.name, config.model.revision)
        self.tokenizer, self.chat = load_chat(self.source, config.model)
        self.model = self._build_model()
        context.beat_with(self.model)
        self.watch = Watch(context, config, num_steps)

    def train(self, rows: list[PairRow], evaluation: list[PairRow], samples: list[list[int]]) -> dict[str, Any]:
        """Trains, normalizes the scores once, saves, and proves that the saved model scores alike.

        Args:
            rows / evaluation: with ``chosen_ids``, ``rejected_ids``, ``probability``, ``margin``, ``weight``.
            samples: sequences whose scores get mean 0 and deviation 1.

        Returns:
            Figures; ``eval_scores`` holds (chosen, rejected) raw scores of the held-out pairs in their order.
        """
        started = time.perf_counter()
        self.trainer = self._build_trainer(rows, evaluation)
        torch.manual_seed(derive_seed(self.config.seed, "reward", self.context.rank))
        self.trainer.train_or_resume()
        if self.checkpoints.stopped_at is not None:
            return {"stopped_at": self.checkpoints.stopped_at}
        seconds = time.perf_counter() - started
        figures = finish_training(self.trainer, self.watch)
        if evaluation:
            self.trainer.held_out()  # of the weights that are saved
        settings = self._normalization(samples)
        trainable, total = adapters.count_parameters(self.model)
        eval_scores = self.trainer.last_scores
        with large_files(self.context, self.config):
            self.save(Path(self.context.run_dir), settings)
            self._check_saved(Path(self.context.run_dir), samples[:NUM_CHECKED])
        return {
            **figures,
            "num_ranks": torch.distributed.get_world_size(),
            "trainable_parameters": trainable,
            "parameters": total,
            "train_seconds": seconds,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "normalization": {"mean": settings.mean, "std": settings.std, "num_samples": settings.num_samples},
            "eval_scores": eval_scores,
        }

    def save(self, run_dir: Path, settings: RewardSettings) -> None:
        """Writes weights, head, ``reward.json`` and tokenizer from rank 0; all ranks must call it."""
        first = self.context.rank == 0
        if self.config.lora is None:
            target = run_dir / "model"
            state = self.trainer.accelerator.get_state_dict(self.trainer.model_wrapped)
            if first:
                self.model.save_pretrained(str(target), state_dict=state)
        else:
            target = run_dir / "adapter"
            state = whole_state(self._named_trained(), keep=first)
            if first:
                adapters.save_adapter_file(target, self.model.peft_config[ADAPTER], self.source.base, state)
        if first:
            settings.write(target)
            self.tokenizer.save_pretrained(str(run_dir / "tokenizer"))

    def _build_model(self) -> Any:
        model: Any = build_reward_model(self.source, self.config.model, self.tokenizer)
        model.score.draw(derive_seed(self.config.seed, "reward", "head"))
        if self.config.lora is None:
            return model
        torch.manual_seed(derive_seed(self.config.seed, "reward", "adapter"))
        if self.source.adapter is None:
            return adapters.fresh(model, self.config.lora, ADAPTER, "SEQ_CLS")
        peft_config = adapters.read_peft_config(self.source.adapter)
        peft_config.task_type = "SEQ_CLS"
        model = adapters.attach(model, peft_config, ADAPTER)
        adapters.write_adapter(model, ADAPTER, adapters.read_adapter_file(self.source.adapter)[0])
        return model

    def _build_trainer(self, rows: list[PairRow], evaluation: list[PairRow]) -> RewardStageTrainer:
        order = row_order(len(rows), self.num_steps * self.config.batch.minibatch_pairs, self.config.seed, "reward")
        values = keep_trained_values(self.model) if self.config.model.quantization != "none" else {}
        trainer = RewardStageTrainer(
            self.config,
            evaluation,
            sum(row["weight"] for row in rows) / len(rows),
            model=self.model,
            args=self.arguments,
            train_dataset=Dataset.from_list(rows).select(order),
            data_collator=PairCollator(self.tokenizer.pad_token_id),
            processing_class=self.tokenizer,
            callbacks=[self.watch],
        )
        put_back(self.model, values)  # TRL casts the adapter of a quantized base to bfloat16
        self.watch.trainer = trainer
        trainer.watch, trainer.checkpoints = self.watch, self.checkpoints
        return trainer

    def _named_trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from adapters.adapter_parameters(self.model, ADAPTER)
        ending = f"score.modules_to_save.{ADAPTER}.weight"
        heads = [p for name, p in self.model.named_parameters() if name.endswith(ending)]
        if len(heads) != 1:
            raise CheckpointError(f"found {len(heads)} reward heads to save instead of one")
        yield HEAD, heads[0]

    def _normalization(self, samples: list[list[int]]) -> RewardSettings:
        scores = torch.tensor(self.trainer.score_all(samples), dtype=torch.float64)
        mean, std = float(scores.mean()), float(scores.std(unbiased=False))
        if not std > 1e-9:
            raise NumericsError(
                f"the reward model gives all {len(samples)} samples the score {mean:.4g}: there is nothing to "
                "optimize; look at the held-out accuracy, train longer, or raise optim.learning_rate"
            )
        dtype = "bfloat16" if torch_dtype(self.config.model) == torch.bfloat16 else "float32"
        return RewardSettings(mean, std, len(samples), dtype, {})  # type: ignore[arg-type]

    def _check_saved(self, run_dir: Path, sequences: list[list[int]]) -> None:
        """Loads what was saved and compares scores, one sequence at a time so that padding plays no part."""
        live = [self.trainer.score_all([ids] * self.trainer.args.world_size)[0] for ids in sequences]
        if self.context.rank != 0:
            return
        del self.trainer, self.model, self.watch.trainer
        gc.collect()
        unset_hf_deepspeed_config()  # a fresh load must not be cut into ZeRO-3 pieces
        adapter = run_dir / "adapter" if self.config.lora is not None else None
        base = self.source.base if adapter is not None else str(run_dir / "model")
        saved = ModelSource(base, self.source.revision if adapter else None, str(run_dir / "tokenizer"), adapter)
        scorer = load_scorer(saved, held_of(self.config.model), self.chat.style)
        again = [scorer.raw_scores([ids])[0] for ids in sequences]
        worst = max(abs(a - b) for a, b in zip(live, again, strict=True))
        limit = 1e-5 if scorer.settings.dtype == "float32" else 0.05
        if worst > limit * max(1.0, max(abs(score) for score in live)):
            raise CheckpointError(
                f"{run_dir}: the saved reward model scores differently from the trained one (by {worst:.3g}, "
                f"{live} against {again}): do not use it"
            )
