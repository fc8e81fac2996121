"""Writing a trained run as a model that stands alone, and proving it by loading it again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rlhf.config import ModelConfig
from rlhf.config.methods import METHODS
from rlhf.data.chat import ChatFormat
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models import adapters
from rlhf.models.loading import load_causal_lm, load_classifier
from rlhf.models.peft_methods import method_of
from rlhf.models.scorer import HEAD, REWARD_FILE, ScoreHead, build_reward_model, read_reward_settings
from rlhf.models.source import ModelSource, resolve_model
from rlhf.models.tokenizer import load_chat

ADAPTER = "default"
EXPORT_FILE = "export.json"
Dtype = Literal["float32", "bfloat16"]

BOUNDS: dict[tuple[str, bool], float] = {
    ("float32", False): 1e-3,
    ("float32", True): 5e-2,
    ("bfloat16", False): 0.25,
    ("bfloat16", True): 0.5,
}
"""Largest logit difference by (dtype of the export, base was quantized); logits of language models reach 10 to 30."""


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it compares with the live model.

    Attributes:
        kind: ``merged``, ``adapter``, ``model`` (fully trained) or ``classifier``.
        max_difference: largest |logit difference| on the probe batch, live model against the reloaded export.
        max_logit: largest |logit| of the live model there.
        bound: what ``max_difference`` had to stay under.
    """

    directory: str
    kind: str
    base: str
    dtype: str
    quantization: str
    max_difference: float
    max_logit: float
    bound: float


def open_run(name: str) -> ModelSource:
    """The run to export.

    Raises:
        ConfigError: no run; a bare adapter directory such as a critic's.
    """
    path = Path(name)
    if not path.is_dir():
        raise ConfigError(f"RUN={name!r}: there is no such run here; give the directory of a finished sft, reward or "
                          "ppo run, or train it first")  # fmt: skip
    if (path / adapters.CONFIG_FILE).is_file() and not (path / "run.json").is_file():
        what = "a critic: its value head serves training only" if path.name == "critic" else "a bare adapter"
        raise ConfigError(f"{path} is {what}; give the run directory that holds it")
    source = resolve_model(name, key="RUN")
    if source.record is None or source.run_dir is None:
        raise ConfigError(f"{name} is not a run directory: a model that was not trained here needs no export")
    return source


def export_run(
    source: ModelSource, output: Path, *, merge: bool, dtype: Dtype | None = None, max_difference: float | None = None
) -> ExportReport:
    """Writes the run's model to ``output`` and compares what is loaded from there with the live model.

    Args:
        merge: one set of weights; otherwise an adapter beside a reference to its base.
        dtype: of merged weights; None: the base's own (float32 and bfloat16 are kept, others become bfloat16).
        max_difference: bound on the logits; None: ``BOUNDS``.

    Raises:
        CheckpointError: ``output`` exists, or the reloaded logits differ by more than the bound (nothing is left then).
        ConfigError: a reward model without ``merge``.
    """
    record = source.record
    if record is None:
        raise ConfigError("only runs can be exported")
    reward = record.stage == "reward"
    if reward and not merge and source.adapter is not None:
        raise ConfigError(
            "a reward model's adapter needs this system's own head and scale to be read: export it with --merge, as a "
            "sequence classifier"
        )
    _check_output(output)
    chosen = dtype or _base_dtype(source)
    config = ModelConfig.model_validate(
        {"name": source.base, "dtype": "float32" if chosen == "float32" else "bfloat16",
         **record.held}
    )  # fmt: skip
    tokenizer, chat = load_chat(source, config)
    live = _live_model(source, config, tokenizer, reward=reward)
    probe = probe_batch(len(tokenizer))
    expected = _logits(live, probe)
    kind = _write(source, live, output, config, merge=merge, reward=reward)
    del live
    _write_companions(source, output, tokenizer, chat, reward=reward)
    found = _logits(_reload(source, output, config, tokenizer, kind), probe)
    bound = max_difference if max_difference is not None else BOUNDS[chosen, record.quantization != "none"]
    difference = float((expected - found).abs().max())
    report = ExportReport(
        str(output), kind, source.base, chosen, record.quantization, difference, float(expected.abs().max()), bound
    )
    if not difference <= bound:
        shutil.rmtree(output)
        raise CheckpointError(
            f"the exported model's logits differ from the live model's by {difference:.4g} (bound {bound:g}, largest "
            f"logit {report.max_logit:.3g}): nothing was left in {output}; raise --max-difference only if that is "
            "acceptable"
        )
    (output / EXPORT_FILE).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def _check_output(output: Path) -> None:
    """Refuses a place that nothing can be written to, before the model is loaded; makes nothing."""
    if output.is_dir() and any(output.iterdir()):
        raise CheckpointError(f"{output} is not empty: choose another --output")
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise CheckpointError(f"--output {output}: {nearest} is a file, a directory is wanted: choose another --output")
    if not os.access(nearest, os.W_OK):
        raise CheckpointError(f"--output {output}: {nearest} cannot be written: choose another --output")


def probe_batch(vocabulary: int) -> Tensor:
    """Fixed random tokens, (4, 32)."""
    return torch.randint(0, vocabulary, (4, 32), generator=torch.Generator().manual_seed(0))


