"""Four roles on one base, against a model that holds nothing else."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf.config import LoraConfig, ModelConfig
from rlhf.errors import ConfigError
from rlhf.models import adapters, blocks, packing
from rlhf.models.loading import load_causal_lm
from rlhf.models.roles import CRITIC, POLICY, REFERENCE, REWARD, RewardStart, RoleInit, RolesModel
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer

CONFIG = adapters.peft_config(LoraConfig(r=4, alpha=8))
PROMPTS = [[5, 20, 31, 40], [60], [7, 8, 9]]
RESPONSES = [[50, 51, 2], [33, 34, 35, 36, 37], [2]]


def random_state(base: Path, seed: int) -> dict[str, Tensor]:
    model = adapters.attach(AutoModelForCausalLM.from_pretrained(base), CONFIG, "x")
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(p.shape, generator=generator) * 0.2 for k, p in adapters.adapter_parameters(model, "x")}


def reward_head() -> Tensor:
    return torch.randn(1, 64, generator=torch.Generator().manual_seed(9))


def build(base: Path, *, policy: bool = True, reward: bool = False, critic: bool = True, **model: object) -> RolesModel:
    torch.manual_seed(0)
    config = ModelConfig(name=str(base), **model)  # type: ignore[arg-type]
    source = resolve_model(str(base))
    causal = load_causal_lm(source, config, load_tokenizer(source, config))
    init = RoleInit(
        CONFIG,
        random_state(base, 1) if policy else None,
        reward=RewardStart(CONFIG, random_state(base, 2), reward_head(), 1.7, 2.5) if reward else None,
        critic_config=CONFIG if critic else None,
    )
    return RolesModel(causal, init).eval()


def alone(base: Path, state: dict[str, Tensor] | None) -> torch.nn.Module:
    """The base with at most one adapter: what every role is compared with."""
    model = adapters.attach(AutoModelForCausalLM.from_pretrained(base), CONFIG, "x")
    if state is not None:
        adapters.write_adapter(model, "x", state)
    return model.eval()


def batch(left: int = 0, right: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids, attention, response ids, response mask), padded further by ``left`` and ``right`` slots of junk."""
    width, room = max(map(len, PROMPTS)) + left, max(map(len, RESPONSES)) + right
    ids = torch.full((len(PROMPTS), width + room), 17)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        both = torch.tensor(prompt + response)
        ids[row, width - len(prompt) : width + len(response)] = both
        keep[row, width - len(prompt) : width + len(response)] = True
    return ids, keep, ids[:, width:], keep[:, width:]


def cross_entropies(model: torch.nn.Module, row: int, temperature: float) -> Tensor:
    """Log-probs of one row's response by teacher forcing, without any padding."""
    ids = torch.tensor([PROMPTS[row] + RESPONSES[row]])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1] / temperature
    return -F.cross_entropy(logits, ids[0, 1:], reduction="none")[len(PROMPTS[row]) - 1 :]


