"""Frozen matrices with adapters behind a norm or a gate in one call each way: against the same in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.models import fans
from rlhf.models.fans import Fan, Member, Part
from rlhf.models.fronts import Front, Gate, Norm, Plain
from rlhf.models.kernels import build, calls, fan

SHAPES = {  # tokens, in, outs; adapters: their tokens and ranks
    "one matrix": (96, 48, (64,), [((0, 96), 4)]),
    "query, key, value of two roles": (103, 80, (96, 48, 48), [((0, 50), 16), ((50, 103), 3)]),
    "tokens without an adapter": (121, 48, (48,), [((10, 40), 16), ((70, 100), 20)]),
    "columns by parts": (75, 1024, (176, 160), [((0, 75), 5)]),
    "no adapter": (64, 32, (32, 16), []),
}


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    build.build()
    calls.library.cache_clear()
    assert calls.library() is not None


@dataclass
class Case:
    """What one call is asked, and gradients for the way back."""

    front: Front
    frozen: list[tuple[Tensor, Tensor | None]]
    parts: list[Part]
    matrices: list[Tensor]
    onto: Tensor | None
    gradients: list[Tensor]
    beside: Tensor

    @classmethod
    def make(cls, kind: str, shape: str, *, bias: bool = True) -> Case:
        torch.manual_seed(len(kind) + len(shape))
        tokens, wide, outs, adapters = SHAPES[shape]
        frozen = [(torch.randn(out, wide) / wide**0.5, torch.randn(out) if bias else None) for out in outs]
        parts: list[Part] = []
        matrices: list[Tensor] = []
        for (start, stop), rank in adapters:
            first = len(matrices)
            members = [
                Member(index, 0.5 + index, slice(index * rank, index * rank + rank)) for index in range(len(outs))
            ]
            for out in outs:
                matrices += [torch.randn(rank, wide) / wide**0.5, torch.randn(out, rank)]
            parts.append(Part(slice(start, stop), tuple(members), first))
        x, other = torch.randn(2, tokens, wide)
        front: Any = {"plain": Plain(x), "norm": Norm(x, torch.randn(wide), 1e-5), "gate": Gate(x, other)}[kind]
        onto = torch.randn(tokens, outs[0]) if len(outs) == 1 else None
        gradients = [torch.randn(tokens, out) for out in outs]
        return cls(front, frozen, parts, matrices, onto, gradients, torch.randn(tokens, wide))

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        return fan.forward(self.front, self.frozen, self.parts, self.matrices, self.onto)

    def backward(self, inner: list[Tensor], *, wants_x: bool = True, wants: list[bool] | None = None) -> list[Any]:
        wants = [True] * len(self.matrices) if wants is None else wants
        words = self.gradients, self.matrices, inner, wants, self.beside, wants_x
        back, found = fan.backward(self.front, self.frozen, self.parts, *words)
        return [*back, *found]

    def exactly(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Results, thin products, and gradients in ``backward``'s order, by autograd in float64."""
        held = [tensor.double().requires_grad_() for tensor in self.front if isinstance(tensor, Tensor)]
        trained = [matrix.double().requires_grad_() for matrix in self.matrices]
        x = held[0]
        if isinstance(self.front, Norm):
            x = x * (x.square().mean(-1, keepdim=True) + self.front.eps).rsqrt() * held[1]
        if isinstance(self.front, Gate):
            x = F.silu(x) * held[1]
        results = [x @ weight.double().t() + (0 if bias is None else bias.double()) for weight, bias in self.frozen]
        if self.onto is not None:
            results[0] = results[0] + self.onto.double()
        inner = []
        for part in self.parts:
            lows = []
            for number, (index, scaling, _) in enumerate(part.members):
                down, up = trained[part.first + 2 * number : part.first + 2 * number + 2]
                lows.append(x[part.where] @ down.t())
                place = F.pad(scaling * lows[-1] @ up.t(), (0, 0, part.where.start, len(x) - part.where.stop))
                results[index] = results[index] + place
            inner.append(torch.cat(lows, dim=1))
        torch.autograd.backward(results, [gradient.double() for gradient in self.gradients])
        wanted = [held[0], *held[1:]] if isinstance(self.front, Gate) else [held[0]]
        gradients = [tensor.grad for tensor in [*wanted, *trained]]
        if isinstance(self.front, Norm):
            gradients[0] = gradients[0] + self.beside.double()
        return results, inner, gradients


def assert_near(found: list[Any], wanted: list[Any]) -> None:
    for mine, other in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == other.shape
        assert float((mine.double() - other.detach()).norm() / other.detach().norm()) < 2e-6


