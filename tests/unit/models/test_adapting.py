"""An adapter's products in one call: results and gradients against the same in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.models.kernels import adapting, build, calls


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    build.build()
    calls.library.cache_clear()
    assert calls.library() is not None


TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2}


@dataclass
class Case:
    """Matrices of an adapter, its input, the results it is added to, and their gradients."""

    x: Tensor
    downs: list[Tensor]
    ups: list[Tensor]
    results: list[Tensor]
    gradients: list[Tensor]
    scalings: tuple[float, ...]

    @classmethod
    def make(cls, dtype: torch.dtype, ranks: tuple[int, ...], num_tokens: int = 37, wide: int = 48) -> Case:
        torch.manual_seed(sum(ranks))
        outs = [16 * (number + 1) for number in range(len(ranks))]
        results, gradients = ([torch.randn(num_tokens, out).to(dtype) for out in outs] for _ in range(2))
        return cls(
            torch.randn(num_tokens, wide).to(dtype),
            [(torch.randn(rank, wide) / 7).to(dtype) for rank in ranks],
            [torch.randn(out, rank).to(dtype) for out, rank in zip(outs, ranks, strict=True)],
            results,
            gradients,
            tuple(0.5 + number for number in range(len(ranks))),
        )

    def members(self, beside: list[Tensor]) -> list[adapting.Member]:
        return list(map(adapting.Member, self.downs, self.ups, self.scalings, beside))


def near(found: Tensor | None, wanted: Tensor, dtype: torch.dtype) -> bool:
    assert found is not None and found.dtype == dtype and found.shape == wanted.shape
    return float((found.double() - wanted).norm() / wanted.norm()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [(16,), (4, 4, 4), (1, 3), (20, 5, 16)])
def test_results_and_gradients_are_those_of_the_products(dtype: torch.dtype, ranks: tuple[int, ...]) -> None:
    case = Case.make(dtype, ranks)
    x, downs, ups = case.x.double(), [a.double() for a in case.downs], [b.double() for b in case.ups]
    low = adapting.forward(case.x, case.members(results := [result.clone() for result in case.results]))
    assert near(low, torch.cat([x @ down.t() for down in downs], dim=1), dtype)
    inner = low.double().split(ranks, dim=1)
    for number, (up, factor) in enumerate(zip(ups, case.scalings, strict=True)):
        assert near(results[number], case.results[number].double() + factor * inner[number] @ up.t(), dtype)
    onto = torch.ones_like(case.x)
    found = adapting.backward(case.x, low, case.members(case.gradients), [True] * 2 * len(ranks), onto)
    wanted_onto = torch.ones_like(x)
    for number, (down, up, factor) in enumerate(zip(downs, ups, case.scalings, strict=True)):
        below = factor * case.gradients[number].double() @ up
        wanted_onto += below @ down
        assert near(found[2 * number], below.t() @ x, dtype)
        assert near(found[2 * number + 1], factor * case.gradients[number].double().t() @ inner[number], dtype)
    assert near(onto, wanted_onto, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_threads_nor_other_rows_change_a_bit(dtype: torch.dtype) -> None:
    case, before = Case.make(dtype, (16, 4), num_tokens=150), torch.get_num_threads()
    found: list[list[Any]] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results, onto = [result.clone() for result in case.results], torch.zeros_like(case.x)
            low = adapting.forward(case.x, case.members(results))
            back = adapting.backward(case.x, low, case.members(case.gradients), [True] * 4, onto)
            found.append([low, *results, onto, *back])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    some = [result[40:90].clone() for result in case.results]
    low = adapting.forward(case.x[40:90], case.members(some))
    assert torch.equal(low, found[0][0][40:90])
    assert all(torch.equal(part, whole[40:90]) for part, whole in zip(some, found[0][1:3], strict=True))


def test_a_number_that_is_none_stays_one_and_stays_in_its_row() -> None:
    case = Case.make(torch.float32, (16, 4))
    case.x[5, 3] = torch.nan
    results = [result.clone() for result in case.results]
    low = adapting.forward(case.x, case.members(results))
    case.gradients[0][7, 2] = torch.nan
    onto = torch.zeros_like(case.x)
    found: list[Any] = adapting.backward(case.x, low, case.members(case.gradients), [True] * 4, onto)
    for tensor, row in ((low, 5), (results[0], 5), (results[1], 5), (onto, 7)):
        assert tensor[row].isnan().all() and not tensor[[i for i in range(len(tensor)) if i != row]].isnan().any()
    assert all(gradient.isnan().any() for gradient in found)


def test_no_rows_give_none() -> None:
    case = Case.make(torch.float32, (4,), num_tokens=0)
    low = adapting.forward(case.x, case.members(case.results))
    found: list[Any] = adapting.backward(case.x, low, case.members(case.gradients), [True] * 2, case.x.clone())
    assert low.shape == (0, 4) and not any(gradient.any() for gradient in found)


def test_only_what_is_wanted_is_made() -> None:
    case = Case.make(torch.float32, (4, 4))
    low = adapting.forward(case.x, case.members([result.clone() for result in case.results]))
    every: list[Any] = adapting.backward(case.x, low, case.members(case.gradients), [True] * 4, None)
    some: list[Any] = adapting.backward(case.x, low, case.members(case.gradients), [False, True, True, False], None)
    assert some[0] is None and some[3] is None
    assert torch.equal(some[1], every[1]) and torch.equal(some[2], every[2])


def test_other_widths_types_and_missing_kernels_are_left_to_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, 32)
    monkeypatch.setattr(adapting, "has_registers", lambda: True)
    assert adapting.takes(x, [32, 48])
    assert not adapting.takes(x, [32, 40]) and not adapting.takes(x.double(), [32, 48])
    monkeypatch.setattr(adapting, "has_registers", lambda: False)
    assert not adapting.takes(x, [32, 48])
    monkeypatch.undo()
    monkeypatch.setattr(calls, "library", lambda: None)
    assert not adapting.takes(x, [32, 48])