def hidden_states(model: torch.nn.Module, row: int) -> Tensor:
    ids = torch.tensor([PROMPTS[row] + RESPONSES[row]])
    with torch.no_grad():
        return model.get_base_model().model(ids).last_hidden_state[0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_teacher_forcing(temperature: float, tiny_base: Path) -> None:
    roles, policy = build(tiny_base), alone(tiny_base, random_state(tiny_base, 1))
    ids, keep, response_ids, _mask = batch()
    with torch.no_grad():
        found, entropies = roles.logprobs(POLICY, ids, keep, response_ids, temperature)
    for row, response in enumerate(RESPONSES):
        expected = cross_entropies(policy, row, temperature)
        assert torch.allclose(found[row, : len(response)], expected, atol=1e-5)
    assert expected.min() < -1  # the model is no constant
    ids0 = torch.tensor([PROMPTS[0] + RESPONSES[0]])
    with torch.no_grad():
        probs = (policy(ids0).logits[0, 3:-1] / temperature).softmax(-1)
    assert torch.allclose(entropies[0, :3], -(probs * probs.log()).sum(-1), atol=1e-5)


def test_padding_on_either_side_changes_nothing(tiny_base: Path) -> None:
    roles = build(tiny_base, reward=True)
    ids, keep, response_ids, mask = batch()
    wide_ids, wide_keep, wide_response, wide_mask = batch(left=3, right=4)
    with torch.no_grad():
        for role in (POLICY, REFERENCE):
            plain = roles.logprobs(role, ids, keep, response_ids, 1.0)[0][mask]
            padded = roles.logprobs(role, wide_ids, wide_keep, wide_response, 1.0)[0][wide_mask]
            assert torch.allclose(plain, padded, atol=1e-5)
        values = roles.values(ids, keep, response_ids.shape[1])[mask]
        padded = roles.values(wide_ids, wide_keep, wide_response.shape[1])[wide_mask]
        assert torch.allclose(values, padded, atol=1e-5) and values.std() > 0.01
        assert torch.allclose(roles.scores(ids, keep), roles.scores(wide_ids, wide_keep), atol=1e-5)


def test_values_are_of_the_state_before_each_token(tiny_base: Path) -> None:
    roles = build(tiny_base, reward=True)
    critic = alone(tiny_base, random_state(tiny_base, 2))
    ids, keep, response_ids, _ = batch()
    with torch.no_grad():
        found = roles.values(ids, keep, response_ids.shape[1])
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            hidden = hidden_states(critic, row)[len(prompt) - 1 : len(prompt) + len(response) - 1]
            assert torch.allclose(found[row, : len(response)], roles.value_head(hidden)[:, 0], atol=1e-5)


def test_the_last_token_is_taken_by_the_reward_model_alone(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roles, taken, own = build(tiny_base, reward=True), {}, packing.pack
    ids, keep, response_ids, mask = batch(right=2)

    def pack(input_ids: Tensor, keeps: Sequence[Tensor], *rest: Any) -> Any:
        taken.update(zip((REFERENCE, CRITIC, REWARD), [int(each.sum()) for each in keeps], strict=True))
        return own(input_ids, keeps, *rest)

    with torch.no_grad():
        monkeypatch.setattr("rlhf.models.roles.packing.pack", pack)
        before = roles.read([REFERENCE, CRITIC, REWARD], ids, keep, response_ids, 1.0)
        monkeypatch.undo()
        whole = int(keep.sum())
        assert taken == {REFERENCE: whole - len(ids), CRITIC: whole - len(ids), REWARD: whole}
        other = ids.clone()
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            other[row, ids.shape[1] - 2 - max(map(len, RESPONSES)) + len(response) - 1] = 1 + len(prompt)
        after = roles.read([REFERENCE, CRITIC, REWARD], other, keep, response_ids, 1.0)
    assert torch.equal(before[CRITIC][mask], after[CRITIC][mask])
    assert torch.equal(before[REFERENCE][0][mask], after[REFERENCE][0][mask])
    assert not torch.isclose(before[REWARD], after[REWARD], atol=1e-4).any()


def test_a_value_cannot_see_its_own_token(tiny_base: Path) -> None:
    roles = build(tiny_base, reward=True)
    ids, keep, response_ids, _ = batch()
    other = ids.clone()
    other[1, 4 + 2] = 99  # third response token of the longest row
    with torch.no_grad():
        before, after = (roles.values(x, keep, response_ids.shape[1])[1] for x in (ids, other))
    assert torch.equal(before[:3], after[:3]) and not torch.allclose(before[3:], after[3:])


def test_score_is_read_at_the_last_real_token(tiny_base: Path) -> None:
    roles, reward = build(tiny_base, reward=True), alone(tiny_base, random_state(tiny_base, 2))
    ids, keep, *_ = batch(right=2)
    with torch.no_grad():
        found = roles.scores(ids, keep)
        for row in range(len(PROMPTS)):
            raw = hidden_states(reward, row)[-1] @ reward_head()[0]
            assert found[row].item() == pytest.approx((raw.item() - 1.7) / 2.5, abs=1e-5)
        without_end = keep.clone()
        without_end[0, 4 + 2] = False  # the stop token of the first row
        assert abs(roles.scores(ids, without_end)[0] - found[0]) > 1e-3


@pytest.mark.parametrize("packs", [True, False])
def test_scores_and_values_of_a_bf16_base_are_not_rounded(packs: bool, tiny_base: Path) -> None:
    """An engine makes all that the module holds bf16; the reward head stays as it was trained."""
    roles = build(tiny_base, reward=True, dtype="bfloat16").bfloat16()
    roles.mixes &= packs
    ids, keep, response_ids, mask = batch()
    states: list[Tensor] = []
    causal: Any = roles.model.get_base_model()
    causal.model.register_forward_hook(lambda _, __, out: states.append(out.last_hidden_state))
    with torch.no_grad():
        scores, values = roles.scores(ids, keep), roles.values(ids, keep, response_ids.shape[1])
    assert roles.mixes == packs and {s.dtype for s in states} == {torch.bfloat16}
    places = keep.long().cumsum(1).argmax(1)
    last = states[0][0][: len(ids)] if packs else states[0][torch.arange(len(ids)), places]  # packed: what is read
    raw = last.float() @ reward_head()[0]
    assert scores.dtype == torch.float32 and torch.allclose(scores, (raw - 1.7) / 2.5, atol=1e-5)
    assert not torch.allclose(raw, (last @ reward_head()[0].bfloat16()).float(), atol=1e-3)
    told = values[mask]
    assert values.dtype == torch.float32 and not torch.equal(told, told.bfloat16().float())


def test_reference_is_the_start_policy_exactly_and_stays(tiny_base: Path) -> None:
    for policy in (True, False):
        roles = build(tiny_base, policy=policy)
        ids, keep, response_ids, mask = batch()
        with torch.no_grad():
            start = roles.logprobs(POLICY, ids, keep, response_ids, 0.7)[0]
            assert torch.equal(start, roles.logprobs(REFERENCE, ids, keep, response_ids, 0.7)[0])
            for _, parameter in roles.named_trained():
                parameter.add_(0.05)
            assert torch.equal(start, roles.logprobs(REFERENCE, ids, keep, response_ids, 0.7)[0])
            moved = roles.logprobs(POLICY, ids, keep, response_ids, 0.7)[0]
        assert not torch.allclose(start[mask], moved[mask], atol=1e-3)


def test_critic_starts_as_the_normalized_reward_model(tiny_base: Path) -> None:
    """The value after the last token is the score: one affine for both."""
    roles = build(tiny_base, reward=True)
    ids, keep, *_ = batch()
    further = [torch.cat([t, t.new_ones(len(t), 1)], dim=1) for t in (ids, keep)]
    with torch.no_grad():
        for row, response in enumerate(RESPONSES):
            end = 4 + len(response)
            further[1][row, end] = True  # one token more: its value sees the whole response
            whole = [t[row : row + 1, : end + 1] for t in further]
            score = roles.scores(ids[row : row + 1, :end], keep[row : row + 1, :end])
            assert torch.allclose(roles.values(*whole, 1)[:, 0], score, atol=1e-5)


def test_critic_without_a_reward_model_starts_at_zero(tiny_base: Path) -> None:
    roles = build(tiny_base)
    ids, keep, response_ids, _ = batch()
    with torch.no_grad():
        assert torch.equal(roles.values(ids, keep, response_ids.shape[1]), torch.zeros_like(response_ids).float())


def frozen_hash(roles: RolesModel) -> str:
    trained = {id(p) for _, p in roles.named_trained()}
    digest = hashlib.sha256()
    for name, parameter in roles.named_parameters():
        if id(parameter) not in trained:
            digest.update(name.encode() + parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train(roles: RolesModel, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in roles.parameters() if p.requires_grad], lr=1e-2)
    ids, keep, response_ids, mask = batch()
    for _ in range(steps):
        words = {"response_ids": response_ids, "temperature": 1.0}
        logprobs, _, values = roles("train", input_ids=ids, attention_mask=keep, want_values=True, **words)
        loss = logprobs[mask].sum() + (values[mask] - 1).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_training_moves_policy_and_critic_and_nothing_else(tiny_base: Path) -> None:
    roles = build(tiny_base, reward=True)
    before = frozen_hash(roles)
    start = {name: p.detach().clone() for name, p in roles.named_trained()}
    ids, keep, *_ = batch()
    with torch.no_grad():
        score = roles.scores(ids, keep)
    train(roles)
    assert frozen_hash(roles) == before
    assert all(not torch.equal(p, start[name]) for name, p in roles.named_trained())
    with torch.no_grad():
        assert torch.equal(roles.scores(ids, keep), score)
    assert {name.split(".")[0] for name, _ in roles.named_trained()} == {POLICY, CRITIC}
    assert REWARD not in {name.split(".")[0] for name, _ in roles.named_trained()}


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_base(quantization: str, tiny_base: Path) -> None:
    roles = build(tiny_base, quantization=quantization)
    before = frozen_hash(roles)
    ids, keep, response_ids, mask = batch()
    with torch.no_grad():
        start = roles.logprobs(POLICY, ids, keep, response_ids, 1.0)[0]
        assert torch.equal(start, roles.logprobs(REFERENCE, ids, keep, response_ids, 1.0)[0])
        exact = build(tiny_base).logprobs(POLICY, ids, keep, response_ids, 1.0)[0]
    assert 0 < (start - exact)[mask].abs().max() < 2.0  # quantized indeed, and still the same model
    train(roles, steps=1)
    assert frozen_hash(roles) == before


def test_quantized_base_passes_gradients_after_judging(tiny_base: Path) -> None:
    """A pass without gradients must not turn 4-bit weights into a form that has no backward pass."""
    untouched = gradients(tiny_base, judge_first=False, quantization="nf4")
    judged = gradients(tiny_base, quantization="nf4")
    for name, value in untouched.items():
        assert torch.allclose(value, judged[name], rtol=1e-4, atol=1e-4), name


def gradients(
    base: Path, *, judge_first: bool = True, use_reentrant: bool | None = None, **model: object
) -> dict[str, Tensor]:
    """Gradients of policy and critic after a judging pass, as in a PPO step."""
    roles = build(base, reward=True, **model).train(not judge_first)
    if judge_first:
        with torch.no_grad():
            roles.logprobs(POLICY, *batch()[:3], 1.0)
    if use_reentrant is not None:
        roles.enable_checkpointing(use_reentrant=use_reentrant)
    ids, keep, response_ids, mask = batch()
    words = {"response_ids": response_ids, "temperature": 1.0}
    logprobs, _, values = roles("train", input_ids=ids, attention_mask=keep, want_values=True, **words)
    (logprobs[mask].sum() + (values[mask] - 1).square().sum()).backward()
    return {name: p.grad.clone() for name, p in roles.named_trained() if p.grad is not None}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_activations_belong_to_their_role(
    use_reentrant: bool, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradient checkpointing runs layers again during backward, when the last role's adapter is the active one."""
    plain = gradients(tiny_base)
    calls = Counter()
    forward = blocks._forward
    monkeypatch.setattr(blocks, "_forward", lambda *a, **k: calls.update(["layer"]) or forward(*a, **k))
    again = gradients(tiny_base, use_reentrant=use_reentrant)
    tried = 1  # when it is installed
    assert calls["layer"] == 2 * (tried + 1 + 2)  # judging once; policy and critic together, forward and again
    assert plain.keys() == again.keys() and len(plain) == 2 * 28 + 2
    for name, value in plain.items():
        assert torch.allclose(value, again[name], rtol=1e-4, atol=1e-5), name
    assert max(float(v.abs().max()) for v in plain.values()) > 0.1


def test_feed_forwards_are_made_again_only_where_they_can_be(tiny_base: Path) -> None:
    plain = gradients(tiny_base)
    roles = build(tiny_base, reward=True)
    roles.recompute_feed_forward()
    ids, keep, response_ids, mask = batch()
    words = {"response_ids": response_ids, "temperature": 1.0}
    logprobs, _, values = roles("train", input_ids=ids, attention_mask=keep, want_values=True, **words)
    (logprobs[mask].sum() + (values[mask] - 1).square().sum()).backward()
    found = {name: p.grad for name, p in roles.named_trained() if p.grad is not None}
    assert plain.keys() == found.keys() and all(torch.equal(value, found[name]) for name, value in plain.items())
    with pytest.raises(ConfigError, match=r"gradient_checkpointing=true does it for any model"):
        build(tiny_base, quantization="nf4").recompute_feed_forward()


def test_unknown_task_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ValueError, match="unknown task 'generate'"):
        build(tiny_base)("generate")


@pytest.mark.parametrize("tuned", [True, False])
def test_a_whole_policy_starts_as_the_reference_and_leaves_the_base_alone(tuned: bool, tiny_base: Path) -> None:
    config = ModelConfig(name=str(tiny_base))
    source = resolve_model(str(tiny_base))
    causal = load_causal_lm(source, config, load_tokenizer(source, config))
    state = random_state(tiny_base, 1) if tuned else None
    own: Any = copy.deepcopy(causal)
    if state is not None:
        adapted: Any = adapters.attach(own, CONFIG, "x")
        adapters.write_adapter(adapted, "x", state)
        own = adapted.merge_and_unload()
    roles = RolesModel(causal, RoleInit(CONFIG, state, own.requires_grad_(True), critic_config=CONFIG)).eval()
    assert roles.mixes
    ids, mask, response, given = batch()
    found = roles.read([POLICY, REFERENCE, CRITIC], ids, mask, response, 1.0)
    assert torch.allclose(found[POLICY][0][given], found[REFERENCE][0][given], atol=1e-5)
    before = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in causal.parameters())).hexdigest()
    trained = dict(roles.named_trained())
    loss = found[POLICY][0][given].sum() + found[CRITIC][given].sum()
    loss.backward()
    with torch.no_grad():
        for name, parameter in trained.items():
            assert parameter.grad is not None, name
            if name.startswith(POLICY):
                parameter.add_(parameter.grad, alpha=-1e-3)
    assert {name for name, p in roles.named_parameters() if p.requires_grad} == {
        name for name, p in roles.named_parameters() if any(p is q for q in trained.values())
    }
    after = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in causal.parameters())).hexdigest()
    assert before == after
    again = roles.read([POLICY, REFERENCE], ids, mask, response, 1.0)
    assert torch.equal(again[REFERENCE][0][given], found[REFERENCE][0][given])
    assert float((again[POLICY][0] - found[POLICY][0])[given].abs().max()) > 1e-4
