"""A submission before any cluster is asked: checked, named, without secrets."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster.submit import Job, _already, build_parser, prepare, run_name, submit_patiently
from rlhf.config import RewardConfig
from rlhf.errors import ConfigError

PPO = {
    "stage": "ppo",
    "run_dir": "runs/helpline/ppo",
    "model": {"name": "runs/sft"},
    "prompts": "prompts.jsonl",
    "scores": [{"kind": "reward_model", "run": "runs/reward"}],
}
ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(PPO), encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hello"}\n', encoding="utf-8")
    return tmp_path.resolve()


def job(project: Path, *words: str) -> Job:
    args = build_parser().parse_intermixed_args(["ppo", "--config", str(project / "ppo.yaml"), *words])
    return prepare(args, root=project)


def test_the_command_that_the_cluster_runs(project: Path) -> None:
    found = job(project, "seed=3")
    assert shlex.split(found.entrypoint) == [
        "python", "-m", "rlhf", "ppo", "--unless-finished", "--config", "ppo.yaml", "seed=3",
        f"run_dir={project}/runs/helpline/ppo", f"model.name={project}/runs/sft",
        f'scores=[{{"kind": "reward_model", "run": "{project}/runs/reward"}}]', "placement.ray_address=auto",
    ]  # fmt: skip
    assert found.run == "helpline-ppo" and found.run_dir == f"{project}/runs/helpline/ppo"


def test_the_other_word_of_a_key_travels_too(project: Path) -> None:
    tree = {"run_dir": "runs/reward", "model": {"name": "m"}, "data": {"preferences": "runs/rows.jsonl"}}
    (project / "reward.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    for words in ([], ["data.preferences=runs/rows.jsonl"]):
        given = ["reward", "--config", str(project / "reward.yaml"), *words]
        found = prepare(build_parser().parse_intermixed_args(given), root=project)
        assert isinstance(found.config, RewardConfig) and found.config.data.train == f"{project}/runs/rows.jsonl"


def test_a_name_sets_the_run_directory(project: Path) -> None:
    found = job(project, "--id", "july", "--root", "/shared")
    assert (found.run, found.run_dir) == ("july", "/shared/runs/july")
    assert found.environment["RLHF_STORE_DEFAULT"] == "/shared/runs/preferences.sqlite"
    assert "RLHF_STORE" not in found.environment, "it would hide the one that the nodes were started with"
    given = job(project, "--id", "july", "run_dir=/data/x", "placement.ray_address=1.2.3.4:6379")
    assert (given.run, given.run_dir) == ("july", "/data/x")
    assert "placement.ray_address=auto" not in given.entrypoint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kl.coeff=1"], "did you mean 'kl.coef'"),
        (["--id", "a b"], "letters, digits"),
        (["run_dir=out"], "is relative"),
        (["--root", "shared"], "absolute"),
        (["--env-var", "MY_API_KEY=abc"], "secrets do not belong"),
        (["--env-var", "SURELY_NOT_SET"], "not set in this shell"),
        (["--stop-grace-seconds", "-5"], "--stop-grace-seconds -5 must be at least 0"),
    ],
)
def test_what_is_refused_before_anything_is_sent(project: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job(project, *words)


def test_variables_of_a_job(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASTE", "sweet")
    found = job(project, "--env-var", "TASTE", "--env-var", "COLOUR=red", "--stop-grace-seconds", "7")
    assert found.environment["TASTE"] == "sweet" and found.environment["COLOUR"] == "red"
    assert found.environment["RAY_JOB_STOP_WAIT_TIME_S"] == "7"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MY_API_KEY", "canary-5d1f"),
        ("HF_TOKEN", "canary-5d1f"),
        ("DATABASE", "postgresql://ann:canary-5d1f@db/prefs"),
        ("RLHF_STORE", "postgresql://ann:canary-5d1f@db/prefs"),
    ],
)
def test_secrets_stay_here_unless_they_may_be_read(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Ray logs a job's variables; the store's address is sent without being asked for."""
    monkeypatch.setenv(name, value)
    expected = f"^{name} holds a secret.*in clear.*file:PATH.*--secrets-in-clear"
    with pytest.raises(ConfigError, match=expected) as refused:
        job(project, "--env-var", name)
    assert "canary" not in str(refused.value)
    found = job(project, "--env-var", name, "--secrets-in-clear")
    assert found.environment[name] == value
    assert "canary" not in found.entrypoint + str(found.metadata)
    with pytest.raises(ConfigError, match="do not belong on a command line") as refused:
        job(project, "--env-var", f"{name}={value}", "--secrets-in-clear")
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    "item", ["HF_TOKEN_PATH=/secrets/hub", "TOKENIZERS_PARALLELISM=false", "MAX_NEW_TOKENS=256", "KEYBOARD=qwerty"]
)
def test_what_only_names_a_secret_may_be_sent(project: Path, item: str) -> None:
    name, _, value = item.partition("=")
    assert job(project, "--env-var", item).environment[name] == value


