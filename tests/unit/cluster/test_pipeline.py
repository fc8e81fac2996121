"""Pipelines: every shipped one is sound, steps run in order, once, and go on where they were left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.judgments import count_judgments
from cluster.pipeline import PipelineConfig, build_parser, claimed, main, open_pipeline
from preference_ui.db import open_store
from rlhf.errors import CheckpointError, ConfigError, RunLockedError

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "configs/pipelines").glob("*.yaml"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_STORE", str(tmp_path / "store.sqlite"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def write(folder: Path, *steps: dict, **more: object) -> Path:
    path = folder / "pipeline.yaml"
    tree = {"stage": "pipeline", "run_dir": "runs/p", "steps": list(steps), **more}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def check(name: str, file: str) -> dict:
    """A step that succeeds when the file is a sound config."""
    return {"name": name, "command": ["config", "check", file]}


def good_config(path: Path) -> str:
    tree = {"stage": "sft", "run_dir": "runs/x", "model": {"name": "m"}, "data": {"train": "d.jsonl"}}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path.name


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_pipelines_are_sound(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    pipeline = open_pipeline(path, build_parser().parse_args([str(path), "--run-dir", str(tmp_path / "runs/p")]))
    assert len(pipeline.config.steps) > 1
    assert main([str(path), "--dry-run", "--run-dir", str(tmp_path / "runs/p")]) == 0
    assert not (tmp_path / "runs").exists(), "a plan writes nothing"
    head = "\n".join(line for line in path.read_text("utf-8").splitlines()[:8] if line.startswith("#")).lower()
    for word in ("hardware", "launch", "minutes", "metric"):
        assert word in head


def test_there_are_pipelines() -> None:
    assert SHIPPED


def test_steps_run_once_and_go_on_after_a_failure(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = good_config(here / "first.yaml")
    path = write(here, check("a", first), check("b", "second.yaml"), check("c", first))
    assert main([str(path)]) == 2
    state = json.loads((here / "runs/p/pipeline.json").read_text("utf-8"))["steps"]
    assert list(state) == ["a"] and state["a"]["seconds"] >= 0
    good_config(here / "second.yaml")
    capfd.readouterr()
    assert main([str(path)]) == 0
    told = capfd.readouterr().out
    assert "[1/3] a: done before" in told and "first.yaml: good" in told and "second.yaml: good" in told
    assert main([str(path)]) == 0 and "good" not in capfd.readouterr().out
    assert main([str(path), "--dry-run"]) == 0 and capfd.readouterr().out.count("done") == 3


def test_a_plan_of_local_stages_names_the_data_that_is_missing(here: Path) -> None:
    config, again = good_config(here / "sft.yaml"), {"name": "again", "stage": "sft", "config": "sft.yaml"}
    path = write(here, {"name": "a", "stage": "sft", "config": config},
                 again | {"overrides": ["data.train={run_dir}/a/rows.jsonl"]})  # fmt: skip
    assert main([str(path), "--dry-run"]) == 0, "on a cluster the data is the nodes'"
    with pytest.raises(ConfigError, match=r"step 'a': train=d\.jsonl names nothing here"):
        main([str(path), "--local", "--dry-run"])
    (here / "d.jsonl").write_text("{}\n")
    assert main([str(path), "--local", "--dry-run"]) == 0, "a step before writes the other's"
    path = write(here, again | {"overrides": ["data.train=runs/quickstart/data/rows.jsonl"]})
    with pytest.raises(ConfigError, match="rlhf quickstart writes this one"):
        main([str(path), "--local", "--dry-run"])


def test_a_done_step_may_not_change_behind_ones_back(here: Path) -> None:
    first = good_config(here / "first.yaml")
    assert main([str(write(here, check("a", first)))]) == 0
    good_config(here / "other.yaml")
    with pytest.raises(ConfigError, match="step 'a' was done with other settings"):
        main([str(write(here, check("a", "other.yaml")))])


@pytest.mark.parametrize("recorded", ["in the state", "in the run"])
def test_a_step_that_an_earlier_release_has_done_is_done(recorded: str, here: Path) -> None:
    """It had fewer keys and so another digest; with another setting it is refused as ever."""
    path = write(here, STAGE)
    pipeline = open_pipeline(path, build_parser().parse_args([str(path)]))
    (step,) = pipeline.config.steps
    tree = pipeline.stage_config(step).model_dump(mode="json")
    del tree["checkpoint"]["write_timeout_seconds"], tree["lora"]["alpha"]

    def record(config: dict[str, Any]) -> None:
        pipeline.state[step.name] = {"digest": "of another release"}
        if recorded == "in the state":
            pipeline.state[step.name]["config"] = config
        else:
            (here / "runs/p/s").mkdir(parents=True, exist_ok=True)
            (here / "runs/p/s/config.json").write_text(json.dumps({"config_hash": "as well", "config": config}))

    record(tree)
    assert pipeline.done(step)
    record({**tree, "seed": 5})
    with pytest.raises(ConfigError, match="done with other settings"):
        pipeline.done(step)


@pytest.mark.parametrize("later", ["seed: 5", "model: [unclosed"])
def test_a_step_is_noted_as_it_began_whatever_its_file_says_when_it_ends(
    later: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = here / good_config(here / "first.yaml")
    before = config.read_text("utf-8")
    path = write(here, {"name": "s", "stage": "sft", "config": config.name})

    def run_step(*_: object) -> int:
        config.write_text(f"{before}{later}\n", encoding="utf-8")
        return 0

    monkeypatch.setattr("cluster.pipeline.run_step", run_step)
    assert main([str(path)]) == 0
    state = json.loads((here / "runs/p/pipeline.json").read_text("utf-8"))["steps"]["s"]
    assert state["config"]["seed"] == 0 and state["config"]["run_dir"] == "runs/p/s"
    with pytest.raises(ConfigError, match=r"done with other settings|not readable YAML"):
        main([str(path), "--dry-run"])
    config.write_text(before, encoding="utf-8")
    assert main([str(path), "--dry-run"]) == 0


def test_a_done_step_in_another_run_dir_is_done_only_where_its_run_is(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.pipeline.run_step", lambda *_: 0)
    assert main([str(write(here, STAGE))]) == 0
    elsewhere = write(here, STAGE | {"overrides": [*STAGE["overrides"], "run_dir=runs/q"]})
    with pytest.raises(ConfigError, match=r"other settings \(in run_dir=runs/p/s, and runs/q does not hold that run\)"):
        main([str(elsewhere)])
    pipeline = open_pipeline(elsewhere, build_parser().parse_args([str(elsewhere)]))
    described = {"config": pipeline.stage_config(pipeline.config.steps[0]).model_dump(mode="json")}
    (here / "runs/q").mkdir()
    (here / "runs/q/config.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="does not hold that run"):
        main([str(elsewhere)])
    (here / "runs/q/run.json").write_text("{}")
    assert main([str(elsewhere)]) == 0, "it was moved"


def test_a_stage_that_finished_unrecorded_counts_as_done(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is left when the process ends between the stage's last file and the pipeline's note."""
    path = write(here, STAGE)
    pipeline = open_pipeline(path, build_parser().parse_args([str(path)]))
    run_dir = here / "runs/p/s"
    run_dir.mkdir(parents=True)
    (step,) = pipeline.config.steps
    described = {"config_hash": pipeline.digest(step), "config": pipeline.stage_config(step).model_dump(mode="json")}
    (run_dir / "config.json").write_text(json.dumps(described))
    (run_dir / "run.json").write_text("{}")
    assert main([str(path), "--local"]) == 0
    assert "holds this run, finished before" in capfd.readouterr().out
    assert list(json.loads((here / "runs/p/pipeline.json").read_text("utf-8"))["steps"]) == ["s"]


