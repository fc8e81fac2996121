"""What a checkpoint belongs to: runs trained anew under the names that the config gives are other ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rlhf.config import RewardConfig, build_config
from rlhf.engine.checkpoint.store import CheckpointStore
from rlhf.errors import CheckpointError
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.stages.resume import find_commit, identity_of
from rlhf.stages.reward_models import reward_identity
from rlhf.telemetry.events import EventLog
from tests.support.ppo import tiny_config
from tests.support.runs import write_reward_run, write_run


def identity(base: Path, sft: Path, reward: Path, **changes: Any) -> dict[str, Any]:
    scores = [{"kind": "reward_model", "run": str(reward)}]
    config = tiny_config(base, sft.parent / "ppo", scores=scores, **{"model.name": str(sft)}, **changes)
    source = resolve_model(str(sft))
    chat = load_chat(source, config.model)[1]
    return identity_of(config, source=source, chat=chat, data=[]) | reward_identity(config)


def find(
    saved: dict[str, Any], present: dict[str, Any], base: Path, place: Path, restarts: int = 0, **changes: Any
) -> Any:
    commit = place / "step-00000002", SimpleNamespace(identity=saved, step=2), []
    store = cast(CheckpointStore, SimpleNamespace(newest=lambda: commit, directory=place))
    return find_commit(tiny_config(base, place / "ppo", **changes), store, present, EventLog(place), restarts)


@pytest.fixture
def runs(tiny_base: Path, tmp_path: Path) -> tuple[Path, Path]:
    return write_run(tmp_path / "sft", tiny_base), write_reward_run(tmp_path / "reward", tiny_base, 0)


def test_a_reference_trained_anew_is_refused(runs: tuple[Path, Path], tiny_base: Path, tmp_path: Path) -> None:
    sft, reward = runs
    saved = identity(tiny_base, sft, reward)
    assert find(saved, identity(tiny_base, sft, reward), tiny_base, tmp_path).manifest.step == 2
    shutil.rmtree(sft)
    write_run(sft, tiny_base)
    with pytest.raises(CheckpointError, match="the adapter of the run that it starts from has changed"):
        find(saved, identity(tiny_base, sft, reward), tiny_base, tmp_path)


@pytest.mark.parametrize("damage", ["head", "scale"])
def test_a_reward_model_trained_anew_is_refused(
    damage: str, runs: tuple[Path, Path], tiny_base: Path, tmp_path: Path
) -> None:
    sft, reward = runs
    saved = identity(tiny_base, sft, reward)
    if damage == "head":
        shutil.rmtree(reward)
        write_reward_run(reward, tiny_base, 1)
    else:
        settings = reward / "adapter" / "reward.json"
        settings.write_text(settings.read_text().replace("1.5", "2.5"))
    with pytest.raises(CheckpointError, match="a reward model has changed"):
        find(saved, identity(tiny_base, sft, reward), tiny_base, tmp_path)


def test_commits_from_before_these_were_compared_are_gone_on_from(
    runs: tuple[Path, Path], tiny_base: Path, tmp_path: Path
) -> None:
    present = identity(tiny_base, *runs)
    saved = {key: value for key, value in present.items() if key not in ("adapter_sha256", "reward_sha256")}
    assert find(saved, present, tiny_base, tmp_path) is not None
    with pytest.raises(CheckpointError, match="the base model's weights have changed"):
        find({**saved, "base_sha256": "0"}, present, tiny_base, tmp_path)


def test_a_run_that_resumes_nothing_still_recovers_from_its_own_commits(
    runs: tuple[Path, Path], tiny_base: Path, tmp_path: Path
) -> None:
    never, present = {"checkpoint.resume": "never"}, identity(tiny_base, *runs)
    with pytest.raises(CheckpointError, match=r"checkpoint\.resume=never"):
        find(present, present, tiny_base, tmp_path, **never)
    assert find(present, present, tiny_base, tmp_path, 1, **never).manifest.step == 2


def test_commits_of_an_earlier_release_are_gone_on_from(
    runs: tuple[Path, Path], tiny_base: Path, tmp_path: Path
) -> None:
    """It had fewer keys, other defaults where they have no effect, and another word for the way of attending."""
    present = identity(tiny_base, *runs)
    keys = {**present["config"], "score.missing_eos_value": 1.0, "model.attention": "sdpa", "model.chat_style": "model"}
    del keys["loss.old_logprobs"]
    assert find({**present, "config": keys}, present, tiny_base, tmp_path).manifest.step == 2
    with pytest.raises(CheckpointError, match=r"written with seed=7, this run has 0"):
        find({**present, "config": {**keys, "seed": 7}}, present, tiny_base, tmp_path)
    with pytest.raises(CheckpointError, match=r"chat template has changed .*another release has read them otherwise"):
        find({**present, "config": keys, "chat_fingerprint": "0"}, present, tiny_base, tmp_path)


def test_a_server_in_trouble_may_be_asked_more_patiently(
    runs: tuple[Path, Path], tiny_base: Path, tmp_path: Path
) -> None:
    def scored(**more: Any) -> dict[str, Any]:
        return {"scores": [{"kind": "http", "url": "https://rewards.example.org/s", **more}]}

    def of(changes: dict[str, Any]) -> dict[str, Any]:
        config = tiny_config(tiny_base, tmp_path / "ppo", **changes)
        source = resolve_model(config.model.name)
        return identity_of(config, source=source, chat=load_chat(source, config.model)[1], data=[])

    saved, patient = of(scored()), scored(timeout_seconds=90.0, retries=9, backoff_seconds=2.0, concurrent_requests=4)
    assert find(saved, of(patient), tiny_base, tmp_path, **patient).manifest.step == 2
    other = scored(retries=9, weight=2.0)
    with pytest.raises(
        CheckpointError, match=r"was written with scores=.*'weight': 1\.0.*this run has.*'weight': 2\.0"
    ):
        find(saved, of(other), tiny_base, tmp_path, **other)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("store:quiz", r"the votes of store:quiz have changed.*--fresh.*freeze quiz, .*\(store:quiz@vN\)"),
        ([{"files": "store:/x.db#quiz", "limit": 9}], r"votes of store:/x\.db#quiz .*freeze quiz, .*#quiz@vN"),
        ("store:quiz@v3", "the data has changed .*put the old files back"),
        ("pairs.jsonl", "the data has changed .*put the old files back"),
    ],
)
def test_live_votes_that_have_changed_are_told_so(train: Any, said: str, tiny_base: Path, tmp_path: Path) -> None:
    tree = {"run_dir": str(tmp_path / "run"), "model": {"name": str(tiny_base)}, "data": {"train": train}}
    config = build_config(RewardConfig, tree, source="test")
    source = resolve_model(str(tiny_base))
    chat = load_chat(source, config.model)[1]
    saved, present = (identity_of(config, source=source, chat=chat, data=data) for data in ([1], [2]))
    commit = tmp_path / "step-00000002", SimpleNamespace(identity=saved, step=2), []
    store = cast(CheckpointStore, SimpleNamespace(newest=lambda: commit, directory=tmp_path))
    with pytest.raises(CheckpointError, match=said):
        find_commit(config, store, present, EventLog(tmp_path))
