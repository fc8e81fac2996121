"""Reward models: the scalar head, what is stored beside it, and a scorer that reads a finished reward run."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf.config import ModelConfig
from rlhf.data.chat import ChatFormat
from rlhf.data.schema import Message, RowError
from rlhf.errors import CheckpointError, DataError
from rlhf.models import adapters
from rlhf.models.heads import ScalarHead
from rlhf.models.loading import load_classifier, to_device
from rlhf.models.source import ModelSource, resolve_model
from rlhf.models.tokenizer import load_chat, load_tokenizer

logger = logging.getLogger(__name__)

REWARD_FILE = "reward.json"
HEAD = "score.weight"
ADAPTER = "default"
MICROBATCH = 16
"""Sequences that a reward model reads in one pass."""


class ScoreHead(ScalarHead):
    """The head of a reward model."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden, 1, bias=False)

    def draw(self, seed: int) -> ScoreHead:
        """N(0, 1/sqrt(hidden + 1)), as in arXiv:2009.01325: first scores have a deviation of about 1."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            fresh = torch.randn(1, self.in_features, generator=generator)
            self.weight.copy_(fresh / math.sqrt(self.in_features + 1))
        return self


@dataclass(frozen=True)
class RewardSettings:
    """What ``reward.json`` says about a reward model.

    Attributes:
        mean / std: of the raw scores on SFT samples; a score is used as ``(raw - mean) / std``.
        num_samples: how many sequences they were taken on.
        dtype: precision of the base in training.
        figures: held-out accuracy with its intervals, and what it was compared with.
    """

    mean: float
    std: float
    num_samples: int
    dtype: Literal["float32", "bfloat16"]
    figures: dict[str, Any]

    def write(self, directory: Path) -> None:
        """Writes ``reward.json``."""
        temporary = directory / f".{REWARD_FILE}.tmp"
        plain = asdict(self)
        text = json.dumps({**plain.pop("figures"), **plain}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(directory / REWARD_FILE)


def read_reward_settings(directory: Path) -> RewardSettings:
    """Reads ``reward.json`` beside a reward model's weights.

    Raises:
        CheckpointError: it is missing, unreadable, or its deviation is not a positive number.
    """
    path = directory / REWARD_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        own = {key: found.pop(key) for key in ("mean", "std", "num_samples", "dtype")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable ({error!r}): is this a finished reward run?") from None
    numbers = all(isinstance(own[key], int | float) and math.isfinite(own[key]) for key in ("mean", "std"))
    if not numbers or not own["std"] > 0:
        raise CheckpointError(f"{path}: mean={own['mean']} and std={own['std']} cannot normalize scores; train again")
    return RewardSettings(**own, figures=found)


def build_reward_model(source: ModelSource, config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Loads a base with an untrained head of ours in the place of the library's."""
    model: Any = load_classifier(source, config, tokenizer)
    head = ScoreHead(model.config.get_text_config().hidden_size)
    if getattr(model, "is_quantized", False):  # it was loaded on a GPU if there is one, and is not moved any more
        head = head.to(model.get_input_embeddings().weight.device)
    model.score = head
    return model


