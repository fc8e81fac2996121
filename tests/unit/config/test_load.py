"""YAML and overrides: what is read, what is refused, and that the message helps."""

from __future__ import annotations

import copy
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rlhf.algos.kl import AdaptiveKLController
from rlhf.config import (
    STAGES,
    PpoConfig,
    RewardConfig,
    SftConfig,
    build_config,
    config_hash,
    derive_seed,
    dump_yaml,
    known_keys,
    load_config,
)
from rlhf.config.ppo import MAX_KL_ERROR
from rlhf.errors import ConfigError

PPO: dict[str, Any] = {
    "stage": "ppo",
    "run_dir": "runs/x",
    "model": {"name": "builtin:helpline_base"},
    "prompts": "p.jsonl",
    "scores": [{"kind": "function", "path": "a.b:c"}],
}
MINIMAL: dict[str, dict[str, Any]] = {
    "ppo": PPO,
    "sft": {"run_dir": "r", "model": {"name": "m"}, "data": {"train": "a.jsonl"}},
    "reward": {"run_dir": "r", "model": {"name": "m"}, "data": {"train": ["a.jsonl", "b.jsonl"]}},
    "sample": {"run_dir": "r", "model": {"name": "m"}, "prompts": "p.txt"},
    "evaluate": {
        "run_dir": "r",
        "model": {"name": "m"},
        "prompts": "p.txt",
        "baseline": "runs/sft",
        "judge": {"kind": "reward_model", "run": "runs/reward"},
    },
}


