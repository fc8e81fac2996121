"""A sampler that knows neither batches nor caches: one token after the other, in float64."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from rlhf.config import SamplingConfig
from rlhf.rollout.protocol import PromptTask


def kept_probabilities(probs: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """Truncated sets by their definitions: the k most probable; the smallest set with at least mass p."""
    ranked = np.argsort(-probs, kind="stable")
    keep = np.ones(len(probs), dtype=bool)
    if sampling.top_k:
        keep[ranked[sampling.top_k :]] = False
    if sampling.top_p < 1:
        masses = np.cumsum(probs[ranked] * keep[ranked]) / probs[keep].sum()
        keep[ranked[int(np.searchsorted(masses, sampling.top_p)) + 1 :]] = False
    return np.where(keep, probs, 0.0)


def sample(
    model: Any, task: PromptTask, sampling: SamplingConfig, *, stops: Collection[int], pad: int
) -> tuple[list[int], list[float]]:
    """Tokens and log-probs of a response; the model reads the whole sequence anew for each."""
    uniforms = np.random.Generator(np.random.Philox(key=task.seed)).random(sampling.max_response_tokens)
    ids, logprobs = list(task.prompt_ids), []
    for uniform in uniforms:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double().numpy() / sampling.temperature
        logits[pad] = -np.inf
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        kept = kept_probabilities(probs, sampling)
        token = int(np.flatnonzero(np.cumsum(kept) > uniform * kept.sum())[0])
        ids.append(token)
        logprobs.append(math.log(probs[token]))
        if token in stops:
            break
    return ids[len(task.prompt_ids) :], logprobs
