"""Steps of decoding from layer to layer, without the model's own code around them.

Between its layers a model makes masks and positions and goes through modules' hooks: on a small model, a third of a
step. Here a step is what is left: a row of the embedding, the layers in one call each, the last norm, the output layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.models import blocks
from rlhf.rollout.slots import SlotCache

PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}
"""Of a model; one that has more does more."""
MOVING = ("dynamic", "longrope")
"""Rotary positions whose angles depend on how long a sequence is."""


class LayerSteps:
    """Logits of one token per slot, if the model is no more than its layers: its first step is compared with it.

    Args:
        causal: with layers that decode in one call (``blocks.install``), whose logits are the output layer's product
            with the last hidden states.
    """

    def __init__(self, causal: PreTrainedModel) -> None:
        self._causal: Any = causal
        self._model: Any = getattr(causal, causal.base_model_prefix)
        self._angles: tuple[Tensor, Tensor] | None = None
        self.serves: bool | None = None
        """Whether it computes what the model does; None: not known yet."""

    @classmethod
    def of(cls, causal: PreTrainedModel) -> LayerSteps | None:
        """None where the model does not have these parts alone, or is not on a CPU."""
        model: Any = getattr(causal, causal.base_model_prefix)
        if causal.device.type != "cpu" or {name for name, _ in model.named_children()} != PARTS:
            return None
        if any(kind in str(getattr(model.rotary_emb, "rope_type", "")) for kind in MOVING):
            return None
        return cls(causal) if all(map(blocks.decodes, model.layers)) else None

    def logits(self, token: Tensor, column: Tensor, cache: SlotCache) -> Tensor | None:
        """(slots, vocabulary) behind the newest tokens; None where layers have to be asked one by one.

        Args:
            token: (slots,) long.
            column: (slots,) long, its position and its place in the cache, for which a step has begun.
        """
        x = self._model.embed_tokens(token)
        cos, sin = (angles[column] for angles in self._up_to(cache.num_columns, x))
        found = blocks.decode_through(self._model.layers, x, cos, sin, cache)
        return None if found is None else self._causal.get_output_embeddings()(self._model.norm(found))

    def _up_to(self, num_columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of every column, (columns, head size)."""
        if self._angles is None or len(self._angles[0]) < num_columns:
            cos, sin = self._model.rotary_emb(like, torch.arange(num_columns)[None])
            self._angles = cos[0].contiguous(), sin[0].contiguous()
        return self._angles
