import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf.algos.logprobs import (
    chunked_logprobs_and_entropy,
    entropy,
    logprobs_and_entropy,
    shift_for_response,
    token_logprobs,
)
from rlhf.algos.masks import position_ids

from .support import given, normal, seeds


class ToyDecoder(torch.nn.Module):
    """One causal attention layer with learned positions: enough for a shift or a position error to show."""

    def __init__(self, vocabulary: int = 11, width: int = 8, max_positions: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = torch.nn.Embedding(vocabulary, width)
        self.positions = torch.nn.Embedding(max_positions, width)
        self.head = torch.nn.Linear(width, vocabulary)

    def forward(self, ids, attention_mask):
        x = self.tokens(ids) + self.positions(position_ids(attention_mask))
        sequence = ids.shape[1]
        causal = torch.ones(sequence, sequence, dtype=torch.bool).tril()
        allowed = (causal & attention_mask[:, None, :]) | torch.eye(sequence, dtype=torch.bool)
        attended = F.scaled_dot_product_attention(x, x, x, attn_mask=allowed)
        return self.head(x + attended)


PROMPTS = [[3, 4], [5, 6, 7, 1], [2]]
RESPONSES = [[1, 2, 3], [8], [4, 4]]
PAD = 0


def teacher_forced(model, prompt, response):
    """Log-probability of each response token by definition: run every prefix alone, read its last slot."""
    result = []
    for t in range(len(response)):
        prefix = torch.tensor([prompt + response[:t]])
        logits = model(prefix, torch.ones_like(prefix, dtype=torch.bool))[0, -1]
        result.append(-F.cross_entropy(logits[None], torch.tensor([response[t]])).item())
    return result


def padded(left):
    """Prompts padded to 4 (on the given side of the whole sequence), responses to 3 on the right."""
    rows, mask = [], []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        gap, tail = 4 - len(prompt), 3 - len(response)
        row, keep = prompt + response + [PAD] * tail, [True] * len(prompt + response) + [False] * tail
        pads, drops = [PAD] * gap, [False] * gap
        rows.append(pads + row if left else row + pads)
        mask.append(drops + keep if left else keep + drops)
    return torch.tensor(rows), torch.tensor(mask)


def test_shifted_logprobs_equal_teacher_forcing_on_left_padded_rows():
    model = ToyDecoder()
    ids, attention_mask = padded(left=True)
    logits = shift_for_response(model(ids, attention_mask), 3)
    logprobs = token_logprobs(logits, ids[:, -3:], temperature=1.0)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        assert logprobs[row, : len(response)].tolist() == pytest.approx(
            teacher_forced(model, prompt, response), abs=1e-5
        )


def test_right_padding_gives_the_same_logprobs():
    model = ToyDecoder()
    ids, attention_mask = padded(left=False)
    logits = model(ids, attention_mask)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        end = len(prompt) + len(response)
        shifted = shift_for_response(logits[row : row + 1, :end], len(response))
        logprobs = token_logprobs(shifted, torch.tensor([response]), temperature=1.0)
        assert logprobs[0].tolist() == pytest.approx(teacher_forced(model, prompt, response), abs=1e-5)


def test_position_ids_make_padded_logits_equal_unpadded_ones():
    model = ToyDecoder()
    ids, attention_mask = padded(left=True)
    logits = model(ids, attention_mask)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        alone = torch.tensor([prompt + response])
        expected = model(alone, torch.ones_like(alone, dtype=torch.bool))[0]
        torch.testing.assert_close(logits[row][attention_mask[row]], expected, atol=1e-5, rtol=0)


def test_shift_takes_the_slot_before_each_response_token():
    logits = torch.arange(6.0)[None, :, None].expand(2, 6, 3)
    assert shift_for_response(logits, 2)[:, :, 0].tolist() == [[3.0, 4.0], [3.0, 4.0]]
    assert shift_for_response(torch.arange(6.0)[None], 5).tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]]
    for bad in (0, 6, -1):
        with pytest.raises(ValueError, match=str(bad)):
            shift_for_response(logits, bad)


