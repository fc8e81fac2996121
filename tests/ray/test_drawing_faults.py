"""A rollout worker is killed while samples or an evaluation's answers are drawn: they come out as if it had lived."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from rlhf.config import STAGES, build_config
from rlhf.errors import RolloutFleetExhausted
from rlhf.models import adapters
from rlhf.stages import drawing
from rlhf.stages.evaluate import run_evaluate
from rlhf.stages.sample import run_sample
from rlhf.telemetry.events import read_events
from tests.support.chaos_faults import Faults
from tests.support.chaos_runs import FRAGILE, require_victims
from tests.support.ppo import PROMPTS
from tests.support.runs import write_run


@pytest.fixture(autouse=True)
def mortal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "WORKER", FRAGILE[drawing.WORKER])


@pytest.fixture(scope="module")
def policy(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapter changes what is drawn."""
    run = write_run(tmp_path_factory.mktemp("policy") / "sft", tiny_base)
    state, _ = adapters.read_adapter_file(run / "adapter")
    generator = torch.Generator().manual_seed(5)
    state = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    shape = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapters.save_adapter_file(run / "adapter", shape, str(tiny_base), state)
    return run


def config_of(stage: str, run_dir: Path, model: Path, **changes: Any) -> Any:
    prompts = run_dir.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    tree = {
        "run_dir": str(run_dir),
        "model": {"name": str(model), "chat_style": "plain", "dtype": "float32"},
        "prompts": str(prompts),
        "sampling": {"max_response_tokens": 12, "max_prompt_tokens": 32},
        "placement": {"num_rollout_workers": 2, "start_timeout_seconds": 400},
        **changes,
    }
    return build_config(STAGES[stage], tree, source="test")


def test_the_same_candidates(ray_session: dict[str, float], policy: Path, tmp_path: Path) -> None:
    run_sample(config_of("sample", tmp_path / "whole", policy))
    Faults(tmp_path / "killed").arm("generate-0")
    run_sample(config_of("sample", tmp_path / "killed", policy))
    require_victims(tmp_path / "killed")
    whole, killed = ((tmp_path / name / "candidates.jsonl").read_bytes() for name in ("whole", "killed"))
    assert whole == killed and len(whole.splitlines()) == len(PROMPTS)
    assert read_events(tmp_path / "killed")[0]["event"] == "fault_detected"


def test_the_same_answers_of_both_sides(
    ray_session: dict[str, float], tiny_base: Path, policy: Path, tmp_path: Path
) -> None:
    """They share workers, started with the adapter: who replaces one in the base's turn must not draw with it."""
    judge = {"kind": "function", "path": "tests.support.scores:count_e"}
    sides = {"baseline": {"name": str(policy), "dtype": "float32"}, "judge": judge}
    one = {"placement": {"num_rollout_workers": 1, "start_timeout_seconds": 400}}
    run_evaluate(config_of("evaluate", tmp_path / "whole", tiny_base, **sides, **one))
    Faults(tmp_path / "killed").arm("generate-0")
    run_evaluate(config_of("evaluate", tmp_path / "killed", tiny_base, **sides, **one))
    require_victims(tmp_path / "killed")
    whole, killed = ((tmp_path / name / "samples.jsonl").read_text() for name in ("whole", "killed"))
    assert whole == killed
    assert any(row["answers"]["policy"] != row["answers"]["baseline"] for row in map(json.loads, whole.splitlines()))


def test_too_many_deaths_end_it(ray_session: dict[str, float], policy: Path, tmp_path: Path) -> None:
    Faults(tmp_path / "run").arm("generate-0", times=2)
    config = config_of("sample", tmp_path / "run", policy, recovery={"max_rollout_restarts": 0})
    with pytest.raises(RolloutFleetExhausted, match="run the same command again"):
        run_sample(config)
    require_victims(tmp_path / "run")
    assert not (tmp_path / "run" / "candidates.jsonl").exists()
