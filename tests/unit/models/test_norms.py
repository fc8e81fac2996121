"""The shorter RMS norm computes what the model's own does, and leaves other norms alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from rlhf.models import norms


def norm_of(kind: type[nn.Module], *, trained: bool = False) -> nn.Module:
    torch.manual_seed(0)
    module = kind(48, 1e-6)
    nn.init.normal_(module.weight)
    return module.requires_grad_(trained)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen2RMSNorm])
def test_values_and_gradients_are_the_models_own(kind: type[nn.Module]) -> None:
    plain, short = norm_of(kind), norm_of(kind)
    norms.install(short)
    x = torch.randn(2, 5, 48).mul_(torch.tensor([1e-3, 1.0, 30.0, 1.0, 0.0]).view(1, 5, 1)).requires_grad_()
    towards = torch.randn(2, 5, 48)
    found, wanted = short(x), plain.double()(x.double())
    assert type(found.grad_fn).__name__ == "_RmsNormBackward"
    torch.testing.assert_close(found, wanted.float(), rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(found, x, towards)
    (expected,) = torch.autograd.grad(wanted, x, towards.double())
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: norms._RmsNorm.apply(x, weight, 1e-6), x)


def test_a_trained_weight_gets_its_gradient() -> None:
    plain, short = norm_of(LlamaRMSNorm, trained=True), norm_of(LlamaRMSNorm, trained=True)
    norms.install(short)
    x, towards = torch.randn(2, 48), torch.randn(2, 48)
    for module in (plain, short):
        module(x).backward(towards)
    torch.testing.assert_close(short.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-5)


def test_values_are_the_same_bits_with_and_without_a_graph() -> None:
    frozen, trained = norm_of(LlamaRMSNorm), norm_of(LlamaRMSNorm, trained=True)
    for module in (frozen, trained):
        norms.install(module)
    x = torch.randn(9, 48)
    with torch.no_grad():
        wanted = frozen(x)
    for found in (frozen(x.clone().requires_grad_()), trained(x), trained(x.clone().requires_grad_())):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", [GemmaRMSNorm, nn.LayerNorm])
def test_other_norms_are_left_alone(kind: type[nn.Module]) -> None:
    module = norm_of(kind)
    norms.install(module)
    assert "forward" not in vars(module)


def test_other_types_take_the_models_own_way() -> None:
    module = norm_of(LlamaRMSNorm)
    norms.install(module)
    x = torch.randn(2, 48, dtype=torch.bfloat16)
    torch.testing.assert_close(module(x), norm_of(LlamaRMSNorm)(x), rtol=0, atol=0)