@pytest.mark.parametrize(
    ("run_dir", "name"),
    [("runs/x", "x"), ("runs/a/b", "a-b"), ("/mnt/runs/a/b", "a-b"), ("/data/x", "x"), ("./runs/x", "x")],
)
def test_names_of_runs(run_dir: str, name: str) -> None:
    assert run_name(run_dir) == name


def test_a_wrong_config_ends_with_two_without_a_cluster(project: Path) -> None:
    """And quickly: neither torch nor ray is loaded."""
    words = ["submit", "ppo", "--config", str(project / "ppo.yaml")]
    done = submit_apart(project, [*words, "sead=1"])
    assert done.returncode == 2 and "did you mean 'seed'" in done.stdout
    assert done.stderr.splitlines()[-1] == "loaded []"
    done = submit_apart(project, words)
    assert done.returncode == 6 and "no token" in done.stdout


def submit_apart(project: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """``rlhf`` with these words in a process that says last, on stderr, what it has loaded."""
    code = """
import sys
from rlhf.cli import main
code = main(sys.argv[1:])
sys.stderr.write(f"loaded {[name for name in ('torch', 'ray', 'transformers') if name in sys.modules]}\\n")
sys.exit(code)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN_PATH": str(project / "none")}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=60)


def test_a_run_that_took_over_its_start_s_quantization_is_no_other_run(project: Path) -> None:
    asked = job(project, f"run_dir={project}/run", "scores=[{kind: function, path: 'a:b'}]")
    ran = asked.config.model_dump(mode="json")
    ran["model"]["quantization"] = "nf4"
    (project / "run").mkdir()
    (project / "run" / "config.json").write_text(json.dumps({"config_hash": "its own", "config": ran}))
    last: Any = SimpleNamespace(live=True, submission_id="ppo", entrypoint="rlhf", metadata={"config_hash": "older"})
    assert _already(last, asked) == "ppo"
    ran["seed"] = 7
    (project / "run" / "config.json").write_text(json.dumps({"config_hash": "its own", "config": ran}))
    with pytest.raises(ConfigError, match="with another config"):
        _already(last, asked)


def test_a_cluster_that_has_just_started_is_given_time() -> None:
    answers = [RuntimeError("status code 500: No available agent to submit job, please try again later.")] * 2

    def send_once() -> None:
        if answers:
            raise answers.pop()

    submit_patiently(send_once)
    assert not answers
    answers.append(RuntimeError("No available agent"))
    with pytest.raises(ConfigError, match=r"none of its nodes takes a job.*dashboard-agent-listen-port"):
        submit_patiently(send_once, limit_seconds=-1)
    answers.append(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        submit_patiently(send_once)


def test_a_profile_can_be_asked_for(project: Path) -> None:
    assert "telemetry.profile=true" in shlex.split(job(project, "--profile", "seed=3").entrypoint)
    assert "telemetry.profile" not in job(project).entrypoint
