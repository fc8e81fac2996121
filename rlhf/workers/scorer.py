"""A worker that holds a reward model for stages without a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rlhf.data.schema import Message
from rlhf.models.scorer import load_reward_model
from rlhf.workers.context import WorkerContext


class ScorerWorker:
    """Scores texts with a finished reward run."""

    def __init__(self, context: WorkerContext, run: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.context = context
        self.scorer = load_reward_model(Path(run))

    def score(self, texts: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """Normalized scores of (prompt, response) pairs."""
        return self.scorer.score_texts(texts)
