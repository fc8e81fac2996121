"""Builds each adapter method of ``rlhf.config.methods`` from our settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft

from rlhf.config import LoraConfig
from rlhf.config.methods import why_not
from rlhf.errors import ConfigError


def build_peft_config(lora: LoraConfig, task_type: str = "CAUSAL_LM") -> peft.PeftConfig:
    """Our adapter settings in PEFT's words.

    Raises:
        ConfigError: a method that is not known or refused.
    """
    name = method_name(lora)
    if reason := why_not(name):
        raise ConfigError(reason)
    return _BUILDERS[name](lora, {"target_modules": _targets(lora, name), "task_type": task_type})


def method_name(lora: LoraConfig) -> str:
    """The method, with the two older switches of LoRA resolved."""
    if lora.method == "lora" and lora.use_dora:
        return "dora"
    if lora.method == "lora" and lora.use_rslora:
        return "rslora"
    return lora.method


def method_of(config: peft.PeftConfig) -> str:
    """The method's name of a PEFT config, e.g. a saved adapter's: one that began otherwise is LoRA by then."""
    if isinstance(config, peft.LoraConfig):
        return "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"
    return _BY_TYPE.get(str(config.peft_type), str(config.peft_type).lower())


def _targets(lora: LoraConfig, name: str) -> str | list[str] | None:
    """PEFT's own choice by architecture where a method is made for certain layers."""
    if lora.target_modules == "all-linear" and name in ("ia3", "ln_tuning"):
        return None
    return lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)


def _lora(lora: LoraConfig, common: dict[str, Any]) -> peft.PeftConfig:
    name = method_name(lora)
    return peft.LoraConfig(
        r=lora.tensor_rank,
        lora_alpha=lora.alpha * (lora.tensor_rank // lora.r),  # type: ignore[arg-type]  # PEFT says int, and only divides
        lora_dropout=lora.dropout,
        use_dora=name == "dora",
        use_rslora=name == "rslora" or lora.use_rslora,
        **common,
    )


def _delora(lora: LoraConfig, common: dict[str, Any]) -> peft.PeftConfig:
    return peft.DeloraConfig(r=lora.r, module_dropout=lora.dropout, **common)


_BUILDERS: dict[str, Callable[[LoraConfig, dict[str, Any]], peft.PeftConfig]] = {
    "lora": _lora,
    "dora": _lora,
    "rslora": _lora,
    "pissa": _lora,
    "olora": _lora,
    "ia3": lambda lora, common: peft.IA3Config(**common),
    "oft": lambda lora, common: peft.OFTConfig(r=0, oft_block_size=lora.r, module_dropout=lora.dropout, **common),
    "boft": lambda lora, common: peft.BOFTConfig(boft_block_size=lora.r, boft_dropout=lora.dropout, **common),
    "hra": lambda lora, common: peft.HRAConfig(r=lora.r, **common),
    "vera": lambda lora, common: peft.VeraConfig(r=lora.r, vera_dropout=lora.dropout, save_projection=False, **common),
    "randlora": lambda lora, common: peft.RandLoraConfig(
        r=lora.r, randlora_alpha=round(lora.alpha), randlora_dropout=lora.dropout, save_projection=False, **common
    ),
    "loha": lambda lora, common: peft.LoHaConfig(
        r=lora.r, alpha=round(lora.alpha), module_dropout=lora.dropout, **common
    ),
    "lokr": lambda lora, common: peft.LoKrConfig(
        r=lora.r, alpha=round(lora.alpha), module_dropout=lora.dropout, **common
    ),
    "hira": lambda lora, common: peft.HiraConfig(r=lora.r, hira_dropout=lora.dropout, **common),
    "miss": lambda lora, common: peft.MissConfig(r=lora.r, miss_dropout=lora.dropout, **common),
    "road": lambda lora, common: peft.RoadConfig(group_size=lora.r, **common),
    "delora": _delora,
    "waveft": lambda lora, common: peft.WaveFTConfig(n_frequency=32 * lora.r, **common),
    "ln_tuning": lambda lora, common: peft.LNTuningConfig(**common),
    "bitfit": lambda lora, common: peft.BeftConfig(**common),
}
"""Fixed random matrices are drawn again from their seed when an adapter is loaded: they are not part of it."""

_BY_TYPE = {
    "PeftType.BEFT": "bitfit",
    "PeftType.LN_TUNING": "ln_tuning",
    **{f"PeftType.{name.upper()}": name for name in _BUILDERS},
}
