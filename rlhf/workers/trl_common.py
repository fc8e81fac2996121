"""What the SFT, reward and DPO workers share: a TRL trainer under DeepSpeed, with exact steps and sums."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from rlhf.config import TrainerConfig, derive_seed
from rlhf.engine.engine import bound_collectives, init_process_group, learning_rate_scale
from rlhf.engine.gather import whole_state, write_whole_state
from rlhf.engine.zero import deepspeed_config
from rlhf.errors import NumericsError
from rlhf.models.loading import torch_dtype
from rlhf.workers.context import WorkerContext
from rlhf.workers.large_files import expect_silence
from rlhf.workers.trl_checkpoint import TrainerCheckpoints, allow_safe_classes


def join_ranks(config: TrainerConfig, role: str) -> None:
    """Makes this process a DeepSpeed rank in accelerate's eyes, before any trainer argument exists.

    Without a configured state, a trainer on a CPU falls back to plain data parallelism and says nothing.
    """
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    torch.set_num_threads(config.placement.threads_per_worker)
    backend = init_process_group(config.placement.start_timeout_seconds)
    PartialState(backend=backend, timeout=timedelta(seconds=config.placement.start_timeout_seconds))
    set_seed(derive_seed(config.seed, role, "init") % 2**32)  # equal on all ranks: they share initial adapters


def training_arguments(
    cls: type, config: TrainerConfig, run_dir: str, *, microbatch: int, num_steps: int, **own: Any
) -> Any:
    """Arguments of a TRL trainer; they must exist before ``from_pretrained`` for ZeRO-3 to cut weights at load."""
    dtype = torch_dtype(config.model)
    zero = deepspeed_config(
        config.engine,
        dtype=dtype,
        microbatch="auto",
        accumulation="auto",
        max_grad_norm="auto",
        minibatch="auto",
    )
    optim = config.optim
    return cls(
        output_dir=run_dir,
        deepspeed=zero,
        accelerator_config={"use_configured_state": True, "even_batches": True},
        bf16=dtype == torch.bfloat16,
        per_device_train_batch_size=microbatch,
        gradient_accumulation_steps=config.gradient_accumulation,
        max_steps=num_steps,
        learning_rate=optim.learning_rate,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.eps,
        max_grad_norm=optim.max_grad_norm,
        optim="adamw_torch" if optim.optimizer == "adamw" else "adamw_bnb_8bit",
        gradient_checkpointing=config.model.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": config.engine.zero_stage == 3},
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_num_workers=0,
        remove_unused_columns=False,
        average_tokens_across_devices=True,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        seed=derive_seed(config.seed, config.stage, "trainer") % 2**32,
        max_length=None,
        **own,
    )


if TYPE_CHECKING:

    class _Trainer:
        """What is used here of the trainer that it is mixed into, which has no types."""

        control: Any
        model_wrapped: Any
        optimizer: Any
        train_dataset: Any

        def train(self, resume_from_checkpoint: str | None) -> None: ...
        def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None: ...
        def _run_epoch(self, *args: Any, **kwargs: Any) -> None: ...

else:
    _Trainer = object


class ExactTrainer(_Trainer):
    """Mixed into a TRL trainer: rows in the given order, our learning-rate schedule, our evaluation."""

    settings: TrainerConfig
    watch: Watch
    checkpoints: TrainerCheckpoints

    def train_or_resume(self) -> None:
        """Trains from the start, or from the commit that the driver has verified."""
        allow_safe_classes()
        if self.checkpoints.plan.resume_from is not None:
            expect_silence(self.watch.context, self.settings)  # until the first pass
        self.train(resume_from_checkpoint=self.checkpoints.plan.resume_from)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.checkpoints.after_step(self)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch of steps; none where training was over at the commit that it goes on from."""
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The schedule; DeepSpeed's own files hold the optimizer, and have been loaded by then."""
        if checkpoint is not None:
            self.checkpoints.restore_schedule(self, checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.checkpoints.restore_random(checkpoint)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The schedule that PPO uses too; the first of the warm-up steps already learns."""
        self.lr_scheduler = LambdaLR(
            optimizer if optimizer is not None else self.optimizer,
            lambda step: learning_rate_scale(self.settings.optim, step, num_training_steps),
        )
        return self.lr_scheduler

    def engine_type(self) -> str:
        """Type of the engine that wraps the model, as found at run time."""
        return type(self.model_wrapped).__name__

    def held_out(self) -> dict[str, float]:
        """Figures of the held-out rows, equal on every rank; must contain ``loss``."""
        raise NotImplementedError


class BestWeights:
    """Keeps the trained tensors of the best evaluation in rank 0's memory.

    Attributes:
        tensors: of the best evaluation so far, by name; empty on other ranks and before the first evaluation.
        loss, step: of that evaluation.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.tensors: dict[str, Tensor] = {}
        self.loss, self.step = math.inf, -1

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)

    def offer(self, loss: float, step: int) -> bool:
        """Keeps the present weights when they are the best so far. All ranks must call it."""
        if not loss < self.loss:
            return False
        self.loss, self.step = loss, step
        self.tensors = whole_state(self._trained(), keep=torch.distributed.get_rank() == 0)
        return True

    def restore(self) -> None:
        """Writes the best weights back into every rank. All ranks must call it."""
        write_whole_state(self._trained(), self.tensors)


