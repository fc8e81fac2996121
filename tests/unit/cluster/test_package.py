"""What travels with a job: what the config names, nothing else, byte for byte the same every time."""

from __future__ import annotations

import typing
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cluster.package import PATH_KEYS, collect, write_zip
from rlhf.config import STAGES
from rlhf.config.explain import sections_in
from rlhf.errors import ConfigError

TREE = {
    "run_dir": "runs/ppo",
    "model": {"name": "runs/sft"},
    "prompts": ["data/*.jsonl"],
    "scores": [
        {"kind": "reward_model", "run": "runs/reward"},
        {"kind": "function", "path": "scorers.kind:score"},
        {"kind": "function", "path": "rlhf.data.helpline.judge:reward"},
    ],
    "placement": {"num_ranks": 2},
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with everything that must stay behind."""
    for name in (
        "ppo.yaml", "data/a.jsonl", "data/b.jsonl", "data/other.csv", "scorers/kind.py", "scorers/__pycache__/kind.pyc",
        "runs/sft/adapter.bin", ".git/HEAD", ".venv/bin/python", "rlhf/cli.py", "rlhf/runs/x", "secret/.env",
        "notes.md",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    return tmp_path.resolve()


def names(project: Path, **changes: object) -> set[str]:
    return set(collect(TREE, project / "ppo.yaml", root=project, cluster_root="/shared", **changes).files)


def test_only_what_the_config_names(project: Path) -> None:
    assert names(project) == {"ppo.yaml", "data/a.jsonl", "data/b.jsonl", "scorers/kind.py"}
    assert names(project, code=True) == names(project) | {"rlhf/cli.py"}
    assert names(project, include=["data/*.csv"]) == names(project) | {"data/other.csv"}
    assert names(project, exclude=["data/b*"]) == names(project) - {"data/b.jsonl"}


def test_files_of_listed_sources_travel_and_move(project: Path) -> None:
    tree = TREE | {"prompts": [{"files": "data/a.jsonl", "weight": 2}, {"files": ["data/*.csv", "runs/x.jsonl"]}]}
    package = collect(tree, project / "ppo.yaml", root=project, cluster_root="/shared")
    assert {"data/a.jsonl", "data/other.csv"} <= set(package.files) and "data/b.jsonl" not in package.files
    assert any("/shared/runs/x.jsonl" in override for override in package.overrides)


def test_run_directories_are_meant_on_the_cluster(project: Path) -> None:
    package = collect(TREE, project / "ppo.yaml", root=project, cluster_root="/shared/")
    assert package.overrides == (
        "run_dir=/shared/runs/ppo",
        "model.name=/shared/runs/sft",
        'scores=[{"kind": "reward_model", "run": "/shared/runs/reward"}, {"kind": "function", "path": '
        '"scorers.kind:score"}, {"kind": "function", "path": "rlhf.data.helpline.judge:reward"}]',
    )


def test_a_critic_and_certificates_travel_and_move_too(project: Path) -> None:
    server = {"kind": "http", "url": "https://rewards.example.org/s", "ca_file": "data/other.csv"}
    tree = TREE | {"roles": {"critic": "runs/critic"}, "scores": [server]}
    package = collect(tree, project / "ppo.yaml", root=project, cluster_root="/shared")
    assert "data/other.csv" in package.files and "roles.critic=/shared/runs/critic" in package.overrides
    tree = {"judge": server | {"ca_file": "/etc/ca.pem"}}
    assert collect(tree, None, root=project, cluster_root="/shared").remote_paths == ("/etc/ca.pem",)


NO_PATHS = {
    "revision", "ray_address", "rank_labels", "rollout_labels", "scorer_labels", "critic_labels", "network_interface",
    "wandb_project", "format", "prompt_format", "method", "target_modules", "path", "url", "token",
}  # fmt: skip
"""Keys whose text names no file: ``path`` is a function, a ``token`` a secret of the nodes."""


def test_of_every_key_that_holds_text_it_is_known_whether_it_is_a_path() -> None:
    """Whoever adds a key decides: a path that is not in ``PATH_KEYS`` is neither sent nor moved."""

    def texts(annotation: Any) -> bool:
        return annotation is str or any(map(texts, typing.get_args(annotation)))

    def keys(section: type[BaseModel]) -> Iterator[str]:
        for name, field in section.model_fields.items():
            if texts(field.annotation):
                yield name
            for below in sections_in(field.annotation):
                yield from keys(below)

    assert {key for section in STAGES.values() for key in keys(section)} == PATH_KEYS | NO_PATHS


def test_absolute_paths_stay_and_are_told(project: Path) -> None:
    tree = {"run_dir": "/shared/runs/x", "model": {"name": "/models/llama"}, "data": {"train": "data/a.jsonl"}}
    package = collect(tree, None, root=project, cluster_root="/shared")
    assert package.remote_paths == ("/models/llama",) and package.overrides == ()
    assert set(package.files) == {"data/a.jsonl"}


def test_a_config_outside_the_project_travels_too(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = tmp_path_factory.mktemp("elsewhere") / "mine.yaml"
    config.write_text("stage: ppo", encoding="utf-8")
    package = collect(TREE, config, root=project, cluster_root="/shared")
    assert package.config_name == "mine.yaml" and package.files["mine.yaml"] == config


def test_equal_files_give_equal_bytes(project: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.zip", tmp_path / "2.zip"
    package = collect(TREE, project / "ppo.yaml", root=project, cluster_root="/shared")
    write_zip(package, first)
    for path in package.files.values():
        path.touch()
    write_zip(collect(TREE, project / "ppo.yaml", root=project, cluster_root="/shared"), second)
    assert first.read_bytes() == second.read_bytes()
    assert zipfile.ZipFile(first).read("data/a.jsonl") == b"data/a.jsonl"
    (project / "data/a.jsonl").write_text("changed", encoding="utf-8")
    write_zip(package, second)
    assert first.read_bytes() != second.read_bytes()


def test_too_large_names_the_largest(project: Path, tmp_path: Path) -> None:
    import random

    (project / "data/a.jsonl").write_bytes(random.Random(0).randbytes(300_000))
    package = collect(TREE, project / "ppo.yaml", root=project, cluster_root="/shared")
    with pytest.raises(ConfigError, match=r"Ray takes at most 0\.2 MiB(.|\n)*293 KiB  data/a\.jsonl(.|\n)*--exclude"):
        write_zip(package, tmp_path / "x.zip", max_mib=0.2)


def test_relative_data_that_is_not_there_is_refused(project: Path) -> None:
    def packed(**changes: object) -> set[str]:
        tree = TREE | changes
        return set(collect(tree, None, root=project, cluster_root="/shared").files)

    for key in ("prompts", "train", "evaluation", "normalize_on"):
        with pytest.raises(
            ConfigError, match=rf"{key}=data/nope.*: names nothing below .*absolute path that every node"
        ):
            packed(data={key: "data/nope*.jsonl"})
    model = {"name": "some-hub/model"}
    assert packed(model=model, data={"train": "store:mine", "evaluation": "/shared/e.jsonl"}, prompts="runs/p") == {
        "scorers/kind.py"
    }


def test_paths_that_cannot_be_sent(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"--include nothing\.txt"):
        names(project, include=["nothing.txt"])
    with pytest.raises(ConfigError, match="--include secret"):  # what is never sent is not sent on request either
        names(project, include=["secret"])
    with pytest.raises(ConfigError, match="lies outside"):
        names(project / "data", include=["../notes.md"])
