"""Bytes that a forward pass keeps for backward, and that decoding keeps between tokens.

Counted tensor by tensor for the transformers implementation of Llama-like models with SDPA attention and an explicit
mask, as they are saved when the base is frozen; tests compare with the tensors that autograd really saves.
"""

from __future__ import annotations

import math

from cluster.memory_model import adapted
from cluster.shapes import ModelShape
from rlhf.config import LoraConfig

FP32 = 4
PASS_TOKENS = 1 << 14
"""As in ``rlhf/rollout/decoding.py``, which loads torch; a test compares them."""
LOGITS_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 26}
"""As in ``rlhf/models/output.py``, which loads torch; a test compares them."""


def layer_activations(
    shape: ModelShape, lora: LoraConfig | None, *, rows: int, tokens: int, width: int, packed: bool
) -> float:
    """Bytes that one layer saves for one pass over ``rows`` sequences of ``tokens`` tokens.

    Per token, with h hidden, a = heads x head_dim, i intermediate elements:

    * two norms keep their input in fp32 and the inverse root: 2 x (4 h + 4);
    * the matrices' inputs: h before q, k, v; h before gate, up; i before down (o's input is the attention output);
    * attention keeps q, its output, keys and values (4 a: both are repeated for every head, but for a single
      key-value head, whose repetition is a view), and a log-sum per head;
    * the gated MLP keeps gate, its activation, and up: 3 i;
    * each adapter keeps its r-wide product, and with dropout a copy of its input and the byte mask;
    * the mask is widened once per layer: tokens x tokens per sequence.

    Packed sequences need no mask and no repetition of keys and values; the attention's output is kept twice, for itself
    and for o.
    """
    attention = shape.heads * shape.head_dim
    repeated = attention if shape.kv_heads > 1 else shape.head_dim
    if packed:
        repeated = shape.kv_heads * shape.head_dim
    per_token = 2 * (FP32 * shape.hidden + FP32) + FP32 * shape.heads
    per_token += width * (2 * shape.hidden + 2 * attention + 2 * repeated + 4 * shape.intermediate)
    if lora is None:  # trained norms keep what they scale
        per_token += width * 2 * shape.hidden
    else:
        per_token += width * lora.tensor_rank * len(adapted(shape, lora))
        if lora.dropout > 0:
            per_token += sum(m.inputs for m in adapted(shape, lora)) * (width + 1)
    if shape.qk_norm:
        per_token += FP32 * (attention + shape.kv_heads * shape.head_dim)
    if packed:
        return rows * tokens * (per_token + width * attention)
    return rows * tokens * per_token + rows * tokens * tokens * width


def halves_activations(
    shape: ModelShape,
    lora: LoraConfig,
    *,
    rows: int,
    tokens: int,
    read: int,
    width: int = FP32,
    keeps_gates: bool = True,
) -> float:
    """Bytes that one layer saves for one packed pass where each half is one autograd step (ADR 16).

    Per token: each half's input (2 h), q and the attention's output (2 a), keys and values as they are, a log-sum per
    head, gate and up (2 i), and the adapters' r-wide products; norms and gates are computed again.

    Args:
        read: tokens of each sequence that go on after the attention: in the last layer those whose result is read.
    """
    attention, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    gates = shape.intermediate if keeps_gates else 0
    first = sum(matrix.name in ("q_proj", "k_proj", "v_proj") for matrix in adapted(shape, lora))
    last = len(adapted(shape, lora)) - first
    before = width * (shape.hidden + 2 * (attention + keys) + lora.tensor_rank * first) + FP32 * shape.heads
    after = width * (shape.hidden + 2 * gates + lora.tensor_rank * last)
    return rows * (tokens * before + read * after)


def pass_activations(
    shape: ModelShape,
    lora: LoraConfig | None,
    *,
    rows: int,
    tokens: int,
    width: int,
    checkpointing: bool,
    packed: bool = False,
    halves: bool = False,
    keeps_gates: bool = True,
    read: int | None = None,
) -> tuple[float, float]:
    """(kept, recomputed) bytes of all layers in one pass.

    With checkpointing each layer keeps its input alone (arXiv:1604.06174), and one layer at a time is recomputed.

    Args:
        halves: layers run in two autograd steps each; ``keeps_gates`` False makes gate and up anew.
        read: with halves, tokens of each sequence whose result is read; None: all.
    """
    if halves and lora is not None:
        read = tokens if read is None else read
        layer, last = (
            halves_activations(shape, lora, rows=rows, tokens=tokens, read=n, width=width, keeps_gates=keeps_gates)
            for n in (tokens, read)
        )
    else:
        read = tokens
        layer = last = layer_activations(shape, lora, rows=rows, tokens=tokens, width=width, packed=packed)
    last_norm = rows * read * (FP32 * shape.hidden + FP32)
    if checkpointing:
        return shape.layers * rows * tokens * shape.hidden * width + last_norm, layer
    return (shape.layers - 1) * layer + last + last_norm, 0.0


