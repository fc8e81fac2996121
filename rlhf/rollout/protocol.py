"""What every rollout engine promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rlhf.config import SamplingConfig
from rlhf.weights.snapshot import Snapshot


@dataclass(frozen=True)
class PromptTask:
    """One response to draw.

    Attributes:
        key: identity of the sample; equal (key, seed) give equal responses.
        prompt_ids: tokens of the rendered prompt.
        seed: of this sample's own random numbers.
    """

    key: str
    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Rollout:
    """One drawn response.

    Attributes:
        response_ids: tokens, with the stop token when there is one.
        logprobs: log-probability of each token under the sampling temperature and the full vocabulary.
        finished: ended by a stop token, not by the length limit.
        version / adapter_sha256: the policy that drew it.
    """

    key: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    version: int
    adapter_sha256: str


class Generator(Protocol):
    """A rollout engine: holds the base, takes adapter versions, draws responses."""

    @property
    def version(self) -> int:
        """Version of the installed adapter, -1 before the first."""
        ...

    def install(self, snapshot: Snapshot) -> str:
        """Takes an adapter; returns the sha256 read back from the live weights."""
        ...

    def generate(self, tasks: list[PromptTask], sampling: SamplingConfig) -> list[Rollout]:
        """Draws one response per task, in order."""
        ...

    def score_tokens(self, prompt_ids: list[int], response_ids: list[int], temperature: float) -> list[float]:
        """Log-probabilities of given response tokens: the canary of the weight sync."""
        ...
