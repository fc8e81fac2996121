"""Where a quickstart may start: an earlier one is kept, and what cannot be written is told in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from preference_ui.projects import create_project, list_projects
from rlhf.config import SftConfig
from rlhf.errors import CheckpointError, RunLockedError
from rlhf.stages.quickstart import STATE_FILE, Quickstart, _open, _stage
from rlhf.stages.run_dir import release_run_dir


def opened(root: Path, *, fresh: bool = False) -> Quickstart:
    quick = _open(root, 3, fresh, rehearsal=True)
    quick.store.close()
    return quick


def test_fresh_sets_an_earlier_quickstart_aside_and_keeps_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "quickstart"
    create_project(opened(root).store, "helpline")
    (root / "sft").mkdir()
    (root / "sft" / "run.json").write_text("{}")
    (root / "summary.json").write_text("{}")
    with pytest.raises(CheckpointError, match="add --fresh to set it aside"):
        opened(root)
    quick = opened(root, fresh=True)
    (aside,) = tmp_path.glob("quickstart.before-*")
    assert "the earlier quickstart is now" in capsys.readouterr().out
    assert (aside / "sft" / "run.json").is_file() and (aside / "summary.json").is_file()
    assert sorted(path.name for path in root.iterdir()) == [".lock", STATE_FILE]
    assert json.loads((root / STATE_FILE).read_text())["stages"] == {}
    assert [project.name for project in list_projects(quick.store)] == ["helpline"]
    quick.store.close()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_quickstart_that_is_running_is_left_alone(fresh: bool, tmp_path: Path) -> None:
    root = tmp_path / "quickstart"
    opened(root)
    release_run_dir(root)
    code = "import sys, pathlib, rlhf.stages.run_dir as r; r.claim(pathlib.Path(sys.argv[1])); print('held'); input()"
    holder = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RunLockedError, match=f"live process .pid {holder.pid}"):
            opened(root, fresh=fresh)
    assert [path.name for path in tmp_path.glob("quickstart*")] == ["quickstart"]


def test_fresh_leaves_what_is_no_quickstart_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="is not a quickstart run: it was left as it is"):
        opened(tmp_path / "mine", fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/quickstart"])
def test_a_directory_that_cannot_be_written_is_told(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"--run-dir .* cannot be written: .*choose another"):
        opened(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("killed", ["before its last file", "before it was noted"])
def test_a_kill_at_the_end_of_a_stage_is_gone_on_from(killed: str, tmp_path: Path) -> None:
    """A stage is over with its last file, whether or not the quickstart came to note it."""
    quick, runs = opened(tmp_path / "quickstart"), []
    folder = quick.root / "sft"

    def run(config: SftConfig, **_: object) -> dict[str, object]:
        folder.mkdir()
        (folder / "summary.json").write_text('{"engine": "zero", "curve": [1]}')
        runs.append(config.run_dir)
        if killed == "before its last file" and len(runs) == 1:
            raise KeyboardInterrupt
        (folder / "run.json").write_text("{}")
        if killed == "before it was noted":
            raise KeyboardInterrupt
        return {"engine": "zero", "curve": [1]}

    with pytest.raises(KeyboardInterrupt):
        _stage(quick, "sft", "SFT", run)
    release_run_dir(quick.root)
    again = opened(quick.root)
    _stage(again, "sft", "SFT", run)
    assert again.state["stages"] == {"sft": {"engine": "zero"}}
    assert len(runs) == (2 if killed == "before its last file" else 1)
    assert json.loads((quick.root / STATE_FILE).read_text())["stages"] == again.state["stages"]
    release_run_dir(quick.root)