class SeparateScorer:
    """A reward model that stands alone: its own base, tokenizer and chat format.

    Args:
        run: where it comes from, for messages.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, settings: RewardSettings,
                 *, run: str, microbatch: int = MICROBATCH) -> None:  # fmt: skip
        self.model, self.tokenizer, self.chat, self.settings = model.eval(), tokenizer, chat, settings
        self._run, self._microbatch = run, microbatch

    @torch.no_grad()
    def raw_scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Scores as the head gives them, read at each sequence's last token."""
        device = next(self.model.parameters()).device
        found = [0.0] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for start in range(0, len(order), self._microbatch):
            rows = order[start : start + self._microbatch]
            longest = max(len(sequences[i]) for i in rows)
            ids = torch.full((len(rows), longest), int(self.tokenizer.pad_token_id))  # (batch, sequence)
            mask = torch.zeros(len(rows), longest, dtype=torch.long)
            for at, index in enumerate(rows):
                ids[at, : len(sequences[index])] = torch.tensor(list(sequences[index]))
                mask[at, : len(sequences[index])] = 1
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            for index, value in zip(rows, logits[:, 0].float().tolist(), strict=True):
                found[index] = value
        return found

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Normalized scores of token sequences (prompt, response, stop token) in this model's own vocabulary."""
        return [(raw - self.settings.mean) / self.settings.std for raw in self.raw_scores(sequences)]

    def score_texts(
        self, texts: Sequence[tuple[Sequence[Message], str]], *, skip_unwritable: bool = False, can_skip: str = ""
    ) -> list[float]:
        """Normalized scores of (prompt messages, response text) pairs: text is the bridge between vocabularies.

        Args:
            skip_unwritable: NaN, instead of an error, for a text that this model's chat template rewrites or refuses.
            can_skip: the setting by which the caller's user would have asked for that, if there is one.

        Raises:
            DataError: names the reward run, the text and what to do.
        """
        found, sequences = [math.nan] * len(texts), {}
        for index, (prompt, response) in enumerate(texts):
            try:
                sequences[index] = self.chat.encode_prompt(prompt) + self.chat.encode_response(response)
            except RowError as error:
                told = (
                    f"the reward model of {self._run} cannot read {response[:80]!r} "
                    f"(prompt: {prompt[-1].content[:80]!r}) by its chat template ({self.chat.style}): {error.reason}"
                )
                if not skip_unwritable:
                    skip = f", or leave such responses out with {can_skip}" if can_skip else ""
                    raise DataError(
                        f"{told}; train it with model.chat_style=default, which writes every text as it is{skip}"
                    ) from None
                logger.warning("no score: %s", told)
        for index, score in zip(sequences, self.scores(list(sequences.values())), strict=True):
            found[index] = score
        return found


def load_reward_model(run_dir: str | Path, *, microbatch: int = MICROBATCH) -> SeparateScorer:
    """Loads a reward run for scoring, on the accelerator where there is one.

    Raises:
        CheckpointError: not a reward run, or its head or adapter is missing.
    """
    source = resolve_model(str(run_dir))
    if source.record is None or source.record.stage != "reward":
        raise CheckpointError(f"{run_dir} is not a finished reward run")
    chat_style: Any = source.record.chat_style
    return load_scorer(source, source.record.held, chat_style, microbatch=microbatch)


def check_reward_run(run_dir: str | Path, key: str = "run") -> None:
    """Everything about a reward run that can be known without loading its base; for the driver, before workers start.

    Args:
        key: what names it, for messages.

    Raises:
        RlhfError: not a finished reward run, another base, another tokenizer, no head, or files not to be trusted.
    """
    source = resolve_model(str(run_dir), key=key)
    if source.record is None or source.record.stage != "reward":
        raise CheckpointError(
            f"{key}={str(run_dir)!r} is not a finished reward run: train one first, or check the path"
        )
    load_tokenizer(source, ModelConfig(name=source.base))
    read_reward_settings(source.adapter or Path(source.base))
    if source.adapter is not None and HEAD not in adapters.read_adapter_file(source.adapter)[1]:
        raise CheckpointError(f"{source.adapter} holds no reward head ({HEAD}): its scores would be random")


def load_scorer(
    source: ModelSource, held: Mapping[str, Any], chat_style: str, *, microbatch: int = MICROBATCH
) -> SeparateScorer:
    """Loads saved reward weights: an adapter with its head, or a whole model.

    Args:
        held: how its base was held in training (``config.held``).
    """
    settings = read_reward_settings(source.adapter or Path(source.base))
    config = ModelConfig.model_validate(
        {"name": source.base, "dtype": settings.dtype, "chat_style": chat_style, **held}
    )
    tokenizer, chat = load_chat(source, config)
    if source.adapter is None:
        model: Any = load_classifier(source, config, tokenizer)
        head = ScoreHead(model.score.in_features)
        head.weight = model.score.weight
        model.score = head
    else:
        model = build_reward_model(source, config, tokenizer)
        state, rest = adapters.read_adapter_file(source.adapter)
        if HEAD not in rest:
            raise CheckpointError(f"{source.adapter} holds no reward head ({HEAD}): its scores would be random")
        model.score.load_state_dict({"weight": rest[HEAD].float()})
        peft_config = adapters.read_peft_config(source.adapter)
        peft_config.task_type = None  # the head is ours to place
        model = adapters.attach(model, peft_config, ADAPTER)
        adapters.write_adapter(model, ADAPTER, state)
    model = to_device(model)
    run = str(source.run_dir or source.adapter or source.base)
    return SeparateScorer(model, tokenizer, chat, settings, run=run, microbatch=microbatch)
