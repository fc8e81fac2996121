"""Is the policy better than its baseline? Win rate on held-out prompts with its interval."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config import EvaluateConfig, ModelConfig, RewardModelSource
from rlhf.config.finished import SUMMARY_FILE
from rlhf.data.meta import about
from rlhf.data.schema import PromptRow, prompt_hash
from rlhf.stages.drawing import OpenPolicy, draw, open_policy
from rlhf.stages.kept_answers import identity_of_answers, keep_answers, kept_answers
from rlhf.stages.prompts import read_prompts
from rlhf.stages.run_dir import prepare_run_dir, release_run_dir, write_atomic, write_json
from rlhf.stages.scoring import check_sources, open_source, prompt_text
from rlhf.stages.scoring_rows import FaultPolicy
from rlhf.stages.starting_model import with_starting_models
from rlhf.stages.win_rate import win_rate
from rlhf.workers.group import WorkerGroup
from rlhf.workers.runtime import gpus_here, ray_runtime

JudgeFunction = Callable[[Sequence[PromptRow], Sequence[str]], list[float]]


def run_evaluate(config: EvaluateConfig, *, progress: Callable[..., None] | None = None) -> dict[str, Any]:
    """Draws one answer per prompt from both policies, judges them, and writes summary and samples.

    The judge is opened before anything is drawn, and answers are kept before they are judged: where judging fails, the
    same command judges the kept answers.
    """
    started = time.perf_counter()
    config = with_starting_models(config)
    run_dir = prepare_run_dir(config)
    try:
        policies, prompts = open_inputs(config, run_dir)
        check_sources({"judge": config.judge})
        judge = make_judge(config, str(run_dir))
        identity = identity_of_answers(policies, prompts, config.sampling, config.seed)
        texts = kept_answers(run_dir, identity)
        with ExitStack() as stack:
            if texts is None or isinstance(config.judge, RewardModelSource):
                num_workers = config.placement.num_rollout_workers + 1
                stack.enter_context(ray_runtime(config.placement, num_workers=num_workers))
            if texts is None:
                texts = draw_answers(policies, prompts, config, str(run_dir), progress)
                keep_answers(run_dir, identity, texts)
            scores = judged_in_both_orders(judge, prompts, texts[0], texts[1])
        win = win_rate(*scores, [prompt_hash(row.messages) for row in prompts])
        named = {"policy": config.model.name, "baseline": config.baseline_model.name}
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
        write_json(run_dir / SUMMARY_FILE, summary)  # last of all: its presence means that the run is whole
        return summary
    finally:
        release_run_dir(run_dir)


def open_inputs(config: EvaluateConfig, run_dir: Path | None) -> tuple[list[OpenPolicy], list[PromptRow]]:
    """Both policies and the prompts, refused here or drawn from; see ``read_prompts``."""
    prompts = read_prompts(config, run_dir)
    key = "baseline.name" if isinstance(config.baseline, ModelConfig) else "baseline"
    named = {"model.name": config.model, key: config.baseline_model}
    return [open_policy(model, prompts, config.sampling, key=key) for key, model in named.items()], prompts


def draw_answers(
    policies: Sequence[OpenPolicy],
    prompts: Sequence[PromptRow],
    config: EvaluateConfig,
    run_dir: str,
    progress: Callable[..., None] | None = None,
) -> list[list[str]]:
    """One answer per prompt and policy, with equal seeds for all of them."""
    drawn = draw(
        policies,
        prompts,
        responses_per_prompt=1,
        sampling=config.sampling,
        placement=config.placement,
        recovery=config.recovery,
        microbatch=config.microbatch_sequences,
        seed=config.seed,
        run_dir=run_dir,
        progress=progress,
    )
    return [[row[0] for row in d.texts] for d in drawn]


def make_judge(config: EvaluateConfig, run_dir: str) -> JudgeFunction:
    """The configured judge as a function of prompts and answers; functions and servers are opened here.

    Raises:
        ConfigError: the function cannot be imported, or the token or the certificates cannot be read.
    """
    judge, weight = _opened(config, run_dir), config.judge.weight
    return lambda prompts, answers: [weight * score for score in judge(prompts, answers)]


def _opened(config: EvaluateConfig, run_dir: str) -> JudgeFunction:
    source = config.judge
    if not isinstance(source, RewardModelSource):
        rows = open_source(source)
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
            found: list[float] = group.call("score", [(p.messages, a) for p, a in zip(prompts, answers, strict=True)])[
                0
            ]
        finally:
            group.close()
        FaultPolicy(f"judge.run={source.run}", 0, source.on_error).check_model(found)
        return found

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


def write_samples(
    path: Path,
    prompts: Sequence[PromptRow],
    answers: dict[str, list[str]],
    scores: Mapping[str, Sequence[float] | np.ndarray],
) -> None:
    """Side-by-side answers, one JSON line per prompt."""
    lines = []
    for index, row in enumerate(prompts):
        line = {
            "prompt": prompt_text(row.messages),
            "answers": {name: texts[index] for name, texts in answers.items()},
            "scores": {name: float(values[index]) for name, values in scores.items()},
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines))