def changed(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    node = tree
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return tree


def write(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("stage", sorted(MINIMAL))
def test_round_trip_of_every_stage(stage: str, tmp_path: Path) -> None:
    config = load_config(stage, write(tmp_path, MINIMAL[stage]))
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    again = load_config(stage, path)
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert set(yaml.safe_load(dump_yaml(config))) == set(STAGES[stage].model_fields)  # every default is written out


def test_hash_depends_on_every_value() -> None:
    first = build_config(PpoConfig, PPO, source="t")
    other = build_config(PpoConfig, changed(PPO, "optim.eps", 1.1e-5), source="t")
    assert config_hash(first) != config_hash(other)


def test_config_is_frozen() -> None:
    config = build_config(PpoConfig, PPO, source="t")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.kl.coef = 0.5


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("kl.coeff", "kl.coef"),
        ("optim.lerning_rate", "optim.learning_rate"),
        ("placement.num_rank", "placement.num_ranks"),
        ("lora.rank", "lora.r"),
        ("zero_stage", "engine.zero_stage"),
        ("batch.minibatch_size", "batch.minibatch_sequences"),
        ("promts", "prompts"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(PpoConfig, changed(PPO, key, 1), source="run.yaml")
    assert f"unknown key '{key}'" in str(caught.value)
    assert f"'{nearest}'" in str(caught.value)
    assert "run.yaml" in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    tree = changed(changed(changed(PPO, "sead", 1), "optim.learning_rate", -1), "kl.estimator", "k4")
    with pytest.raises(ConfigError, match=r"3 problem\(s\)") as caught:
        build_config(PpoConfig, tree, source="t")
    for part in ("'seed'", "optim.learning_rate", "-1", "kl.estimator", "'k1', 'k2' or 'k3'"):
        assert part in str(caught.value)


WITHOUT_CRITIC = {"advantage.method": "grpo", "batch.responses_per_prompt": 4, "kl.mode": "none"}
RULES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    # (changes, what the message must name: key, value and remedy)
    (
        {"batch.prompts_per_step": 10, "batch.minibatch_sequences": 4},
        ("prompts_per_step", "10", "minibatch_sequences=4"),
    ),
    (
        {"batch.minibatch_sequences": 32, "placement.num_ranks": 3},
        ("minibatch_sequences=32", "num_ranks=3", "try batch"),
    ),
    (
        {"batch.prompts_per_step": 8, "batch.responses_per_prompt": 4, "placement.num_rollout_workers": 3},
        ("prompts_per_step=8", "num_rollout_workers=3"),
    ),
    ({"advantage.method": "grpo", "kl.mode": "none"}, ("advantage.method=grpo", "responses_per_prompt to 2")),
    ({"advantage.method": "rloo", "kl.mode": "none"}, ("advantage.method=rloo", "responses_per_prompt to 2")),
    ({"kl.mode": "loss"}, ("kl.estimator=k1", "k2")),
    (
        {"advantage.method": "reinforce_plus_plus", "advantage.whiten": False},
        ("advantage.whiten=false", "advantage.method=gae"),
    ),
    ({"kl.mode": "none", "kl.target": 6.0}, ("kl.target", "kl.mode=reward")),
    (
        {"advantage.method": "grpo", "batch.responses_per_prompt": 4, "batch.prompts_per_step": 8},
        ("advantage.method=grpo", "kl.mode=loss", "k2"),
    ),
    ({"rollout.top_p": 0.9}, ("rollout.top_p", "1 and 0")),
    ({"rollout.top_k": 40}, ("top_k", "1 and 0")),
    (
        {"loss.old_logprobs": "rollout", "rollout.overlap": 1},
        ("loss.old_logprobs=rollout", "rollout.overlap=0, not 1", "leave it at trainer"),
    ),
    (
        {"loss.old_logprobs": "rollout", "loss.importance_cap": 2.0},
        ("loss.old_logprobs=rollout", "leave loss.importance_cap out"),
    ),
    ({"lora.dropout": 0.1}, ("lora.dropout", "0")),
    *(
        ({"score.missing_eos": rule}, (f"score.missing_eos={rule}", "score.missing_eos_value", "set it"))
        for rule in ("subtract", "replace", "scale")
    ),
    *(
        (
            {"score.missing_eos": rule, "score.missing_eos_value": value},
            (f"score.missing_eos={rule}", f"score.missing_eos_value={value:g}", limit),
        )
        for rule, value, limit in (
            ("subtract", 0.0, "above 0"),
            ("subtract", -1.0, "above 0"),
            ("scale", -0.1, "from 0 to 1"),
            ("scale", 1.5, "from 0 to 1"),
        )
    ),
    (
        {"kl.target": 6.0, "kl.horizon": 12.8, "batch.prompts_per_step": 64, "batch.minibatch_sequences": 64},
        ("kl.horizon=12.8", "0.2 x 64", "set it higher"),
    ),
    *(
        ({**WITHOUT_CRITIC, key: value}, (f"{key}={value!r}", "advantage.method=gae", "leave it out"))
        for key, value in (
            ("critic_learning_rate", 1e-3),
            ("critic_max_grad_norm", 0.5),
            ("loss.critic_warmup_steps", 3),
            ("roles.critic", "runs/reward"),
        )
    ),
    (
        {**WITHOUT_CRITIC, "score.whiten_rewards": True},
        ("score.whiten_rewards=true", "advantage.method=grpo", "leave it false"),
    ),
    (
        {"rollout.engine": "vllm", "rollout.cuda_graphs": False},
        ("rollout.cuda_graphs=false", "rollout.engine=transformers", "leave it out"),
    ),
    (
        {"roles.recompute_feed_forward": True, "engine.zero_stage": 3},
        ("roles.recompute_feed_forward", "zero_stage below 3", "gradient_checkpointing"),
    ),
    ({"model.trust_remote_code": True}, ("trust_remote_code", "revision")),
    ({"engine.offload_parameters": True}, ("offload_parameters", "zero_stage=3")),
    (
        {"engine.offload_optimizer": True, "engine.zero_stage": 0},
        ("offload_optimizer", "zero_stage 1, 2 or 3"),
    ),
    ({"scores": [{"kind": "function", "path": "nocolon"}]}, ("path='nocolon'", "module.name:function")),
    ({"scores": []}, ("scores",)),
    ({"scores": [{"kind": "oracle", "path": "a:b"}]}, ("scores", "oracle")),
]


@pytest.mark.parametrize(("changes", "named"), RULES)
def test_cross_field_rules_name_key_value_and_remedy(changes: dict[str, Any], named: tuple[str, ...]) -> None:
    tree = PPO
    for key, value in changes.items():
        tree = changed(tree, key, value)
    with pytest.raises(ConfigError) as caught:
        build_config(PpoConfig, tree, source="t")
    for part in named:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"score.missing_eos": "subtract", "score.missing_eos_value": 0.1},
        {"score.missing_eos": "replace", "score.missing_eos_value": -3.0},
        {"score.missing_eos": "scale", "score.missing_eos_value": 0.0},
        {"score.missing_eos": "scale", "score.missing_eos_value": 1.0},
        {"kl.target": 6.0, "kl.horizon": 12.9, "batch.prompts_per_step": 64, "batch.minibatch_sequences": 64},
        {"kl.horizon": 1.0},
    ],
)
def test_values_just_within_the_rules(changes: dict[str, Any]) -> None:
    tree = PPO
    for key, value in changes.items():
        tree = changed(tree, key, value)
    build_config(PpoConfig, tree, source="t")


