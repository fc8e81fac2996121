"""Scores of responses: reward models, Python functions, reward servers, or a weighted sum of several."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algos.rewards import clip_scores, missing_eos_replace, missing_eos_scale, missing_eos_subtract
from rlhf.config import FunctionSource, HttpSource, RewardModelSource
from rlhf.config.scores import ScoreSource
from rlhf.config.stages import ScoreConfig
from rlhf.data.schema import Message
from rlhf.errors import DataError
from rlhf.models.scorer import check_reward_run
from rlhf.stages.scoring_function import FunctionScores
from rlhf.stages.scoring_http import HttpScores
from rlhf.stages.scoring_rows import FaultPolicy, Meta, ScoreRows


@dataclass(frozen=True)
class Scored:
    """A step's scores.

    Attributes:
        scores: (rows,) float32, NaN where ``scored`` is False.
        scored: (rows,) bool; the other rows lost a score, are counted, and must not be trained on.
    """

    scores: Tensor
    scored: Tensor


def open_source(source: FunctionSource | HttpSource, index: int = 0) -> ScoreRows:
    """Starts a source that needs no training rank.

    Args:
        index: its place in ``scores``, for messages.

    Raises:
        ConfigError: the function cannot be imported, or the token cannot be read.
    """
    return FunctionScores(source, index) if isinstance(source, FunctionSource) else HttpScores(source, index)


def check_sources(sources: Mapping[str, ScoreSource], *, opening: bool = False) -> None:
    """Refuses reward models that could not score, before any worker starts.

    Args:
        sources: by the key that names each.
        opening: open functions and servers, too, and close them again: for who does not go on to use them.

    Raises:
        RlhfError: not a finished reward run, or its base, tokenizer, head or files are not what they were.
    """
    for key, source in sources.items():
        if isinstance(source, RewardModelSource):
            check_reward_run(source.run, f"{key}.run")
        elif opening:
            open_source(source).close()


class Scorer:
    """Adds up the configured sources; reward-model scores come from the workers that hold the models.

    Close it: function sources are processes.
    """

    def __init__(self, sources: Sequence[ScoreSource], settings: ScoreConfig) -> None:
        self._sources, self._settings = tuple(sources), settings
        self._rows: dict[int, ScoreRows] = {}
        self._models: dict[int, FaultPolicy] = {}
        try:
            for index, source in enumerate(sources):
                if isinstance(source, RewardModelSource):
                    self._models[index] = FaultPolicy(f"reward model {source.run}", index, source.on_error)
                else:
                    self._rows[index] = open_source(source, index)
        except BaseException:
            self.close()
            raise

    @property
    def errors(self) -> dict[str, int]:
        """Faults of all sources since the start, by kind; their sum is ``reward_errors_total``."""
        found: Counter[str] = Counter()
        for errors in [*(r.errors for r in self._rows.values()), *(m.errors for m in self._models.values())]:
            found.update(errors)
        return dict(found)

    @property
    def reads_meta(self) -> bool:
        """Whether a source is told about the rows, so that scores depend on their other columns."""
        return any(source.reads_meta for source in self._rows.values())

    def total(self, prompts: list[str], responses: list[str], model_scores: Tensor, meta: Meta | None = None) -> Scored:
        """Weighted sum of all sources.

        Args:
            model_scores: (rows, sources); only the columns of reward models are read.
            meta: one entry per response (``data.meta.about``), for the sources that read it.

        Raises:
            DataError: a source with ``on_error=fail`` gave no finite number, or no response kept its score.
            WorkerError: a source with ``on_error=fail`` gave no answer.
        """
        total = torch.zeros(len(responses), dtype=torch.float64)
        for index, source in enumerate(self._sources):
            if index in self._rows:
                found = torch.tensor(self._rows[index].score(prompts, responses, meta), dtype=torch.float64)
            else:
                found = model_scores[:, index].double()
                self._models[index].check_model(found.tolist())
            total = total + source.weight * found
        scored = torch.isfinite(total)
        if len(responses) and not bool(scored.any()):
            raise DataError(f"no response of the step has a score; faults so far: {self.errors}; see the driver's log")
        return Scored(total.float().masked_fill(~scored, math.nan), scored)

    def shape(self, scores: Tensor, finished: Tensor) -> Tensor:
        """Missing-EOS rule, then clipping: what is trained on (the raw scores are what is reported)."""
        rule, value = self._settings.missing_eos, self._settings.missing_eos_value
        if value is not None:  # always given, but for the rule that keeps
            if rule == "subtract":
                scores = missing_eos_subtract(scores, finished, penalty=value)
            elif rule == "replace":
                scores = missing_eos_replace(scores, finished, value=value)
            elif rule == "scale":
                scores = missing_eos_scale(scores, finished, factor=value)
        if self._settings.clip is not None:
            scores = clip_scores(scores, low=-self._settings.clip, high=self._settings.clip)
        return scores

    def close(self) -> None:
        """Ends the processes of the function sources; safe to call twice."""
        for source in self._rows.values():
            source.close()


def prompt_text(messages: Sequence[Message]) -> str:
    """What a score function sees as the prompt: the text itself, or all turns with their roles."""
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{m.role}: {m.content}" for m in messages)