def logits_activations(
    shape: ModelShape, *, rows: int, response: int, width: int, on_gpu: bool = False
) -> tuple[float, float]:
    """(kept, transient) bytes of log-probabilities and entropy over the vocabulary, per response token.

    On a CPU, by the compiled kernel: the logits are kept, and backward makes their gradient. On a GPU the scaled logits
    under logsumexp are kept, fp32, as the entropy has no graph unless it is in the loss; transient are the logits
    themselves and what the entropy is made from, and later, in backward, two fp32 gradients of their size.

    Above ``LOGITS_ELEMENTS`` logits the states that they are made from are kept instead, and one of several equal
    chunks is alive at a time, forward and, recomputed, in backward.
    """
    entries = rows * response * shape.vocab
    chunks = math.ceil(entries / LOGITS_ELEMENTS["cuda" if on_gpu else "cpu"])
    held, transient = (FP32, width + 3 * FP32) if on_gpu else (width, width)
    if chunks > 1:
        return rows * response * shape.hidden * width, entries / chunks * (held + transient)
    return entries * held, entries * transient


def ppo_peak(
    shape: ModelShape,
    lora: LoraConfig,
    *,
    rows: int,
    prompt: int,
    response: int,
    width: int,
    checkpointing: bool,
    critic: bool,
    halves: bool = False,
    keeps_gates: bool = True,
    on_gpu: bool = False,
) -> float:
    """Bytes of activations at the highest point of one PPO micro-batch; ``halves`` as in ``pass_activations``.

    Plain LoRA: policy and critic run as one packed pass. Backward first gives the logits their gradients and frees
    them, then runs the layers again, both roles at once. Otherwise both run before one backward pass, the critic's
    layers are recomputed and freed while the policy's logits are still held, and the policy's come last.
    """
    tokens, packed = prompt + response, packs(lora)
    kept, recomputed = pass_activations(
        shape, lora, rows=rows, tokens=tokens, width=width, checkpointing=checkpointing, packed=packed, halves=halves,
        keeps_gates=keeps_gates, read=response,
    )  # fmt: skip
    logits, transient = logits_activations(shape, rows=rows, response=response, width=width, on_gpu=on_gpu)
    # the values' product keeps what it reads, in halves with what the policy reads beside it
    values = rows * response * shape.hidden * width * (2 if halves else 1) if critic else 0
    roles = 2 if critic else 1
    if packed:
        # a half's way back holds the gradients of gate and up; without the tiles of ADR 22 also its middle and the
        # middle's gradient
        gates = (2 if width == FP32 and not on_gpu else 4) + (0 if keeps_gates else 2)
        way_back = rows * tokens * width * (gates * shape.intermediate + 2 * shape.hidden) if halves else 0
        return roles * kept + max(logits + values + transient, roles * (recomputed + way_back))
    policy = kept + max(logits + transient, recomputed)
    return max(2 * kept + logits + values + recomputed, policy) if critic else policy


def packs(lora: LoraConfig) -> bool:
    """Whether the roles of PPO run together: plain LoRA, whatever its initial values and its scaling."""
    return lora.is_plain


def kv_cache(shape: ModelShape, *, rows: int, tokens: int, width: int) -> float:
    """Keys and values of every layer at the longest length, plus one layer's copy while a token is appended."""
    layer = 2 * rows * tokens * shape.kv_heads * shape.head_dim * width
    return (shape.layers + 1) * layer


def decoding_workspace(shape: ModelShape, *, rows: int, prompt: int, width: int) -> float:
    """The larger of what the prompt pass holds in one layer and what drawing a token holds over the vocabulary.

    Drawing keeps logits, their fp32 copy, log-probabilities, probabilities, and two float64 tables.
    """
    drawing = rows * shape.vocab * (width + 3 * FP32 + 2 * 8)
    together = max(1, min(rows, PASS_TOKENS // prompt))
    return max(reading_workspace(shape, rows=together, tokens=prompt, width=width), drawing)


def reading_workspace(shape: ModelShape, *, rows: int, tokens: int, width: int) -> float:
    """What one layer holds while it reads whole sequences without a graph."""
    attention = shape.heads * shape.head_dim
    each = width * (3 * shape.hidden + 3 * attention + 3 * shape.intermediate) + FP32 * shape.hidden
    return rows * tokens * each
