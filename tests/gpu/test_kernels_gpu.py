"""The layers' steps on a GPU in bf16 against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.models.kernels import calls, gpu

HEADS, GROUPS, SIZE = 6, 2, 64
LENGTHS = (5, 33, 1, 70)


def near(found: Tensor, wanted: Tensor, limit: float = 0.01) -> None:
    away = (found.double() - wanted.double()).norm() / wanted.double().norm()
    assert float(away) < limit


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to("cuda", torch.bfloat16)


def test_norm_and_its_way_back() -> None:
    x, weight, towards, beside = (numbers(37, 256, seed=s) for s in range(4))
    weight = weight[0].contiguous()
    exact = x.double().requires_grad_()
    wanted = exact * (exact.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()
    wanted.backward(towards.double())
    found, inverse = calls.rms_norm(x, weight, 1e-6)
    near(found, wanted)
    near(calls.rms_norm_backward(towards, x, weight, inverse, beside), exact.grad + beside.double())


def test_gate_and_its_way_back() -> None:
    assert gpu._gates() is not None, "torch on a GPU brings Triton"
    gate, up, towards = (numbers(37, 333, seed=s) for s in range(3))
    exact = [t.double().requires_grad_() for t in (gate, up)]
    wanted = F.silu(exact[0]) * exact[1]
    wanted.backward(towards.double())
    near(calls.gated(gate, up), wanted)
    for found, of in zip(calls.gated_backward(towards, gate, up), exact, strict=True):
        near(found, of.grad)


@pytest.mark.parametrize("groups", [GROUPS, HEADS])
def test_attention_within_sequences(groups: int) -> None:
    tokens = sum(LENGTHS)
    query, key, value = (numbers(tokens, n * SIZE, seed=n + s) for s, n in enumerate((HEADS, groups, groups)))
    angles = torch.cat([torch.arange(n) for n in LENGTHS])[:, None] * torch.arange(1.0, SIZE // 2 + 1) * 0.1
    cos, sin = (f(angles.repeat(1, 2)).to("cuda", torch.bfloat16) for f in (torch.cos, torch.sin))
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).to("cuda", torch.int32)
    towards = numbers(tokens, HEADS * SIZE, seed=9)
    exact = [t.double().requires_grad_() for t in (query, key, value)]  # before they are turned where they stand

    def turned(states: Tensor) -> Tensor:
        states = states.unflatten(1, (-1, SIZE))
        other = torch.cat([-states[..., SIZE // 2 :], states[..., : SIZE // 2]], -1)
        return states * cos.double()[:, None] + other * sin.double()[:, None]

    parts = []
    q, k, v = turned(exact[0]), turned(exact[1]), exact[2].unflatten(1, (-1, SIZE))
    for one, two in zip(starts.tolist()[:-1], starts.tolist()[1:], strict=True):
        qs, ks, vs = (t[one:two].transpose(0, 1) for t in (q, k, v))
        ks, vs = (t.repeat_interleave(HEADS // groups, dim=0) for t in (ks, vs))
        scores = qs @ ks.transpose(1, 2) * SIZE**-0.5
        hidden = torch.ones(two - one, two - one, device="cuda").triu(1).bool()
        parts.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ vs).transpose(0, 1).flatten(1))
    wanted = torch.cat(parts)
    wanted.backward(towards.double())
    results = calls.attention(query, key, value, cos, sin, starts, SIZE**-0.5, max(LENGTHS))
    near(results[0], wanted)
    back = calls.attention_backward(towards, (query, key, value), (cos, sin), results, starts, SIZE**-0.5, max(LENGTHS))
    for found, of in zip(back, exact, strict=True):
        near(found, of.grad, 0.02)