@given(seeds, st.sampled_from([0.3, 0.7, 1.0, 2.0]))
def test_values_follow_the_definition_of_softmax(seed, temperature):
    logits = normal(seed, 2, 3, 5, scale=3.0)
    ids = torch.randint(0, 5, (2, 3), generator=torch.Generator().manual_seed(seed))
    weights = np.exp(logits.numpy() / temperature)
    p = weights / weights.sum(-1, keepdims=True)
    logprobs = token_logprobs(logits, ids, temperature=temperature)
    assert logprobs.dtype == torch.float32
    expected = np.log(np.take_along_axis(p, ids.numpy()[..., None], -1)[..., 0])
    np.testing.assert_allclose(logprobs.numpy(), expected, atol=2e-5)
    np.testing.assert_allclose(entropy(logits, temperature=temperature).numpy(), -(p * np.log(p)).sum(-1), atol=2e-5)


def test_entropy_golden_values():
    assert entropy(torch.zeros(1, 8), temperature=0.7).item() == pytest.approx(math.log(8), abs=1e-6)
    two = torch.tensor([[0.0, math.log(3.0) * 0.5]])  # probabilities 1/4, 3/4 at temperature 0.5
    assert entropy(two, temperature=0.5).item() == pytest.approx(0.5623351446, abs=1e-6)


def test_suppressed_ids_are_never_drawn_and_the_rest_sums_to_one():
    logits = torch.tensor([[[2.0, -1.0, 0.5, 9.0]]]).requires_grad_()
    every_id = torch.arange(4)[None]
    logprobs = token_logprobs(logits.expand(1, 4, 4), every_id, temperature=0.7, suppress_ids=(3, 1))[0]
    assert logprobs[[1, 3]].tolist() == [-math.inf, -math.inf]
    assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    # e^(2/.7) / (e^(2/.7) + e^(.5/.7))
    assert logprobs[0].exp().item() == pytest.approx(0.894999, abs=1e-5)
    h = entropy(logits, temperature=0.7, suppress_ids=(3, 1))
    kept = logprobs[[0, 2]].double()
    assert h.item() == pytest.approx(-(kept.exp() * kept).sum().item(), abs=1e-6)
    (h.sum() + logprobs[0]).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0, [1, 3]].tolist() == [0.0, 0.0]
    assert logits.grad[0, 0, [0, 2]].abs().min() > 0


def test_a_suppressed_token_in_the_padding_leaves_gradients_finite():
    logits = torch.randn(1, 2, 4, requires_grad=True)
    logprobs = token_logprobs(logits, torch.tensor([[1, 0]]), temperature=1.0, suppress_ids=(0,))
    assert logprobs[0, 1] == -math.inf
    logprobs.masked_fill(torch.tensor([[False, True]]), 0.0).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[0, 1] == 0).all()


def test_half_precision_logits_are_normalised_in_float32():
    logits = torch.linspace(-4, 4, 1000, dtype=torch.bfloat16)[None, None]
    ids = torch.tensor([[500]])
    exact = torch.log_softmax(logits.double(), -1)[0, 0, 500].item()
    assert token_logprobs(logits, ids, temperature=1.0).item() == pytest.approx(exact, abs=1e-5)
    assert entropy(logits, temperature=1.0).dtype == torch.float32


def test_temperature_must_be_positive():
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            token_logprobs(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature=bad)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements any operation returned, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.num_elements = max(self.num_elements, x.numel())
        return out


@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 10, 50])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("suppress_ids", [(), (2, 6)])
def test_chunks_give_the_same_values_and_gradients(chunk_tokens, with_bias, suppress_ids):
    n, width, vocabulary = 10, 4, 7
    hidden, weight = normal(1, n, width).float(), normal(2, vocabulary, width).float()
    bias = normal(3, vocabulary).float() if with_bias else None
    ids = torch.tensor([0, 1, 3, 4, 5, 0, 1, 3, 4, 5])
    coefficients = normal(4, 2, n).float()

    def run(chunked):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
        h, w, b = leaves[0], leaves[1], leaves[2] if with_bias else None
        if chunked:
            out = chunked_logprobs_and_entropy(
                h,
                lambda x: F.linear(x, w, b),
                ids,
                temperature=0.7,
                chunk_tokens=chunk_tokens,
                suppress_ids=suppress_ids,
            )
            values = torch.stack([out.logprobs, out.entropy])
        else:
            logits = h @ w.T + (b if b is not None else 0)
            values = torch.stack(
                [
                    token_logprobs(logits[None], ids[None], temperature=0.7, suppress_ids=suppress_ids)[0],
                    entropy(logits, temperature=0.7, suppress_ids=suppress_ids),
                ]
            )
        (values * coefficients).sum().backward()
        return [values.detach()] + [leaf.grad for leaf in leaves]

    for chunked, plain in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(chunked, plain, atol=1e-5, rtol=1e-5)


