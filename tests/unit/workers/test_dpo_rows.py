"""The policy beside its own start: every adapter method, the losses by name, pairs on their way in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer
from trl import DPOConfig as TrlDpoConfig

from rlhf.config import DpoConfig, ModelConfig, build_config
from rlhf.config.methods import METHODS
from rlhf.config.model import LoraConfig
from rlhf.data.chat import chat_format
from rlhf.data.schema import Message, PreferenceRow
from rlhf.errors import ConfigError
from rlhf.models import adapters
from rlhf.models.loading import load_causal_lm
from rlhf.models.source import resolve_model
from rlhf.stages.encode import encode_preferences
from rlhf.workers.dpo import IGNORED, DpoStageTrainer, PreferenceCollator, freeze_start, log_probs

USABLE = [name for name, row in METHODS.items() if not row.refused]


def settings(base: Path, **changes: Any) -> DpoConfig:
    tree = {"run_dir": "r", "model": {"name": str(base)}, "data": {"train": "p"}, **changes}
    return build_config(DpoConfig, tree, source="test")


def pairs(base: Path) -> list[dict[str, Any]]:
    chat = chat_format(AutoTokenizer.from_pretrained(base), "default")
    prompt = (Message("user", "May I eat figs?"),)
    rows = [
        PreferenceRow("a", prompt, "Yes, a few of them.", "No."),
        PreferenceRow("b", prompt, "Two.", "All that there are, at once.", probability=0.75, weight=3.0),
    ]
    data = settings(base).data
    keys = {"use_margins": False, "weight_by_prompt": False, "prompt_length": True}
    return encode_preferences(rows, chat, data, **keys)[0]


def trainer_of(base: Path, model: Any, run_dir: Path, **changes: Any) -> DpoStageTrainer:
    tokenizer = AutoTokenizer.from_pretrained(base)
    arguments = TrlDpoConfig(output_dir=str(run_dir), use_cpu=True, bf16=False, report_to=[], max_length=None,
                             gradient_checkpointing=False)  # fmt: skip
    return DpoStageTrainer(
        settings(base, **changes),
        [],
        1.0,
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(pairs(base)),
        data_collator=PreferenceCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
    )


def base_model(base: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base)
    return load_causal_lm(resolve_model(str(base)), ModelConfig(name=str(base), dtype="float32"), tokenizer)


def plain_log_probs(model: Any, rows: list[dict[str, Any]]) -> Tensor:
    """One sequence at a time through the model's own logits: no padding, no fused head."""
    found = []
    for key in ("chosen_ids", "rejected_ids"):
        for row in rows:
            ids = torch.tensor([row[key]])
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            tokens = logs.gather(1, ids[0, 1:, None])[:, 0]
            found.append(tokens[row["num_prompt_tokens"] - 1 :].sum())
    return torch.stack(found)


@pytest.mark.parametrize("method", USABLE)
def test_the_reference_stays_the_start_while_the_policy_moves(
    method: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = pairs(tiny_model_dir)
    expected = plain_log_probs(base_model(tiny_model_dir), rows)
    model = adapters.fresh(base_model(tiny_model_dir), LoraConfig(method=method, r=4), "default")
    trainer = trainer_of(tiny_model_dir, model, tmp_path)
    freeze_start(model)
    inputs = PreferenceCollator(0)(rows)
    assert trainer._log_ratios(model, inputs).tolist() == [0.0] * 4, "equal to the last bit"
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for _, p in adapters.adapter_parameters(model, "default")}
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.05 * torch.randn_like(parameter))
    ratios = trainer._log_ratios(model, inputs)
    assert ratios.abs().min() > 1e-6
    policy = log_probs(model, inputs)
    assert torch.allclose((policy - ratios).double(), expected, atol=1e-4), "the reference is the base"
    assert torch.allclose(policy.double(), plain_log_probs(model, rows), atol=1e-4)
    ratios.sum().backward()
    assert all(p.grad is None for _, p in adapters.adapter_parameters(model, "ref"))
    assert any(p.grad is not None for p in trained) and trained[0].requires_grad


@pytest.mark.parametrize(("changes", "start"), [
    ({}, math.log(2)), ({"loss_type": "hinge"}, 1.0), ({"loss_type": "ipo", "beta": 0.25}, 4.0),
    ({"loss_type": "robust", "label_smoothing": 0.1}, math.log(2)),
])  # fmt: skip
def test_losses_by_name(changes: dict[str, Any], start: float, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = adapters.fresh(base_model(tiny_model_dir), LoraConfig(r=4), "default")
    trainer = trainer_of(tiny_model_dir, model, tmp_path, **changes)
    beta, one = trainer.settings.beta, torch.ones(1)

    def loss(chosen: float, rejected: float, probability: float = 1.0) -> float:
        ratios, counts = torch.tensor([chosen, rejected]), torch.tensor([4, 2])
        return float(trainer._loss(ratios, counts, probability * one, one, 1.0))

    assert loss(0.0, 0.0) == pytest.approx(start)
    assert loss(0.4, 0.0) < start < loss(0.0, 0.4)
    assert loss(0.4, 0.3, 0.0) == pytest.approx(loss(-0.4, -0.3)), "no vote for it: the pair the other way round"
    if changes.get("loss_type") == "ipo":  # a mean over the tokens of each
        assert loss(2.0, 0.4) == pytest.approx((2.0 / 4 - 0.4 / 2 - 1 / (2 * beta)) ** 2)
    elif not changes:
        assert loss(2.0, -1.0) == pytest.approx(math.log1p(math.exp(-beta * 3.0)))


def test_pairs_are_laid_out_with_the_prompt_off_the_targets(tiny_model_dir: Path) -> None:
    rows = pairs(tiny_model_dir)
    batch = PreferenceCollator(7)(rows)
    assert batch["input_ids"].shape == batch["targets"].shape == batch["attention_mask"].shape
    assert len(batch["input_ids"]) == 4 and "labels" not in batch
    for index, (row, key) in enumerate([(row, key) for key in ("chosen_ids", "rejected_ids") for row in rows]):
        ids, length = row[key], row["num_prompt_tokens"]
        assert batch["input_ids"][index, : len(ids)].tolist() == ids
        kept = batch["targets"][index]
        assert kept[length : len(ids)].tolist() == ids[length:] and (kept[:length] == IGNORED).all()
        assert (kept[len(ids) :] == IGNORED).all() and int(batch["attention_mask"][index].sum()) == len(ids)
    assert batch["probability"].tolist() == [1.0, 0.75] and batch["weight"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize(("changes", "reason"), [
    ({"loss_type": "robust"}, r"label_smoothing=0 does not fit loss_type=robust"),
    ({"label_smoothing": 0.1}, r"label_smoothing=0\.1 does not fit loss_type=sigmoid"),
    ({"lora": {"dropout": 0.1}}, r"lora\.dropout=0\.1 would make the policy differ"),
    ({"lora": None, "model": {"name": "m", "quantization": "nf4"}}, "needs an adapter"),
    ({"batch": {"minibatch_pairs": 6}}, r"batch\.minibatch_pairs=6 must be a multiple"),
    ({"use_margins": True}, "unknown key 'use_margins'"),
])  # fmt: skip
def test_what_has_no_meaning_is_refused(changes: dict[str, Any], reason: str, tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        settings(tiny_model_dir, **changes)
