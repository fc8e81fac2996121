"""Answers that are on disk before anybody judges them: a judge that fails costs no answer."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.config import SamplingConfig
from rlhf.data.schema import PromptRow
from rlhf.models.source import adapter_fingerprint, base_fingerprint
from rlhf.stages.drawing import OpenPolicy
from rlhf.stages.run_dir import write_json

ANSWERS_FILE = "answers.json"

logger = logging.getLogger(__name__)


def identity_of_answers(
    policies: Sequence[OpenPolicy], prompts: Sequence[PromptRow], sampling: SamplingConfig, seed: int
) -> str:
    """sha256 over all that answers depend on: weights, how they are held, prompts as they are read, sampling, seed."""
    drawers = [
        {
            "base_sha256": base_fingerprint(policy.source.base),
            "adapter_sha256": adapter_fingerprint(policy.source),
            "chat_fingerprint": policy.chat.fingerprint(),
            "held": policy.model.model_dump(mode="json", exclude={"name", "chat_style", "gradient_checkpointing"}),
            "prompts": policy.prompt_ids,
        }
        for policy in policies
    ]
    rows = [row.id for row in prompts]
    tree = {"drawers": drawers, "rows": rows, "sampling": sampling.model_dump(mode="json"), "seed": seed}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def keep_answers(run_dir: Path, identity: str, texts: Sequence[Sequence[str]]) -> None:
    """Writes the answers of every policy, in the order of the prompts."""
    write_json(run_dir / ANSWERS_FILE, {"identity": identity, "texts": texts})


def kept_answers(run_dir: Path, identity: str) -> list[list[str]] | None:
    """Answers that an earlier run of the command has left; None where there are none, or others than are asked for."""
    path = run_dir / ANSWERS_FILE
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if found["identity"] == identity:
            texts: list[list[str]] = found["texts"]
            return texts
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s is not readable (%r): answers are drawn anew", path, error)
        return None
    logger.warning("%s is of other models, prompts or sampling: answers are drawn anew", path)
    return None
