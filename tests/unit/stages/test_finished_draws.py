"""Samples and evaluations end with a record of their own, and are not written over; answers outlive a failed judge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf import cli
from rlhf.config import STAGES, build_config
from rlhf.errors import CheckpointError, ConfigError, DataError, WorkerError
from rlhf.rollout.protocol import Rollout
from rlhf.stages import evaluate, sample
from rlhf.stages.drawing import Drawn
from rlhf.stages.plan import plan_stage
from rlhf.stages.run_dir import finished_before, prepare_run_dir, release_run_dir
from tests.support.conversations import demonstrations, write_rows

SCORE = "tests.support.scores"


def config_of(stage: str, folder: Path, base: Path, **changes: Any) -> Any:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": str(n), "prompt": f"Question {n}?"}) + "\n" for n in range(4)))
    tree = {"run_dir": str(folder / "run"), "model": {"name": str(base)}, "prompts": str(rows)}
    if stage == "evaluate":
        tree |= {"baseline": str(base), "judge": {"kind": "function", "path": f"{SCORE}:count_e"}}
    return build_config(STAGES[stage], {**tree, **changes}, source="test")


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Models of every draw; the answers are made here."""
    seen: list[list[str]] = []

    def draw(policies: Any, prompts: Any, *, responses_per_prompt: int, seed: int, **_: Any) -> list[Drawn]:
        seen.append([policy.model.name for policy in policies])
        found = []
        for side in range(len(policies)):
            texts = [[f"e{'e' * side} {row.id} {k} {seed}" for k in range(responses_per_prompt)] for row in prompts]
            rollouts = [[Rollout("", (1,), (2,), (0.0,), True, 0, "sha") for _ in row] for row in texts]
            found.append(Drawn(policies[side].model.name, texts, rollouts, [[0 for _ in row] for row in texts]))
        return found

    monkeypatch.setattr(sample, "draw", draw)
    monkeypatch.setattr(evaluate, "draw", draw)
    monkeypatch.setattr(evaluate, "ray_runtime", lambda *_, **__: nullcontext())
    return seen


@pytest.mark.parametrize("stage", ["sample", "evaluate"])
def test_a_second_round_does_not_write_over_the_first(
    stage: str, draws: list[list[str]], tiny_base: Path, tmp_path: Path
) -> None:
    run: Callable[[Any], Any] = {"sample": sample.run_sample, "evaluate": evaluate.run_evaluate}[stage]
    config = config_of(stage, tmp_path, tiny_base)
    assert not finished_before(config)
    run(config)
    files = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    assert finished_before(config) and not finished_before(config.model_copy(update={"seed": 1}))
    for again in (config, config.model_copy(update={"seed": 1})):
        with pytest.raises(CheckpointError, match=r"finished run: set run_dir .* --fresh .*--unless-finished"):
            run(again)
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")} == files
    assert not (tmp_path / "run" / "run.json").exists(), "it is no model"
    assert len(draws) == 1


def test_a_training_is_not_written_over_a_sample_either(
    draws: list[list[str]], tiny_base: Path, tmp_path: Path
) -> None:
    sample.run_sample(config_of("sample", tmp_path, tiny_base))
    tree = {"run_dir": str(tmp_path / "run"), "model": {"name": "m"}, "data": {"train": "t.jsonl"}}
    with pytest.raises(CheckpointError, match="holds a finished run"):
        prepare_run_dir(build_config(STAGES["sft"], tree, source="test"))


def test_a_training_between_its_summary_and_its_record_goes_on(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"stage": "sft"}')
    tree = {"run_dir": str(tmp_path), "model": {"name": "m"}, "data": {"train": "t.jsonl"}}
    config = build_config(STAGES["sft"], tree, source="test")
    release_run_dir(prepare_run_dir(config))
    assert not finished_before(config)


