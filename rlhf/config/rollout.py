"""How responses are drawn, and by what."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf.config.base import Section


class SamplingConfig(Section):
    """How responses are drawn."""

    temperature: float = Field(1.0, gt=0)
    """Divides the logits before a token is drawn: below 1 likelier tokens, above 1 more variety."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability (arXiv:1904.09751); 1: from all. 1 in PPO."""
    top_k: int = Field(0, ge=0)
    """Draw from so many of the likeliest tokens; 0: from all. 0 in PPO."""
    max_prompt_tokens: int = Field(256, ge=1)
    """Longest prompt, chat template included; a longer one stops the run, for a cut one asks something else."""
    max_response_tokens: int = Field(128, ge=1)
    """A response that has not ended by then is cut."""


class RolloutConfig(SamplingConfig):
    """Rollouts of PPO."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """``vllm`` needs the extra ``rlhf[vllm]`` and an adapter that is plain LoRA (lora, rslora, pissa, olora)."""
    microbatch_sequences: int = Field(64, ge=1)
    """Sequences decoded together by one rollout worker; one that ends makes room for the next."""
    cuda_graphs: bool = True
    """On a GPU the transformers engine replays steps of decoding as CUDA graphs: small steps wait for Python else."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share one copy of the weights in a vLLM engine: as many as ``placement.gpus_per_rollout_worker``."""
    memory_share: float = Field(0.85, gt=0, le=1)
    """Of a GPU's whole memory, for a vLLM engine's weights and cache; to be given where the engine shares the GPU."""
    sleep_while_learning: bool = False
    """vLLM gives its GPU memory back between rollouts: for engines that share GPUs with training."""

    @model_validator(mode="after")
    def _vllm_settings_need_vllm(self) -> RolloutConfig:
        own = {"tensor_parallel": 1, "memory_share": 0.85, "sleep_while_learning": False}
        given = [key for key, default in own.items() if getattr(self, key) != default]
        if self.engine != "vllm" and given:
            raise ValueError(f"rollout.{given[0]} needs rollout.engine=vllm")
        if self.engine == "vllm" and (self.top_p < 1 or self.top_k):
            raise ValueError("rollout.engine=vllm needs top_p=1 and top_k=0: its log-probabilities follow truncation")
        if self.engine == "vllm" and not self.cuda_graphs:
            raise ValueError(
                "rollout.cuda_graphs=false needs rollout.engine=transformers: vLLM makes its own; leave it out"
            )
        if self.sleep_while_learning and self.overlap:
            raise ValueError(
                f"rollout.overlap={self.overlap} draws while the ranks learn, and rollout.sleep_while_learning=true "
                "gives them vLLM's memory then: set overlap to 0, or sleep_while_learning to false"
            )
        return self

    overlap: int = Field(0, ge=0, le=8)
    """Steps that rollouts may run ahead of learning, each drawn by a policy that many steps old; 0: in turn."""
