"""Every stage holds a model as its run held it, each side of an evaluation by its own run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.config import STAGES, build_config, config_hash
from rlhf.errors import ConfigError
from rlhf.stages import dpo, drawing, evaluate, ppo, reward, sample, sft
from rlhf.stages.plan import plan_stage
from rlhf.stages.run_dir import finished_before
from rlhf.stages.starting_model import with_starting_models
from tests.support.conversations import demonstrations, preferences, write_rows
from tests.support.runs import recorded_with, write_reward_run, write_run

FUNCTION = {"kind": "function", "path": "tests.support.scores:count_e"}

RUNS: dict[str, Any] = {
    "sft": sft.run_sft,
    "reward": reward.run_reward,
    "dpo": dpo.run_dpo,
    "ppo": ppo.run_ppo,
    "sample": sample.run_sample,
    "evaluate": evaluate.run_evaluate,
}


class Reached(Exception):
    """The stage was about to start something."""


@pytest.fixture
def qlora(tiny_base: Path, tmp_path: Path) -> Path:
    """A run whose adapter was trained on a 4-bit base."""
    return recorded_with(write_run(tmp_path / "plain", tiny_base), tmp_path / "qlora", quantization="nf4")


def config_of(stage: str, folder: Path, model: dict[str, Any], **more: Any) -> Any:
    rows = write_rows(folder / "rows.jsonl", demonstrations(40))
    pairs = write_rows(folder / "pairs.jsonl", preferences(40))
    own: dict[str, dict[str, Any]] = {
        "sft": {"data": {"train": rows}},
        "reward": {"data": {"train": pairs}},
        "dpo": {"data": {"train": pairs}},
        "ppo": {"prompts": rows, "scores": [FUNCTION]},
        "sample": {"prompts": rows},
        "evaluate": {"prompts": rows, "judge": FUNCTION, "baseline": str(folder / "plain")},
    }
    tree = {"run_dir": str(folder / "run"), "model": model, **own[stage], **more}
    return build_config(STAGES[stage], tree, source="test")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models that drawing would start workers for; none is started."""
    found: list[Any] = []

    def launch(*_: Any, args: tuple, **__: Any) -> Any:
        found.append(args[0])
        raise Reached

    class Runtime:
        def __enter__(self) -> dict[str, float]:
            return {"CPU": 8.0}

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(drawing, "ray_runtime", lambda *_, **__: Runtime())
    monkeypatch.setattr(evaluate, "ray_runtime", lambda *_, **__: Runtime())
    monkeypatch.setattr(drawing, "reserve", lambda *_, **__: type("Places", (), {"close": lambda self: None})())
    monkeypatch.setattr(drawing.WorkerGroup, "launch", launch)
    return found


def test_samples_are_drawn_on_the_base_that_was_trained_on(qlora: Path, tmp_path: Path, launched: list[Any]) -> None:
    with pytest.raises(Reached):
        sample.run_sample(config_of("sample", tmp_path, {"name": str(qlora)}))
    assert [model.quantization for model in launched] == ["nf4"]
    said = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert said["model"]["quantization"] == "nf4", "the resolved config tells what was used"


def test_each_side_of_an_evaluation_by_its_own_run(qlora: Path, tmp_path: Path, launched: list[Any]) -> None:
    model = {"name": str(qlora), "chat_style": "plain", "dtype": "float32"}
    policies, _ = evaluate.open_inputs(config_of("evaluate", tmp_path, model), None)
    assert [policy.model.quantization for policy in policies] == ["nf4", "none"]
    swapped = config_of("evaluate", tmp_path, {"name": str(tmp_path / "plain")}, baseline=str(qlora))
    assert [policy.model.quantization for policy in evaluate.open_inputs(swapped, None)[0]] == ["none", "nf4"]


