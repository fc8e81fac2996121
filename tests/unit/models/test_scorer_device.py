"""Where a reward model's head is made: quantized bases are on their device already, and nothing moves them there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from rlhf.models import scorer


@pytest.mark.parametrize(("is_quantized", "device"), [(True, "meta"), (False, "cpu")])
def test_the_head_of_a_quantized_base_is_on_its_device(
    is_quantized: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU."""
    base: Any = nn.Module()
    base.embedding = nn.Embedding(8, 4, device="meta")
    base.get_input_embeddings = lambda: base.embedding
    base.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=4))
    base.is_quantized = is_quantized
    monkeypatch.setattr(scorer, "load_classifier", lambda *_: base)
    unread: Any = None
    made = scorer.build_reward_model(unread, unread, unread)
    assert made.score.weight.device.type == device
