"""Which tensors of a base are lent, and that another base computes with them once they are in its places.

What needs a GPU - handles between processes - is in tests/gpu.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import ModelConfig
from rlhf.models import lending
from rlhf.models.loading import load_causal_lm
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer
from tests.support.tiny import build_model

IDS = torch.arange(5, 17)[None]


def load(base: Path, quantization: str) -> Any:
    config = ModelConfig(name=str(base), chat_style="plain", dtype="float32", quantization=quantization)
    source = resolve_model(str(base))
    return load_causal_lm(source, config, load_tokenizer(source, config)).eval()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_every_tensor_has_a_place(quantization: str, tiny_base: Path, tmp_path: Path) -> None:
    lender, borrower = load(tiny_base, quantization), load(build_model(tmp_path / "other", seed=9), quantization)
    with torch.no_grad():
        wanted, before = lender(IDS).logits, borrower(IDS).logits
        assert not torch.equal(wanted, before)
        lent = lending.lendable(lender)
        places = list(lending._places(borrower))
        assert [name for name, *_ in places] == list(lent)
        if quantization == "nf4":
            assert any(name.endswith("q_proj.weight.state2.absmax") for name in lent), "nested scales too"
        for name, _, put in places:
            put(lent[name])
        assert torch.equal(borrower(IDS).logits, wanted)
    mine, theirs = ({p.data_ptr() for p in model.parameters()} for model in (borrower, lender))
    assert mine == theirs, "the very bytes"


def test_without_a_gpu_nothing_is_lent_or_borrowed(tiny_base: Path) -> None:
    model = load(tiny_base, "none")
    assert lending.lend(lending.lendable(model)) is None and lending.lend({}) is None
    before = {p.data_ptr() for p in model.parameters()}
    assert not lending.borrow(model, [None, lending.Loan("elsewhere", {})])
    assert {p.data_ptr() for p in model.parameters()} == before
