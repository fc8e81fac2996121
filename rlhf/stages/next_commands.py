"""What to run after a stage: commands that can be given as they stand, but for the words in capitals."""

from __future__ import annotations

import json
import shlex
from typing import Any

from rlhf.config import PpoConfig, RewardModelSource, SftConfig
from rlhf.config.sources import files_of

PROMPTS, HELD_OUT, REWARD_RUN = "PROMPTS.jsonl", "HELDOUT.jsonl", "REWARD_RUN"
"""What no stage before knows: prompts to train on and to compare on, and a run that judges."""
# the configs named here were made for CPUs; null: a GPU where there are some
DRAWING = " placement.gpus_per_rollout_worker=null placement.gpus_per_scorer_worker=null"
LEARNING = " placement.gpus_per_rank=null placement.gpus_per_critic_rank=null"


def next_commands(stage: str, config: Any) -> list[tuple[str, str]]:
    """(command, what it does) for each way to go on from a finished run."""
    run_dir = config.run_dir
    on_gpus = bool(getattr(config.placement, "gpus_per_rank", None))
    drawing, learning = (DRAWING, LEARNING) if on_gpus else ("", "")
    chat = (f"rlhf chat {shlex.quote(run_dir)}", "talk to the policy")
    if stage == "sft":
        return [chat, (_sample(config) + drawing, "draw candidates for the annotators, here to the training prompts")]
    if stage == "reward":
        policy = f"{_pair('model.name', config.model.name)} prompts={PROMPTS}"
        source = _pair("scores", json.dumps([{"kind": "reward_model", "run": run_dir}]))
        ppo = f"rlhf ppo --config configs/ppo/tiny_cpu.yaml {policy} {source}{learning}{drawing}"
        return [(ppo, f"train the policy against it; {PROMPTS}: prompts, in any format of demonstrations")]
    if stage in ("ppo", "dpo"):
        return [chat, (_evaluate(config) + drawing, _judge_text(config))]
    if stage == "sample":
        candidates = shlex.quote(f"{run_dir}/candidates.jsonl")
        return [(f"rlhf prefs import PROJECT {candidates}", "hand them to the annotators")]
    return []


def _sample(config: SftConfig) -> str:
    train = files_of(config.data.train)
    prompts = _pair("prompts", train if isinstance(train, str) else json.dumps(train))
    kind = "" if config.data.format == "auto" else f" prompt_format={config.data.format}"
    run = _pair("model.name", config.run_dir)
    return f"rlhf sample --config configs/sample/tiny_cpu.yaml {run} {prompts}{kind}"


def _evaluate(config: Any) -> str:
    """Against the policy that it started from; judged as PPO was where it names a judge, else by a run to be named."""
    scores = config.scores if isinstance(config, PpoConfig) else ()
    judge = next((source for source in scores if source.weight), None)
    if judge is None or isinstance(judge, RewardModelSource):
        judged = _pair("judge.run", judge.run if judge else REWARD_RUN)
    else:
        tree = judge.model_dump(mode="json", exclude_defaults=True) | {"kind": judge.kind}
        judged = _pair("judge", json.dumps({key: value for key, value in tree.items() if key != "on_error"}))
    policies = f"{_pair('model.name', config.run_dir)} {_pair('baseline', config.model.name)}"
    return f"rlhf evaluate --config configs/evaluate/tiny_cpu.yaml {policies} prompts={HELD_OUT} {judged}"


def _judge_text(config: Any) -> str:
    if isinstance(config, PpoConfig):
        return "compare with where it started; a judge that it was not trained against says more (docs/rewards.md)"
    return f"compare with where it started; {REWARD_RUN}: a reward run, trained on other rankings (docs/dpo.md)"


def _pair(key: str, value: str) -> str:
    return shlex.quote(f"{key}={value}")