class Watch(TrainerCallback):
    """Reports figures to the driver, evaluates in time, and stops when evaluations no longer improve."""

    def __init__(self, context: WorkerContext, config: TrainerConfig, num_steps: int) -> None:
        self.context, self._config, self._num_steps = context, config, num_steps
        self.trainer: Any = None
        self.evaluations: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.best: BestWeights | None = None
        self.stopped_early = False
        self.before_training: Callable[[], None] | None = None
        self.misses = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # all ranks have loaded by now, and read the checkpoint that they go on from
        bound_collectives(self._config.placement.collective_timeout_seconds)
        self.trainer.checkpoints.prepare()
        if self.before_training is not None:
            self.before_training()
        if self._config.early_stopping_patience is not None and self.trainer.eval_rows:
            self.best = BestWeights(self.trainer.model)
        if self.trainer.checkpoints.plan.resume_from is None:
            self._evaluate(0)
        else:
            self.trainer.checkpoints.restore_watch(self)
            self._stop_without_patience(state.global_step, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step = state.global_step
        if step % self._config.eval_every_steps and step != self._num_steps:
            return
        improved = self._evaluate(step)
        if self.best is None:
            return
        self.misses = 0 if improved else self.misses + 1
        self._stop_without_patience(step, control)

    def _stop_without_patience(self, step: int, control: TrainerControl) -> None:
        """Ends training where patience has run out: after a step, and at once where a commit of that step is read."""
        if self.best is not None and self.misses >= (self._config.early_stopping_patience or 0):
            self.stopped_early = step < self._num_steps
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        for key in ("loss", "grad_norm"):
            if key in logs and not math.isfinite(logs[key]):
                raise NumericsError(
                    f"step {state.global_step}: {key} is {logs[key]}: lower optim.learning_rate, or look at the "
                    "rows of this step"
                )
        self.losses.append(logs["loss"])
        values = {key: value for key, value in logs.items() if isinstance(value, int | float) and key != "epoch"}
        self._emit(state.global_step, values)

    def _evaluate(self, step: int) -> bool:
        if not self.trainer.eval_rows:
            return False
        figures = self.trainer.held_out()
        self.evaluations.append({"step": step, **figures})
        self._emit(step, {f"eval_{key}": value for key, value in figures.items()})
        if not math.isfinite(figures["loss"]):
            raise NumericsError(f"step {step}: the evaluation loss is {figures['loss']}: lower optim.learning_rate")
        return self.best.offer(figures["loss"], step) if self.best is not None else False

    def _emit(self, step: int, values: dict[str, float]) -> None:
        if self.context.rank == 0:
            self.context.emit("metrics", step=step, values=values)


def finish_training(trainer: Any, watch: Watch) -> dict[str, Any]:
    """Puts the best weights back where early stopping is on; the figures that every summary has."""
    losses = [row["loss"] for row in watch.evaluations]
    final = losses[-1] if losses else None
    if watch.best is not None and watch.best.step >= 0:
        watch.best.restore()
        final = trainer.held_out()["loss"]
    return {
        "engine": trainer.engine_type(),
        "num_steps": trainer.state.global_step,
        "stopped_early": watch.stopped_early,
        "loss": {"first": watch.losses[0], "last": watch.losses[-1]},
        "losses": watch.losses,
        "eval_loss": {"first": losses[0], "final": final} if losses else None,
        "best_step": watch.best.step if watch.best is not None else None,
        "evaluations": watch.evaluations,
    }


def rank_batches(rows: list[Any], microbatch: int, rank: int, num_ranks: int) -> Iterator[tuple[list[int], list[Any]]]:
    """This rank's share of rows in micro-batches; every rank gets equally many, the last ones maybe without indices.

    A batch without indices still holds a row: under ZeRO-3 all ranks must run the same number of passes.

    Yields:
        (indices into ``rows``, the rows themselves).
    """
    order = sorted(range(len(rows)), key=lambda i: -row_length(rows[i]))
    per_rank = -(-len(rows) // num_ranks)
    mine = order[rank::num_ranks]
    for start in range(0, per_rank, microbatch):
        chosen = mine[start : start + microbatch]
        yield chosen, [rows[i] for i in chosen] or [rows[order[-1]]]


def row_length(row: Any) -> int:
    """Tokens of the longest sequence in a row."""
    if isinstance(row, dict):
        return max(len(value) for key, value in row.items() if key in ("input_ids", "chosen_ids", "rejected_ids"))
    return len(row)


def pad_right(sequences: list[list[int]], value: int) -> Tensor:
    """(rows, longest) with ``value`` on the right."""
    longest = max(len(ids) for ids in sequences)
    return torch.tensor([[*ids, *[value] * (longest - len(ids))] for ids in sequences])


def attention_of(sequences: list[list[int]]) -> Tensor:
    """(rows, longest), 1 on real tokens."""
    return pad_right([[1] * len(ids) for ids in sequences], 0)


def sum_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Sums scalars over ranks in float64."""
    packed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(packed)
    return dict(zip(values, packed.tolist(), strict=True))


def keep_trained_values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained tensors, to undo a cast that a trainer makes while it is built."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def put_back(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Undoes a change of value or precision of trained tensors."""
    for name, parameter in model.named_parameters():
        if name in values:
            parameter.data = values[name]
