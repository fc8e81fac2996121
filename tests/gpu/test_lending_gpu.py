"""A base that one process lends and another uses: one set of weights on the device."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import ModelConfig
from rlhf.models.lending import borrow, lend, lendable
from rlhf.models.loading import load_causal_lm, to_device
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer

IDS = [[5, 6, 7, 8, 9]]


def load(base: str, quantization: str) -> Any:
    config = ModelConfig(name=base, chat_style="plain", dtype="bfloat16", quantization=quantization)
    source = resolve_model(base)
    return load_causal_lm(source, config, load_tokenizer(source, config))


def use(base: str, quantization: str, channel: Connection) -> None:
    """Borrows what comes through the channel; answers with logits, and again after the lender has written."""
    model = load(base, quantization)
    pointers = {p.data_ptr() for p in model.parameters()}
    done = borrow(model, [None, channel.recv()])
    moved = not pointers & {p.data_ptr() for p in model.parameters()}
    model = to_device(model).eval()
    for _ in range(2):
        with torch.no_grad():
            channel.send((done, moved, model(torch.tensor(IDS, device="cuda")).logits.float().cpu().numpy()))
        channel.recv()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_borrower_reads_the_lender_s_bytes(quantization: str, tiny_base: Path) -> None:
    model = to_device(load(str(tiny_base), quantization)).eval()
    loan = lend(lendable(model))
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=use, args=(str(tiny_base), quantization, there))
    child.start()
    try:
        here.send(loan)
        for _ in range(2):
            assert here.poll(120)
            done, moved, logits = here.recv()
            assert done and moved
            with torch.no_grad():
                wanted = model(torch.tensor(IDS, device="cuda")).logits.float().cpu()
            torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-2, atol=1e-2)
            with torch.no_grad():  # what the lender writes, the borrower sees
                model.get_output_embeddings().weight.mul_(3.0)
            torch.cuda.synchronize()
            here.send("go on")
    finally:
        child.join(30)
        child.kill()


def test_another_base_is_not_borrowed(tiny_base: Path) -> None:
    model = load(str(tiny_base), "none")
    loan = lend(lendable(to_device(load(str(tiny_base), "none"))))
    assert loan is not None and lend(lendable(model)) is None, "nothing on the CPU is lent"
    loan.handles.pop(next(iter(loan.handles)))
    assert not borrow(model, [loan]) and not borrow(model, [None])
    assert {p.device.type for p in model.parameters()} == {"cpu"}
