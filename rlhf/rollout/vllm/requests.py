"""What is asked of vLLM, without vLLM: adapter names that are never used twice, and sampling parameters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.config import SamplingConfig
from rlhf.errors import ConfigError

NO_TOKEN = -100.0
"""The lowest bias that vLLM takes: e^-100 of a token's probability is left."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Adapter ranks that vLLM makes room for."""


@dataclass(frozen=True)
class AdapterName:
    """How one installed adapter is called: vLLM keys its prefix cache by the name, its adapters by the number."""

    text: str
    number: int


class AdapterNames:
    """Gives every installation a name and a number of its own, also when the same version comes again."""

    def __init__(self) -> None:
        self._count = 0

    def next(self, version: int, sha256: str) -> AdapterName:
        """A name that this process has not given before, and that no other process gives."""
        self._count += 1
        return AdapterName(f"policy-v{version}-{sha256[:12]}-{os.getpid()}-{self._count}", self._count)


def sampling_arguments(
    sampling: SamplingConfig, seed: int, *, stop_ids: Sequence[int], suppress_ids: Iterable[int]
) -> dict[str, Any]:
    """Arguments of ``SamplingParams`` for one response.

    The chosen token's log-probability comes back (``logprobs=0``); with the engine's mode ``processed_logprobs`` it is
    taken after the temperature and the suppressed tokens, as the trainer computes it.

    Raises:
        ConfigError: truncated sampling, whose log-probabilities would be those of another distribution.
    """
    if sampling.top_p < 1 or sampling.top_k:
        raise ConfigError(
            "rollout.engine=vllm reports log-probabilities after truncation: leave top_p=1 and top_k=0, or use "
            "rollout.engine=transformers"
        )
    return {
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_response_tokens,
        "seed": seed % 2**63,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,  # the stop tokens say when; a base's own end token need not be one
        "logit_bias": bias(suppress_ids),
        "logprobs": 0,
        "detokenize": False,
    }


def scoring_arguments(token: int, temperature: float, *, suppress_ids: Iterable[int]) -> dict[str, Any]:
    """Arguments of ``SamplingParams`` for the log-probability of one given next token."""
    return {
        "temperature": temperature,
        "max_tokens": 1,
        "seed": 0,
        "ignore_eos": True,
        "logit_bias": bias(suppress_ids),
        "logprob_token_ids": [token],
        "detokenize": False,
    }


def bias(suppress_ids: Iterable[int]) -> dict[int, float] | None:
    """Tokens that cannot be drawn."""
    return {int(token): NO_TOKEN for token in suppress_ids} or None


def room_for_rank(rank: int) -> int:
    """The smallest rank setting of vLLM that holds an adapter of this rank.

    Raises:
        ConfigError: there is none.
    """
    fitting = [size for size in RANKS if size >= rank]
    if not fitting:
        raise ConfigError(
            f"an adapter of rank {rank} (with pissa and olora twice lora.r) is more than vLLM's {RANKS[-1]}: "
            "use rollout.engine=transformers"
        )
    return fitting[0]
