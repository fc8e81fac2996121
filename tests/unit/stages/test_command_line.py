"""What ``rlhf`` says to commands that cannot be run: the option, the reason, what to do; never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf import cli
from rlhf.errors import ConfigError
from rlhf.stages.run_dir import prepare_run_dir, release_run_dir

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
