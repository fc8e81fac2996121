"""Every compiled kernel against plain torch in float64, and what stands in where there is no compiler."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.models.kernels import adapting, build, calls, decoding

LENGTHS = (1, 17, 70, 3, 16)
HEADS, GROUPS, SIZE = 6, 2, 16


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> Iterator[None]:
    build.build()  # needs g++, as the project does
    calls.library.cache_clear()
    assert calls.library() is not None
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["compiled", "plain"])
def _either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(calls, "library", lambda: None)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions: x (tokens, heads, size), angles (tokens, size / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention(query: Tensor, key: Tensor, value: Tensor, angles: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """By the definition, a sequence, a head and a query at a time."""
    query, key, value = (t.view(len(t), -1, SIZE) for t in (query, key, value))
    query, key = turned(query, angles), turned(key, angles)
    rows, start = [], 0
    for length in lengths:
        for t in range(start, start + length):
            for head in range(HEADS):
                group = head // (HEADS // GROUPS)
                scores = key[start : t + 1, group] @ query[t, head] / math.sqrt(SIZE)
                rows.append(scores.softmax(dim=0) @ value[start : t + 1, group])
        start += length
    return torch.stack(rows).view(start, HEADS * SIZE)


def packed() -> tuple[list[Tensor], Tensor, Tensor]:
    """(query, key and value, angles, starts)"""
    tokens = sum(LENGTHS)
    inputs = [random(tokens, heads * SIZE, seed=heads) for heads in (HEADS, GROUPS)]
    inputs.append(random(tokens, GROUPS * SIZE, seed=9))
    return inputs, random(tokens, SIZE // 2) * 5, torch.tensor([0, *LENGTHS]).cumsum(0)


def both(angles: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin as models hand them on, each angle twice."""
    return angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)


