"""Supervised fine-tuning: rows to tokens, ranks that train, an adapter and its record."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import SftConfig
from rlhf.data.chat import ChatFormat
from rlhf.data.loading import Keys, load_demonstrations
from rlhf.data.packing import pack_rows
from rlhf.data.schema import DemonstrationRow
from rlhf.models.policy_source import resolve_policy
from rlhf.models.positions import check_positions
from rlhf.models.source import ModelSource
from rlhf.models.tokenizer import load_chat
from rlhf.stages.encode import IGNORED, encode_demonstrations
from rlhf.stages.quality import report_quality
from rlhf.stages.run_dir import prepare_run_dir, release_run_dir
from rlhf.stages.sources import Part, read_mixed, rows_per_source, whole_of
from rlhf.stages.starting_model import with_starting_models
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

_KEYS = Keys("data.format", "data.on_bad_row")


@dataclass(frozen=True)
class SftRows:
    """Encoded rows, and how they came to be."""

    train: list[TokenRow]
    evaluation: list[TokenRow]
    num_steps: int
    counts: dict[str, Any]


def run_sft(config: SftConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Fine-tunes on demonstrations; returns the summary that is also written to ``summary.json``.

    Args:
        progress: called as ``progress(step, total, **figures)`` after every step and evaluation.

    Raises:
        RlhfError: see ``rlhf.errors``; no row is left out silently.
    """
    started = time.perf_counter()
    config = with_starting_models(config)
    source, chat = open_model(config)
    run_dir = prepare_run_dir(config)
    try:
        rows = read_rows(config, chat, run_dir)
        figures = train_on_ranks(
            "rlhf.workers.sft:SftWorker",
            config,
            run_dir,
            (rows.train, rows.evaluation),
            rows.num_steps,
            progress,
            source=source,
            chat=chat,
        )
        figures["rows"] = rows.counts
        figures["seconds"] = time.perf_counter() - started
        return finish(config, run_dir, source, chat, read_description(run_dir), figures)
    finally:
        release_run_dir(run_dir)


def open_model(config: SftConfig) -> tuple[ModelSource, ChatFormat]:
    """Where the model comes from and how it reads conversations."""
    source = resolve_policy(config.model.name, config.model.revision)
    refuse_full_training_on_adapter(config, source)
    chat = load_chat(source, config.model)[1]
    check_positions(source, config.model, {"data.max_sequence_tokens": config.data.max_sequence_tokens})
    return source, chat


def read_rows(config: SftConfig, chat: ChatFormat, run_dir: Path) -> SftRows:
    """Loads, splits, encodes and, where asked, packs the demonstrations."""
    data = config.data
    rows = _train(config, run_dir)
    given = _held_out(config, run_dir)
    train, held_out = split(rows, given, data, config.seed, run_dir)
    encoded, long_rows = encode_demonstrations(train, chat, data, run_dir / "long_rows.jsonl")
    evaluation: list[TokenRow] = []
    long_evaluation: dict[str, int] = {}
    if held_out:
        evaluation, long_evaluation = encode_demonstrations(
            held_out, chat, data, run_dir / "long_rows_evaluation.jsonl"
        )
    loss_tokens = sum(label != IGNORED for row in encoded for label in row["labels"])
    counts = {
        "train": len(encoded),
        "evaluation": len(evaluation),
        "tokens": sum(len(row["input_ids"]) for row in encoded),
        "loss_tokens": loss_tokens,
        "sources": rows_per_source(data.train, rows),
        "overlap": 0 if given is None else len(rows) - len(train),
        "long": long_rows,
        "long_evaluation": long_evaluation,
    }
    if config.packing:
        encoded = pack_rows(encoded, data.max_sequence_tokens)
        counts["packed"] = len(encoded)
    steps = optimizer_steps(len(encoded), config.batch.minibatch_sequences, config.num_epochs, config.max_steps)
    return SftRows(encoded, evaluation, steps, counts)


def _train(config: SftConfig, run_dir: Path) -> list[DemonstrationRow]:
    data = config.data
    whole = whole_of(data.train, data.format, data.limit, "dropped.jsonl", _KEYS)
    return read_mixed(
        data.train,
        whole,
        "data.train",
        lambda part: _load(config, part, run_dir),
        lambda rows: report_quality(rows, run_dir),
    )


def _held_out(config: SftConfig, run_dir: Path) -> list[DemonstrationRow] | None:
    data = config.data
    if data.evaluation is None:
        return None
    return _load(config, Part(data.evaluation, data.format, None, "dropped_evaluation.jsonl", _KEYS), run_dir)


def _load(config: SftConfig, part: Part, run_dir: Path) -> list[DemonstrationRow]:
    return load_demonstrations(
        part.files,
        format=part.format,
        on_bad_row=config.data.on_bad_row,
        dropped_path=run_dir / part.dropped,
        limit=part.limit,
        keys=part.keys,
    )
