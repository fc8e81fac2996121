"""The policy that SFT and DPO train, an adapter on the model that it starts from or the whole model; saving it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.config import DpoConfig, SftConfig, derive_seed
from rlhf.engine.gather import whole_state
from rlhf.models import adapters
from rlhf.models.loading import load_causal_lm
from rlhf.models.source import ModelSource

ADAPTER = "default"


def policy_to_train(config: SftConfig | DpoConfig, source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The base with a fresh adapter, or with that of the run that it starts from; without ``lora`` the model itself."""
    base = load_causal_lm(source, config.model, tokenizer)
    if config.lora is None:
        return base
    # loading draws more or fewer random numbers depending on the ZeRO stage
    torch.manual_seed(derive_seed(config.seed, config.stage, "adapter"))
    if source.adapter is None:
        return adapters.fresh(base, config.lora, ADAPTER)
    model = adapters.attach(base, adapters.read_peft_config(source.adapter), ADAPTER)
    adapters.write_adapter(model, ADAPTER, adapters.read_adapter_file(source.adapter)[0])
    return model


def save_policy(worker: Any, run_dir: Path) -> None:
    """Writes ``adapter/`` (or ``model/``) and ``tokenizer/`` from rank 0; all ranks must call it.

    Args:
        worker: an ``SftWorker`` or a ``DpoWorker`` whose trainer is built.
    """
    first = worker.context.rank == 0
    if worker.config.lora is None:
        state = worker.trainer.accelerator.get_state_dict(worker.trainer.model_wrapped)
        if first:
            worker.model.save_pretrained(str(run_dir / "model"), state_dict=state)
    else:
        state = whole_state(adapters.adapter_parameters(worker.model, ADAPTER), keep=first)
        if first:
            config = worker.model.peft_config[ADAPTER]
            adapters.save_adapter_file(run_dir / "adapter", config, worker.source.base, state)
    if first:
        worker.tokenizer.save_pretrained(str(run_dir / "tokenizer"))
