"""Pairs of responses for the stages that learn from them: read, split by prompt, encoded; how well they are ordered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import PairConfig
from rlhf.config.sources import STORE_PREFIX
from rlhf.data.chat import ChatFormat
from rlhf.data.schema import PreferenceRow
from rlhf.errors import ConfigError
from rlhf.models.positions import check_positions
from rlhf.models.source import ModelSource, resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.stages.accuracy import length_baseline, pair_accuracy
from rlhf.stages.encode import encode_preferences
from rlhf.stages.preferences import read_preferences
from rlhf.stages.sources import rows_per_source
from rlhf.stages.training import TokenRow, refuse_full_training_on_adapter, split
from rlhf.workers.schedule import optimizer_steps


@dataclass(frozen=True)
class PairRows:
    """Encoded pairs, and how they came to be."""

    train: list[TokenRow]
    evaluation: list[TokenRow]
    num_steps: int
    counts: dict[str, Any]


def open_model(config: PairConfig) -> tuple[ModelSource, ChatFormat]:
    """Where the model comes from and how it reads conversations."""
    source = resolve_model(config.model.name, config.model.revision)
    refuse_full_training_on_adapter(config, source)
    if config.annotator_weights and not str(config.data.train).startswith(STORE_PREFIX):
        raise ConfigError("annotator_weights needs rankings from the preference store: set data.train=store:PROJECT")
    chat = load_chat(source, config.model)[1]
    check_positions(source, config.model, {"data.max_sequence_tokens": config.data.max_sequence_tokens})
    return source, chat


def read_pairs(config: PairConfig, chat: ChatFormat, run_dir: Path) -> PairRows:
    """Loads, splits by prompt and encodes the pairs."""
    data = config.data
    found = read_preferences(data, data.train, run_dir, limit=data.limit, annotator_weights=config.annotator_weights)
    held_out = None
    if data.evaluation is not None:
        held_out = read_preferences(data, data.evaluation, run_dir, dropped="dropped_evaluation.jsonl")
    train, evaluation = split(found, held_out, data, config.seed, run_dir)
    encoded, long_rows = _encode(config, train, chat, run_dir / "long_rows.jsonl", "training")
    encoded_evaluation: list[TokenRow] = []
    long_evaluation: dict[str, int] = {}
    if evaluation:
        named = f"data.eval_fraction={data.eval_fraction:g}" if data.evaluation is None else "data.evaluation"
        encoded_evaluation, long_evaluation = _encode(
            config, evaluation, chat, run_dir / "long_rows_evaluation.jsonl", f"held-out ({named})"
        )
    steps = optimizer_steps(len(encoded), config.batch.minibatch_pairs, config.num_epochs, config.max_steps)
    counts = {
        "train": len(encoded),
        "train_prompts": len({row["group"] for row in encoded}),
        "evaluation": len(encoded_evaluation),
        "evaluation_prompts": len({row["group"] for row in encoded_evaluation}),
        "soft_labels": sum(0 < row["probability"] < 1 for row in encoded),
        "sources": rows_per_source(data.train, found),
        "overlap": 0 if held_out is None else len(found) - len(train),
        "long": long_rows,
        "long_evaluation": long_evaluation,
    }
    return PairRows(encoded, encoded_evaluation, steps, counts)


def held_out_figures(config: PairConfig, rows: PairRows, scores: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Held-out accuracy with intervals, beside chance and the length rule.

    Args:
        scores: (chosen, rejected) of every held-out pair, in order.
    """
    if not rows.evaluation:
        return {"accuracy": None}
    pairs = rows.evaluation
    differences = [chosen - rejected for chosen, rejected in scores]
    groups = [row["group"] for row in pairs]
    found = pair_accuracy(differences, [row["probability"] for row in pairs], groups, seed=config.seed)
    baseline = length_baseline(rows.train, pairs, seed=config.seed)
    return {**found, "chance": 0.5, "length_baseline": baseline}


def _encode(
    config: PairConfig, rows: list[PreferenceRow], chat: ChatFormat, long_path: Path, which: str
) -> tuple[list[TokenRow], dict[str, int]]:
    return encode_preferences(
        rows,
        chat,
        config.data,
        use_margins=config.stage == "reward" and config.use_margins,
        weight_by_prompt=config.weight_by_prompt,
        prompt_length=config.stage == "dpo",
        dropped_path=long_path,
        which=which,
    )
