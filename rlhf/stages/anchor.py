"""Demonstrations beside PPO's own sequences (arXiv:2203.02155 eq. 2): which of them go into which update."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from rlhf.config import PpoConfig
from rlhf.config.ppo_parts import PtxConfig
from rlhf.config.stages import DataConfig
from rlhf.data.chat import ChatFormat
from rlhf.data.collate import assemble_sequences
from rlhf.data.loading import Keys, load_demonstrations
from rlhf.data.order import rows_at
from rlhf.rollout.experience import Experience
from rlhf.stages.encode import IGNORED, TokenRow, encode_demonstrations

LONG_ROWS_FILE = "ptx.long_rows.jsonl"
DROPPED_FILE = "ptx.dropped.jsonl"


class Anchor:
    """All demonstrations, and an endless order of them that is shuffled anew every time round.

    Args:
        rows: ``input_ids`` and ``labels`` (-100 off the assistant's tokens).
    """

    def __init__(self, rows: Sequence[TokenRow], ptx: PtxConfig, *, seed: int, pad_id: int) -> None:
        self.rows, self.ptx, self._seed, self._pad_id = rows, ptx, seed, pad_id

    def batch(self, first_update: int, num_updates: int) -> Experience:
        """The sequences of some updates, those of one update back to back.

        What stands before the first assistant token is the prompt; ``response_mask`` keeps assistant tokens alone, so
        that later turns of a user are read but not learned.
        """
        count = self.ptx.sequences_per_update
        numbers = rows_at(self._seed, "ptx", len(self.rows), first_update * count, num_updates * count)
        chosen = [self.rows[i] for i in numbers]
        starts = [next(i for i, label in enumerate(row["labels"]) if label != IGNORED) for row in chosen]
        prompts = [row["input_ids"][:start] for row, start in zip(chosen, starts, strict=True)]
        answers = [row["input_ids"][start:] for row, start in zip(chosen, starts, strict=True)]
        whole = assemble_sequences(prompts, answers, self._pad_id)
        width = whole.prompt_length
        learned = torch.zeros_like(whole.attention_mask[:, width:])
        for i, (row, start) in enumerate(zip(chosen, starts, strict=True)):
            flags = [label != IGNORED for label in row["labels"][start:]]
            learned[i, : len(flags)] = torch.tensor(flags)
        return Experience(
            input_ids=whole.input_ids,
            attention_mask=whole.attention_mask,
            response_ids=whole.input_ids[:, width:].clone(),
            response_mask=learned,
            finished=torch.ones(len(chosen), dtype=torch.bool),
            behaviour_logprobs=torch.zeros(learned.shape),
        )


def load_anchor(config: PpoConfig, chat: ChatFormat, pad_id: int, run_dir: Path | None = None) -> Anchor | None:
    """Reads and encodes ``ptx.train``; None without one.

    Raises:
        DataError: a row does not fit, or none is left.
    """
    ptx = config.ptx
    if ptx is None:
        return None
    data = DataConfig(
        train=ptx.train,
        format=ptx.format,
        max_sequence_tokens=ptx.max_sequence_tokens,
        on_long_row=ptx.on_long_row,
    )
    with tempfile.TemporaryDirectory() as scratch:
        rows = load_demonstrations(
            ptx.train,
            format=ptx.format,
            on_bad_row=ptx.on_bad_row,
            dropped_path=(run_dir or Path(scratch)) / DROPPED_FILE,
            keys=Keys("ptx.format", "ptx.on_bad_row"),
        )
    long_path = None if run_dir is None else run_dir / LONG_ROWS_FILE
    encoded, _ = encode_demonstrations(rows, chat, data, long_path, section="ptx")
    return Anchor(encoded, ptx, seed=config.seed, pad_id=pad_id)
