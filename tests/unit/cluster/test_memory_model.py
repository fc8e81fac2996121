"""Predicted bytes against the bytes of real tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cluster.activations import kv_cache, logits_activations, pass_activations, ppo_peak
from cluster.memory_model import adapter_tensors, base_tensors, elements, resident, training_state
from cluster.shapes import SHAPES as KNOWN
from cluster.shapes import ModelShape, shape_from_config
from rlhf.config import EngineConfig, LoraConfig, ModelConfig
from rlhf.models import adapters
from rlhf.models.loading import load_causal_lm
from rlhf.models.roles import RoleInit, RolesModel
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer
from tests.support.live_memory import LiveMemory
from tests.support.tiny import build_model

torch.set_num_threads(1)  # the tensors are tiny
SHAPES: list[dict[str, Any]] = [
    {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
     "num_key_value_heads": 2},
    {"vocab_size": 1000, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 6,
     "num_key_value_heads": 6},
    {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 200, "num_hidden_layers": 2, "num_attention_heads": 8,
     "num_key_value_heads": 1, "tie_word_embeddings": True},
]  # fmt: skip


def near(predicted: float, measured: float, bound: float) -> None:
    assert predicted == pytest.approx(measured, rel=bound), f"predicted {predicted:.0f}, measured {measured:.0f}"


def build(sizes: dict[str, Any], lora: LoraConfig, dtype: torch.dtype, *, critic: bool = True) -> RolesModel:
    base = LlamaForCausalLM(LlamaConfig(max_position_embeddings=512, **sizes)).to(dtype)
    config = adapters.peft_config(lora)
    return RolesModel(base, RoleInit(config, critic_config=config if critic else None), suppress_ids=(1,))


def shape_of(model: RolesModel) -> ModelShape:
    return shape_from_config(model.model.get_base_model().config.to_dict(), "built")


@pytest.mark.parametrize("sizes", SHAPES, ids=lambda s: f"h{s['hidden_size']}")
@pytest.mark.parametrize("lora", [LoraConfig(r=16, target_modules=("q_proj", "down_proj")),
                                  LoraConfig(r=8, use_dora=True),
                                  LoraConfig(r=4, method="pissa")], ids=("some", "dora", "pissa"))  # fmt: skip
def test_weights_and_adapters(sizes: dict[str, Any], lora: LoraConfig) -> None:
    model = build(sizes, lora, torch.float32)
    named = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    own = sum(size for name, size in named.items() if "lora_" in name)
    head = sum(size for name, size in named.items() if "head.w" in name or "head.b" in name) - sum(
        size for name, size in named.items() if "lm_head" in name
    )
    shape = shape_of(model)
    assert 3 * sum(t.bytes for t in adapter_tensors(shape, lora, 4)) == own  # policy, reference, critic
    base = sum(t.bytes for t in base_tensors(shape, ModelConfig(name="x"), 4))
    assert base == sum(named.values()) - own - head


def test_optimizer_of_one_real_step() -> None:
    model = build(SHAPES[0], LoraConfig(r=4), torch.float32)
    trained = [p for _, p in model.named_trained()]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.randint(2, 500, (2, 24))
    out, _, values = model("train", input_ids=ids, attention_mask=torch.ones_like(ids, dtype=torch.bool),
                           response_ids=ids[:, 8:], temperature=1.0, want_values=True)  # fmt: skip
    (out.sum() + values.sum()).backward()
    gradients = sum(p.grad.numel() * 4 for p in trained if p.grad is not None)
    optimizer.step()
    states = sum(v.numel() * 4 for s in optimizer.state.values() for v in s.values() if v.numel() > 1)
    shape = shape_of(model)
    state = training_state(2 * adapter_tensors(shape, LoraConfig(r=4), 4), EngineConfig(zero_stage=0), 1, width=4)
    near(state.gradients, gradients, 0.05)
    near(state.optimizer, states, 0.05)


@pytest.mark.parametrize(
    ("critic", "checkpointing", "dtype"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (True, True, torch.bfloat16),
    ],
    ids=("policy", "with-critic", "recomputed"),
)
@pytest.mark.parametrize("sizes", SHAPES, ids=lambda s: f"h{s['hidden_size']}")
def test_activations_that_autograd_saves(
    sizes: dict[str, Any], critic: bool, checkpointing: bool, dtype: torch.dtype
) -> None:
    model = build(sizes, LoraConfig(r=8), dtype, critic=critic)
    if checkpointing:
        model.enable_checkpointing(use_reentrant=False)
    rows, prompt, response = 3, 32, 64
    measured = saved_bytes(model, rows, prompt, response, critic)
    width, shape = dtype.itemsize, shape_of(model)
    kept, _ = pass_activations(shape, LoraConfig(r=8), rows=rows, tokens=prompt + response, width=width,
                               checkpointing=checkpointing, packed=True, halves=True, read=response)  # fmt: skip
    logits, _ = logits_activations(shape, rows=rows, response=response, width=width)
    value = 2 * rows * response * shape.hidden * width if critic else 0
    # predicted too high by up to 2.6% per pass; two passes with bf16 logits are 5.2% off at the smallest vocabulary
    near((1 + critic) * kept + logits + value, measured, 0.06 if critic else 0.05)


def saved_bytes(model: RolesModel, rows: int, prompt: int, response: int, critic: bool) -> int:
    """Bytes of the storages that one training pass saves for backward, parameters left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # holding the tensors keeps their addresses from being used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in weights:
            kept.setdefault(address, tensor)
        return tensor

    ids = torch.randint(2, 290, (rows, prompt + response))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :3] = False
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model("train", input_ids=ids, attention_mask=mask, response_ids=ids[:, prompt:], temperature=1.0,
              want_values=critic)  # fmt: skip
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def test_a_large_vocabulary_keeps_states_instead_of_logits() -> None:
    sizes = {**SHAPES[1], "vocab_size": 100_000}
    model = build(sizes, LoraConfig(r=8), torch.float32, critic=False)
    measured, shape = saved_bytes(model, 3, 32, 64, critic=False), shape_of(model)
    kept, _ = pass_activations(
        shape, LoraConfig(r=8), rows=3, tokens=96, width=4, checkpointing=False, packed=True, halves=True, read=64
    )
    logits, transient = logits_activations(shape, rows=3, response=64, width=4)
    assert logits == 3 * 64 * 96 * 4 and transient < 3 * 64 * 100_000 * 5 * 4
    near(kept + logits, measured, 0.05)


