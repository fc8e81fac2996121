"""What ``rlhf`` says to commands that cannot be run: the option, the reason, what to do; never a traceback."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf import cli
from rlhf.errors import ConfigError
from rlhf.stages.run_dir import prepare_run_dir, release_run_dir
from tests.support.conversations import demonstrations, write_rows

ROOT = Path(__file__).parents[3]
FUNCTION = "{kind: function, path: 'a:b'}"
WORDS = {
    "sample": ("model.name=m", "prompts=p"),
    "evaluate": ("model.name=m", "prompts=p", "baseline=b", f"judge={FUNCTION}"),
}


@pytest.mark.parametrize("stage", WORDS)
def test_fresh_sets_an_earlier_run_aside_in_every_stage(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Any, **_: Any) -> dict[str, Any]:
        release_run_dir(prepare_run_dir(config))
        raise ConfigError("far enough")

    monkeypatch.setattr(cli, "_runner", lambda name: run)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    words = [stage, *WORDS[stage], f"run_dir={tmp_path / 'run'}"]
    assert cli.main(words) == 4 and "--fresh" in capsys.readouterr().out
    assert cli.main([*words, "--fresh"]) == 2 and "far enough" in capsys.readouterr().out
    (aside,) = tmp_path.glob("run.before-*")
    assert (aside / "run.json").is_file()


def test_an_evaluation_leaves_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Any, **_: Any) -> dict[str, Any]:
        win = {"mean": 0.75, "ci_low": 0.6, "ci_high": 0.9, "num_prompts": 20}
        summary = {"stage": "evaluate", "policy": config.model.name, "baseline": config.baseline, "win_rate": win}
        release_run_dir(prepare_run_dir(config))
        (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr(cli, "_runner", lambda name: run)
    words = ["evaluate", *WORDS["evaluate"], "model.name=runs/b", "baseline=runs/a", f"run_dir={tmp_path / 'run'}"]
    assert cli.main(words) == 0 and "report.html" in capsys.readouterr().out.replace("\n", "")
    text = html.unescape((tmp_path / "run" / "report.html").read_text("utf-8"))
    assert "The judge prefers b's answer to a's 75% of the time" in text


def test_a_run_that_is_finished_needs_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Any, **_: Any) -> dict[str, Any]:
        release_run_dir(prepare_run_dir(config))
        (tmp_path / "run" / "run.json").write_text("{}")
        raise ConfigError("the report cannot be written")

    monkeypatch.setattr(cli, "_runner", lambda name: run)
    words = ["sft", "--unless-finished", "model.name=m", "data.train=d", f"run_dir={tmp_path / 'run'}"]
    assert cli.main(words) == 2 and "cannot be written" in capsys.readouterr().out
    assert cli.main(words) == 0 and "holds this run, finished before" in capsys.readouterr().out
    assert cli.main([*words, "seed=7"]) == 4 and "holds a finished run" in capsys.readouterr().out
    assert cli.main([word for word in words if word != "--unless-finished"]) == 4
    with pytest.raises(SystemExit):
        cli.main([*words, "--fresh"])


@pytest.mark.parametrize(("words", "said"), [
    (["", "--prompt", "x"], "RUN is empty"),
    (["m", "--temperature", "0"], "--temperature 0 must be above 0"),
    (["m", "--temperature", "-1"], "--temperature -1 must be above 0"),
    (["m", "--temperature", "nan"], "--temperature nan must be above 0"),
    (["m", "--max-response-tokens", "0"], "--max-response-tokens 0 must be at least 1"),
    (["runs/nothing"], "RUN='runs/nothing' does not exist"),
])  # fmt: skip
def test_chat_refuses_what_it_cannot_do(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", *words]) == 2
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("words", "usage"), [
    (["sft", "--confg", "x"], "usage: rlhf sft "), (["config", "check", "x", "--b"], "usage: rlhf config check "),
    (["report", "x", "--html"], "usage: rlhf report "),
])  # fmt: skip
def test_a_wrong_option_shows_the_usage_of_its_command(
    words: list[str], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    said = capsys.readouterr().err
    assert left.value.code == 2 and usage in said and "unrecognized arguments" in said


def test_a_stage_without_a_config_says_where_one_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sft"]) == 2
    said = capsys.readouterr().out
    assert "without --config FILE: 3 problem(s)" in said and "data is required" in said


@pytest.mark.parametrize("action", ["check", "show"])
def test_overrides_of_a_checked_file_stand_behind_set(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", action, "lora.r=3"]) == 2
    assert "--set lora.r=3" in capsys.readouterr().out


@pytest.mark.parametrize("words", [
    ["sft", "--config"], ["config", "show"], ["config", "check"], ["plan", "--config"], ["pipeline"],
])  # fmt: skip
def test_a_missing_file_is_told_alike_everywhere(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "nope.yaml"]) == 2
    assert "config file nope.yaml does not exist" in capsys.readouterr().out


def test_overrides_may_stand_on_both_sides_of_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sft", "model.name=m", "--dry-run", "batch.nope=1", "seed=x"]) == 2
    said = capsys.readouterr().out
    assert "unknown key 'batch.nope'" in said and "seed" in said


def test_a_plan_on_the_standard_output_is_the_plan_alone(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", demonstrations(40))
    words = ["sft", "--config", str(ROOT / "configs/sft/tiny_cpu.yaml"), f"data.train={rows}", "--dry-run"]
    done = subprocess.run([sys.executable, "-m", "rlhf", *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.startswith("Plan of sft"), "a library's warnings go before it"
