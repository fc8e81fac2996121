"""Tokenizers, adapters and reward models that do not belong together are refused before anything is started."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import CheckpointError, ConfigError, RlhfError
from rlhf.stages import ppo_run
from rlhf.stages.plan import plan_stage
from rlhf.stages.ppo import run_ppo
from tests.support.ppo import tiny_config
from tests.support.runs import write_run
from tests.support.tiny import build_model, build_tokenizer, copy_with


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("pairing") / "base", num_hidden_layers=1)


def swap_tokenizer(run: Path) -> None:
    build_tokenizer(vocab_size=290).save_pretrained(run / "tokenizer")


def other_base(run: Path) -> None:
    path = run / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "base_model_name_or_path": "somebody/else"}))


def without_head(run: Path) -> None:
    (run / "adapter" / "reward.json").unlink()


CASES: list[tuple[str, Any, type[RlhfError], str]] = [
    ("sft", swap_tokenizer, CheckpointError, "is not the tokenizer that run"),
    ("sft", other_base, CheckpointError, "belongs to the base 'somebody/else'"),
    ("reward", swap_tokenizer, CheckpointError, "is not the tokenizer that run"),
    ("reward", other_base, CheckpointError, "belongs to the base 'somebody/else'"),
    ("reward", without_head, CheckpointError, r"reward\.json is not readable"),
]


def refused(tree: dict[str, Any], base: Path, tmp_path: Path, error: type[RlhfError], reason: str) -> None:
    config = tiny_config(base, tmp_path / "ppo", **tree)
    started = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error, match=reason):
        patch.setattr(ppo_run, "ray_runtime", too_late)  # other tests of the session may have a runtime of their own
        run_ppo(config)
    assert time.perf_counter() - started < 10


def too_late(*_: Any, **__: Any) -> None:
    raise AssertionError("Ray would have been started")


@pytest.mark.parametrize(("stage", "damage", "error", "reason"), CASES)
def test_what_does_not_belong_together_is_refused_before_step_0(
    stage: str, damage: Any, error: type[RlhfError], reason: str, base: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", base, stage)
    damage(run)
    reward = [{"kind": "reward_model", "run": str(run)}]
    refused({"scores": reward} if stage == "reward" else {"model.name": str(run)}, base, tmp_path, error, reason)


def test_an_sft_run_is_no_reward_model(base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base)
    scores = [{"kind": "reward_model", "run": str(run)}]
    refused({"scores": scores}, base, tmp_path, CheckpointError, "not a finished reward run")


def test_a_tokenizer_with_more_tokens_than_the_model_embeds(base: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(100)])
    directory = copy_with(base, tmp_path / "m", tokenizer)
    refused({"model.name": str(directory)}, base, tmp_path, ConfigError, "do not belong together")


def test_a_reward_model_that_cannot_share_the_base_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    other = build_model(tmp_path / "other", seed=1, num_hidden_layers=1)
    same, foreign = write_run(tmp_path / "same", base, "reward"), write_run(tmp_path / "foreign", other, "reward")
    chatty = write_run(tmp_path / "chatty", base, "reward", chat_style="auto")

    def layout(*runs: Path) -> dict[str, Any]:
        return {"roles.layout": "shared", "scores": [{"kind": "reward_model", "run": str(run)} for run in runs]}

    for runs, reason in (
        ((foreign,), rf"roles\.layout=shared, and the reward model scores\[0\]\.run='{foreign}' .* another base"),
        ((chatty,), "another chat format"),
        ((same, same), r"scores\[1\].* it is the second reward model, and scores\[0\] has the one place"),
    ):
        refused(layout(*runs), base, tmp_path, ConfigError, reason)


def test_scorer_workers_that_share_gpus_need_a_fraction(base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base, "reward")
    tree = {
        "scores": [{"kind": "reward_model", "run": str(run)}],
        "roles.layout": "separate",
        "placement.layout": "colocated",
        "placement.gpus_per_rank": 0.5,
        "placement.gpus_per_rollout_worker": 0.5,
    }
    refused(tree, base, tmp_path, ConfigError, r"set placement\.gpus_per_scorer_worker")
    too_much = {**tree, "placement.gpus_per_scorer_worker": 0.2}
    refused(
        too_much, base, tmp_path, ConfigError, r"gpus_per_scorer_worker=0\.2 on one GPU, which is more than a whole"
    )
    alone = {key: value for key, value in tree.items() if not key.startswith("placement.")}
    waiting = {"placement.wait_for_nodes": True, "placement.gpus_per_rank": 1, "placement.gpus_per_rollout_worker": 1}
    refused({**alone, **waiting}, base, tmp_path, ConfigError, r"wait_for_nodes=true .*gpus_per_scorer_worker \(1")


def test_a_dry_run_tells_where_reward_models_are(base: Path, tmp_path: Path) -> None:
    other = build_model(tmp_path / "other", seed=1, num_hidden_layers=1)
    runs = [write_run(tmp_path / name, on, "reward") for name, on in (("same", base), ("foreign", other))]
    scores = [{"kind": "reward_model", "run": str(run)} for run in runs]

    def told(layout: str) -> dict[str, str]:
        return dict(plan_stage(tiny_config(base, tmp_path / "ppo", scores=scores, **{"roles.layout": layout})))

    assert told("auto")["reward models"] == "scores[0] on the policy's base; scores[1] by scorer workers, from tokens"
    assert told("separate")["scorer workers"] == "1, each with 2 of them"
    with pytest.raises(ConfigError, match="another base"):
        told("shared")


def test_a_critic_that_cannot_be_this_policys_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    other = build_model(tmp_path / "other", seed=1, num_hidden_layers=1)
    foreign = copy_with(other, tmp_path / "foreign", build_tokenizer(vocab_size=280))
    chatty = write_run(tmp_path / "chatty", other, "reward", chat_style="auto")
    whole = write_run(tmp_path / "whole", other, "reward")
    record = json.loads((whole / "run.json").read_text())
    (whole / "run.json").write_text(json.dumps({**record, "adapter": None}))
    copy_with(other, whole / "model", build_tokenizer())
    headless = write_run(tmp_path / "headless", other, "reward")
    without_head(headless)
    for critic, error, reason in (
        (
            foreign,
            ConfigError,
            r"roles\.critic='.*foreign' reads text otherwise than the policy .* leave roles.critic out",
        ),
        (
            chatty,
            ConfigError,
            "a value for every token that was drawn, so tokenizer and, for a reward run, chat format",
        ),
        (write_run(tmp_path / "sft", other), ConfigError, "is no reward run: a critic starts from"),
        (whole, ConfigError, "a reward model that was trained whole"),
        (headless, CheckpointError, r"reward\.json is not readable"),
        (tmp_path / "nowhere", ConfigError, r"roles\.critic=.* does not exist, .*: train it first"),
    ):
        refused({"roles.critic": str(critic)}, base, tmp_path, error, reason)


CRITIC_RULES: list[tuple[dict[str, Any], str]] = [
    (
        {"advantage.method": "rloo", "kl.mode": "none"},
        r"roles\.critic='m' needs advantage\.method=gae: rloo has no critic",
    ),
    ({"placement.num_critic_ranks": 3}, r"placement\.num_critic_ranks=3"),
    (
        {"placement.num_critic_ranks": 3, "batch.microbatch_tokens_per_gpu": 64},
        r"a multiple of placement\.num_critic_r",
    ),
    (
        {"placement.layout": "colocated", "placement.gpus_per_rank": 0.5, "placement.gpus_per_rollout_worker": 0.5},
        r"set placement\.gpus_per_critic_rank",
    ),
]


@pytest.mark.parametrize(("changes", "reason"), CRITIC_RULES)
def test_settings_of_a_critic_with_ranks_of_its_own(
    changes: dict[str, Any], reason: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        tiny_config(base, tmp_path / "ppo", **{"roles.critic": "m", **changes})


def test_a_dry_run_tells_the_critics_base(base: Path, tmp_path: Path) -> None:
    other = build_model(tmp_path / "other", seed=1, num_hidden_layers=1, hidden_size=96)

    def told(critic: Path | None) -> str:
        config = tiny_config(base, tmp_path / "ppo", **{"roles.critic": None if critic is None else str(critic)})
        return dict(plan_stage(config))["critic"]

    assert told(None) == "an adapter of its own and a scalar head"
    # rank 4 on seven matrices of a layer 96 wide with half as many keys and values, and the head with its bias
    sizes = [(96, 96), (96, 48), (96, 48), (96, 96), (96, 128), (96, 128), (128, 96)]
    trained = 4 * sum(map(sum, sizes)) + 97
    assert told(other).startswith(f"an adapter and a scalar head on {other}, on 1 ranks of its own, {trained:,} of ")
    assert told(tmp_path / "later").endswith("on 1 ranks of its own"), "a reward run that is yet to be trained"