@pytest.mark.usefixtures("_either")
def test_norm() -> None:
    x, weight, towards, beside = random(7, 48), random(48, seed=1), random(7, 48, seed=2), random(7, 48, seed=3)
    x[3] *= 1e-4
    exact = x.double().requires_grad_()
    wanted = exact * (exact.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()
    found, inverse = calls.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(found, wanted.float(), rtol=2e-6, atol=1e-7)
    (back,) = torch.autograd.grad(wanted, exact, towards.double())
    to_x = calls.rms_norm_backward(towards, x, weight, inverse, beside)
    torch.testing.assert_close(to_x, (back + beside).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_either")
def test_gate() -> None:
    gate, up, towards = random(5, 33) * 4, random(5, 33, seed=1), random(5, 33, seed=2)
    gate[0, :6] = torch.tensor([-200.0, -88.0, -20.0, 0.0, 88.0, 200.0])
    exact = [t.double().requires_grad_() for t in (gate, up)]
    wanted = torch.nn.functional.silu(exact[0]) * exact[1]
    torch.testing.assert_close(calls.gated(gate, up), wanted.float(), rtol=2e-6, atol=1e-7)
    expected = torch.autograd.grad(wanted, exact, towards.double())
    for found, gradient in zip(calls.gated_backward(towards, gate, up), expected, strict=True):
        torch.testing.assert_close(found, gradient.float(), rtol=5e-6, atol=1e-6)


def assert_rounded(found: Any, exact: Any) -> None:
    """What was computed in float32, rounded once: equal bits but where the last one of the sum decides."""
    assert found.dtype == torch.bfloat16
    assert float((found == exact.bfloat16()).double().mean()) > 0.99
    torch.testing.assert_close(found, exact.bfloat16(), rtol=0.02, atol=1e-3)


@pytest.mark.usefixtures("_either")
def test_norm_and_gate_in_bfloat16_are_rounded_once() -> None:
    x, weight, towards, beside = (random(40, 48, seed=seed).bfloat16() for seed in range(4))
    weight = weight[0]
    found, inverse = calls.rms_norm(x, weight, 1e-6)
    exact, factors = calls.rms_norm(x.float(), weight.float(), 1e-6)
    assert inverse.dtype == torch.float32 and torch.allclose(inverse, factors, rtol=1e-6)
    assert_rounded(found, exact)
    wide = [t.float() for t in (towards, x, weight)]
    back = calls.rms_norm_backward(*wide, factors, beside.float())
    assert_rounded(calls.rms_norm_backward(towards, x, weight, inverse, beside), back)
    assert_rounded(calls.gated(x, beside), calls.gated(x.float(), beside.float()))
    both_ways = calls.gated_backward(towards, x, beside), calls.gated_backward(wide[0], wide[1], beside.float())
    for mine, other in zip(*both_ways, strict=True):
        assert_rounded(mine, other)


def test_attention_in_bfloat16_is_rounded_once() -> None:
    inputs, angles, starts = packed()
    inputs = [t.bfloat16() for t in inputs]
    turns = [t.bfloat16() for t in both(angles)]
    gradient = random(*inputs[0].shape, seed=5).bfloat16()
    wide, wide_turns = [t.float() for t in inputs], [t.float() for t in turns]
    found, normalizer = calls.attention(*inputs, *turns, starts, 0.25)
    exact, level = calls.attention(*wide, *wide_turns, starts, 0.25)
    assert normalizer.dtype == torch.float32 and torch.allclose(normalizer, level, rtol=1e-6)
    assert_rounded(found, exact)
    mine = calls.attention_backward(gradient, tuple(inputs), tuple(turns), (found, normalizer), starts, 0.25)
    other = calls.attention_backward(
        gradient.float(), tuple(wide), tuple(wide_turns), (found.float(), level), starts, 0.25
    )
    for one, two in zip(mine, other, strict=True):
        assert_rounded(one, two)


def test_what_is_not_a_number_stays_visible() -> None:
    gate = torch.tensor([[1.0, math.nan, -1.0]])
    assert calls.gated(gate, torch.ones(1, 3)).isnan().tolist() == [[False, True, False]]
    (query, key, value), angles, starts = packed()
    query[20] = math.nan
    found, _ = calls.attention(query, key, value, *both(angles), starts, 0.25)
    assert found.isnan().any(dim=1).nonzero().flatten().tolist() == [20]
    (query, key, value), angles, starts = packed()
    key[20] = math.nan  # of the third sequence, tokens 18 to 87
    found, level = calls.attention(query, key, value, *both(angles), starts, 0.25)
    assert found.isnan().any(dim=1).nonzero().flatten().tolist() == list(range(20, 88))
    inputs, turns = (query, key, value), both(angles)
    back = calls.attention_backward(torch.ones_like(found), inputs, turns, (found, level), starts, 0.25)
    assert all(gradient[20:88].isnan().any() and not gradient[:18].isnan().any() for gradient in back)


def test_attention_and_its_gradients() -> None:
    inputs, angles, starts = packed()
    exact = [t.double().requires_grad_() for t in inputs]
    wanted = attention(*exact, angles.double(), LENGTHS)
    cos, sin = both(angles)
    results = calls.attention(*inputs, cos, sin, starts, SIZE**-0.5)
    torch.testing.assert_close(results[0], wanted.float(), rtol=1e-5, atol=2e-6)
    towards = random(*wanted.shape, seed=4)
    expected = torch.autograd.grad(wanted, exact, towards.double())
    found = calls.attention_backward(towards, tuple(inputs), (cos, sin), results, starts, SIZE**-0.5)
    for mine, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, gradient.float(), rtol=1e-5, atol=1e-5)


def test_a_sequence_gives_the_same_bits_wherever_it_stands() -> None:
    inputs, angles, starts = packed()
    whole, _ = calls.attention(*inputs, *both(angles), starts, SIZE**-0.5)
    own = slice(18, 88)
    alone, _ = calls.attention(
        *(t[own].contiguous() for t in inputs), *both(angles[own]), torch.tensor([0, 70]), SIZE**-0.5
    )
    assert torch.equal(whole[own], alone)


def test_threads_share_the_work_without_changing_it() -> None:
    inputs, angles, starts = packed()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(calls.attention(*inputs, *both(angles), starts, 0.25)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def bundle(inputs: int, outputs: tuple[int, ...], rank: int, *, bias: bool, dtype: torch.dtype) -> Any:
    """Linear layers with an adapter ``x``, as the description reads them."""
    frozen = [
        ((random(o, inputs, seed=o) / 8).to(dtype), random(o, seed=1).to(dtype) if bias else None) for o in outputs
    ]
    pairs = [((random(rank, inputs, seed=2) / 8).to(dtype), (random(o, rank, seed=3) / 4).to(dtype)) for o in outputs]
    members = tuple((i, 1.5, None) for i in range(len(outputs)))
    return SimpleNamespace(frozen=frozen, adapters={"x": (members, [m for pair in pairs for m in pair])})


def product(of: Any, index: int, x: Tensor, adapter: str, beside: Tensor | float = 0.0) -> Tensor:
    """In float64, rounded where the kernels round: behind the adapter's first matrix, and at the end."""
    weight, bias = of.frozen[index]
    found = x @ weight.double().T + (0 if bias is None else bias.double()) + beside
    if adapter in of.adapters:
        down, up = of.adapters[adapter][1][2 * index : 2 * index + 2]
        found = found + 1.5 * (stored(x @ down.double().T, down) @ up.double().T)
    return stored(found, weight)


def stored(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype).double()


KINDS = [(torch.float32, (50, 75)), (torch.float32, (48, 80)), (torch.bfloat16, (50, 75))]
"""Of layers: their numbers, and hidden and inner sizes; matrices of multiples of 16 are put in panels."""


def halves(dtype: torch.dtype, rank: int, sizes: tuple[int, int] = (50, 75)) -> tuple[Any, Any]:
    """Attention and feed-forward of a layer."""
    (hidden, inner), wide, narrow = sizes, HEADS * SIZE, GROUPS * SIZE
    first = SimpleNamespace(weight=random(hidden, seed=5).to(dtype), eps=1e-6)
    first.enters = bundle(hidden, (wide, narrow, narrow), rank, bias=True, dtype=dtype)
    first.leaves = bundle(wide, (hidden,), rank, bias=False, dtype=dtype)
    second = SimpleNamespace(weight=random(hidden, seed=6).to(dtype), eps=1e-5)
    second.enters = bundle(hidden, (inner, inner), rank, bias=False, dtype=dtype)
    second.leaves = bundle(inner, (hidden,), rank, bias=True, dtype=dtype)
    return first, second


def decode(first: Any, second: Any, adapter: str, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens one by one: (rows, tokens, hidden), and the cached keys and values, (rows + 1, groups, 24, size)."""
    rows, tokens, _ = x.shape
    layer = decoding.describe(first, second, adapter, SIZE, SIZE**-0.5, num_layers=2)
    in_panels = x.dtype == torch.float32 and x.shape[2] % 16 == 0 and adapting.has_registers()
    assert len(layer.panels) == (7 if in_panels else 0)
    keys, values = torch.zeros(2, rows + 1, GROUPS, 24, SIZE, dtype=x.dtype)
    found = []
    for t in range(tokens):
        cos, sin = (angle[t : t + 1].repeat(rows, 1).to(x.dtype) for angle in both(angles))
        column = torch.full((rows,), t)
        found.append(decoding.decode(layer, x[:, t].contiguous(), cos, sin, keys, values, column))
    return torch.stack(found, dim=1), keys, values


@pytest.mark.parametrize("adapter", ["x", "none"])
@pytest.mark.parametrize("rank", [3, 40])
@pytest.mark.parametrize("rows", [1, 4, 6, 9, 19])
@pytest.mark.parametrize(("dtype", "sizes"), KINDS)
def test_a_step_of_decoding(dtype: torch.dtype, sizes: tuple[int, int], rows: int, rank: int, adapter: str) -> None:
    """Tokens one by one through a layer, against attention over all of them."""
    first, second = halves(dtype, rank, sizes)
    tokens = 21 if (rows, rank) == (4, 3) else 5
    x, angles = random(rows, tokens, sizes[0]).to(dtype), random(tokens, SIZE // 2) * 3
    if dtype == torch.bfloat16:
        angles = angles.round() * math.pi / 2  # whose cos and sin are the same in bfloat16
    found, keys, values = decode(first, second, adapter, x, angles)
    assert found.dtype == dtype
    for cached in (keys, values):
        assert cached[:rows, :, :tokens].abs().sum(-1).all(), "every token's"
        assert not cached[rows].any() and not cached[:, :, tokens:].any(), "no other place is touched"

    def norm(x: Tensor, of: Any) -> Tensor:
        return stored(x * (x.square().mean(-1, keepdim=True) + of.eps).rsqrt() * of.weight.double(), of.weight)

    for row in range(rows):
        states = x[row].double()
        read = norm(states, first)
        projected = [product(first.enters, i, read, adapter) for i in range(3)]
        attended = stored(attention(*projected, angles.double(), (tokens,)), x)
        states = product(first.leaves, 0, attended, adapter, beside=states)
        gate, up = (product(second.enters, i, norm(states, second), adapter) for i in range(2))
        states = product(second.leaves, 0, stored(torch.nn.functional.silu(gate) * up, x), adapter, beside=states)
        if dtype == torch.float32:
            torch.testing.assert_close(found[row], states.float(), rtol=1e-4, atol=1e-4)
        else:  # the same bits, but where a sum lies between two numbers
            assert float((found[row] == states).double().mean()) > 0.97
            assert float((found[row].double() - states).norm() / states.norm()) < torch.finfo(dtype).eps / 16


@pytest.mark.parametrize(("dtype", "sizes"), KINDS)
def test_threads_share_a_step_of_decoding_without_changing_it(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    x, angles = random(6, 5, sizes[0]).to(dtype), random(5, SIZE // 2) * 3
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(decode(*halves(dtype, 3, sizes), "x", x, angles))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_a_large_model_s_matrices_stay_where_they_are() -> None:
    layer = decoding.describe(*halves(torch.float32, 3, (48, 80)), "x", SIZE, SIZE**-0.5, num_layers=1 << 20)
    assert layer.panels == []


@pytest.mark.parametrize(("dtype", "sizes"), KINDS)
def test_a_row_that_is_not_a_number_does_not_reach_the_others(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    x, angles = random(6, 1, sizes[0]).to(dtype), random(1, SIZE // 2)
    wanted, _, _ = decode(*halves(dtype, 3, sizes), "x", x, angles)
    x[2, 0, 7] = math.nan
    found, _, _ = decode(*halves(dtype, 3, sizes), "x", x, angles)
    assert found[2].isnan().all()
    assert torch.equal(found[[0, 1, 3, 4, 5]], wanted[[0, 1, 3, 4, 5]])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the option names an x86 processor's instructions")
def test_a_step_in_bfloat16_without_the_processor_s_help(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x, angles = random(9, 5, 50).bfloat16(), random(5, SIZE // 2) * 3
    wanted = decode(*halves(torch.bfloat16, 3), "x", x, angles)
    with monkeypatch.context() as patch:
        patch.setattr(build, "FLAGS", (*build.FLAGS, "-mno-avx512bf16"))
        patch.setattr(build, "library_path", lambda: tmp_path / "kernels.so")
        patch.setattr(calls, "library_path", build.build)
        plain = calls.library.__wrapped__()
        patch.setattr(calls, "library", lambda: plain)
        found = decode(*halves(torch.bfloat16, 3), "x", x, angles)
    for mine, other in zip(found, wanted, strict=True):
        assert float((mine == other).double().mean()) > 0.97
        torch.testing.assert_close(mine, other, rtol=0.02, atol=0.02)


def test_a_library_for_another_processor_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    here = build.library_path()
    monkeypatch.setattr(build, "_processor", lambda: "flags: none")
    build.library_path.cache_clear()
    assert build.library_path() != here
    build.library_path.cache_clear()


def test_without_a_compiler_setup_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: Any) -> None:
    monkeypatch.setattr(build, "library_path", lambda: tmp_path / "kernels" / "x.so")
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    assert build.main() == 0
    assert "plain torch runs instead" in capsys.readouterr().err
    monkeypatch.setattr(calls, "library_path", lambda: tmp_path / "kernels" / "x.so")
    assert calls.library.__wrapped__() is None
