"""What workers take of GPUs: refused where no cluster could give it, or where it would have to be guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config import EvaluateConfig, PlacementConfig, build_config, load_config
from rlhf.errors import ConfigError

RANK, ROLLOUT = "placement.gpus_per_rank", "placement.gpus_per_rollout_worker"
CRITIC = ["roles.critic=x", "placement.num_critic_ranks=2"]
TOGETHER = "placement.layout=colocated"


def load(stage: str, *words: str) -> Any:
    return load_config(stage, next(iter(Path("configs/quickstart").glob(f"{stage}.yaml"))), list(words))


def shares(rank: float, rollout: float, *words: str) -> Any:
    return load("ppo", f"{RANK}={rank}", f"{ROLLOUT}={rollout}", *words)


@pytest.mark.parametrize(
    ("stage", "keys"),
    [("sft", ["rank"]), ("reward", ["rank"]), ("sample", ["rollout_worker"]), ("evaluate", ["rollout_worker"]),
     ("ppo", ["rank", "rollout_worker"])],
)  # fmt: skip
def test_whoever_waits_for_nodes_says_what_is_taken_of_their_gpus(stage: str, keys: list[str]) -> None:
    """Guessed from the nodes that are up, before any GPU node is, it would be CPUs."""
    for key in keys:
        unset = f"placement.gpus_per_{key}=null"
        assert load(stage, unset)
        with pytest.raises(ConfigError, match=rf"wait_for_nodes=true(.|\n)*set placement\.gpus_per_{key} \(1"):
            load(stage, unset, "placement.wait_for_nodes=true")
    for amount in (0, 1):
        load(stage, "placement.wait_for_nodes=true", *(f"placement.gpus_per_{key}={amount}" for key in keys))


def test_a_critic_apart_is_one_of_those_who_say_it() -> None:
    waits = ["placement.wait_for_nodes=true", f"{RANK}=1", f"{ROLLOUT}=1"]
    load("ppo", *waits)
    with pytest.raises(ConfigError, match=r"set placement\.gpus_per_critic_rank \(1"):
        load("ppo", *waits, *CRITIC, "placement.gpus_per_critic_rank=null")
    load("ppo", *waits, *CRITIC, "placement.gpus_per_critic_rank=1")


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*/*gpu.yaml")), ids=str)
def test_a_config_made_for_gpus_never_trains_on_cpus(path: Path) -> None:
    stage = path.parent.name
    placement = load_config(stage, path).placement
    assert placement.gpus_per_rank and (stage != "ppo" or placement.gpus_per_rollout_worker)
    load_config(stage, path, ["placement.wait_for_nodes=true"])


@pytest.mark.parametrize(
    ("rank", "rollout", "words"),
    [
        (0.5, 1, []),
        (0.25, 0.5, []),
        (0.25, 0.25, [TOGETHER]),
        (0.5, 0, [TOGETHER]),
        (0.5, 1, [TOGETHER]),
        (0.5, 0.5, [TOGETHER, "placement.num_rollout_workers=1", "placement.num_ranks=4"]),  # three ranks are alone
    ],
)
def test_two_ranks_that_could_meet_on_one_gpu_are_refused(rank: float, rollout: float, words: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"num_ranks=[24] with gpus_per_rank={rank:g}(.|\n)*NCCL refuses"):
        shares(rank, rollout, *words)


@pytest.mark.parametrize(
    ("rank", "rollout", "words"),
    [
        (0.6, 0.5, []),
        (0.5, 0.5, ["placement.num_ranks=1"]),
        (0.5, 0.5, ["placement.strategy=STRICT_SPREAD"]),
        (0, 0.5, []),
        (1, 1, [TOGETHER]),
        (0.5, 0.5, [TOGETHER]),
        (0.3, 0.3, [TOGETHER]),
        (0.5, 0.5, [TOGETHER, "placement.num_rollout_workers=1"]),  # a half and a whole: not on one GPU
        (0.25, 0.2, [TOGETHER, "placement.gpus_per_scorer_worker=0.3", "placement.num_scorer_workers=2"]),
    ],
)
def test_what_can_be_placed_is_taken(rank: float, rollout: float, words: list[str]) -> None:
    shares(rank, rollout, *words)


def test_ranks_of_a_critic_apart_are_kept_apart_too() -> None:
    with pytest.raises(ConfigError, match=r"num_critic_ranks=2 with gpus_per_critic_rank=0\.5(.|\n)*NCCL refuses"):
        shares(1, 1, *CRITIC, "placement.gpus_per_critic_rank=0.5")
    shares(1, 1, *CRITIC, "placement.gpus_per_critic_rank=0.6")
    shares(0.4, 0.3, *CRITIC, "placement.gpus_per_critic_rank=0.3", TOGETHER)


def test_ranks_of_a_stage_with_one_role_share_with_nobody() -> None:
    words = ["placement.num_ranks=2", TOGETHER, f"{RANK}=0.5", f"{ROLLOUT}=0.5"]
    with pytest.raises(ConfigError, match="NCCL refuses"):
        load("sft", *words, "placement.gpus_per_scorer_worker=0.4", "placement.num_scorer_workers=2")


def test_more_than_a_whole_gpu_is_refused() -> None:
    """The second of the two would wait for ever."""
    with pytest.raises(
        ConfigError, match=r"gpus_per_rank=0\.6 \+ gpus_per_rollout_worker=0\.6(.|\n)*more than a whole"
    ):
        shares(0.6, 0.6, TOGETHER)
    with pytest.raises(ConfigError, match="more than a whole"):
        shares(0.5, 0.5, TOGETHER, *CRITIC, "placement.gpus_per_critic_rank=0.2")
    shares(0.7, 0.2, TOGETHER, *CRITIC, "placement.gpus_per_critic_rank=0.1")  # 0.9999999999999999 as floats go
    shares(0.6, 0.6, "placement.layout=split")


def test_scorer_workers_count_once_they_are_known() -> None:
    tree = {"layout": "colocated", "gpus_per_rank": 0.5, "gpus_per_rollout_worker": 0.4, "gpus_per_scorer_worker": 0.3}
    placement = build_config(PlacementConfig, tree, source="t")
    roles = ["rank", "rollout_worker"]
    assert placement.why_refused(roles, perhaps=["scorer_worker"]) is None
    assert "more than a whole" in str(placement.why_refused([*roles, "scorer_worker"]))
    waiting = placement.model_copy(update={"wait_for_nodes": True, "gpus_per_scorer_worker": None})
    assert waiting.why_refused(roles, perhaps=["scorer_worker"]) is None
    assert "gpus_per_scorer_worker" in str(waiting.why_refused([*roles, "scorer_worker"]))


def test_who_judges_an_evaluation_shares_with_nobody() -> None:
    """It starts when the rollout workers have ended; that it needs a place is known all the same."""
    judge = {"kind": "reward_model", "run": "runs/reward"}
    tree = {"run_dir": "r", "model": {"name": "m"}, "baseline": "b", "prompts": "p.jsonl", "judge": judge}
    parts = {"gpus_per_rank": 0.4, "gpus_per_rollout_worker": 0.6, "gpus_per_scorer_worker": 0.6}
    placed = {"layout": "colocated", **parts}
    build_config(EvaluateConfig, {**tree, "placement": placed}, source="t")
    waiting = {"wait_for_nodes": True, "gpus_per_rollout_worker": 1}
    with pytest.raises(ConfigError, match="gpus_per_scorer_worker"):
        build_config(EvaluateConfig, {**tree, "placement": waiting}, source="t")
