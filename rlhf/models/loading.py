"""Loading base models: safetensors only, in the wanted precision or quantization."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf.config import ModelConfig
from rlhf.errors import ConfigError
from rlhf.models import norms, products
from rlhf.models.bars import no_bars
from rlhf.models.base_config import attention_of, read_base_config
from rlhf.models.source import ModelSource
from rlhf.models.tokenizer import MAX_NEW_TOKENS
from rlhf.models.trust import check_remote_code


def torch_dtype(config: ModelConfig) -> torch.dtype:
    """The compute dtype: bfloat16 on an accelerator and float32 on a CPU unless the config says."""
    if config.dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return torch.float32 if config.dtype == "float32" else torch.bfloat16


def dtype_name(config: ModelConfig) -> str:
    """The same as ``model.dtype`` spells it."""
    return str(torch_dtype(config)).removeprefix("torch.")


def quantization_config(config: ModelConfig) -> BitsAndBytesConfig | None:
    """bitsandbytes settings for a frozen base, or None."""
    if config.quantization == "none":
        return None
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_compute_dtype=torch_dtype(config),
        bnb_4bit_quant_storage=torch_dtype(config),
    )


def load_kwargs(source: ModelSource, config: ModelConfig) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` shared by every head."""
    check_remote_code((Path(source.base),), config)
    kwargs: dict[str, Any] = {
        "dtype": torch_dtype(config),
        "attn_implementation": attention_of(source, config),
        "use_safetensors": True,
        "trust_remote_code": config.trust_remote_code,
    }
    if source.revision:
        kwargs["revision"] = source.revision
    if config.trust_remote_code:
        kwargs["code_revision"] = config.revision  # code of another repository would otherwise be that of today
    if (quantization := quantization_config(config)) is not None:
        kwargs["quantization_config"] = quantization
    return kwargs


def load_causal_lm(source: ModelSource, config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Loads the base of a policy; its embedding has a row for every token, the pad token included."""
    model = _load(AutoModelForCausalLM, source, load_kwargs(source, config))
    return _prepare(model, tokenizer)


def load_classifier(source: ModelSource, config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Loads the base with one scalar head (read at the last token that is not pad)."""
    kwargs = load_kwargs(source, config)
    kwargs["num_labels"] = 1
    model = _load(AutoModelForSequenceClassification, source, kwargs)
    return _prepare(model, tokenizer)


def build_empty(source: ModelSource, config: ModelConfig) -> PreTrainedModel:
    """The model's shape on the meta device: for plans that must not load weights."""
    check_remote_code((Path(source.base),), config)
    hf_config = read_base_config(source, config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(hf_config, trust_remote_code=config.trust_remote_code)


def to_device(model: PreTrainedModel) -> PreTrainedModel:
    """The model on this process's GPU, if it has one; quantized ones were loaded there."""
    if torch.cuda.is_available() and not getattr(model, "is_quantized", False):
        return torch.nn.Module.to(model, "cuda")  # transformers' own, whose signature is no use, refuses quantized ones
    return model


def _load(kind: Any, source: ModelSource, kwargs: dict[str, Any]) -> Any:
    """``from_pretrained`` whose refusals are our errors: no such model, no safetensors, code that was not allowed.

    Raises:
        ConfigError: naming the model and what transformers said.
    """
    try:
        with no_bars() if Path(source.base).is_dir() else nullcontext():
            return kind.from_pretrained(source.base, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"model {source.base!r} cannot be loaded: {error}") from error


def _keep_packing(model: PreTrainedModel) -> None:
    """Keeps 4-bit weights in their own layout.

    On some CPUs bitsandbytes re-packs them at the first pass without gradients, for a kernel that has no backward
    pass and rounds otherwise: training after judging would then lose gradients.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _prepare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    _keep_packing(model)
    model = _fit_vocabulary(model, tokenizer)
    products.install(model)
    norms.install(model)
    return model


def _fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    weight: Any = model.get_input_embeddings().weight
    rows = getattr(weight, "ds_shape", weight.shape)[0]  # ZeRO-3 leaves an empty tensor and the shape beside it
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        if needed - rows > MAX_NEW_TOKENS:
            raise ConfigError(
                f"the tokenizer has {needed} tokens but the model embeds {rows}: they do not belong together"
            )
        model.resize_token_embeddings(needed, mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model
