"""The product of a frozen weight is the library's own, whichever of the two libraries does it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf.models import products

ROWS = (1, products.FEW_ROWS - 1, products.FEW_ROWS, 50)


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "prefers_onednn", lambda: request.param)
    monkeypatch.setattr(products, "FEW_PRODUCTS", 0)
    return request.param


def near(found: Tensor, wanted: Tensor) -> None:
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_asking_draws_no_random_numbers() -> None:
    """It happens in between a seed and the adapters that are drawn from it, in the first run of a process only."""
    products.prefers_onednn.cache_clear()
    before = torch.get_rng_state()
    found = products.prefers_onednn()
    assert torch.equal(torch.get_rng_state(), before)
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    assert found == ("avx512f" in cpu and "GenuineIntel" not in cpu)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_products(rows: int, bias: bool, library: bool) -> None:
    x, weight, offset = torch.randn(rows, 33), torch.randn(20, 33), torch.randn(20) if bias else None
    near(products.linear(x, weight, offset), F.linear(x, weight, offset))
    back = torch.randn(rows, 20)
    near(products.linear(back, weight.t()), back @ weight)


@pytest.mark.parametrize("shape", [(4, 33), (2, 9, 33)])
def test_a_frozen_layer_passes_the_same_gradient(shape: tuple[int, ...], library: bool) -> None:
    plain = nn.Linear(33, 20).requires_grad_(False)
    fast = copy.deepcopy(plain)
    products.install(fast)
    assert ("forward" in vars(fast)) == library
    x = torch.randn(shape)
    gradients = []
    for layer in (plain, fast):
        own = x.clone().requires_grad_(True)
        layer(own).square().sum().backward()
        gradients.append(own.grad)
    near(fast(x), plain(x))
    near(gradients[1], gradients[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(16, 33), (2, 9, 33)])
def test_a_trained_layer_gets_the_same_gradients(shape: tuple[int, ...], bias: bool, library: bool) -> None:
    plain = nn.Linear(33, 20, bias=bias)
    fast = copy.deepcopy(plain)
    products.install(fast)
    x = torch.randn(shape)
    for layer in (plain, fast):
        layer(x.requires_grad_(False)).square().sum().backward()
    assert plain.weight.grad is not None and fast.weight.grad is not None
    near(fast.weight.grad, plain.weight.grad)
    if plain.bias is not None and fast.bias is not None:
        assert plain.bias.grad is not None and fast.bias.grad is not None
        near(fast.bias.grad, plain.bias.grad)
    with torch.no_grad():
        assert torch.equal(fast(x), fast(x.clone())), "the same with and without a graph"


def test_a_copy_of_a_model_uses_its_own_weights(library: bool) -> None:
    layer = nn.Sequential(nn.Linear(8, 8).requires_grad_(False))
    products.install(layer)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other[0].weight.zero_()
        other[0].bias.zero_()
    x = torch.randn(16, 8)
    assert float(other(x).abs().sum()) == 0 < float(layer(x).abs().sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_to_torch(dtype: torch.dtype, library: bool) -> None:
    layer = nn.Linear(8, 8, dtype=dtype).requires_grad_(False)
    products.install(layer)
    x = torch.randn(16, 8, dtype=dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(("rows", "out", "asked"), [(7, 10**6, False), (64, 16, False), (64, 700, True)])
def test_small_products_stay_with_mkl(rows: int, out: int, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[bool] = []
    monkeypatch.setattr(products, "prefers_onednn", lambda: bool(questions.append(True)))
    products.linear(torch.zeros(rows, 64), torch.zeros(1, 64).expand(out, 64))
    assert bool(questions) == asked
