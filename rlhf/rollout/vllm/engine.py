"""vLLM as a rollout engine: adapters from memory, one name per installation, seeds and log-probabilities per sample."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rlhf.config import ModelConfig, RolloutConfig, SamplingConfig
from rlhf.errors import ConfigError, NumericsError, WeightSyncError
from rlhf.models.loading import torch_dtype
from rlhf.models.peft_methods import method_of
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.rollout.vllm.requests import (
    AdapterName,
    AdapterNames,
    room_for_rank,
    sampling_arguments,
    scoring_arguments,
)
from rlhf.weights.snapshot import Snapshot

EXTENSION = "rlhf.rollout.vllm.extension.AdapterExtension"
METHODS = ("lora", "rslora")


@dataclass(frozen=True)
class VllmSettings:
    """How an engine is started.

    Attributes:
        max_sequence_tokens: longest prompt + response.
        max_running: samples that run together.
        dtype: of the weights.
        tensor_parallel: GPUs (or processes) that share one copy of the weights.
        memory_share: of a GPU's memory, for weights and cache.
        can_sleep: weights may leave the GPU while training uses it.
        code_revision: commit of the code that the model brings and may run; None: it may run none.
        extra: further arguments of ``vllm.LLM``.
    """

    max_sequence_tokens: int
    max_running: int = 256
    dtype: str = "auto"
    tensor_parallel: int = 1
    memory_share: float = 0.85
    can_sleep: bool = False
    code_revision: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, rollout: RolloutConfig, model: ModelConfig) -> VllmSettings:
        """From a run's config.

        Raises:
            ConfigError: a quantized base.
        """
        if model.quantization != "none":
            raise ConfigError(
                f"rollout.engine=vllm holds its base unquantized, model.quantization={model.quantization} trains on "
                "another one: use rollout.engine=transformers"
            )
        return cls(
            max_sequence_tokens=rollout.max_prompt_tokens + rollout.max_response_tokens,
            max_running=rollout.microbatch_sequences,
            dtype=str(torch_dtype(model)).removeprefix("torch."),
            tensor_parallel=rollout.tensor_parallel,
            memory_share=rollout.memory_share,
            can_sleep=rollout.sleep_while_learning,
            code_revision=model.revision if model.trust_remote_code else None,
        )


class VllmGenerator:
    """A ``Generator`` on vLLM.

    Args:
        base: model directory or hub id of the base.
        peft_config: shape of the policy adapter, None to sample the base as it is.

    Raises:
        ConfigError: vLLM is not installed, or cannot serve this adapter in this precision.
    """

    def __init__(
        self,
        base: str,
        peft_config: Any,
        settings: VllmSettings,
        *,
        stop_ids: Sequence[int],
        suppress_ids: Sequence[int] = (),
        revision: str | None = None,
    ) -> None:
        if peft_config is not None and method_of(peft_config) not in METHODS:
            raise ConfigError(
                f"rollout.engine=vllm serves the methods {' and '.join(METHODS)}, not lora.method="
                f"{method_of(peft_config)}: use rollout.engine=transformers"
            )
        if peft_config is not None and settings.dtype == "float32" and torch.cuda.is_available():
            raise ConfigError(
                "rollout.engine=vllm computes adapters on a GPU in 16 bits only, not in model.dtype=float32: set "
                "model.dtype=bfloat16, or use rollout.engine=transformers"
            )
        self._stop_ids = tuple(stop_ids)
        self._adapter_settings = _plain(peft_config) if peft_config is not None else None
        self._names = AdapterNames()
        self._adapter: AdapterName | None = None
        self._version, self._sha = (-1, "") if peft_config is not None else (0, "base")
        self._in_processes = settings.tensor_parallel > 1
        self._can_sleep, self._asleep = settings.can_sleep, False
        self._llm = _start(base, revision, peft_config, settings)
        vocabulary = self._llm.llm_engine.model_config.get_vocab_size()
        # a pad token that the tokenizer was given has a row in the trainer's embedding, none in the base's
        self._suppress_ids = tuple(token for token in suppress_ids if token < vocabulary)

    @property
    def version(self) -> int:
        """Version of the installed adapter, -1 before the first."""
        return self._version

    @property
    def adapter_name(self) -> str | None:
        """The name that requests carry now; None for the bare base."""
        return self._adapter.text if self._adapter else None

    def install(self, snapshot: Snapshot) -> str:
        """Takes an adapter from memory under a new name; every rank checks its bytes and the layers it fits.

        Raises:
            WeightSyncError: damaged bytes, foreign layers, or ranks that disagree.
        """
        if self._adapter_settings is None:
            raise WeightSyncError("this engine was started without room for an adapter")
        self.wake()
        name = self._names.next(snapshot.version, snapshot.sha256)
        old = self._adapter.number if self._adapter else None
        sent = pickle.dumps(snapshot, protocol=5) if self._in_processes else snapshot
        try:
            taken = self._llm.collective_rpc(
                "install_adapter_from_memory", args=(sent, self._adapter_settings, name.number, old)
            )
        except RuntimeError as error:  # how a refusal in another process comes back
            raise WeightSyncError(f"adapter version {snapshot.version} was not installed: {error}") from None
        if len(set(taken)) != 1 or 2 * taken[0] != len(snapshot.entries):
            raise WeightSyncError(
                f"adapter version {snapshot.version}: ranks took {taken} layers of {len(snapshot.entries) // 2}"
            )
        self._adapter, self._version, self._sha = name, snapshot.version, snapshot.sha256
        return snapshot.sha256

    def use_bare_base(self) -> None:
        """Samples from the base alone until the next ``install``."""
        self._adapter, self._version, self._sha = None, 0, "base"

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig) -> list[Rollout]:
        """Draws one response per task, in order.

        Raises:
            WeightSyncError: before the first adapter was installed.
            NumericsError: log-probabilities that are not finite.
            ConfigError: truncated sampling.
        """
        if self._version < 0:
            raise WeightSyncError("no adapter has been installed: this worker would sample from the bare base")
        if not tasks:
            return []
        arguments = [
            sampling_arguments(sampling, t.seed, stop_ids=self._stop_ids, suppress_ids=self._suppress_ids)
            for t in tasks
        ]
        found = self._run([list(t.prompt_ids) for t in tasks], arguments)
        return [self._rollout(task, output) for task, output in zip(tasks, found, strict=True)]

    def score_tokens(self, prompt_ids: list[int], response_ids: list[int], temperature: float) -> list[float]:
        """Log-probabilities of given response tokens, each as that of the next token after what stands before it."""
        prompts = [prompt_ids + response_ids[:at] for at in range(len(response_ids))]
        arguments = [scoring_arguments(t, temperature, suppress_ids=self._suppress_ids) for t in response_ids]
        found = self._run(prompts, arguments)
        return [float(output.logprobs[0][token].logprob) for output, token in zip(found, response_ids, strict=True)]

    def sleep(self) -> None:
        """Gives the GPU's memory to training; the next call wakes the engine. Does nothing where it cannot sleep."""
        if self._can_sleep and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        """Takes the memory back."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        """Ends the engine and its processes."""
        self._llm.llm_engine.engine_core.shutdown()

    def _run(self, prompts: list[list[int]], arguments: list[dict[str, Any]]) -> list[Any]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        self.wake()
        request = None
        if self._adapter is not None:  # the path is never read: the number is registered on every rank
            request = LoRARequest(self._adapter.text, self._adapter.number, "memory")
        found = self._llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            [SamplingParams(**one) for one in arguments],
            lora_request=request,
            use_tqdm=False,
        )
        return [one.outputs[0] for one in found]

    def _rollout(self, task: PromptTask, output: Any) -> Rollout:
        tokens = tuple(int(token) for token in output.token_ids)
        logprobs = tuple(float(row[token].logprob) for row, token in zip(output.logprobs, tokens, strict=True))
        if not all(value > float("-inf") for value in logprobs):  # false for NaN too
            raise NumericsError("the policy's logits are not finite: the adapter has diverged")
        finished = output.finish_reason == "stop" and tokens[-1] in self._stop_ids
        return Rollout(task.key, task.prompt_ids, tokens, logprobs, finished, self._version, self._sha)


def _start(base: str, revision: str | None, peft_config: Any, settings: VllmSettings) -> Any:
    if settings.tensor_parallel == 1:  # one process less to lose, and objects pass by reference
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        from vllm import LLM
    except ImportError as error:
        raise ConfigError(
            f"rollout.engine=vllm needs vLLM, which is not installed here ({error}): pip install 'rlhf[vllm]', or use "
            "rollout.engine=transformers"
        ) from None
    arguments: dict[str, Any] = {
        "model": base,
        "revision": revision,
        "code_revision": settings.code_revision,
        "trust_remote_code": settings.code_revision is not None,
        "dtype": settings.dtype,
        "max_model_len": settings.max_sequence_tokens,
        "max_num_seqs": settings.max_running,
        "tensor_parallel_size": settings.tensor_parallel,
        "gpu_memory_utilization": settings.memory_share,
        "enable_sleep_mode": settings.can_sleep,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "seed": 0,
    }
    if settings.tensor_parallel > 1:  # within a Ray actor vLLM would choose Ray, which wants one GPU per bundle
        arguments["distributed_executor_backend"] = "mp"
    if peft_config is not None:
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": room_for_rank(int(peft_config.r)),
            "max_loras": 1,
            "max_cpu_loras": 2,
            "worker_extension_cls": EXTENSION,
        }
    return LLM(**(arguments | settings.extra))


def _plain(peft_config: Any) -> dict[str, Any]:
    """The settings of a LoRA that vLLM reads."""
    target = peft_config.target_modules
    return {
        "r": int(peft_config.r),
        "lora_alpha": peft_config.lora_alpha,
        "target_modules": target if isinstance(target, str) else sorted(target),
        "use_rslora": bool(peft_config.use_rslora),
    }