def test_two_pipelines_never_work_in_one_directory(here: Path) -> None:
    path = write(here, check("a", good_config(here / "first.yaml")))
    (here / "runs/p").mkdir(parents=True)
    code = "import sys; from pathlib import Path; from rlhf.config.claim import claim; claim(Path(sys.argv[1]));\n"
    code += "print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(here / "runs/p")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunLockedError, match=f"in use by another live process .pid {other.pid}"):
            main([str(path)])
        assert main([str(path), "--dry-run"]) == 0, "looking is free"
        other.kill()
    assert main([str(path)]) == 0


def test_what_another_process_has_done_meanwhile_is_not_done_again(here: Path) -> None:
    """Between reading the state and the claim."""
    path = write(here, check("a", good_config(here / "first.yaml")))
    early = open_pipeline(path, build_parser().parse_args([str(path)]))
    assert main([str(path)]) == 0
    assert early.state == {}
    with claimed(early):
        assert list(early.state) == ["a"]


def test_a_directory_that_cannot_be_written_is_named(here: Path) -> None:
    path = write(here, check("a", good_config(here / "first.yaml")), run_dir="/proc/nowhere/p")
    with pytest.raises(CheckpointError, match="run_dir=/proc/nowhere/p cannot be written"):
        main([str(path)])


