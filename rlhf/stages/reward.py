"""The reward stage: preferences to pairs of tokens, ranks that train, scores normalized once, held-out accuracy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rlhf.config import RewardConfig
from rlhf.data.chat import ChatFormat
from rlhf.data.loading import Keys, load_demonstrations
from rlhf.models.scorer import RewardSettings, read_reward_settings
from rlhf.stages.encode import encode_answers
from rlhf.stages.pairs import held_out_figures, open_model, read_pairs
from rlhf.stages.run_dir import prepare_run_dir, release_run_dir
from rlhf.stages.starting_model import with_starting_models
from rlhf.stages.training import (
    Progress,
    TokenRow,
    finish,
    read_description,
    train_on_ranks,
)

MAX_SAMPLES = 2048
"""Most sequences on which scores are normalized; more would not move the mean noticeably."""


def run_reward(config: RewardConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Trains a reward model on preferences; returns the summary that is also written to ``summary.json``.

    Args:
        progress: called as ``progress(step, total, **figures)`` after every step and evaluation.

    Raises:
        RlhfError: see ``rlhf.errors``; no pair is left out silently.
    """
    started = time.perf_counter()
    config = with_starting_models(config)
    source, chat = open_model(config)
    run_dir = prepare_run_dir(config)
    try:
        rows = read_pairs(config, chat, run_dir)
        sequences, normalized = sequences_to_normalize_on(config, rows.train, chat, run_dir)
        parts = (rows.train, rows.evaluation, sequences)
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
        figures["rows"] = rows.counts | normalized
        figures["seconds"] = time.perf_counter() - started
        _write_settings(config, run_dir, figures)
        return finish(config, run_dir, source, chat, read_description(run_dir), figures)
    finally:
        release_run_dir(run_dir)


def sequences_to_normalize_on(
    config: RewardConfig, train: list[TokenRow], chat: ChatFormat, run_dir: Path
) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids of the rows of ``normalize_on``, or of both responses of every training pair, a part where many; and
    what became of the rows."""
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