def test_a_baseline_takes_its_precision_from_the_policy_and_nothing_else(tmp_path: Path) -> None:
    model = {"name": "m", "revision": "f" * 40, "trust_remote_code": True, "chat_style": "plain", "dtype": "float32",
             "quantization": "nf4"}  # fmt: skip
    found = config_of("evaluate", tmp_path, model).baseline_model
    assert (found.dtype, found.revision, found.trust_remote_code) == ("float32", None, False)
    assert (found.chat_style, found.quantization) == ("auto", "none")
    own = {"name": "b", "revision": "main", "chat_style": "default"}
    found = config_of("evaluate", tmp_path, model, baseline=own).baseline_model
    assert (found.name, found.revision, found.chat_style, found.dtype) == ("b", "main", "default", "auto")


def test_a_baseline_of_another_quantization_is_named_by_its_key(qlora: Path, tmp_path: Path) -> None:
    own = {"name": str(qlora), "quantization": "int8"}
    config = config_of("evaluate", tmp_path, {"name": str(tmp_path / "plain")}, baseline=own)
    with pytest.raises(ConfigError, match=r"^baseline\.quantization=int8, .*with quantization=nf4"):
        evaluate.run_evaluate(config)


@pytest.mark.parametrize("stage", ["sft", "ppo", "reward", "dpo"])
def test_trainings_go_on_upon_the_base_of_the_run(stage: str, qlora: Path, tmp_path: Path) -> None:
    config = config_of(stage, tmp_path, {"name": str(qlora)})
    assert with_starting_models(config).model.quantization == "nf4"
    assert dict(plan_stage(config))["precision"].endswith("base nf4")
    wrong = config_of(stage, tmp_path, {"name": str(qlora), "quantization": "int8"})
    run = RUNS[stage]
    with pytest.raises(ConfigError, match=r"^model\.quantization=int8, .*with quantization=nf4"):
        run(wrong)


def test_a_stage_s_rules_hold_for_what_it_takes_over(qlora: Path, tmp_path: Path) -> None:
    config = config_of("sft", tmp_path, {"name": str(qlora)}, lora={"method": "loha"})
    with pytest.raises(ConfigError, match=r"^model\.quantization=nf4, as .*qlora was trained: 1 problem"):
        with_starting_models(config)


def test_a_finished_run_is_known_by_what_it_took_over(qlora: Path, tmp_path: Path, launched: list[Any]) -> None:
    config = config_of("sample", tmp_path, {"name": str(qlora)})
    with pytest.raises(Reached):
        sample.run_sample(config)
    (tmp_path / "run" / "summary.json").write_text('{"stage": "sample"}')
    assert config_hash(config) != config_hash(with_starting_models(config))
    assert finished_before(config)
    assert not finished_before(config_of("sample", tmp_path, {"name": str(qlora)}, seed=7))


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo", "sample", "evaluate"])
def test_a_reward_run_is_no_model_to_start_from(stage: str, tiny_base: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "plain", tiny_base)
    judge = write_reward_run(tmp_path / "judge", tiny_base, 0)
    for begin in (RUNS[stage], plan_stage):
        with pytest.raises(ConfigError, match=r"^model\.name='.*judge' is a reward run; a policy is wanted"):
            begin(config_of(stage, tmp_path, {"name": str(judge)}))
    assert not (tmp_path / "run").exists()


def test_a_reward_run_is_no_baseline(tiny_base: Path, tmp_path: Path) -> None:
    judge = write_reward_run(tmp_path / "judge", tiny_base, 0)
    named = ((str(judge), "baseline"), ({"name": str(judge)}, r"baseline\.name"))
    for baseline, key in named:
        with pytest.raises(ConfigError, match=rf"^{key}='.*judge' is a reward run; a policy is wanted"):
            evaluate.run_evaluate(config_of("evaluate", tmp_path, {"name": str(tiny_base)}, baseline=baseline))


def test_a_reward_model_may_start_from_a_policy_or_a_reward_model(tiny_base: Path, tmp_path: Path) -> None:
    for run in (write_run(tmp_path / "plain", tiny_base), write_reward_run(tmp_path / "judge", tiny_base, 0)):
        config = config_of("reward", tmp_path, {"name": str(run)})
        assert with_starting_models(config) == config
