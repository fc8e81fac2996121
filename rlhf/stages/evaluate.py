"""Is the policy better than its baseline? Win rate on held-out prompts with a bootstrap interval."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config import EvaluateConfig, ModelConfig, RewardModelSource, derive_seed
from rlhf.data.meta import about
from rlhf.data.schema import PromptRow
from rlhf.models.source import resolve_model
from rlhf.stages.drawing import draw
from rlhf.stages.prompts import read_prompts
from rlhf.stages.run_dir import prepare_run_dir, release_run_dir, write_json
from rlhf.stages.scoring import check_sources, open_source, prompt_text
from rlhf.workers.group import WorkerGroup
from rlhf.workers.runtime import gpus_here, ray_runtime

JudgeFunction = Callable[[Sequence[PromptRow], Sequence[str]], list[float]]


@dataclass(frozen=True)
class WinRate:
    """Share of prompts won against the baseline, ties half, with a 95% bootstrap interval over prompts."""

    mean: float
    ci_low: float
    ci_high: float
    num_prompts: int


def run_evaluate(config: EvaluateConfig, *, progress: Callable[..., None] | None = None) -> dict[str, Any]:
    """Draws one answer per prompt from both policies, judges them, and writes summary and samples."""
    started = time.perf_counter()
    run_dir = prepare_run_dir(config)
    try:
        prompts = read_prompts(config, run_dir)
        resolve_model(config.model.name, config.model.revision)
        resolve_model(config.baseline, config.model.revision, key="baseline")
        check_sources({"judge": config.judge})
        baseline = config.model.model_copy(update={"name": config.baseline})
        with ray_runtime(config.placement, num_workers=config.placement.num_rollout_workers + 1):
            judge = make_judge(config, str(run_dir))  # a function that cannot be one is refused before the drawing
            texts = draw_answers([config.model, baseline], prompts, config, str(run_dir), progress)
            scores = judged_in_both_orders(judge, prompts, texts[0], texts[1])
        win = win_rate(*scores, num_bootstrap=config.num_bootstrap, seed=derive_seed(config.seed, "bootstrap"))
        named = {"policy": config.model.name, "baseline": config.baseline}
        write_samples(
            run_dir / "samples.jsonl",
            prompts,
            dict(zip(named, texts, strict=True)),
            dict(zip(named, scores, strict=True)),
        )
        summary = {
            "stage": "evaluate",
            **named,
            "win_rate": asdict(win),
            "mean_score": {name: float(np.mean(s)) for name, s in zip(named, scores, strict=True)},
            "seconds": time.perf_counter() - started,
        }
        write_json(run_dir / "summary.json", summary)
        return summary
    finally:
        release_run_dir(run_dir)


def draw_answers(
    models: Sequence[ModelConfig],
    prompts: Sequence[PromptRow],
    config: EvaluateConfig,
    run_dir: str,
    progress: Callable[..., None] | None = None,
) -> list[list[str]]:
    """One answer per prompt and model, with equal seeds for all models."""
    drawn = draw(
        models,
        prompts,
        responses_per_prompt=1,
        sampling=config.sampling,
        placement=config.placement,
        microbatch=config.microbatch_sequences,
        seed=config.seed,
        run_dir=run_dir,
        progress=progress,
    )
    return [[row[0] for row in d.texts] for d in drawn]


def make_judge(config: EvaluateConfig, run_dir: str) -> JudgeFunction:
    """The configured judge as a function of prompts and answers."""
    source = config.judge
    if not isinstance(source, RewardModelSource):
        rows = open_source(source.model_copy(update={"on_error": "fail"}))  # a win rate over fewer prompts is another
        return lambda prompts, answers: rows.score(
            [prompt_text(p.messages) for p in prompts], answers, [about(p) for p in prompts]
        )

    def by_reward_model(prompts: Sequence[PromptRow], answers: Sequence[str]) -> list[float]:
        group = WorkerGroup.launch(
            "rlhf.workers.scorer:ScorerWorker",
            "scorer",
            size=1,
            placement=config.placement,
            gpus_per_worker=gpus_here(config.placement.gpus_per_scorer_worker),
            run_dir=run_dir,
            args=((source.run,), config.placement.threads_per_worker),
        )
        try:
            return group.call("score", [(p.messages, a) for p, a in zip(prompts, answers, strict=True)])[0]
        finally:
            group.close()

    return by_reward_model


def judged_in_both_orders(
    judge: JudgeFunction, prompts: Sequence[PromptRow], first: Sequence[str], second: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of both sides, each the mean of two calls with the order swapped."""
    twice = [*prompts, *prompts]
    forward = np.array(judge(twice, [*first, *second])).reshape(2, -1)
    backward = np.array(judge(twice, [*second, *first])).reshape(2, -1)[::-1]
    both = (forward + backward) / 2
    return both[0], both[1]


def win_rate(ours: np.ndarray, theirs: np.ndarray, *, num_bootstrap: int, seed: int) -> WinRate:
    """Win rate of paired scores, ties half; percentile bootstrap by prompt."""
    wins = np.where(ours > theirs, 1.0, np.where(ours == theirs, 0.5, 0.0))
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(wins), size=(num_bootstrap, len(wins)))
    low, high = np.quantile(wins[picks].mean(axis=1), [0.025, 0.975])
    return WinRate(float(wins.mean()), float(low), float(high), len(wins))


def write_samples(
    path: Path,
    prompts: Sequence[PromptRow],
    answers: dict[str, list[str]],
    scores: Mapping[str, Sequence[float] | np.ndarray],
) -> None:
    """Side-by-side answers, one JSON line per prompt."""
    with path.open("w", encoding="utf-8") as handle:
        for index, row in enumerate(prompts):
            line = {
                "prompt": prompt_text(row.messages),
                "answers": {name: texts[index] for name, texts in answers.items()},
                "scores": {name: float(values[index]) for name, values in scores.items()},
            }
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")
