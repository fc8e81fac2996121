"""Workers that hold reward models: beside the training ranks of PPO, and for stages without a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf.data.schema import Message
from rlhf.models.scorer import load_reward_model
from rlhf.workers.context import WorkerContext
from rlhf.workers.heap import give_back

CAN_SKIP = "on_error=drop in its entry of scores"


@dataclass(frozen=True)
class Answer:
    """A response with its prompt, in both forms that a reward model may read.

    Attributes:
        prompt / response: text; the bridge to another tokenizer.
        ids: prompt and response tokens as they were drawn, without padding.
    """

    prompt: tuple[Message, ...]
    response: str
    ids: tuple[int, ...]


class ScorerWorker:
    """Scores with finished reward runs, each on its own base, in its own vocabulary and chat format."""

    def __init__(self, context: WorkerContext, runs: Sequence[str], threads: int) -> None:
        torch.set_num_threads(threads)
        self.context = context
        self.scorers = [load_reward_model(Path(run)) for run in runs]
        for scorer in self.scorers:
            context.beat_with(scorer.model)

    def score(self, texts: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """Normalized scores of (prompt, response) pairs by the first model: a judge's, who leaves none out."""
        return self.scorers[0].score_texts(texts)

    def score_pieces(
        self, pieces: Sequence[Sequence[Answer]], reads_tokens: Sequence[bool], drops: Sequence[bool]
    ) -> list[list[list[float]]]:
        """Normalized scores ``[piece][model][row]``; what is in a piece is scored together, whoever scores it.

        Args:
            reads_tokens: per model, whether it is handed the tokens themselves.
            drops: per model, whether a text that its template rewrites gets NaN instead of an error.
        """
        found = [
            [
                scorer.scores([row.ids for row in piece])
                if by_tokens
                else scorer.score_texts(
                    [(row.prompt, row.response) for row in piece], skip_unwritable=skips, can_skip=CAN_SKIP
                )
                for scorer, by_tokens, skips in zip(self.scorers, reads_tokens, drops, strict=True)
            ]
            for piece in pieces
        ]
        give_back()
        return found