WIDE = {"vocab_size": 2000, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4}  # fmt: skip
WORDY = {**WIDE, "vocab_size": 70_000, "num_hidden_layers": 2}
DEEP = {**WIDE, "vocab_size": 300, "num_hidden_layers": 6, "num_key_value_heads": 8}


@pytest.mark.parametrize(("sizes", "critic", "checkpointing", "dtype"), [
    (WIDE, False, False, torch.float32),
    (WIDE, True, False, torch.bfloat16),
    (WIDE, True, True, torch.float32),
    (DEEP, True, True, torch.bfloat16),
    (WORDY, True, True, torch.bfloat16),
    (WORDY, False, False, torch.float32),
])  # fmt: skip
def test_peak_of_a_whole_training_step(
    sizes: dict[str, Any], critic: bool, checkpointing: bool, dtype: torch.dtype, record_property: Any
) -> None:
    """Everything together: forward, backward and optimizer step, every live tensor followed."""
    lora, width, rows, prompt, response = LoraConfig(r=8), dtype.itemsize, 4, 64, 64
    model = build(sizes, lora, dtype, critic=critic)
    if checkpointing:
        model.enable_checkpointing(use_reentrant=False)
    optimizer = torch.optim.AdamW([p for _, p in model.named_trained()])
    ids = torch.randint(2, sizes["vocab_size"], (rows, prompt + response))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :3] = False
    with LiveMemory(model.parameters()) as live:
        for _ in range(2):  # moments exist from the second step on
            live.reset()
            logprobs, _, values = model("train", input_ids=ids, attention_mask=mask, response_ids=ids[:, prompt:],
                                        temperature=1.0, want_values=critic)  # fmt: skip
            loss = logprobs.sum() + (values.sum() if values is not None else 0)
            loss.backward()
            del loss, logprobs, values
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    shape, one = shape_of(model), adapter_tensors(shape_of(model), lora, width)
    trained = (1 + critic) * one
    held = sum(t.bytes for t in [*base_tensors(shape, ModelConfig(name="x"), width), *one, *trained])
    held += elements(trained) * width * 3  # gradients, and moments as wide as the parameters: torch trains here
    activations = ppo_peak(shape, lora, rows=rows, prompt=prompt, response=response, width=width,
                           checkpointing=checkpointing, critic=critic, halves=True)  # fmt: skip
    record_property("ratio", (held + activations) / live.peak)
    print(f"predicted/measured {(held + activations) / live.peak:.3f}")
    near(held + activations, live.peak, 0.15)


