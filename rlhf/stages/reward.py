"""The reward stage: preferences to pairs of tokens, ranks that train, scores normalized once, held-out accuracy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import RewardConfig
from rlhf.data.chat import ChatFormat
from rlhf.data.loading import Keys, load_demonstrations
from rlhf.data.schema import PreferenceRow
from rlhf.errors import ConfigError
from rlhf.models.positions import check_positions
from rlhf.models.scorer import RewardSettings, read_reward_settings
from rlhf.models.source import ModelSource, resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.stages.accuracy import length_baseline, pair_accuracy
from rlhf.stages.encode import encode_answers, encode_preferences
from rlhf.stages.preferences import STORE_PREFIX, read_preferences
from rlhf.stages.run_dir import prepare_run_dir, release_run_dir
from rlhf.stages.training import (
    Progress,
    TokenRow,
    finish,
    read_description,
    refuse_full_training_on_adapter,
    split,
    train_on_ranks,
)
from rlhf.workers.schedule import optimizer_steps

MAX_SAMPLES = 2048
"""Most sequences on which scores are normalized; more would not move the mean noticeably."""


@dataclass(frozen=True)
class RewardRows:
    """Encoded pairs, the sequences to normalize on, and how they came to be."""

    train: list[TokenRow]
    evaluation: list[TokenRow]
    samples: list[list[int]]
    num_steps: int
    counts: dict[str, Any]


def run_reward(config: RewardConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Trains a reward model on preferences; returns the summary that is also written to ``summary.json``.

    Args:
        progress: called as ``progress(step, total, **figures)`` after every step and evaluation.

    Raises:
        RlhfError: see ``rlhf.errors``; no pair is left out silently.
    """
    started = time.perf_counter()
    source, chat = open_model(config)
    run_dir = prepare_run_dir(config)
    try:
        rows = read_rows(config, chat, run_dir)
        parts = (rows.train, rows.evaluation, rows.samples)
        figures = train_on_ranks(
            "rlhf.workers.reward:RewardWorker",
            config,
            run_dir,
            parts,
            rows.num_steps,
            progress,
            source=source,
            chat=chat,
        )
        figures["reward_model"] = held_out_figures(config, rows, figures.pop("eval_scores"))
        figures["rows"] = rows.counts
        figures["seconds"] = time.perf_counter() - started
        _write_settings(config, run_dir, figures)
        return finish(config, run_dir, source, chat, read_description(run_dir), figures)
    finally:
        release_run_dir(run_dir)


def open_model(config: RewardConfig) -> tuple[ModelSource, ChatFormat]:
    """Where the model comes from and how it reads conversations."""
    source = resolve_model(config.model.name, config.model.revision)
    refuse_full_training_on_adapter(config, source)
    if config.annotator_weights and not str(config.data.train).startswith(STORE_PREFIX):
        raise ConfigError("annotator_weights needs rankings from the preference store: set data.train=store:PROJECT")
    chat = load_chat(source, config.model)[1]
    check_positions(source, config.model, {"data.max_sequence_tokens": config.data.max_sequence_tokens})
    return source, chat


def read_rows(config: RewardConfig, chat: ChatFormat, run_dir: Path) -> RewardRows:
    """Loads, splits by prompt and encodes the pairs."""
    data = config.data
    found = read_preferences(data, data.train, run_dir, limit=data.limit, annotator_weights=config.annotator_weights)
    held_out = None
    if data.evaluation is not None:
        held_out = read_preferences(data, data.evaluation, run_dir, dropped="dropped_evaluation.jsonl")
    train, evaluation = split(found, held_out, data, config.seed, run_dir)
    encoded, long_rows = _encode(config, train, chat, run_dir / "long_rows.jsonl")
    encoded_evaluation: list[TokenRow] = []
    long_evaluation: dict[str, int] = {}
    if evaluation:
        encoded_evaluation, long_evaluation = _encode(config, evaluation, chat, run_dir / "long_rows_evaluation.jsonl")
    steps = optimizer_steps(len(encoded), config.batch.minibatch_pairs, config.num_epochs, config.max_steps)
    counts = {
        "train": len(encoded),
        "train_prompts": len({row["group"] for row in encoded}),
        "evaluation": len(encoded_evaluation),
        "evaluation_prompts": len({row["group"] for row in encoded_evaluation}),
        "soft_labels": sum(0 < row["probability"] < 1 for row in encoded),
        "overlap": 0 if held_out is None else len(found) - len(train),
        "long": long_rows,
        "long_evaluation": long_evaluation,
    }
    samples, found_samples = _samples(config, encoded, chat, run_dir)
    return RewardRows(encoded, encoded_evaluation, samples, steps, counts | found_samples)


def held_out_figures(config: RewardConfig, rows: RewardRows, scores: list[tuple[float, float]]) -> dict[str, Any]:
    """Held-out accuracy with intervals, beside chance and the length rule."""
    if not rows.evaluation:
        return {"accuracy": None}
    pairs = rows.evaluation
    differences = [chosen - rejected for chosen, rejected in scores]
    groups = [row["group"] for row in pairs]
    found = pair_accuracy(differences, [row["probability"] for row in pairs], groups, seed=config.seed)
    baseline = length_baseline(rows.train, pairs, seed=config.seed)
    return {**found, "chance": 0.5, "length_baseline": baseline}


def _encode(
    config: RewardConfig, rows: list[PreferenceRow], chat: ChatFormat, long_path: Path
) -> tuple[list[TokenRow], dict[str, int]]:
    return encode_preferences(
        rows,
        chat,
        config.data,
        use_margins=config.use_margins,
        weight_by_prompt=config.weight_by_prompt,
        dropped_path=long_path,
    )


def _samples(
    config: RewardConfig, train: list[TokenRow], chat: ChatFormat, run_dir: Path
) -> tuple[list[list[int]], dict[str, Any]]:
    """Whole sequences, each scored at its last token, on which scores are normalized; and what became of the rows."""
    counts: dict[str, Any] = {}
    if config.normalize_on is not None:
        rows = load_demonstrations(
            config.normalize_on,
            on_bad_row=config.data.on_bad_row,
            dropped_path=run_dir / "dropped_normalize.jsonl",
            keys=Keys("", "data.on_bad_row"),
        )
        sequences, long_rows = encode_answers(rows, chat, config.data, run_dir / "long_rows_normalize.jsonl")
        counts = {"normalize": len(sequences), "long_normalize": long_rows}
    else:
        both = [row[key] for row in train for key in ("chosen_ids", "rejected_ids")]
        sequences = list(map(list, dict.fromkeys(map(tuple, both))))
    stride = -(-len(sequences) // MAX_SAMPLES)
    return sequences[::stride], counts


def _write_settings(config: RewardConfig, run_dir: Path, figures: dict[str, Any]) -> None:
    directory = run_dir / ("model" if config.lora is None else "adapter")
    settings = read_reward_settings(directory)
    found = dict(figures["reward_model"])
    found = {"eval_accuracy": found.pop("accuracy"), **found}
    RewardSettings(settings.mean, settings.std, settings.num_samples, settings.dtype, found).write(directory)
