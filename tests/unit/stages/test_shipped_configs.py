"""The quickstart finds its configs in a clone and in an installed package."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from rlhf.config import load_config
from rlhf.errors import ConfigError
from rlhf.stages.shipped import CLONE, INSTALLED, shipped_configs

ROOT = Path(__file__).parents[3]


def test_an_installation_has_every_config_of_the_clone() -> None:
    """What setuptools lays under the environment's data directory, from ``configs/`` itself."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["data-files"]
    laid = {f"{target}/{file.name}": file for target, globs in settings.items() for g in globs for file in ROOT.glob(g)}
    assert laid == {
        f"{INSTALLED.as_posix()}/configs/{file.parent.name}/{file.name}": file for file in ROOT.glob("configs/*/*.yaml")
    }


def test_a_clone_s_configs_go_before_installed_ones(tmp_path: Path) -> None:
    assert CLONE == ROOT
    assert shipped_configs("quickstart", data=tmp_path) == ROOT / "configs/quickstart"
    there = tmp_path / INSTALLED / "configs/quickstart"
    there.mkdir(parents=True)
    (there / "sft.yaml").write_bytes((ROOT / "configs/quickstart/sft.yaml").read_bytes())
    found = shipped_configs("quickstart", clone=tmp_path / "site-packages", data=tmp_path)
    assert found == there and load_config("sft", found / "sft.yaml", []).run_dir == "runs/quickstart/sft"
    with pytest.raises(ConfigError, match=r"no configs/nope in .*: install the project again"):
        shipped_configs("nope", data=tmp_path)