KINDS = ["plain", "norm", "gate"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_results_and_gradients_are_those_of_the_products(kind: str, shape: str) -> None:
    case = Case.make(kind, shape)
    results, inner = case.forward()
    exact, thin, gradients = case.exactly()
    assert_near(results, exact)
    assert_near(inner, thin)
    assert_near(case.backward(inner), gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_the_libraries_way_gives_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.make(kind, "query, key, value of two roles", bias=False)
    whole = Fan(tuple(case.frozen), tuple(case.parts))
    found = []
    for takes in (True, False):
        monkeypatch.setattr(fans.fan, "takes", lambda *_, takes=takes: takes)
        results, inner = whole.forward(case.front, case.matrices)
        words = case.gradients, case.matrices, inner, [True] * len(case.matrices)
        back, rest = whole.backward(case.front, *words, beside=case.beside)
        found.append([*results, *inner, *back, *rest])
    assert_near(found[0], [tensor.double() for tensor in found[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_neither_threads_nor_other_tokens_change_a_bit(kind: str) -> None:
    case, before = Case.make(kind, "columns by parts"), torch.get_num_threads()
    found: list[list[Tensor]] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results, inner = case.forward()
            found.append([*results, *inner, *case.backward(inner)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    by_token = {n: v[7:60] for n, v in case.front._asdict().items() if isinstance(v, Tensor) and len(v) == 75}
    front: Any = case.front._replace(**by_token)
    (part,) = case.parts
    some, low = fan.forward(front, case.frozen, [Part(slice(0, 53), part.members, 0)], case.matrices, None)
    assert torch.equal(low[0], found[0][2][7:60])
    assert all(torch.equal(mine, whole[7:60]) for mine, whole in zip(some, found[0][:2], strict=True))


def test_a_number_that_is_none_stays_one_and_stays_in_its_row() -> None:
    case = Case.make("norm", "query, key, value of two roles")
    case.front[0][5, 3] = torch.nan
    results, inner = case.forward()
    case.gradients[1][60, 2] = torch.nan
    to_x, *rest = case.backward(inner)
    for tensor, rows in [*((result, [5]) for result in results), (inner[0], [5]), (to_x, [5, 60])]:
        assert tensor.isnan().any(dim=1).nonzero().flatten().tolist() == rows
    assert all(gradient.isnan().any() for gradient in rest[:6]), "the first adapter read row 5"
    assert rest[8].isnan().any() and rest[9].isnan().any(), "the second one's key has row 60's gradient"


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_wanted_is_made(kind: str) -> None:
    case = Case.make(kind, "one matrix")
    _, inner = case.forward()
    *back, down, up = case.backward(inner)
    assert torch.equal(case.backward(inner, wants_x=False)[0], down)
    assert torch.equal(case.backward(inner, wants_x=False)[1], up)
    some = case.backward(inner, wants=[False, True])
    assert some[-2] is None and torch.equal(some[-1], up)
    assert all(torch.equal(mine, other) for mine, other in zip(some[:-2], back, strict=True))


def test_a_matrix_that_stands_turned_is_the_same() -> None:
    case = Case.make("plain", "query, key, value of two roles")
    results, inner = case.forward()
    found = [*results, *inner, *case.backward(inner)]
    case.frozen = [(weight.t().contiguous().t(), bias) for weight, bias in case.frozen]
    results, inner = case.forward()
    assert all(torch.equal(a, b) for a, b in zip(found, [*results, *inner, *case.backward(inner)], strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_kept_panels_change_no_bit(kind: str, shape: str) -> None:
    case = Case.make(kind, shape)
    plain = Fan(tuple(case.frozen), tuple(case.parts))
    kept = Fan(plain.frozen, plain.parts, fan.Panels())
    found = []
    for each in (plain, kept, kept):
        results, inner = fan.forward(case.front, each.frozen, each.parts, case.matrices, case.onto, each.panels)
        words = case.gradients, case.matrices, inner, [True] * len(case.matrices), case.beside, True, each.panels
        back, rest = fan.backward(case.front, each.frozen, each.parts, *words)
        found.append([*results, *inner, *back, *rest])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_panels_are_what_is_read() -> None:
    case, panels = Case.make("plain", "query, key, value of two roles"), fan.Panels()
    forth, back = panels.forth(case.frozen), panels.back(case.frozen)
    assert forth is panels.forth(case.frozen) and back is panels.back(case.frozen)
    assert sorted(forth.tolist()) == sorted(back.tolist()) == sorted(torch.cat([w.flatten() for w, _ in case.frozen]))
    before, inner = case.forward()
    forth.zero_()
    words = case.front, case.frozen, case.parts, case.matrices, None
    results, _ = fan.forward(*words, panels)
    adapters_alone, _ = fan.forward(case.front, [(0 * w, b) for w, b in case.frozen], *words[2:])
    for mine, whole, alone in zip(results, before, adapters_alone, strict=True):
        assert torch.equal(mine, alone) and not torch.equal(mine, whole)
    rest = case.gradients, case.matrices, inner, [True] * len(case.matrices), None
    nothing, _ = fan.backward(*words[:3], *rest, False, panels)
    assert nothing == ()


def test_no_tokens_give_none() -> None:
    weight, down, up = torch.ones(32, 16), torch.ones(4, 16), torch.ones(32, 4)
    part = Part(slice(0, 0), (Member(0, 1.0, slice(0, 4)),), 0)
    front = Plain(torch.ones(0, 16))
    (result,), inner = fan.forward(front, [(weight, None)], [part], [down, up], None)
    words = [torch.ones(0, 32)], [down, up], inner, [True, True], None, True
    back, found = fan.backward(front, [(weight, None)], [part], *words)
    assert result.shape == (0, 32) and back[0].shape == (0, 16)
    assert all(gradient is not None and not gradient.any() for gradient in found)


def test_what_is_not_computed_here_is_left_to_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: Any = [(torch.ones(48, 32), None)]
    many = torch.ones(fan.FEW_ROWS, 32)
    monkeypatch.setattr(fan, "prefers_onednn", lambda: True)
    assert fan.takes(many, frozen)
    assert not fan.takes(many[1:], frozen)
    assert not fan.takes(many.bfloat16(), frozen)
    assert not fan.takes(many, [(torch.ones(40, 32), None)])
    monkeypatch.setattr(fan, "prefers_onednn", lambda: False)
    assert not fan.takes(many, frozen)
    monkeypatch.undo()
    monkeypatch.setattr(calls, "library", lambda: None)
    assert not fan.takes(many, frozen)
