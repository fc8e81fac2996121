"""Ragged batches, and the check that what is in masked slots cannot matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor

JUNK = (float("nan"), float("inf"), float("-inf"), 1e30)


def given(*arguments: st.SearchStrategy) -> Callable:
    """hypothesis.given with the same examples in every run, and no deadline: the machine may be busy."""
    settings = hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
    return lambda test: settings(hypothesis.given(*arguments)(test))


@st.composite
def masks(draw: st.DrawFn, max_rows: int = 5, max_columns: int = 7) -> Tensor:
    """Any bool mask: gaps, empty rows, paddings on both sides."""
    num_columns = draw(st.integers(1, max_columns))
    row = st.lists(st.booleans(), min_size=num_columns, max_size=num_columns)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=max_rows)), dtype=torch.bool)


seeds = st.integers(0, 2**31 - 1)


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale


def right_padded(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]


def tensors_of(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if is_dataclass(result):
        return [tensor for f in fields(result) for tensor in tensors_of(getattr(result, f.name))]
    raise TypeError(type(result))


def assert_junk_proof(
    function: Callable[..., object], inputs: list[Tensor], mask: Tensor, *, differentiable: bool
) -> None:
    """Fill masked slots of every input with junk: outputs and gradients stay as with zeros."""

    def run(fill: float) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [x.masked_fill(~mask, fill).requires_grad_(differentiable) for x in inputs]
        outputs = tensors_of(function(*leaves, mask))
        grads = []
        if differentiable:
            sum(out.sum() for out in outputs if out.requires_grad).backward()
            grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
            assert grads
        return outputs, grads

    expected_outputs, expected_grads = run(0.0)
    for fill in JUNK:
        outputs, grads = run(fill)
        for out, expected in zip(outputs, expected_outputs, strict=True):
            torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=False)
            if out.shape == mask.shape:
                assert (out[~mask] == 0).all()
        for grad, expected in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(grad, expected, rtol=0, atol=0, equal_nan=False)
            assert (grad[~mask] == 0).all()