def test_key_value_cache() -> None:
    model = build(SHAPES[0], LoraConfig(r=4), torch.float32)
    ids = torch.randint(2, 500, (5, 40))
    base = LlamaForCausalLM(LlamaConfig(max_position_embeddings=512, **SHAPES[0]))
    cache = base(input_ids=ids, use_cache=True).past_key_values
    measured = sum(t.numel() * 4 for layer in cache.layers for t in (layer.keys, layer.values))
    shape = shape_of(model)
    whole = kv_cache(shape, rows=5, tokens=40, width=4)
    assert whole - whole / (shape.layers + 1) == measured


@pytest.mark.parametrize(("quantization", "double"), [("nf4", True), ("nf4", False), ("int8", False)])
def test_quantized_bases(quantization: str, double: bool, tmp_path: Path) -> None:
    """Packed weights and their scales, as bitsandbytes holds them."""
    path = build_model(tmp_path / "m", hidden_size=256, intermediate_size=512, num_attention_heads=4)
    config = ModelConfig.model_validate(
        {"name": str(path), "dtype": "bfloat16", "quantization": quantization, "double_quantization": double}
    )
    source = resolve_model(str(path))
    model: Any = load_causal_lm(source, config, load_tokenizer(source, config))
    measured = sum(p.numel() * p.element_size() for p in model.parameters())
    for parameter in model.parameters():
        measured += scale_bytes(parameter)
    shape = shape_from_config(model.config.to_dict(), "built")
    near(sum(t.bytes for t in base_tensors(shape, config, 2)), measured, 0.05)


def scale_bytes(parameter: Any) -> int:
    """Bytes beside a quantized matrix."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        scales = getattr(parameter, "SCB", None)
        return 0 if scales is None else scales.numel() * scales.element_size()
    parts = [state.absmax, state.code]
    if state.nested:
        parts += [state.offset, state.state2.absmax, state.state2.code]
    return sum(t.numel() * t.element_size() for t in parts)


def test_zero_three_cuts_large_tensors_and_keeps_small_ones_whole() -> None:
    shape = KNOWN["llama-7b"]
    base = base_tensors(shape, ModelConfig(name="x"), 2)
    whole = sum(t.bytes for t in base)
    for ranks in (2, 8, 64):
        found = resident(base, EngineConfig(zero_stage=3), ranks)
        assert whole / ranks < found < 1.02 * whole / ranks
    adapter = adapter_tensors(shape, LoraConfig(r=4), 2)
    assert resident(adapter, EngineConfig(zero_stage=3), 8) == pytest.approx(1.125 * 2 * elements(adapter))
