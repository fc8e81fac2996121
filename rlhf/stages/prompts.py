"""The prompts of a stage that draws: one way to read them, for the run and for its dry run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rlhf.config import EvaluateConfig, PpoConfig, SampleConfig
from rlhf.data.loading import Keys, load_prompts
from rlhf.data.schema import PromptRow
from rlhf.stages.sources import Part, read_mixed, whole_of

DROPPED_FILE = "dropped.jsonl"


def read_prompts(config: PpoConfig | SampleConfig | EvaluateConfig, run_dir: Path | None) -> list[PromptRow]:
    """Reads ``prompts``, at most ``limit`` of them where a stage has one.

    Args:
        run_dir: rows that ``on_bad_row=drop`` leaves out are listed in its ``dropped.jsonl``; None: nowhere.

    Raises:
        DataError: a row does not fit, or none is left.
    """
    limit = config.limit if isinstance(config, EvaluateConfig) else None
    whole = whole_of(config.prompts, config.prompt_format, limit, DROPPED_FILE, Keys("prompt_format", "on_bad_row"))
    with tempfile.TemporaryDirectory() as scratch:

        def read(part: Part) -> list[PromptRow]:
            return load_prompts(
                part.files,
                format=part.format,
                on_bad_row=config.on_bad_row,
                dropped_path=(run_dir or Path(scratch)) / part.dropped,
                limit=part.limit,
                keys=part.keys,
            )

        return read_mixed(config.prompts, whole, "prompts", read)
