"""The default rollout engine: continuous sampling on a transformers model, no other package needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf.algos.logprobs import token_logprobs
from rlhf.config import SamplingConfig
from rlhf.errors import WeightSyncError
from rlhf.models import adapters, blocks, mixed
from rlhf.models.output import reads_last_hidden
from rlhf.models.roles import POLICY
from rlhf.rollout.batching import BatchDecoder
from rlhf.rollout.decoding import SlotDecoder
from rlhf.rollout.graphs import Captures, can_be_captured
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.rollout.slots import fits_slots
from rlhf.rollout.steps import LayerSteps
from rlhf.weights.parts import write_parts
from rlhf.weights.snapshot import Snapshot

NO_ADAPTER = "base"


class TransformersGenerator:
    """Samples with one random number per (sample, token), so results do not depend on what else is in the batch.

    Args:
        microbatch: samples that run together; one that ends makes room for the next of the list.
        follows_trainer: without an adapter, whole weights are waited for before anything is drawn.
        graphs: steps of decoding are replayed as CUDA graphs, on a GPU.
        beat: a sign of progress, given while graphs are replayed.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        lora_config: adapters.peft.LoraConfig | None,
        *,
        stop_ids: tuple[int, ...],
        pad_id: int,
        microbatch: int,
        suppress_ids: tuple[int, ...] = (),
        follows_trainer: bool = False,
        graphs: bool = True,
        beat: Callable[[], None] | None = None,
    ) -> None:
        self._model: Any = base.eval()
        self._model.requires_grad_(False)
        if lora_config is not None:
            self._model = adapters.attach(base, lora_config, POLICY).eval()
        self._adapted = lora_config is not None
        self._mix = mixed.Mix(((POLICY, None),))
        if not self._adapted or mixed.can_mix(self._model, [POLICY]):
            mixed.install(self._model, self._mix)
            blocks.install(self._model, self._mix)
        causal: Any = self._model.get_base_model() if self._adapted else self._model
        self._causal, self._slots = causal, fits_slots(causal)
        reads_hidden = reads_last_hidden(causal)
        steps = LayerSteps.of(causal) if self._slots and reads_hidden else None
        captures = Captures() if graphs and can_be_captured(causal) else None
        self._slot_words: dict[str, Any] = {
            "reads_hidden": reads_hidden, "steps": steps, "captures": captures, "beat": beat,
        }  # fmt: skip
        self._stop_ids, self._pad_id, self._microbatch = tuple(stop_ids), pad_id, microbatch
        self._suppress_ids = suppress_ids
        self._version, self._sha = (-1, "") if self._adapted or follows_trainer else (0, "base")

    @property
    def version(self) -> int:
        """Version of the installed weights, -1 before the first."""
        return self._version

    def install(self, *parts: Snapshot) -> str:
        """Writes an adapter, or the whole model where there is none, and hashes the live weights.

        Raises:
            WeightSyncError: for tampered bytes, another shape, or live weights that differ.
        """
        own = adapters.adapter_parameters(self._model, POLICY) if self._adapted else self._model.named_parameters()
        sha = write_parts(parts, dict(own))
        if self._adapted:
            self._model.base_model.enable_adapter_layers()
            self._mix.parts = ((POLICY, None),)
        self._version, self._sha = parts[0].version, sha
        return sha

    def use_bare_base(self) -> None:
        """Samples from the base alone until the next ``install``."""
        if self._adapted:
            self._model.base_model.disable_adapter_layers()
            self._mix.parts = ((NO_ADAPTER, None),)
        self._version, self._sha = 0, "base"

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig) -> list[Rollout]:
        """Draws one response per task, in order.

        Raises:
            WeightSyncError: before the first adapter was installed.
            NumericsError: when the model's logits are not finite.
        """
        if self._version < 0:
            what = "adapter has" if self._adapted else "weights have"
            raise WeightSyncError(f"no {what} been installed: this worker would sample from the bare base")
        if not tasks:
            return []
        decoder = (SlotDecoder if self._slots else BatchDecoder)(
            self._causal,
            tasks,
            sampling,
            stop_ids=self._stop_ids,
            pad_id=self._pad_id,
            num_slots=self._microbatch,
            suppress_ids=self._suppress_ids,
            **(self._slot_words if self._slots else {}),
        )
        return [
            Rollout(
                key=task.key,
                prompt_ids=task.prompt_ids,
                response_ids=tuple(drawn.tokens),
                logprobs=tuple(drawn.logprobs),
                finished=drawn.finished,
                version=self._version,
                adapter_sha256=self._sha,
            )
            for task, drawn in zip(tasks, decoder.run(), strict=True)
        ]

    @torch.no_grad()
    def score_tokens(self, prompt_ids: list[int], response_ids: list[int], temperature: float) -> list[float]:
        """Log-probabilities of given response tokens."""
        ids = torch.tensor([prompt_ids + response_ids], device=self._model.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        logits = self._model(input_ids=ids, attention_mask=mask.long(), logits_to_keep=len(response_ids) + 1).logits
        target = ids[:, len(prompt_ids) :]
        found = token_logprobs(logits[:, :-1], target, temperature=temperature, suppress_ids=self._suppress_ids)
        return found[0].tolist()
