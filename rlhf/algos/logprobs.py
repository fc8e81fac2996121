"""Log-probabilities and entropies under a temperature, plain and in chunks that never hold all logits.

Rollout, old, new and reference log-probabilities, and the entropy, all divide the logits by the same
temperature: otherwise the first ratio is not 1 and the entropy is that of another distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Ids = Sequence[int] | Tensor
"""Token ids; a long tensor beside the logits saves a GPU the way there, for which it is waited."""


@dataclass(frozen=True)
class LogprobsAndEntropy:
    """One number per token each, float32."""

    logprobs: Tensor
    entropy: Tensor


def shift_for_response(logits: Tensor, response_length: int) -> Tensor:
    """Cut out the logits that predict the response: slot t of the result predicts response token t.

    Args:
        logits: ``(batch, sequence, vocabulary)`` (or ``(batch, sequence, hidden)``, or ``(batch, sequence)``
            values: the state *before* response token t) of a model run on prompt + response, where the
                response fills the last
            ``response_length`` slots.
        response_length: number of response slots, at least 1 and less than ``sequence``.

    Raises:
        ValueError: there is no slot before the first response token.
    """
    sequence = logits.shape[1]
    if not 0 < response_length < sequence:
        raise ValueError(f"response_length must be in 1..{sequence - 1} for {sequence} slots, got {response_length}")
    return logits[:, -response_length - 1 : -1]


def token_logprobs(logits: Tensor, token_ids: Tensor, *, temperature: float, suppress_ids: Ids = ()) -> Tensor:
    """Log-probability of each token: slot t of ``logits`` is what ``token_ids[t]`` was drawn from.

    Args:
        logits: ``(batch, response, vocabulary)``, already shifted (:func:`shift_for_response`), any float
            type. Slots that may hold NaN must be left out (indexed away) before, to keep them out of the
            gradient.
        token_ids: ``(batch, response)`` long.
        temperature: logits are divided by it.
        suppress_ids: ids that cannot be drawn (e.g. the pad token); the rest is renormalised, theirs is -inf.

    Returns:
        ``(batch, response)`` float32.
    """
    scaled = _scaled_logits(logits, temperature, suppress_ids)
    chosen = scaled.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(dim=-1)


def entropy(logits: Tensor, *, temperature: float, suppress_ids: Ids = ()) -> Tensor:
    """Entropy in nats of ``softmax(logits / temperature)`` without the suppressed ids.

    Args:
        logits: ``(..., vocabulary)``.
        temperature: logits are divided by it.
        suppress_ids: ids that cannot be drawn.

    Returns:
        ``(...)`` float32.
    """
    logp = F.log_softmax(_scaled_logits(logits, temperature, suppress_ids), dim=-1)
    # p * log p tends to 0 as p does, but 0 * -inf is NaN: the factor that is infinite is set to 0.
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(dim=-1)


def logprobs_and_entropy(
    logits: Tensor,
    token_ids: Tensor,
    *,
    temperature: float,
    suppress_ids: Ids = (),
    entropy_graph: bool = True,
) -> LogprobsAndEntropy:
    """Both at once.

    Args:
        logits: ``(n, vocabulary)`` or ``(batch, response, vocabulary)``; the results lack the last axis.
        token_ids: what was drawn from each slot, long.
        temperature: logits are divided by it.
        suppress_ids: ids that cannot be drawn.
        entropy_graph: whether gradients flow through the entropy; without them its graph would only cost memory.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_graph):
        entropies = entropy(logits, temperature=temperature, suppress_ids=suppress_ids)
    logprobs = token_logprobs(logits, token_ids, temperature=temperature, suppress_ids=suppress_ids)
    return LogprobsAndEntropy(logprobs, entropies)


def chunked_logprobs_and_entropy(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    token_ids: Tensor,
    *,
    temperature: float,
    chunk_tokens: int,
    suppress_ids: Ids = (),
    entropy_graph: bool = True,
    read: Callable[..., LogprobsAndEntropy] = logprobs_and_entropy,
) -> LogprobsAndEntropy:
    """Apply the head and take log-probabilities and entropies, ``chunk_tokens`` tokens at a time.

    Same values and gradients as :func:`logprobs_and_entropy` on ``head(hidden)``. Each chunk's logits are recomputed
    in the backward pass, so that at no time more than ``chunk_tokens`` rows of logits are alive.

    Args:
        hidden: ``(n, hidden)``: select the response tokens first, ``hidden[response_mask]``; a NaN in a slot
            left out then cannot reach the gradient.
        head: ``(rows, hidden)`` to ``(rows, vocabulary)``, each row by itself; runs again in the backward pass.
        token_ids: ``(n,)`` long.
        temperature: logits are divided by it.
        chunk_tokens: tokens per chunk, at least 1.
        suppress_ids: ids that cannot be drawn.
        entropy_graph: whether gradients flow through the entropy.
        read: does what :func:`logprobs_and_entropy` does.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    words: dict[str, Any] = {"temperature": temperature, "suppress_ids": suppress_ids, "entropy_graph": entropy_graph}

    def one_chunk(chunk: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        found = read(head(chunk), ids, **words)  # logits: (chunk, vocabulary)
        return found.logprobs, found.entropy

    def again(chunk: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return checkpoint(one_chunk, chunk, ids, use_reentrant=False, preserve_rng_state=False)

    way = again if torch.is_grad_enabled() else one_chunk
    parts = [way(*part) for part in zip(hidden.split(chunk_tokens), token_ids.split(chunk_tokens), strict=True)]
    return LogprobsAndEntropy(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


def _scaled_logits(logits: Tensor, temperature: float, suppress_ids: Ids) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; greedy decoding has no log-probabilities")
    scaled = logits.float() / temperature
    if len(suppress_ids):
        ids = suppress_ids if isinstance(suppress_ids, Tensor) else torch.tensor(list(suppress_ids), dtype=torch.long)
        scaled = scaled.index_fill(-1, ids.to(logits.device), -torch.inf)
    return scaled
