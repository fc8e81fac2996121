"""Log-probabilities of large vocabularies: as from all logits at once, without ever holding them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from cluster import activations, plan_roles
from rlhf.config import LoraConfig
from rlhf.models import adapters, output, scorer
from rlhf.models.roles import POLICY, REFERENCE, RoleInit, RolesModel
from rlhf.rollout import decoding
from tests.support.live_memory import LiveMemory

VOCABULARY, RESPONSE, PROMPTS = 50_257, 150, (4, 9, 2)
FEW = 1 << 20
"""Logits at once where a test wants many chunks: twenty rows of them."""
WAYS = {
    "packed": LoraConfig(r=4),
    "padded": LoraConfig(r=4, use_dora=True),
    "head-adapted": LoraConfig(r=4, target_modules=("q_proj", "lm_head")),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(lora: LoraConfig, *, whole: bool = False, dtype: torch.dtype = torch.float32) -> RolesModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=256, initializer_range=0.2, **sizes)
    copies = [LlamaForCausalLM(config).to(dtype) for _ in range(1 + whole)]
    init = RoleInit(adapters.peft_config(lora), policy_copy=copies[1].requires_grad_(True) if whole else None)
    roles = RolesModel(copies[0], init, suppress_ids=(1,))
    with torch.no_grad():  # a fresh adapter is no adapter
        for _, parameter in roles.named_trained():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return roles.eval()


@dataclass(frozen=True)
class Words:
    """Three sequences with padding on both sides."""

    input_ids: Tensor
    attention_mask: Tensor
    response_ids: Tensor
    temperature: float = 0.7

    @classmethod
    def make(cls) -> Words:
        room = max(PROMPTS)
        ids = torch.randint(2, VOCABULARY, (len(PROMPTS), room + RESPONSE), generator=torch.Generator().manual_seed(1))
        keep = torch.ones_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(PROMPTS):
            keep[row, : room - prompt] = False
            keep[row, ids.shape[1] - 10 * row :] = False
        return cls(ids, keep, ids[:, room:])

    @property
    def given(self) -> Tensor:
        return self.attention_mask[:, -RESPONSE:]

    def rows(self, *which: int) -> dict[str, Any]:
        chosen = list(which) or list(range(len(PROMPTS)))
        tensors = {k: getattr(self, k)[chosen] for k in ("input_ids", "attention_mask", "response_ids")}
        return {**tensors, "temperature": self.temperature}


WHOLE_LOGITS = int(Words.make().given.sum()) * VOCABULARY * 4
"""Bytes of all logits in fp32."""


def learn(roles: RolesModel, words: Words) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(log-probs, entropies, gradients) of one training pass."""
    logprobs, entropies, _ = roles("train", **words.rows())
    weights = torch.linspace(-1.0, 2.0, RESPONSE)
    loss = (logprobs * weights)[words.given].sum()
    if entropies.requires_grad:
        loss = loss + 0.1 * entropies[words.given].sum()
    loss.backward()
    gradients = {name: p.grad for name, p in roles.named_trained() if p.grad is not None}
    assert len(gradients) == len(roles.named_trained())
    return logprobs.detach(), entropies.detach(), gradients


@pytest.mark.parametrize("entropy", [False, True], ids=("plain-loss", "entropy-in-loss"))
@pytest.mark.parametrize(("way", "whole"), [("packed", False), ("packed", True), ("padded", False)])
def test_chunks_give_what_all_logits_give(
    way: str, whole: bool, entropy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, found = Words.make(), []
    for elements in (1 << 40, FEW):
        monkeypatch.setitem(output.LOGITS_ELEMENTS, "cpu", elements)
        roles = build(WAYS[way], whole=whole)
        roles.trains_entropy = entropy
        assert roles.mixes == (way == "packed")
        found.append(learn(roles, words))
    (logprobs, entropies, plain), (in_chunks, entropies_in_chunks, chunked) = found
    given = words.given
    assert torch.allclose(logprobs[given], in_chunks[given], atol=2e-5) and float(logprobs[given].std()) > 0.5
    assert torch.allclose(entropies[given], entropies_in_chunks[given], atol=2e-5)
    assert plain.keys() == chunked.keys() and max(float(g.abs().max()) for g in plain.values()) > 0.1
    for name, gradient in plain.items():
        scale = float(gradient.abs().max())
        assert torch.allclose(gradient, chunked[name], rtol=1e-3, atol=1e-4 * max(scale, 1e-3)), name


@pytest.mark.parametrize("way", ["packed", "padded"])
def test_the_logits_are_never_held(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(output.LOGITS_ELEMENTS, "cpu", FEW)
    roles, words = build(WAYS[way]), Words.make()
    with LiveMemory(roles.parameters()) as live:
        start = live.now
        with torch.no_grad():
            roles.read([POLICY, REFERENCE], **words.rows())
        judged = live.peak - start
        live.reset()
        learn(roles, words)
        learned = live.peak - start
    print(f"judging {judged / WHOLE_LOGITS:.2f}, learning {learned / WHOLE_LOGITS:.2f} of the whole logits")
    assert max(judged, learned) < WHOLE_LOGITS / 2


@pytest.mark.parametrize("way", ["packed", "padded"])
def test_backward_keeps_the_states_instead_of_the_logits(way: str) -> None:
    """With the bound as it is."""
    roles, words, kept = build(WAYS[way]), Words.make(), {}
    assert int(words.given.sum()) * VOCABULARY > output.LOGITS_ELEMENTS["cpu"]

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in roles.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        roles("train", **words.rows())
    size = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)
    assert size < WHOLE_LOGITS / 10


@pytest.mark.parametrize("way", WAYS)
def test_judging_and_learning_agree_whatever_stands_beside_a_row(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO's first ratio is 1: three sequences are judged at once in chunks, and learned from one by one."""
    monkeypatch.setitem(output.LOGITS_ELEMENTS, "cpu", FEW)
    roles, words = build(WAYS[way]), Words.make()
    with torch.no_grad():
        judged, _ = roles.logprobs(POLICY, **words.rows())
    together = roles("train", **words.rows())[0].detach()
    assert torch.equal(judged[words.given], together[words.given]), "the same rows in the same chunks"
    for row in range(len(PROMPTS)):
        for elements in (FEW, 1 << 40):
            monkeypatch.setitem(output.LOGITS_ELEMENTS, "cpu", elements)
            alone = roles("train", **words.rows(row))[0].detach()[0]
            ratio = (alone - judged[row])[words.given[row]].exp()
            assert float((ratio - 1).abs().max()) < 2e-5


def test_an_adapted_head_takes_the_model_s_own_way() -> None:
    roles = build(WAYS["head-adapted"])
    assert not roles.reads_hidden and not roles.mixes


def test_the_layer_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(output.LOGITS_ELEMENTS, "cpu", 64)
    head, states, ids = torch.nn.Linear(4, 32), torch.randn(9, 4), torch.arange(9)
    output.read_logprobs(head, states, ids, temperature=1.0)
    assert "forward" not in vars(head)
    own = head.forward
    head.forward = own  # as a faster product puts itself there
    with pytest.raises(RuntimeError):
        output.read_logprobs(head, states, ids + 100, temperature=1.0)
    assert vars(head)["forward"] is own


def test_the_plan_knows_the_bounds() -> None:
    assert activations.LOGITS_ELEMENTS == output.LOGITS_ELEMENTS
    assert activations.PASS_TOKENS == decoding.PASS_TOKENS
    assert plan_roles.SCORER_ROWS == scorer.MICROBATCH
