"""What a plan takes for granted, in sentences."""

from __future__ import annotations

from typing import Any

from cluster.plan_roles import Setting, borrows_base, reward_models
from rlhf.config import PpoConfig
from rlhf.config.methods import PLAIN_LORA

COUNTED_METHODS = (*PLAIN_LORA, "dora", "qlora")


def notes_on(config: Any, setting: Setting, gpus: int | None = None) -> tuple[str, ...]:
    """What the prediction takes for granted in this config; ``gpus`` as they were asked for."""
    found = []
    if gpus and not setting.on_gpu:
        found.append(
            "The config asks for no GPU (placement.gpus_per_* are 0): counted on CPUs; null asks for one each."
        )
    lora = getattr(config, "lora", None)
    if lora is not None and lora.method not in COUNTED_METHODS:
        found.append(f"lora.method={lora.method} is counted as LoRA of rank {lora.r}: its own tensors may differ.")
    shared, separate = reward_models(config, setting) if isinstance(config, PpoConfig) else (0, 0)
    if shared:
        found.append("The reward model is counted as an adapter on the policy's base; --reward-shape says otherwise.")
    if separate and setting.separate_reward is None:
        found.append(
            "Reward models in scorer workers are counted with the policy's shape; --reward-shape says otherwise."
        )
    if isinstance(config, PpoConfig) and config.critic_is_apart:
        found.append(
            f"The critic's base is counted with model.quantization={config.model.quantization}; one that starts from a "
            "reward run is held as that run was trained."
        )
    if not setting.on_gpu and config.model.quantization == "none" and getattr(config, "lora", config) is not None:
        found.append(
            "On CPUs a frozen base whose files have the compute precision stands in memory once per host, whatever the "
            "number of processes."
        )
    if isinstance(config, PpoConfig) and borrows_base(config, setting):
        found.append("Rollout workers use the base of the rank on their GPU: theirs is counted there.")
    if getattr(config, "packing", False):
        found.append(
            "Steps, tokens and hours are upper bounds: packing=true lays several rows into one of "
            "data.max_sequence_tokens, and how many is known when they are encoded (rlhf sft --dry-run counts them)."
        )
    engine = getattr(getattr(config, "rollout", None), "engine", "transformers")
    if engine != "transformers":
        found.append(
            f"Rollout workers are counted for the transformers engine; rollout.engine={engine} takes its share."
        )
    return tuple(found)