def test_unless_finished_leaves_the_candidates(
    draws: list[list[str]], tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of("sample", tmp_path, tiny_base)
    words = ["sample", f"model.name={config.model.name}", f"prompts={config.prompts}", f"run_dir={config.run_dir}"]
    assert cli.main([*words, "--unless-finished"]) == 0
    assert cli.main([*words, "--unless-finished"]) == 0 and "finished before" in capsys.readouterr().out
    assert cli.main(words) == 4 and "--unless-finished" in capsys.readouterr().out
    assert len(draws) == 1


def test_candidates_are_for_the_group_of_their_prompt(draws: list[list[str]], tiny_base: Path, tmp_path: Path) -> None:
    """`rlhf prefs import` reads it, so people who lack the group do not get the task."""
    config = config_of("sample", tmp_path, tiny_base)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hvem?", "group": "da"}\n{"prompt": "Who?", "group": ""}\n')
    sample.run_sample(config)
    lines = (tmp_path / "run" / "candidates.jsonl").read_text().splitlines()
    assert [json.loads(line).get("group") for line in lines] == ["da", None]


def test_candidates_appear_whole_or_not_at_all(
    draws: list[list[str]], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sample.Origin.candidates
    calls: list[int] = []

    def breaks(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("killed in mid-file")
        return made(self, *args)

    monkeypatch.setattr(sample.Origin, "candidates", breaks)
    with pytest.raises(OSError, match="killed"):
        sample.run_sample(config_of("sample", tmp_path, tiny_base))
    assert not (tmp_path / "run" / "candidates.jsonl").exists()
    sample.run_sample(config_of("sample", tmp_path, tiny_base))
    assert len((tmp_path / "run" / "candidates.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"kind": "function", "path": f"{SCORE}:cuont_e"}, "cuont_e"),
        ({"kind": "function", "path": "no.such:function", "isolate": False}, "cannot import"),
        ({"kind": "http", "url": "http://127.0.0.1:9/s", "token": "env:NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE"),
        ({"kind": "http", "url": "https://127.0.0.1:9/s", "ca_file": "/no/such.pem"}, "ca_file='/no/such.pem'"),
    ],
    ids=["name", "module", "token", "certificates"],
)
def test_a_judge_s_typo_costs_no_draw(
    judge: dict[str, Any], said: str, draws: list[list[str]], tiny_base: Path, tmp_path: Path
) -> None:
    config = config_of("evaluate", tmp_path, tiny_base, judge=judge)
    for begin in (plan_stage, evaluate.run_evaluate):
        with pytest.raises(ConfigError, match=said):
            begin(config)
    assert draws == []


def test_answers_outlive_a_judge_that_fails(draws: list[list[str]], tiny_base: Path, tmp_path: Path) -> None:
    broken = config_of("evaluate", tmp_path, tiny_base, judge={"kind": "function", "path": f"{SCORE}:one_missing"})
    with pytest.raises(DataError, match="returned 7 scores for 8 responses"):
        evaluate.run_evaluate(broken)
    assert not finished_before(broken)
    found = evaluate.run_evaluate(config_of("evaluate", tmp_path, tiny_base))
    assert len(draws) == 1, "the same answers, judged by another"
    assert found["win_rate"]["mean"] == 0.0 and found["mean_score"] == {"policy": 1.0, "baseline": 2.0}
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert samples[3]["answers"] == {"policy": "e 3 0 0", "baseline": "ee 3 0 0"}


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_reward_model_without_a_finite_score_is_no_judge(
    wrong: float, draws: list[list[str]], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = SimpleNamespace(call=lambda name, texts: [[1.0, 2.0, 3.0, wrong, *[0.0] * 4]], close=lambda: None)
    monkeypatch.setattr(evaluate.WorkerGroup, "launch", lambda *_, **__: group)
    monkeypatch.setattr(evaluate, "check_sources", lambda sources: None)
    monkeypatch.setattr(evaluate, "gpus_here", lambda asked: 0.0)
    config = config_of("evaluate", tmp_path, tiny_base, judge={"kind": "reward_model", "run": "runs/reward"})
    said = rf"judge\.run=runs/reward: returned a non-finite score \({wrong}\) for response 3"
    with pytest.raises(DataError, match=said):
        evaluate.run_evaluate(config)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "answers.json" in left and not left & {"summary.json", "samples.jsonl"}


@pytest.mark.parametrize("changes", [{"seed": 1}, {"sampling": {"temperature": 0.5}}, {"limit": 3}])
def test_other_answers_are_drawn_anew(
    changes: dict[str, Any], draws: list[list[str]], tiny_base: Path, tmp_path: Path
) -> None:
    broken = {"judge": {"kind": "function", "path": f"{SCORE}:one_missing"}}
    with pytest.raises(DataError):
        evaluate.run_evaluate(config_of("evaluate", tmp_path, tiny_base, **broken))
    evaluate.run_evaluate(config_of("evaluate", tmp_path, tiny_base, **changes))
    assert len(draws) == 2


def test_an_unreadable_file_of_answers_is_no_obstacle(draws: list[list[str]], tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "answers.json").write_text("[1")
    evaluate.run_evaluate(config_of("evaluate", tmp_path, tiny_base))
    assert len(draws) == 1


def test_a_plan_refuses_prompts_and_positions_that_the_run_would(tiny_base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "d.jsonl", demonstrations(4))
    ppo = {"run_dir": "x", "model": {"name": str(tiny_base)}, "prompts": rows}
    scored = {"scores": [{"kind": "function", "path": f"{SCORE}:count_e"}]}
    short, long = {"max_prompt_tokens": 1}, {"max_prompt_tokens": 5000}
    for stage, section, more in (("sample", "sampling", {}), ("evaluate", "sampling", {}), ("ppo", "rollout", scored)):
        tree = {**ppo, **more}
        if stage == "evaluate":
            tree |= {"baseline": str(tiny_base), "judge": scored["scores"][0]}
        with pytest.raises(DataError, match="the limit is max_prompt_tokens=1"):
            plan_stage(build_config(STAGES[stage], {**tree, section: short}, source="test"))
        with pytest.raises(ConfigError, match=rf"{section}\.max_prompt_tokens=5000 .* must be at most 4096"):
            plan_stage(build_config(STAGES[stage], {**tree, section: long}, source="test"))


def test_a_plan_of_ppo_opens_its_sources(tiny_base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "d.jsonl", demonstrations(4))
    tree = {"run_dir": "x", "model": {"name": str(tiny_base)}, "prompts": rows}
    scores = [{"kind": "reward_model", "run": "runs/none"}, {"kind": "function", "path": f"{SCORE}:cuont_e"}]
    with pytest.raises(ConfigError, match="cuont_e"):
        plan_stage(build_config(STAGES["ppo"], {**tree, "scores": scores}, source="test"))


def test_what_a_judge_says_is_weighed(tiny_base: Path, tmp_path: Path, draws: list[list[str]]) -> None:
    judge = {"kind": "function", "path": f"{SCORE}:count_e", "weight": -2.0}
    found = evaluate.run_evaluate(config_of("evaluate", tmp_path, tiny_base, judge=judge))
    assert found["win_rate"]["mean"] == 1.0 and found["mean_score"] == {"policy": -2.0, "baseline": -4.0}


def test_a_server_that_is_away_is_an_error_of_its_own(draws: list[list[str]], tiny_base: Path, tmp_path: Path) -> None:
    judge = {"kind": "http", "url": "http://127.0.0.1:9/s", "retries": 0}
    with pytest.raises(WorkerError, match="cannot be reached"):
        evaluate.run_evaluate(config_of("evaluate", tmp_path, tiny_base, judge=judge))
    assert (tmp_path / "run" / "answers.json").is_file()
