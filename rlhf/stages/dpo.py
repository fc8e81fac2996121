"""The DPO stage: preferences to pairs of tokens, ranks that train a policy on them, held-out accuracy."""

from __future__ import annotations

import time
from typing import Any

from rlhf.config import DpoConfig
from rlhf.stages.pairs import held_out_figures, open_model, read_pairs
from rlhf.stages.run_dir import prepare_run_dir, release_run_dir
from rlhf.stages.starting_model import with_starting_models
from rlhf.stages.training import Progress, finish, read_description, train_on_ranks


def run_dpo(config: DpoConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Trains a policy on preferences; returns the summary that is also written to ``summary.json``.

    Votes that differ make soft labels, pairs weigh as in reward training; margins are not used: no loss here has one.

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
        figures = train_on_ranks(
            "rlhf.workers.dpo:DpoWorker",
            config,
            run_dir,
            (rows.train, rows.evaluation),
            rows.num_steps,
            progress,
            source=source,
            chat=chat,
        )
        figures["implicit_reward"] = held_out_figures(config, rows, figures.pop("eval_rewards"))
        figures["rows"] = rows.counts
        figures["seconds"] = time.perf_counter() - started
        return finish(config, run_dir, source, chat, read_description(run_dir), figures)
    finally:
        release_run_dir(run_dir)
