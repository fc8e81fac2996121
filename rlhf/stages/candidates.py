"""Candidates for annotators: a policy's responses to one prompt, in the form that the preference store imports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.config import SamplingConfig
from rlhf.config.finished import SUMMARY_FILE
from rlhf.data.schema import RowError, check_text
from rlhf.models.source import ModelSource, resolve_model
from rlhf.rollout.protocol import Rollout


@dataclass(frozen=True)
class Origin:
    """Which policy drew a response.

    Attributes:
        run: the name it was asked for by: a run directory, a model directory or a hub id.
        step: optimizer or PPO steps that its adapter was trained for; 0 for a model that no run made.
        adapter_uri: where the adapter is; empty without one.
    """

    run: str
    step: int
    adapter_uri: str

    @classmethod
    def of(cls, run: str, revision: str | None = None) -> Origin:
        """The origin of a run's or model's responses.

        Raises:
            ConfigError: no such run or model.
        """
        source = resolve_model(run, revision)
        return cls(run, _trained_steps(source), str(source.adapter or ""))

    def candidates(
        self, texts: Sequence[str], rollouts: Sequence[Rollout], seeds: Sequence[int], sampling: SamplingConfig
    ) -> list[dict[str, Any]]:
        """Responses to one prompt with all that is known of their origin; equal and unreadable ones are left out."""
        found: dict[str, dict[str, Any]] = {}
        for text, rollout, seed in zip(texts, rollouts, seeds, strict=True):
            text = text.strip()
            if not _readable(text):
                continue
            found.setdefault(
                text,
                {
                    "text": text,
                    "run": self.run,
                    "step": self.step,
                    "adapter_uri": self.adapter_uri,
                    "adapter_sha256": rollout.adapter_sha256,
                    "sampling": {**sampling.model_dump(), "seed": seed, "finished": rollout.finished},
                    "num_tokens": len(rollout.response_ids),
                },
            )
        return list(found.values())


def _trained_steps(source: ModelSource) -> int:
    if source.run_dir is None or not (source.run_dir / SUMMARY_FILE).is_file():
        return 0
    summary = json.loads((source.run_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
    best = summary.get("best_step", -1)
    return best if best is not None and best >= 0 else summary.get("num_steps", 0)


def _readable(text: str) -> bool:
    """Whether people can read it: a byte-level tokenizer can also spell nothing, or control characters."""
    try:
        check_text(text, "response")
    except RowError:
        return False
    return bool(text)
