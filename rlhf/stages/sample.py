"""Candidates for the annotators: K responses per prompt, each with the policy version and seed that drew it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.config import SampleConfig
from rlhf.config.finished import SUMMARY_FILE
from rlhf.data.schema import PromptRow
from rlhf.stages.candidates import Origin
from rlhf.stages.drawing import Drawn, OpenPolicy, draw, open_policy
from rlhf.stages.prompts import read_prompts
from rlhf.stages.run_dir import prepare_run_dir, release_run_dir, write_atomic, write_json
from rlhf.stages.starting_model import with_starting_models

CANDIDATES_FILE = "candidates.jsonl"


def run_sample(config: SampleConfig, *, progress: Callable[..., None] | None = None) -> dict[str, Any]:
    """Draws candidates and writes ``candidates.jsonl``, which ``rlhf prefs import`` reads; returns the summary.

    Equal and unreadable responses are left out, and with them prompts that keep fewer than two.
    """
    started = time.perf_counter()
    config = with_starting_models(config)
    run_dir = prepare_run_dir(config)
    try:
        policy, prompts = open_inputs(config, run_dir)
        drawn = draw(
            [policy],
            prompts,
            responses_per_prompt=config.responses_per_prompt,
            sampling=config.sampling,
            placement=config.placement,
            recovery=config.recovery,
            microbatch=config.microbatch_sequences,
            seed=config.seed,
            run_dir=str(run_dir),
            progress=progress,
        )[0]
        num_items = _write(run_dir / CANDIDATES_FILE, config, prompts, drawn)
        summary = {
            "stage": "sample",
            "num_prompts": len(prompts),
            "num_items": num_items,
            "num_responses": len(prompts) * config.responses_per_prompt,
            "seconds": time.perf_counter() - started,
        }
        write_json(run_dir / SUMMARY_FILE, summary)  # last of all: its presence means that the run is whole
        return summary
    finally:
        release_run_dir(run_dir)


def open_inputs(config: SampleConfig, run_dir: Path | None) -> tuple[OpenPolicy, list[PromptRow]]:
    """The policy and the prompts, refused here or drawn from; see ``read_prompts``."""
    prompts = read_prompts(config, run_dir)
    return open_policy(config.model, prompts, config.sampling), prompts


def _write(path: Path, config: SampleConfig, prompts: list[PromptRow], drawn: Drawn) -> int:
    """One line per prompt in the store's import format; returns how many prompts have something to compare.

    A prompt's ``group`` goes along: it says which people rank its task.
    """
    origin, lines = Origin.of(config.model.name, config.model.revision), []
    for row, texts, rollouts, seeds in zip(prompts, drawn.texts, drawn.rollouts, drawn.seeds, strict=True):
        responses = origin.candidates(texts, rollouts, seeds, config.sampling)
        if len(responses) < 2:
            continue
        prompt = [message.as_dict() for message in row.messages]
        line = {"id": row.id, "prompt": prompt, "responses": responses, "source": origin.run}
        if row.meta.get("group"):
            line["group"] = row.meta["group"]
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines))
    return len(lines)