def test_chunks_never_hold_all_logits():
    n, width, vocabulary, chunk_tokens = 64, 4, 100, 8
    hidden, weight = (
        torch.randn(n, width, requires_grad=True),
        torch.randn(vocabulary, width, requires_grad=True),
    )
    saved = []
    with (
        LargestTensor() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x),
    ):
        out = chunked_logprobs_and_entropy(
            hidden, lambda x: x @ weight.T, torch.zeros(n, dtype=torch.long), temperature=1.0, chunk_tokens=chunk_tokens
        )
        assert max(saved, default=0) <= max(n, vocabulary) * width  # no logits are kept for the backward pass
        (out.logprobs.sum() + out.entropy.sum()).backward()
    assert largest.num_elements == chunk_tokens * vocabulary


def test_chunks_are_read_by_whoever_is_given():
    hidden, weight, ids = torch.randn(5, 3), torch.randn(7, 3), torch.arange(5)
    seen = []

    def read(logits, token_ids, **words):
        seen.append((tuple(logits.shape), token_ids.tolist(), words["temperature"], words["suppress_ids"]))
        return logprobs_and_entropy(logits, token_ids, **words)

    given = {"temperature": 0.5, "chunk_tokens": 2, "suppress_ids": (6,)}
    with torch.no_grad():
        chunked_logprobs_and_entropy(hidden, lambda x: x @ weight.T, ids, read=read, **given)
    assert seen == [((2, 7), [0, 1], 0.5, (6,)), ((2, 7), [2, 3], 0.5, (6,)), ((1, 7), [4], 0.5, (6,))]


def test_no_tokens_and_bad_chunks():
    head, empty = torch.nn.Linear(3, 5), torch.zeros(0, dtype=torch.long)
    out = chunked_logprobs_and_entropy(torch.randn(0, 3), head, empty, temperature=1.0, chunk_tokens=2)
    assert out.logprobs.shape == out.entropy.shape == (0,)
    with pytest.raises(ValueError, match="chunk_tokens"):
        chunked_logprobs_and_entropy(torch.randn(0, 3), head, empty, temperature=1.0, chunk_tokens=0)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("entropy_graph", [False, True])
def test_only_an_entropy_that_is_trained_has_a_graph(chunked, entropy_graph):
    hidden, head, ids = normal(1, 6, 4).float().requires_grad_(), torch.nn.Linear(4, 9), torch.arange(6)

    def run():
        words = {"temperature": 0.7, "suppress_ids": (8,), "entropy_graph": entropy_graph}
        if chunked:
            return chunked_logprobs_and_entropy(hidden, head, ids, chunk_tokens=2, **words)
        return logprobs_and_entropy(head(hidden), ids, **words)

    out, logits = run(), head(hidden)
    assert out.logprobs.requires_grad and out.entropy.requires_grad is entropy_graph
    torch.testing.assert_close(out.logprobs, token_logprobs(logits, ids, temperature=0.7, suppress_ids=(8,)))
    torch.testing.assert_close(out.entropy, entropy(logits, temperature=0.7, suppress_ids=(8,)))
    with torch.no_grad():
        judged = run()
        of_trained = logprobs_and_entropy(logits, ids, temperature=0.7, entropy_graph=entropy_graph)
    assert not judged.logprobs.requires_grad and not judged.entropy.requires_grad
    assert logits.requires_grad and not of_trained.logprobs.requires_grad and not of_trained.entropy.requires_grad
    assert torch.equal(judged.logprobs, out.logprobs) and torch.equal(judged.entropy, out.entropy)


def test_nan_in_slots_left_out_does_not_reach_the_gradient():
    hidden = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    hidden[~mask] = float("nan")
    hidden.requires_grad_()
    weight = torch.randn(6, 4, requires_grad=True)
    ids = torch.zeros(3, dtype=torch.long)
    out = chunked_logprobs_and_entropy(hidden[mask], lambda x: x @ weight.T, ids, temperature=1.0, chunk_tokens=2)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert torch.isfinite(weight.grad).all() and torch.isfinite(hidden.grad).all()
