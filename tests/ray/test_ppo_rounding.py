"""In bfloat16 rounding is no fault of anybody, with tolerances left alone; another output layer or adapter is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.errors import WeightSyncError
from tests.support.ppo import run, tiny_config
from tests.support.runtime import ActorPool

CHANGES: dict[str, Any] = {
    "model.dtype": "bfloat16", "optim.learning_rate": 1e-2, "batch.epochs": 1, "num_steps": 1,
}  # fmt: skip
IN_FLOAT32 = 1e-4


@pytest.fixture(scope="module")
def sure_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with the logits of a trained model: the largest are near 20."""
    found = tmp_path_factory.mktemp("sure") / "base"
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_base), AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = torch.tensor([tokenizer.encode("Once upon a time there was a little girl who liked to play outside.")])
    with torch.no_grad():
        model.lm_head.weight.mul_(20 / model(input_ids=ids).logits.max())
        assert float(model(input_ids=ids).logits.max()) == pytest.approx(20, rel=1e-3)
    model.save_pretrained(found)
    tokenizer.save_pretrained(found)
    return found


def test_a_run_that_leaves_the_tolerances_alone_takes_its_steps(
    sure_base: Path, actor_pool: ActorPool, tmp_path: Path
) -> None:
    found = run(tiny_config(sure_base, tmp_path / "run", **CHANGES), actor_pool)
    assert found.summary["adapter_version"] == 1 and found.series("updates_skipped") == [0]
    sync = found.rows[0]
    assert sync["sync.max_logprob_diff"] > IN_FLOAT32, "there is rounding: float32's bound would have refused it"
    assert 0 < sync["sync.mean_logprob_diff"] < sync["sync.max_logprob_diff"]
    assert sync["ratio_first_mean"] <= sync["ratio_first"]
    assert found.summary["sync"]["mean_logprob_diff"] <= found.summary["sync"]["max_logprob_diff"]


@pytest.mark.parametrize(("fault", "version"), [("OtherHeadRollout", 0), ("DeafRollout", 1)])
def test_a_worker_that_computes_something_else_is_refused(
    fault: str, version: int, sure_base: Path, actor_pool: ActorPool, tmp_path: Path
) -> None:
    config = tiny_config(sure_base, tmp_path / "run", **CHANGES)
    told = rf"after sync of version {version} the .*sync_tolerance left out is 2 at most.*model\.dtype=bfloat16"
    with pytest.raises(WeightSyncError, match=told):
        run(config, actor_pool, RolloutWorker=f"tests.support.faults:{fault}")


def test_what_float32_allows_is_too_little_and_the_message_says_what_to_do(
    sure_base: Path, actor_pool: ActorPool, tmp_path: Path
) -> None:
    config = tiny_config(sure_base, tmp_path / "run", **CHANGES, sync_tolerance=IN_FLOAT32)
    told = r"sync_tolerance=0\.0001; if it is rounding in model\.dtype=bfloat16, leave sync_tolerance out"
    with pytest.raises(WeightSyncError, match=told):
        run(config, actor_pool)