def merge_into_copy(model: PeftModel) -> Any:
    """Merges the adapter into a base that nobody else uses, in float32; quantized weights are dequantized first.

    Merging into 4-bit weights would round the sum to 4 bits again, and onto the original weights would add to others
    than those the adapter was trained on.

    Raises:
        ConfigError: the adapter's method cannot be merged.
    """
    config: Any = model.peft_config[ADAPTER]
    method = METHODS[method_of(config)]
    if not method.mergeable:
        raise ConfigError(f"lora.method={method.name} cannot be merged: {method.limit}; export the adapter instead")
    base: Any = model.get_base_model()
    if getattr(base, "is_quantized", False):
        state = {key: value.detach().clone() for key, value in adapters.adapter_parameters(model, ADAPTER)}
        _take_off_layers(base)
        if getattr(base, "is_loaded_in_4bit", False):
            nn.Module.to(base, "cpu")  # in float32 it is eight times as large, and may not fit where it is
        base = base.dequantize(dtype=torch.float32)
        base.is_loaded_in_4bit = base.is_loaded_in_8bit = False  # the library leaves these marks
        model = adapters.attach(base, config, ADAPTER)
        adapters.write_adapter(model, ADAPTER, state)
    _untie_adapted_head(model)
    merged: Any = model.float().merge_and_unload()
    return merged


def _take_off_layers(base: nn.Module) -> None:
    """Puts the base's own layers back where adapter layers wrap them."""
    for name, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, module.get_base_layer())


def _untie_adapted_head(model: PeftModel) -> None:
    """A head that shares the embedding's weights gets its own before an adapter on it is merged."""
    causal: Any = model.get_base_model()
    head = causal.get_output_embeddings()
    if head is None or not hasattr(head, "base_layer"):
        return
    weight = head.base_layer.weight
    if weight is causal.get_input_embeddings().weight:
        head.base_layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        causal.config.tie_word_embeddings = False


def _live_model(source: ModelSource, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, reward: bool) -> Any:
    if source.adapter is None:
        model: Any = (load_classifier if reward else load_causal_lm)(source, config, tokenizer)
        return model.eval()
    peft_config = adapters.read_peft_config(source.adapter)
    state, rest = adapters.read_adapter_file(source.adapter)
    if reward:
        base: Any = build_reward_model(source, config, tokenizer)
        if HEAD not in rest:
            raise CheckpointError(f"{source.adapter} holds no reward head ({HEAD})")
        base.score.load_state_dict({"weight": rest[HEAD].float()})
        peft_config.task_type = None  # the head is in its place already
    else:
        base = load_causal_lm(source, config, tokenizer)
    model = adapters.attach(base, peft_config, ADAPTER)
    adapters.write_adapter(model, ADAPTER, state)
    return model.eval()


def _write(source: ModelSource, live: Any, output: Path, config: ModelConfig, *, merge: bool, reward: bool) -> str:
    output.mkdir(parents=True, exist_ok=True)
    if source.adapter is None:
        live.save_pretrained(str(output))
        return "classifier" if reward else "model"
    if not merge:
        for name in (adapters.CONFIG_FILE, adapters.ADAPTER_FILE):
            shutil.copyfile(source.adapter / name, output / name)
        return "adapter"
    merged = merge_into_copy(live).to(torch.float32 if config.dtype == "float32" else torch.bfloat16)
    if reward:
        head = nn.Linear(merged.score.in_features, 1, bias=False)
        head.weight = merged.score.weight
        merged.score = head
    if hasattr(merged.config, "quantization_config"):
        del merged.config.quantization_config
    merged.save_pretrained(str(output))
    return "classifier" if reward else "merged"


def _write_companions(
    source: ModelSource, output: Path, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, *, reward: bool
) -> None:
    """Tokenizer with the template that was trained with, generation settings, the reward model's scale."""
    if chat.template is not None:
        tokenizer.chat_template = chat.template
    tokenizer.save_pretrained(str(output))
    if reward:
        directory = source.adapter or Path(source.base)
        shutil.copyfile(directory / REWARD_FILE, output / REWARD_FILE)
        read_reward_settings(output)
        return
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(chat.stop_ids),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
    ).save_pretrained(str(output))


def _reload(
    source: ModelSource, output: Path, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, kind: str
) -> Any:
    if kind == "adapter":  # as somebody else would: PEFT's own loader on the base that the adapter names
        base = load_causal_lm(source, config, tokenizer)
        return PeftModel.from_pretrained(base, str(output)).eval()
    whole = ModelSource(str(output), None, str(output))
    plain = config.model_copy(update={"quantization": "none"})
    load: Callable[..., Any] = load_classifier if kind == "classifier" else load_causal_lm
    model = load(whole, plain, tokenizer).eval()
    if kind == "classifier":
        head = ScoreHead(model.score.in_features)
        head.weight = model.score.weight
        model.score = head
    return model


@torch.no_grad()
def _logits(model: Any, probe: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return model(input_ids=probe.to(device), use_cache=False).logits.float().cpu()


def _base_dtype(source: ModelSource) -> Dtype:
    path = Path(source.base) / "config.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return "float32" if found.get("dtype", found.get("torch_dtype")) == "float32" else "bfloat16"
