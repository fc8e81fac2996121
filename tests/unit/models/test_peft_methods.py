"""Every row of the support matrix, on a tiny model: what a row promises holds, and what it denies is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlhf.config import LoraConfig, ModelConfig, SamplingConfig, build_config
from rlhf.config.methods import METHODS
from rlhf.errors import ConfigError
from rlhf.models import adapters, peft_support
from rlhf.models.export import ADAPTER, merge_into_copy
from rlhf.models.loading import load_causal_lm
from rlhf.models.peft_methods import method_of
from rlhf.models.roles import CRITIC, POLICY, REFERENCE, RoleInit, RolesModel
from rlhf.models.scorer import build_reward_model
from rlhf.models.source import ModelSource
from rlhf.models.tokenizer import load_tokenizer
from rlhf.rollout.protocol import PromptTask
from rlhf.rollout.transformers_engine import TransformersGenerator
from rlhf.weights.snapshot import pack

USABLE = [name for name, method in METHODS.items() if not method.refused]
IDS = torch.randint(3, 290, (2, 14), generator=torch.Generator().manual_seed(0))


def lora(name: str) -> LoraConfig:
    return LoraConfig(method=name, r=4, alpha=8)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def load(base: Path, quantization: str = "none") -> Any:
    config = ModelConfig.model_validate({"name": str(base), "quantization": quantization, "dtype": "float32"})
    source = ModelSource(str(base), None, str(base))
    return load_causal_lm(source, config, load_tokenizer(source, config))


def train(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()


def trained(base: Path, name: str, quantization: str = "none") -> Any:
    torch.manual_seed(0)
    model = adapters.fresh(load(base, quantization), lora(name), ADAPTER).eval()
    train(model)
    return model


def base_bytes(model: Any) -> str:
    digest = hashlib.sha256()
    for key, parameter in model.named_parameters():
        if not adapters._is_adapter(key) and "_head." not in key:
            digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", USABLE)
def test_trains_reloads_and_switches_off(name: str, tiny_base: Path, tmp_path: Path) -> None:
    plain = load(tiny_base)
    fresh = logits(plain)
    torch.manual_seed(0)
    model = adapters.fresh(plain, lora(name), ADAPTER)
    assert float((logits(model) - fresh).abs().max()) < 1e-4, "a fresh adapter changes nothing"
    own = dict(adapters.adapter_parameters(model, ADAPTER))
    assert {id(p) for p in own.values()} == {id(p) for p in model.parameters() if p.requires_grad}
    before = base_bytes(model)
    train(model)
    moved = logits(model)
    assert float((moved - fresh).abs().max()) > 1e-3
    assert base_bytes(model) == before
    adapters.save_adapter_file(tmp_path, model.peft_config[ADAPTER], str(tiny_base), own)
    config = adapters.read_peft_config(tmp_path)
    assert method_of(config) == ("lora" if METHODS[name].holds_half else name)
    torch.manual_seed(99)
    again = adapters.attach(load(tiny_base), config, "other")
    adapters.write_adapter(again, "other", adapters.read_adapter_file(tmp_path)[0])
    assert torch.equal(logits(again), moved)
    theirs = PeftModel.from_pretrained(load(tiny_base), str(tmp_path))
    assert torch.allclose(logits(theirs), moved, atol=1e-5), "PEFT reads the file by itself"
    with model.disable_adapter():
        assert torch.allclose(logits(model), fresh, atol=1e-5)


@pytest.mark.parametrize("name", USABLE)
def test_merging(name: str, tiny_base: Path) -> None:
    model = trained(tiny_base, name)
    expected = logits(model)
    if METHODS[name].mergeable:
        assert float((logits(merge_into_copy(model)) - expected).abs().max()) < 1e-4
    else:
        assert METHODS[name].limit
        with pytest.raises(ConfigError, match=rf"lora.method={name} cannot be merged"):
            merge_into_copy(model)


@pytest.mark.parametrize("name", USABLE)
def test_reward_head(name: str, tiny_base: Path) -> None:
    config = ModelConfig(name=str(tiny_base), dtype="float32")
    source = ModelSource(str(tiny_base), None, str(tiny_base))
    model: Any = build_reward_model(source, config, load_tokenizer(source, config))
    model.score.draw(0)
    model = adapters.fresh(model, lora(name), ADAPTER, "SEQ_CLS")
    start = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        scores = model(IDS).logits[:, 0]
        (-torch.nn.functional.logsigmoid(scores[0] - scores[1])).backward()
        optimizer.step()
    now = {key: p for key, p in model.named_parameters() if p.requires_grad}
    heads = [key for key in now if "score" in key]
    assert len(heads) == 1 and not torch.equal(now[heads[0]], start[heads[0]])
    own = dict(adapters.adapter_parameters(model, ADAPTER))
    assert len(own) == len(now) - 1
    assert any(not torch.equal(p, start[key]) for key, p in now.items() if key not in heads)


@pytest.mark.parametrize("name", USABLE)
def test_four_roles_and_a_rollout_worker(name: str, tiny_base: Path) -> None:
    """Policy and critic learn on one base, the reference stands still, and a rollout worker samples the policy."""
    torch.manual_seed(0)
    config = adapters.peft_config(lora(name))
    init = RoleInit(config, critic_config=adapters.peft_config(lora(name)), method=name)
    roles = RolesModel(load(tiny_base), init).eval()
    mask = torch.ones_like(IDS, dtype=torch.bool)
    ask = {"input_ids": IDS, "attention_mask": mask, "response_ids": IDS[:, 8:], "temperature": 1.0}
    before = base_bytes(roles)
    reference = roles("logprobs", role=REFERENCE, **ask)[0].detach()
    assert torch.equal(roles("logprobs", role=POLICY, **ask)[0].detach(), reference)
    named = dict(roles.named_trained())
    start = {key: p.detach().clone() for key, p in named.items()}
    optimizer = torch.optim.AdamW(list(named.values()), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        logprobs, _, values = roles("train", **ask, want_values=True)
        (logprobs.sum() + (values - 1).square().sum()).backward()
        optimizer.step()
    for role in (POLICY, CRITIC):
        own = [key for key in named if key.startswith(f"{role}.")]
        assert own and any(not torch.equal(named[key], start[key]) for key in own)
    assert torch.equal(roles("logprobs", role=REFERENCE, **ask)[0].detach(), reference)
    assert base_bytes(roles) == before
    policy = {k.removeprefix(f"{POLICY}."): p.detach() for k, p in named.items() if k.startswith(f"{POLICY}.")}
    torch.manual_seed(1)
    engine = TransformersGenerator(
        AutoModelForCausalLM.from_pretrained(tiny_base), adapters.peft_config(lora(name)),
        stop_ids=(1,), pad_id=2, microbatch=4,
    )  # fmt: skip
    engine.install(pack(policy, 1))
    live = roles("logprobs", role=POLICY, **ask)[0].detach()
    assert not torch.allclose(live, reference, atol=1e-4)
    assert engine.score_tokens(IDS[0, :8].tolist(), IDS[0, 8:].tolist(), 1.0) == pytest.approx(
        live[0].tolist(), abs=2e-5
    )
    drawn = engine.generate([PromptTask("a", (5, 6, 7), 0)], SamplingConfig(max_response_tokens=6))[0]
    again = engine.score_tokens([5, 6, 7], list(drawn.response_ids), 1.0)
    assert again == pytest.approx(list(drawn.logprobs), abs=2e-5)


@pytest.mark.parametrize("name", USABLE)
def test_4_bit_base(name: str, tiny_base: Path) -> None:
    if not METHODS[name].four_bit:
        assert METHODS[name].limit
        with pytest.raises(ConfigError, match=rf"lora.method={name} does not work on a 4-bit base"):
            trained(tiny_base, name, "nf4")
        return
    fresh = logits(load(tiny_base, "nf4"))
    model = trained(tiny_base, name, "nf4")
    moved = logits(model)
    assert float((moved - fresh).abs().max()) > 1e-3
    with model.disable_adapter():
        assert torch.allclose(logits(model), fresh, atol=1e-5), "training leaves the 4-bit weights alone"
    if METHODS[name].mergeable:
        assert float((logits(merge_into_copy(model)) - moved).abs().max()) < 0.02


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.refused])
def test_what_cannot_be_used_is_refused_by_name_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"lora.method={name} cannot be used: ") as refused:
        build_config(LoraConfig, {"method": name}, source="a file")
    assert METHODS[name].refused in str(refused.value)


def test_unknown_methods_and_mixed_switches_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora.method='lorra' is not known; choose one of lora, dora"):
        build_config(LoraConfig, {"method": "lorra"}, source="a file")
    with pytest.raises(ConfigError, match=r"change LoRA, not lora.method=ia3"):
        build_config(LoraConfig, {"method": "ia3", "use_dora": True}, source="a file")


def test_roles_of_different_methods_are_refused(tiny_base: Path) -> None:
    init = RoleInit(adapters.peft_config(lora("ia3")), critic_config=adapters.peft_config(lora("lora")))
    with pytest.raises(ConfigError, match="'critic' is of method lora, the base already carries ia3"):
        RolesModel(load(tiny_base), init)


def test_the_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert peft_support.main(["list", "--json", "--no-count"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(METHODS)
    assert peft_support.main(["list", "--no-count"]) == 0
    shown = capsys.readouterr().out
    assert "Refused by name" in shown and "p_tuning" in shown


def test_trained_shares_are_those_of_a_7b_model() -> None:
    shares = peft_support.trainable_percent(("lora", "ia3", "pissa", "prompt"))
    assert shares.keys() == {"lora", "ia3", "pissa"} and shares["pissa"] == shares["lora"]
    # 32 layers x (4 x (4096 + 4096) + 3 x (4096 + 11008)) x 16 of 6.738e9
    assert shares["lora"] == pytest.approx(100 * 39976960 / 6738415616, rel=1e-3)
    assert shares["ia3"] == pytest.approx(100 * 32 * (2 * 4096 + 11008) / 6738415616, rel=1e-2)
