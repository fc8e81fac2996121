"""The rollout worker: holds its own base, takes adapter versions, draws responses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf.config import ModelConfig, RolloutConfig, SamplingConfig
from rlhf.config.model import LoraConfig
from rlhf.errors import WeightSyncError
from rlhf.models import adapters
from rlhf.models.lending import Loan, borrow
from rlhf.models.loading import dtype_name, load_causal_lm, to_device
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.rollout.transformers_engine import TransformersGenerator
from rlhf.rollout.vllm.engine import VllmGenerator, VllmSettings
from rlhf.weights.snapshot import Snapshot, pack
from rlhf.workers.context import WorkerContext
from rlhf.workers.heap import give_back


class RolloutWorker:
    """One rollout engine.

    Args:
        lora: shape of the policy adapter when ``model.name`` carries none; None: the model is used as it is, or the
            trainer sends whole weights.
        follows_trainer: wait for the trainer's versions instead of installing the run's own adapter.
        rollout: names the engine; None: transformers.
        loans: bases that training ranks lend: the one on this worker's GPU is used instead of a second one.
    """

    def __init__(
        self,
        context: WorkerContext,
        model: ModelConfig,
        lora: LoraConfig | None,
        *,
        microbatch: int,
        threads: int,
        follows_trainer: bool,
        rollout: RolloutConfig | None = None,
        loans: Sequence[Loan | None] = (),
    ) -> None:
        self.context, self.dtype = context, dtype_name(model)
        torch.set_num_threads(threads)
        source = resolve_model(model.name, model.revision)
        self.tokenizer, self.chat = load_chat(source, model)
        config = adapters.read_peft_config(source.adapter) if source.adapter else None
        if follows_trainer:
            config = None if lora is None else config or adapters.peft_config(lora)
        pad = self.tokenizer.pad_token_id
        self.generator: Any
        self.borrows = False
        if rollout is not None and rollout.engine == "vllm":
            self.generator = VllmGenerator(
                source.base,
                config,
                VllmSettings.of(rollout, model),
                stop_ids=self.chat.stop_ids,
                suppress_ids=(pad,),
                revision=source.revision,
            )
        else:
            base: Any = load_causal_lm(source, model, self.tokenizer)
            self.borrows = borrow(base, loans)
            base = to_device(base)
            self.generator = TransformersGenerator(
                base,
                config,
                stop_ids=self.chat.stop_ids,
                pad_id=pad,
                microbatch=microbatch,
                suppress_ids=(pad,),
                follows_trainer=follows_trainer,
                graphs=rollout is None or rollout.cuda_graphs,
                beat=context.beat,
            )
            context.beat_with(base)
        self.sleeps = rollout is not None and rollout.sleep_while_learning
        if source.adapter and not follows_trainer:
            self.load(str(source.adapter))
        give_back()

    def describe(self) -> dict[str, Any]:
        """What runs here."""
        return {
            "chat_fingerprint": self.chat.fingerprint(),
            "dtype": self.dtype,
            "version": self.generator.version,
            "borrows_base": self.borrows,
        }

    def install(self, *parts: Snapshot) -> tuple[str, float]:
        """Takes a version in one or several parts; returns (sha256 of the live weights, milliseconds)."""
        started = time.perf_counter()
        sha = self.generator.install(*parts)
        return sha, (time.perf_counter() - started) * 1e3

    def load(self, adapter: str | None) -> str:
        """Takes a saved adapter, or the bare base for None; returns its sha256."""
        if adapter is None:
            self.generator.use_bare_base()
            return "base"
        state, _ = adapters.read_adapter_file(Path(adapter))
        return self.generator.install(pack(state, version=0))

    def canary(self, prompt_ids: list[int], response_ids: list[int], temperature: float) -> list[float]:
        """Log-probabilities of fixed tokens under the live adapter."""
        return self.generator.score_tokens(prompt_ids, response_ids, temperature)

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig, version: int) -> list[Rollout]:
        """Draws one response per task with exactly the wanted policy version.

        Raises:
            WeightSyncError: when another version is installed.
        """
        if self.generator.version != version:
            raise WeightSyncError(
                f"rollout worker {self.context.rank} holds adapter version {self.generator.version}, wanted {version}"
            )
        found = self.generator.generate(tasks, sampling)
        if self.sleeps:
            self.generator.sleep()
        give_back()
        return found