def test_people_are_waited_for(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"question {i}", "chosen": "yes", "rejected": "no"} for i in range(3)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    open_store(here / "store.sqlite").close()
    queue = {"name": "queue", "command": ["prefs", "import", "quiz", "rows.jsonl"]}
    wait = {"name": "people", "wait_for_judgments": {"project": "quiz", "count": 3, "poll_seconds": 0.1}}
    late = {"name": "late", "wait_for_judgments": {"project": "quiz", "count": 4}}
    path = write(here, queue, wait, late, check("after", good_config(here / "first.yaml")))
    assert main([str(path), "--no-wait"]) == 0
    told = capfd.readouterr().out
    assert count_judgments("quiz") == 3 and "3 judgments in project quiz" in told
    assert "3 of 4 judgments" in told and "rlhf annotate --project quiz" in told and "good" not in told
    impatient = {"name": "late", "wait_for_judgments": {"project": "quiz", "count": 4, "poll_seconds": 0.1,
                                                        "timeout_hours": 1e-6}}  # fmt: skip
    with pytest.raises(ConfigError, match="3 of 4 judgments after"):
        main([str(write(here, queue, wait, impatient))])
    with pytest.raises(ConfigError, match="'nowhere' cannot be counted"):
        count_judgments("nowhere")


STAGE: dict[str, Any] = {"name": "s", "stage": "sft", "overrides": ["model.name=m", "data.train=d"]}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "steps"),
        ([STAGE, STAGE], "equal names: s"),
        ([{"name": "x"}], "exactly one of"),
        ([STAGE | {"command": ["x"]}], "exactly one of"),
        ([{"name": "x", "command": ["x"], "overrides": ["a=b"]}], "belong to a stage"),
        ([STAGE | {"stage": "sfft"}], "must be one of sft"),
        ([STAGE | {"overrides": [*STAGE["overrides"], "sead=1"]}], "did you mean 'seed'"),
        ([STAGE | {"name": "a/b"}], "name"),
        ([STAGE | {"overrides": [*STAGE["overrides"], "run_dir={run_dir}"]}], "run_dir=runs/p is the pipeline's own"),
        ([STAGE | {"wait_for_judgements": {}}], "wait_for_judgments"),
    ],
)
def test_what_is_refused_before_anything_starts(here: Path, steps: list[dict], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main([str(write(here, *steps))])
    assert not (here / "runs").exists()


@pytest.mark.parametrize("words", [["--address", "http://head:8265"], ["--code"], ["--env-var", "A=b"]])
def test_what_belongs_to_jobs_does_not_go_with_local(
    here: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(write(here, STAGE)), "--local", *words])
    assert "--local starts no job" in capsys.readouterr().err


def test_run_directories_lie_in_the_pipelines_own(here: Path) -> None:
    given = STAGE | {"overrides": ["model.name={run_dir}/a", "data.train=d"]}
    args = build_parser().parse_args([str(write(here, given)), "--run-dir", "runs/other"])
    pipeline = open_pipeline(here / "pipeline.yaml", args)
    assert isinstance(pipeline.config, PipelineConfig)
    assert pipeline.overrides(pipeline.config.steps[0]) == [
        "run_dir=runs/other/s", "model.name=runs/other/a", "data.train=d",
    ]  # fmt: skip


def test_a_stage_s_config_is_no_pipeline(here: Path) -> None:
    file = good_config(here / "first.yaml")
    with pytest.raises(ConfigError, match=f"is a config of stage 'sft', no pipeline: run 'rlhf sft --config {file}'"):
        main([file])
