"""Judging and learning by their GPU branches, on a GPU that is pretended: devices, waits, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.config import LoraConfig
from rlhf.models import adapters
from rlhf.models.roles import CRITIC, POLICY, REFERENCE, REWARD, RewardStart, RoleInit, RolesModel
from rlhf.rollout.experience import Experience, collect
from rlhf.rollout.protocol import Rollout
from tests.support.pretended_gpu import GPU, PretendedGpu, There, held

LORA = adapters.peft_config(LoraConfig(r=4, alpha=8))
SHAPE: dict[str, Any] = {
    "vocab_size": 304, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
JUDGED = [POLICY, REFERENCE, CRITIC, REWARD]
PASSES = {"packed": True, "one by one": False}


def base(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.1, attn_implementation="sdpa")).to(dtype).eval()


def noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return 0.1 * torch.randn(shape, generator=generator)


def roles_of(dtype: torch.dtype, gpu: PretendedGpu | None = None, *, packed: bool = True) -> RolesModel:
    """The same numbers on both devices."""
    generator = torch.Generator().manual_seed(4)
    shape = adapters.attach(base(torch.float32), LORA, "x")
    state = {name: noise(p.shape, generator) for name, p in adapters.adapter_parameters(shape, "x")}
    start = RewardStart(LORA, state, noise(torch.Size((1, 64)), generator), 0.3, 1.5)
    causal = base(dtype) if gpu is None else gpu.put(base(dtype))
    roles = RolesModel(causal, RoleInit(LORA, reward=start, critic_config=LORA), suppress_ids=(2,))
    if gpu is not None:
        gpu.put(roles)
        roles._named, roles._trainable = [], [p for _, p in roles.named_trained()]
    for _, parameter in roles.named_trained():
        with torch.no_grad():
            held(parameter.data).add_(noise(parameter.shape, generator).to(parameter.dtype))
    roles.mixes = roles.mixes and packed
    return roles.eval()


@pytest.fixture(scope="module")
def experience() -> Experience:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 300, (64,), generator=generator).tolist()
    drawn = [
        Rollout(str(n), tuple(ids[n : 3 * n + 4]), tuple(ids[40 : 43 + n]), (-1.0,) * (3 + n), True, 0, "x")
        for n in range(4)
    ]
    return collect(drawn, 2)


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with PretendedGpu() as found:
        yield found


def words_of(part: Experience) -> dict[str, Any]:
    return {
        "input_ids": part.input_ids, "attention_mask": part.attention_mask, "response_ids": part.response_ids,
        "temperature": 0.9,
    }  # fmt: skip


def told_by(found: dict[str, Any]) -> dict[str, Tensor]:
    """Log-probs, entropies, values and scores, in main memory."""
    flat = {"logprobs": found[POLICY][0], "entropy": found[POLICY][1], "reference": found[REFERENCE][0],
            "values": found[CRITIC], "scores": found[REWARD]}  # fmt: skip
    return {key: held(value) for key, value in flat.items()}


def judged(roles: RolesModel, part: Experience) -> dict[str, Tensor]:
    with torch.no_grad():
        return told_by(roles.read(JUDGED, **words_of(part)))


def learned(roles: RolesModel, part: Experience, gpu: PretendedGpu | None) -> dict[str, Tensor]:
    """Gradients of policy and critic."""
    logprobs, _, values = roles("train", want_values=True, **words_of(part))
    weights = part.behaviour_logprobs
    loss = (logprobs * weights).sum() + (values * weights).square().sum()
    loss.backward() if gpu is None else gpu.backward(loss)
    return {name: held(p.grad).float() for name, p in roles.named_trained()}


@pytest.mark.parametrize("packed", PASSES.values(), ids=PASSES)
def test_in_float32_both_devices_say_the_same(packed: bool, experience: Experience) -> None:
    """Their ways through a layer differ, so that the last bits do."""
    alone = roles_of(torch.float32, packed=packed)
    wanted, gradients = judged(alone, experience), learned(alone, experience, None)
    with PretendedGpu() as gpu:
        roles, part = roles_of(torch.float32, gpu, packed=packed), experience.to(GPU)
        found, slopes = judged(roles, part), learned(roles, part, gpu)
    for key, value in wanted.items():
        kept = experience.response_mask if value.dim() == 2 else torch.ones_like(value, dtype=torch.bool)
        torch.testing.assert_close(found[key][kept], value[kept], rtol=1e-4, atol=1e-5, msg=key)
    for name, slope in gradients.items():
        torch.testing.assert_close(slopes[name], slope, rtol=1e-3, atol=1e-4, msg=name)


def test_in_bfloat16_halves_say_what_float32_says(experience: Experience) -> None:
    alone = roles_of(torch.float32)
    wanted, gradients = judged(alone, experience), learned(alone, experience, None)
    with PretendedGpu() as gpu:
        roles, part = roles_of(torch.bfloat16, gpu), experience.to(GPU)
        layers: Any = roles.model.get_base_model().model.layers
        assert roles.mixes and all(layer.halves.attention is not None for layer in layers), "flash attention is asked"
        found, slopes = judged(roles, part), learned(roles, part, gpu)
    for key in ("logprobs", "reference", "values"):
        apart = (found[key] - wanted[key])[experience.response_mask].abs().mean()
        assert float(apart) < 0.03 * max(1.0, float(wanted[key][experience.response_mask].std())), key
    for name, slope in gradients.items():
        assert float(F.cosine_similarity(slopes[name].flatten(), slope.flatten(), dim=0)) > 0.97, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_packed_pass_waits_for_nothing(dtype: torch.dtype, experience: Experience, gpu: PretendedGpu) -> None:
    roles = roles_of(dtype, gpu)
    part = experience.to(GPU)
    judged(roles, part)  # what a role holds is brought once
    gpu.forget()
    judged(roles, part)
    assert not gpu.waits and gpu.sent.total() == 2, (gpu.waits, gpu.sent)
    gpu.forget()
    learned(roles, part, gpu)
    assert not gpu.waits and gpu.sent.total() == 2, (gpu.waits, gpu.sent)


def test_passes_one_by_one_wait_for_nothing_of_ours(experience: Experience, gpu: PretendedGpu) -> None:
    roles = roles_of(torch.float32, gpu, packed=False)
    part = experience.to(GPU)
    judged(roles, part)
    gpu.forget()
    judged(roles, part)
    assert not [place for place in gpu.waits if "rlhf/" in place], gpu.waits


def test_a_mask_on_the_device_is_waited_for_once(experience: Experience, gpu: PretendedGpu) -> None:
    roles, part = roles_of(torch.bfloat16, gpu), experience.to(GPU)
    wanted = judged(roles, part)
    gpu.forget()
    with torch.no_grad():
        words = words_of(part) | {"attention_mask": There(part.attention_mask)}
        found = told_by(roles.read(JUDGED, **words))
    assert gpu.waits.total() == 1
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_only_the_mask_stays_in_main_memory(experience: Experience, gpu: PretendedGpu) -> None:
    part = experience.to(GPU)
    assert part.attention_mask.device.type == "cpu" and part.input_ids.device == part.behaviour_logprobs.device == GPU
    assert not gpu.waits and gpu.sent.total() == 5
    assert part.old_logprobs is None and torch.equal(held(part.input_ids), experience.input_ids)


def test_the_pretended_gpu_refuses_two_devices(gpu: PretendedGpu) -> None:
    there = torch.arange(3, device="cuda")
    assert there.device == GPU and there.is_cuda and not there.is_cpu
    with pytest.raises(RuntimeError, match="tensors of two devices"):
        there + torch.arange(3)
    assert (there + torch.tensor(1)).tolist() == [1, 2, 3] and gpu.waits.total() == 1, "tolist waits"
    gpu.forget()
    mask = there > 0
    assert there[mask].cpu().sum() == 3 and gpu.waits.total() == 2, "a mask's count, and the copy"
    with pytest.raises(RuntimeError, match="data_ptr of a tensor on the GPU"):
        there.data_ptr()
