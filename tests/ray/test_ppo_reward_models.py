"""Reward models in a PPO run: on the shared base, and on another base with another tokenizer. Nothing frozen moves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.data.schema import Message
from rlhf.errors import ConfigError
from rlhf.models.scorer import load_reward_model
from rlhf.workers.recorded import record_spans
from tests.support.ppo import FEW_PASSES, Finished, run, tiny_config
from tests.support.runs import foreign_base, recorded_with, write_reward_run
from tests.support.runtime import ActorPool


@pytest.fixture(scope="module")
def judges(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Reward runs on the policy's base, and on another one that reads other tokens."""
    folder = tmp_path_factory.mktemp("judges")
    return (
        write_reward_run(folder / "same", tiny_base, 0),
        write_reward_run(folder / "foreign", foreign_base(folder), 1),
    )


CASES: list[dict[str, Any]] = [
    *({"model.quantization": "nf4", "engine.zero_stage": stage} for stage in (0, 3)),
    *({"model.dtype": "bfloat16", "engine.zero_stage": stage} for stage in (0, 3)),
    {"engine.zero_stage": 3},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda c: ",".join(str(value) for value in c.values()))
def test_both_judge_and_all_that_is_frozen_stays(
    changes: dict[str, Any], judges: tuple[Path, Path], actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    quantization = changes.get("model.quantization", "none")
    same = recorded_with(judges[0], tmp_path / "judge", quantization=quantization)
    scores = [{"kind": "reward_model", "run": str(judge)} for judge in (same, judges[1])]
    loose = {"sync_tolerance": 0.5, "ratio_tolerance": 0.5} if "model.dtype" in changes else {}
    more = {**loose, **FEW_PASSES, "placement.num_ranks": 2}
    config = tiny_config(tiny_base, tmp_path / "run", scores=scores, **changes, **more)
    done = run(config, actor_pool, PolicyWorker="tests.support.measured:DigestedPolicy")
    learned = [ranks for method, ranks in done.answers if method == "learn"]
    assert len(learned) == 2
    for rank in (rank for ranks in learned for rank in ranks):
        assert rank["shares_reward"] and rank["frozen"] > 20 and rank["frozen_changed"] == 0
    assert done.rows[0]["kl_max"] < (1e-2 if loose else 1e-6) and done.rows[1]["kl"] != 0.0
    judged = next(ranks for method, ranks in done.answers if method == "judge")
    shared = torch.cat([rank["scores"] for rank in judged])
    scored = next(workers for method, workers in done.answers if method == "waited for scorer")
    foreign = torch.tensor([score for worker in scored for piece in worker for score in piece[0]])
    assert shared.shape == foreign.shape == (16,)
    assert float(shared.std()) > 1e-3 and float(foreign.std()) > 1e-3
    samples = [json.loads(line) for line in (done.run_dir / "rollouts.jsonl").read_text("utf-8").splitlines()]
    texts = [((Message("user", row["prompt"]),), row["response"]) for row in samples if row["step"] == 0]
    for score in load_reward_model(judges[1]).score_texts(texts):
        assert float((foreign - score).abs().min()) < 1e-4, "no row has the score of this text"


@pytest.fixture
def unrecorded(actor_pool: ActorPool) -> Iterator[None]:
    """A profiled run of a test is the last one that these processes record."""
    yield
    for group in actor_pool.groups.values():
        record_spans(dict(enumerate(group.actors)), on=False)


def test_a_foreign_models_scores_are_those_of_the_model_itself(
    judges: tuple[Path, Path], actor_pool: ActorPool, unrecorded: None, tiny_base: Path, tmp_path: Path
) -> None:
    """Bit for bit; the profile and the metrics know the workers that gave them."""
    scores = [{"kind": "reward_model", "run": str(judges[1])}]
    changes = {"batch.responses_per_prompt": 2, "sample_every_steps": 1, "telemetry.profile": True}
    done = run(tiny_config(tiny_base, tmp_path / "run", scores=scores, **changes), actor_pool)
    samples = [json.loads(line) for line in (done.run_dir / "rollouts.jsonl").read_text("utf-8").splitlines()]
    scorer = load_reward_model(judges[1])
    for step in range(2):
        rows = [row for row in samples if row["step"] == step]
        texts = [((Message("user", row["prompt"]),), row["response"]) for row in rows]
        wanted = torch.tensor(scorer.score_texts(texts))
        assert len(rows) == 8 and torch.equal(torch.tensor([row["score"] for row in rows]), wanted)
    assert all(0 <= waited <= judging for waited, judging in zip(
        done.series("seconds.scorers"), done.series("seconds.judge"), strict=True))  # fmt: skip
    profile = json.loads((done.run_dir / "profile" / "profile.json").read_text("utf-8"))
    assert "scorer-0" in profile["lanes"] and all(s["lanes"]["scorer-0"]["score.models"] > 0 for s in profile["steps"])
    assert done.summary["restarts"]["scorer_workers"] == 0
    with pytest.raises(ConfigError, match="shared"):
        shared = tiny_config(tiny_base, tmp_path / "shared", scores=scores, **{"roles.layout": "shared"})
        run(shared, actor_pool)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_where_a_model_scores_is_no_matter_of_what_is_learned(
    zero_stage: int, judges: tuple[Path, Path], actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    """On the policy's base, and on its own copy: the same tokens, scores, first critic and run."""
    scores = [{"kind": "reward_model", "run": str(judges[0])}]

    def of(layout: str) -> Finished:
        same_prompts = str(tmp_path / "shared.prompts.jsonl")  # rows, and so their seeds, are known by their file
        changes = {"roles.layout": layout, "engine.zero_stage": zero_stage, "prompts": same_prompts}
        more = {**FEW_PASSES, "placement.num_ranks": 2}
        config = tiny_config(tiny_base, tmp_path / layout, scores=scores, **changes, **more)
        return run(config, actor_pool, PolicyWorker="tests.support.measured:DigestedPolicy")

    shared, separate = of("shared"), of("separate")
    for found, holds in ((shared, True), (separate, False)):
        learned = next(ranks for method, ranks in found.answers if method == "learn")
        assert all(rank["shares_reward"] is holds and rank["frozen_changed"] == 0 for rank in learned)
    assert not any("scorer" in method for method, _ in shared.answers)
    for key in ("score_mean", "score_std", "reward_mean", "kl", "explained_variance", "value_loss"):
        assert separate.series(key) == pytest.approx(shared.series(key), rel=1e-5, abs=1e-5), key
    assert separate.adapter.keys() == shared.adapter.keys()
    told = [json.loads(line) for line in (separate.run_dir / "rollouts.jsonl").read_text("utf-8").splitlines()]
    for ours, theirs in zip(told, (shared.run_dir / "rollouts.jsonl").read_text("utf-8").splitlines(), strict=True):
        assert ours["response"] == json.loads(theirs)["response"]
        assert ours["score"] == pytest.approx(json.loads(theirs)["score"], rel=1e-5, abs=1e-5)
