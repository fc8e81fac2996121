"""One live process per run directory, and nothing written over a finished run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.config import SftConfig, build_config, config_hash, load_config
from rlhf.config.claim import fencing_token
from rlhf.engine.checkpoint.store import CheckpointStore
from rlhf.errors import CheckpointError, ConfigError, RunLockedError
from rlhf.stages.resume import open_store
from rlhf.stages.run_dir import finished_before, prepare_run_dir, release_run_dir, set_aside
from tests.support.chaos_store import write_commit


def _config(run_dir: Path) -> SftConfig:
    return build_config(
        SftConfig, {"run_dir": str(run_dir), "model": {"name": "m"}, "data": {"train": "t.jsonl"}}, source="test"
    )


def test_the_directory_describes_the_run(tmp_path: Path) -> None:
    config = _config(tmp_path / "run")
    path = prepare_run_dir(config, git_cwd=tmp_path)
    release_run_dir(path)
    record = json.loads((path / "config.json").read_text())
    assert record["config_hash"] == config_hash(config)
    assert record["git_sha"] is None and "torch" in record["versions"]
    assert load_config("sft", path / "config.yaml") == config
    assert (path / "logs" / "driver-0.log").is_file()


def test_a_finished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="finished run: set run_dir"):
        prepare_run_dir(_config(tmp_path), git_cwd=tmp_path)


def test_a_finished_run_is_known_by_its_settings(tmp_path: Path) -> None:
    config = _config(tmp_path)
    assert not finished_before(config)
    release_run_dir(prepare_run_dir(config, git_cwd=tmp_path))
    assert not finished_before(config), "it was begun, not ended"
    (tmp_path / "run.json").write_text("{}")
    assert finished_before(config)
    assert not finished_before(config.model_copy(update={"seed": 7}))
    (tmp_path / "config.json").write_text("[]")
    assert not finished_before(config), "nothing tells which run it is"


def test_a_live_process_keeps_others_out_and_a_killed_one_does_not(tmp_path: Path) -> None:
    code = (
        "import sys, fcntl, os; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "f.write(f'{os.getpid()} thishost 7'); f.flush(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunLockedError, match=f"pid {other.pid} on thishost") as caught:
            prepare_run_dir(_config(tmp_path), git_cwd=tmp_path)
        assert caught.value.exit_code == 7
        other.kill()
        other.wait()
        path = prepare_run_dir(_config(tmp_path), git_cwd=tmp_path)
        assert fencing_token(path) == 8, "a later claim has a larger token, also after a kill"
        release_run_dir(path)


def test_checkpoints_that_came_without_a_lock_are_gone_on_from(tmp_path: Path) -> None:
    """As ``cp -r run/*`` leaves them elsewhere: the claim's token is larger than any that has committed."""
    write_commit(CheckpointStore(tmp_path / "checkpoints", token=3), 1)
    config = _config(tmp_path)
    path = prepare_run_dir(config, git_cwd=tmp_path)
    assert fencing_token(path) == 4
    store = open_store(config, path)
    write_commit(store, 2)
    assert store.steps() == [1, 2]
    release_run_dir(path)
    assert (path / ".lock").read_text().split()[2] == "4"


def test_setting_a_run_aside_keeps_it_whole(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    aside = set_aside(tmp_path / "run")
    assert aside is not None and (aside / "run.json").is_file() and not (tmp_path / "run").exists()
    assert set_aside(tmp_path / "run") is None


def test_an_unfinished_run_may_be_entered_again(tmp_path: Path) -> None:
    for _ in range(2):
        path = prepare_run_dir(_config(tmp_path), git_cwd=tmp_path)
    release_run_dir(path)


def test_a_relative_directory_is_told_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers on a joined cluster would put it below a working directory of their own."""
    monkeypatch.chdir(tmp_path)
    path = prepare_run_dir(_config(Path("runs/sft")))
    release_run_dir(path)
    assert path == tmp_path / "runs" / "sft"


def test_a_relative_directory_inside_rays_copy_of_the_project_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``ray job submit --working-dir .`` runs in is removed afterwards, and the run with it."""
    copy = tmp_path / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(ConfigError, match="name a directory that stays"):
        prepare_run_dir(_config(Path("runs/sft")))
    assert list(copy.iterdir()) == []
