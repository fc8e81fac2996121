"""Reward models in a PPO run: on the shared base, and on another base with another tokenizer. Nothing frozen moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.data.schema import Message
from rlhf.models import adapters
from rlhf.models.scorer import HEAD, load_reward_model
from rlhf.models.source import resolve_model
from tests.support.ppo import run, tiny_config
from tests.support.runs import write_run
from tests.support.runtime import ActorPool
from tests.support.tiny import build_model, build_tokenizer, copy_with


def reward_run(directory: Path, base: Path, seed: int) -> Path:
    """A reward run whose scores differ from text to text."""
    found = write_run(directory, base, "reward")
    state, _ = adapters.read_adapter_file(found / "adapter")
    head = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
    shape = adapters.read_peft_config(found / "adapter")
    adapters.save_adapter_file(found / "adapter", shape, resolve_model(str(found)).base, {**state, HEAD: head})
    return found


@pytest.fixture(scope="module")
def judges(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Reward runs on the policy's base, and on another one that reads other tokens."""
    folder = tmp_path_factory.mktemp("judges")
    other = copy_with(build_model(folder / "model", seed=1), folder / "other", build_tokenizer(vocab_size=280))
    return reward_run(folder / "same", tiny_base, 0), reward_run(folder / "foreign", other, 1)


CASES: list[dict[str, Any]] = [
    *({"model.quantization": "nf4", "engine.zero_stage": stage} for stage in (0, 3)),
    *({"model.dtype": "bfloat16", "engine.zero_stage": stage} for stage in (0, 3)),
    {"engine.zero_stage": 3},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda c: ",".join(str(value) for value in c.values()))
def test_both_judge_and_all_that_is_frozen_stays(
    changes: dict[str, Any], judges: tuple[Path, Path], actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    scores = [{"kind": "reward_model", "run": str(judge)} for judge in judges]
    loose = {"sync_tolerance": 0.5, "ratio_tolerance": 0.5} if "model.dtype" in changes else {}
    config = tiny_config(tiny_base, tmp_path / "run", scores=scores, **changes, **loose, **{"placement.num_ranks": 2})
    done = run(config, actor_pool, PolicyWorker="tests.support.measured:DigestedPolicy")
    learned = [ranks for method, ranks in done.answers if method == "learn"]
    assert len(learned) == 2
    for rank in (rank for ranks in learned for rank in ranks):
        assert rank["shares_reward"] and rank["frozen"] > 20 and rank["frozen_changed"] == 0
    assert done.rows[0]["kl_max"] < (1e-2 if loose else 1e-6) and done.rows[1]["kl"] != 0.0
    judged = next(ranks for method, ranks in done.answers if method == "judge")
    told = torch.cat([rank["scores"] for rank in judged])  # (rows, sources)
    assert told.shape == (16, 2) and bool((told.std(dim=0) > 1e-3).all())
    samples = [json.loads(line) for line in (done.run_dir / "rollouts.jsonl").read_text("utf-8").splitlines()]
    texts = [((Message("user", row["prompt"]),), row["response"]) for row in samples if row["step"] == 0]
    for score in load_reward_model(judges[1]).score_texts(texts):
        assert float((told[:, 1] - score).abs().min()) < 1e-4, "no row has the score of this text"
