"""Log-probabilities, entropies and the logits' gradient by the kernel: as in float64, and as torch's own way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.algos.logprobs import logprobs_and_entropy
from rlhf.models.kernels import calls, readout

SIZES = (1, 5, 16, 33, 513, 5000)
WORDS: dict[str, Any] = {"temperature": 0.7, "entropy_graph": False}


def logits_of(rows: int, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(size)
    return (4 * torch.randn(rows, size)).to(dtype), torch.randint(size, (rows,))


@pytest.fixture(autouse=True)
def _kernels() -> None:
    assert calls.library() is not None, "these tests compare the kernels: make setup compiles them"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_as_in_float64(size: int, dtype: torch.dtype) -> None:
    logits, ids = logits_of(9, size, dtype)
    suppress = () if size < 5 else (0, size - 1)
    ids = ids.clamp(1, max(1, size - 2)) if suppress else ids
    exact = logits.double().requires_grad_()
    scaled = (exact / 0.7).index_fill(-1, torch.tensor(suppress, dtype=torch.long), -torch.inf)
    logp = scaled.log_softmax(-1)
    wanted = logp.gather(-1, ids[:, None])[:, 0]
    entropy = -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)
    weights = torch.randn(9)
    (wanted * weights).sum().backward()

    given = logits.clone().requires_grad_()
    found = readout.read(given, ids, suppress_ids=suppress, **WORDS)
    (found.logprobs * weights).sum().backward()
    assert found.logprobs.dtype == found.entropy.dtype == torch.float32 and not found.entropy.requires_grad
    torch.testing.assert_close(found.logprobs.double(), wanted, atol=5e-6, rtol=1e-6)
    torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-5, rtol=1e-6)
    bounds = {"atol": 1e-6, "rtol": 2e-6} if dtype == torch.float32 else {"atol": 1e-6, "rtol": 2**-8}
    assert given.grad is not None and exact.grad is not None and given.grad.dtype == dtype
    torch.testing.assert_close(given.grad.double(), exact.grad, **bounds)
    assert given.grad[:, list(suppress)].eq(0).all()
    assert torch.equal(given, logits), "tokens that are not drawn are put back"


def test_a_batch_has_its_own_shape_and_any_number_of_threads() -> None:
    logits, ids = logits_of(12, 40)
    plain = readout.read(logits, ids, suppress_ids=(3,), **WORDS)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batch = readout.read(logits.view(3, 4, 40), ids.view(3, 4), suppress_ids=(3,), **WORDS)
        across = readout.read(logits.t().contiguous().t(), ids, suppress_ids=(3,), **WORDS)  # columns side by side
    finally:
        torch.set_num_threads(before)
    assert batch.logprobs.shape == batch.entropy.shape == (3, 4)
    for other in (batch, across):
        assert torch.equal(other.logprobs.flatten(), plain.logprobs) and torch.equal(
            other.entropy.flatten(), plain.entropy
        )
    none = readout.read(logits[:0], ids[:0], **WORDS)
    assert none.logprobs.shape == none.entropy.shape == (0,)


def test_rows_far_from_each_other_and_sure_rows() -> None:
    logits = torch.tensor([[1e4, 1e4 - 1.0, -1e4], [-200.0, 0.0, 200.0], [-3e38, 0.0, 0.0]])
    ids = torch.tensor([0, 0, 1])
    found = readout.read(logits, ids, temperature=1.0, entropy_graph=False)
    exact = logprobs_and_entropy(logits.double(), ids, temperature=1.0)
    torch.testing.assert_close(found.logprobs, exact.logprobs.float())
    torch.testing.assert_close(found.entropy, exact.entropy.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so_and_leaves_other_rows_alone(bad: float) -> None:
    logits, ids = logits_of(3, 20)
    fine = readout.read(logits, ids, **WORDS)
    logits[1, 17] = bad
    given = logits.clone().requires_grad_()
    found = readout.read(given, ids, **WORDS)
    assert found.logprobs[1].isnan() and found.entropy[1].isnan()
    assert torch.equal(found.logprobs[::2], fine.logprobs[::2]) and torch.equal(found.entropy[::2], fine.entropy[::2])
    found.logprobs.sum().backward()
    assert given.grad is not None and given.grad[1].isnan().any() and given.grad[::2].isfinite().all()


def test_a_token_that_cannot_be_drawn_has_no_probability() -> None:
    logits, ids = logits_of(2, 8)
    found = readout.read(logits, torch.tensor([3, int(ids[1])]), suppress_ids=(3,), **WORDS)
    assert found.logprobs[0] == -torch.inf and found.entropy.isfinite().all()


@pytest.mark.parametrize("reason", ["entropy's gradient", "no kernels", "float64"])
def test_the_rest_goes_torch_s_way(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, ids = logits_of(6, 30)
    words = {**WORDS, "entropy_graph": reason == "entropy's gradient"}
    if reason == "no kernels":
        monkeypatch.setattr(calls, "library", lambda: None)
    monkeypatch.setattr(calls, "tell", None)
    given = (logits.double() if reason == "float64" else logits.clone()).requires_grad_()
    found = readout.read(given, ids, **words)
    wanted = logprobs_and_entropy(logits, ids, **words)
    torch.testing.assert_close(found.logprobs, wanted.logprobs)
    assert found.entropy.requires_grad == (reason == "entropy's gradient")


@pytest.mark.parametrize("bad", [-1, 4])
def test_ids_outside_the_vocabulary_are_refused(bad: int) -> None:
    logits, ids = logits_of(2, 4)
    for token_ids, suppress in ((torch.tensor([0, bad]), ()), (ids, (bad,))):
        with pytest.raises(IndexError, match=r"token ids must be in 0\.\.3"):
            readout.read(logits, token_ids, suppress_ids=suppress, **WORDS)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        readout.read(*logits_of(2, 4), temperature=0)