def test_the_shortest_horizon_is_the_controllers() -> None:
    assert AdaptiveKLController.max_error == MAX_KL_ERROR


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_quantized_base_needs_an_adapter(stage: str) -> None:
    tree = changed(changed(MINIMAL[stage], "model.quantization", "nf4"), "lora", None)
    with pytest.raises(ConfigError, match=r"lora\.r"):
        build_config(STAGES[stage], tree, source="t")


def test_suggested_batch_size_is_accepted() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(SftConfig, changed(MINIMAL["sft"], "placement.num_ranks", 3), source="t")
    suggestion = int(str(caught.value).split("try batch.minibatch_sequences=")[1].split()[0])
    tree = changed(changed(MINIMAL["sft"], "placement.num_ranks", 3), "batch.minibatch_sequences", suggestion)
    assert build_config(SftConfig, tree, source="t").gradient_accumulation == suggestion // (3 * 4)


def test_derived_sizes() -> None:
    tree = changed(PPO, "batch", {"prompts_per_step": 8, "responses_per_prompt": 8, "minibatch_sequences": 32})
    config = build_config(PpoConfig, changed(tree, "placement.num_ranks", 2), source="t")
    assert (config.batch.sequences_per_step, config.minibatches, config.microbatches_per_rank()) == (64, 2, 2)


@pytest.mark.parametrize("content", [b"", b"- a\n", b"a: [\n", b"\xff\xfe\x00", b"just text"])
def test_files_that_are_no_config(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config("ppo", path)


def test_missing_file_and_wrong_stage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config("ppo", tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="rlhf ppo --config"):
        load_config("sft", write(tmp_path, PPO))
    with pytest.raises(ConfigError, match="unknown stage 'pppo'"):
        load_config("pppo", None)


def mutations() -> list[tuple[str, dict[str, Any]]]:
    """Sixty broken configs, drawn with a fixed seed: misspelt keys, and values of a wrong type."""
    rng = random.Random(7)
    keys = [key for key in known_keys(PpoConfig) if not key.startswith(("scores", "prompts."))]
    misspelt = [(key + "_x", changed(PPO, key + "_x", 1)) for key in rng.sample(keys, 30)]
    mistyped = [(key, changed(PPO, key, {"wrong": "type"})) for key in rng.sample(keys, 30)]
    return misspelt + mistyped


def test_sixty_mutated_configs_are_refused_quickly() -> None:
    cases = mutations()
    assert len(cases) == 60
    started = time.perf_counter()
    for key, tree in cases:
        with pytest.raises(ConfigError) as caught:
            build_config(PpoConfig, tree, source="t")
        assert key.rsplit(".", 1)[-1] in str(caught.value), (key, str(caught.value))
    assert time.perf_counter() - started < 2.0


def test_what_was_made_for_cpus_asks_for_no_gpu() -> None:
    """A host with one GPU would refuse two ranks, and bf16 on four would miss what is promised of the quickstart."""
    files = [*Path("configs/quickstart").glob("*.yaml"), *Path("configs").glob("*/*_cpu.yaml")]
    assert len(files) >= 13
    for path in files:
        stage = yaml.safe_load(path.read_text("utf-8"))["stage"]
        placement = load_config(stage, path).placement
        drawing = ["rollout_worker", "scorer_worker"]
        used = {"sft": ["rank"], "reward": ["rank"], "dpo": ["rank"], "ppo": ["rank", *drawing, "critic_rank"]}.get(
            stage, drawing
        )
        assert [getattr(placement, f"gpus_per_{role}") for role in used] == [0] * len(used), path


def test_seeds_depend_on_every_part() -> None:
    base = derive_seed(0, "rollout", 1, 2)
    others = {derive_seed(1, "rollout", 1, 2), derive_seed(0, "rollout", 12), derive_seed(0, "rollout", 2, 1)}
    assert base not in others and len(others) == 3
    assert base == derive_seed(0, "rollout", 1, 2) and 0 <= base < 2**63


def test_preferences_are_another_word_for_the_training_data_of_a_reward_model() -> None:
    tree = {"run_dir": "r", "model": {"name": "m"}, "data": {"preferences": "store:helpline@v3"}}
    assert build_config(RewardConfig, tree, source="t").data.train == "store:helpline@v3"
    tree["data"] = {"preferences": "a", "train": "b"}
    with pytest.raises(ConfigError, match=r"data\.preferences|data\.train"):
        build_config(RewardConfig, tree, source="t")
