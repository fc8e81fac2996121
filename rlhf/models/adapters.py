"""Named adapters on one frozen base: attach, select, read, write."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.config import LoraConfig
from rlhf.config.methods import why_not
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models import principal
from rlhf.models.peft_methods import build_peft_config, method_name, method_of
from rlhf.models.trust import read_object

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIXES = tuple(sorted(set(PEFT_TYPE_TO_PREFIX_MAPPING.values())))
"""How the names of adapter tensors begin, over all methods."""


def peft_config(lora: LoraConfig, task_type: str = "CAUSAL_LM") -> Any:
    """Our adapter settings in PEFT's words."""
    return build_peft_config(lora, task_type)


def read_peft_config(directory: Path) -> Any:
    """The settings of a saved adapter, for a causal language model and in training mode."""
    if not (directory / CONFIG_FILE).is_file():
        raise CheckpointError(f"{directory} holds no {CONFIG_FILE}")
    saved = read_object(directory / CONFIG_FILE)
    try:
        if saved.get("peft_type", "LORA") == "LORA":
            keep = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora")
            return peft.LoraConfig(task_type="CAUSAL_LM", **{key: saved[key] for key in keep if key in saved})
        config: Any = peft.PeftConfig.from_pretrained(str(directory))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{directory / CONFIG_FILE} holds no adapter settings: {error}") from None
    if reason := why_not(method_of(config)):
        raise CheckpointError(f"{directory}: {reason}")
    config.task_type, config.inference_mode, config.modules_to_save = "CAUSAL_LM", False, None
    return config


def attach(base: PreTrainedModel, config: Any, name: str) -> PeftModel:
    """Puts the first adapter on a base and freezes the base.

    Raises:
        ConfigError: the method cannot act on this base (4-bit, or cut into pieces by ZeRO-3).
    """
    four_bit = bool(getattr(base, "is_loaded_in_4bit", False))
    in_pieces = any(hasattr(parameter, "ds_id") for parameter in base.parameters())
    reason = why_not(method_of(config), quantization="nf4" if four_bit else "none", zero_stage=3 if in_pieces else 0)
    if reason:
        raise ConfigError(reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(base, config, adapter_name=name, autocast_adapter_dtype=False)  # type: ignore[return-value]


def fresh(base: PreTrainedModel, lora: LoraConfig, name: str, task_type: str = "CAUSAL_LM") -> PeftModel:
    """Puts a new adapter on a base, in the state from which its method starts training.

    Raises:
        ConfigError: as ``attach`` and ``principal.start``.
    """
    model, method = attach(base, peft_config(lora, task_type), name), method_name(lora)
    principal.start(model, name, method)
    principal.hold(model, name, method)
    return model


def add(model: PeftModel, config: Any, name: str) -> None:
    """Adds a further adapter with the same base.

    Raises:
        ConfigError: another method than the first adapter's: the layers of one base serve one kind.
    """
    first = next(iter(model.peft_config.values()))
    if first.peft_type != config.peft_type:
        raise ConfigError(
            f"adapter {name!r} is of method {method_of(config)}, the base already carries {method_of(first)}: "
            "policy, critic and a shared reward model must use one method (lora.method)"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_adapter(name, config, autocast_adapter_dtype=False)


def select(model: PeftModel, name: str, trainable: Iterable[nn.Parameter]) -> None:
    """Makes one adapter act, without PEFT's side effect of freezing the other trained ones."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and module.active_adapters != [name]:
            module.set_adapter(name)
    wanted = {id(p) for p in trainable}
    for parameter in model.parameters():
        flag = id(parameter) in wanted
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)


def adapter_parameters(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Canonical names (no adapter name, no wrapper prefix) and parameters of one adapter, in module order."""
    marker = f".{name}"
    for key, parameter in model.named_parameters():
        if not _is_adapter(key):
            continue
        if f"{marker}." in key:
            yield key.replace(f"{marker}.", ".", 1), parameter
        elif key.endswith(marker):
            yield key.removesuffix(marker), parameter


def copy_adapter(model: PeftModel, source: str, target: str) -> None:
    """Copies one adapter's tensors into another of the same shape."""
    from_state = dict(adapter_parameters(model, source))
    write_adapter(model, target, {key: value.detach() for key, value in from_state.items()})


def write_adapter(model: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """Writes tensors into an adapter; names and shapes must agree exactly.

    Raises:
        CheckpointError: listing the first names that are missing or surplus.
    """
    own = dict(adapter_parameters(model, name))
    missing, surplus = own.keys() - state.keys(), state.keys() - own.keys()
    if missing or surplus or not own:
        raise CheckpointError(
            f"adapter {name!r} has {len(own)} tensors, {len(state)} were given; "
            f"missing {sorted(missing)[:3]}, surplus {sorted(surplus)[:3]}"
        )
    with torch.no_grad():
        for key, parameter in own.items():
            if parameter.shape != state[key].shape:
                raise CheckpointError(
                    f"adapter {name!r}: {key} is {tuple(parameter.shape)}, got {tuple(state[key].shape)}"
                )
            parameter.copy_(state[key].to(parameter.dtype))


def read_adapter_file(directory: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Reads a saved adapter.

    Returns:
        The adapter's tensors under the names of ``adapter_parameters``, and the other saved tensors (a reward
        head under ``"score.weight"``).
    """
    if not (directory / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{directory} holds no {ADAPTER_FILE}; pickled adapters (.bin, .pt) can run code and are never loaded"
        )
    try:
        state = load_file(directory / ADAPTER_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory / ADAPTER_FILE} cannot be read: {error}") from None
    own = {key: value for key, value in state.items() if _is_adapter(key)}
    prefix = "base_model.model."
    rest = {key.removeprefix(prefix): value for key, value in state.items() if not _is_adapter(key)}
    return own, rest


def save_adapter_file(directory: Path, config: Any, base: str, state: Mapping[str, Tensor]) -> None:
    """Saves an adapter so that PEFT itself can load it."""
    directory.mkdir(parents=True, exist_ok=True)
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(str(directory))
    config.inference_mode = False
    prefix = "base_model.model."
    named = {
        (k if k.startswith("base_model.") else prefix + k): v.detach().cpu().contiguous() for k, v in state.items()
    }
    temporary = directory / f".{ADAPTER_FILE}.tmp"
    save_file(named, temporary, metadata={"format": "pt"})
    temporary.replace(directory / ADAPTER_FILE)


def _is_adapter(key: str) -> bool:
    return any(part.startswith(PREFIXES) for part in key.split("."))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameter counts; whole ones where ZeRO-3 holds pieces."""
    counts = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in counts if trained), sum(n for n, _ in counts)
