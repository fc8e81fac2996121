"""Rows of SFT on their way into the trainer: labels, long rows, packing, order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.config.stages import DataConfig
from rlhf.data.chat import chat_format
from rlhf.data.packing import pack_rows
from rlhf.data.schema import DemonstrationRow, Message
from rlhf.errors import DataError
from rlhf.stages.encode import IGNORED, encode_demonstrations
from rlhf.workers.schedule import optimizer_steps, row_order
from rlhf.workers.sft import SftCollator
from rlhf.workers.trl_common import rank_batches

TALK = DemonstrationRow(
    "talk",
    (
        Message("user", "may I eat bread"),
        Message("assistant", "you may"),
        Message("user", "and soup"),
        Message("assistant", "yes, soup too"),
    ),
)


def test_loss_is_on_assistant_tokens_and_their_stop_token_only(tiny_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    chat = chat_format(tokenizer, "default")
    rows, counts = encode_demonstrations([TALK], chat, DataConfig(train="x"))
    labels = rows[0]["labels"]
    learnt = [token for token in labels if token != IGNORED]
    answers = [chat.encode_response("you may"), chat.encode_response("yes, soup too")]
    assert learnt == answers[0] + answers[1] and learnt.count(chat.stop_ids[0]) == 2
    assert all(label in (IGNORED, token) for label, token in zip(labels, rows[0]["input_ids"], strict=True))
    assert counts == {}


def test_long_rows_are_refused_dropped_or_cut_and_never_silently(tiny_model_dir: Path, tmp_path: Path) -> None:
    chat = chat_format(AutoTokenizer.from_pretrained(tiny_model_dir), "default")
    short = DemonstrationRow("short", (Message("user", "a"), Message("assistant", "b")))
    size = len(chat.encode_demonstration(TALK).input_ids)
    path = tmp_path / "long.jsonl"
    with pytest.raises(DataError, match=rf"talk \({size}\).*max_sequence_tokens={size}"):
        encode_demonstrations([TALK, short], chat, DataConfig(train="x", max_sequence_tokens=size - 1))
    for action, kept in (("drop", 1), ("truncate", 2)):
        data = DataConfig.model_validate({"train": "x", "max_sequence_tokens": size - 1, "on_long_row": action})
        rows, counts = encode_demonstrations([TALK, short], chat, data, path)
        assert len(rows) == kept and counts == {action: 1} and '"talk"' in path.read_text()
        assert max(len(row["input_ids"]) for row in rows) <= size - 1
    with pytest.raises(DataError, match="no row is left"):
        encode_demonstrations([TALK], chat, DataConfig(train="x", max_sequence_tokens=8, on_long_row="truncate"))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_packing_keeps_every_row_whole_and_fills_bins(lengths: list[int]) -> None:
    rows = [{"input_ids": [i] * n, "labels": [i] * n} for i, n in enumerate(lengths)]
    packed = pack_rows(rows, 20)
    parts = []
    for row in packed:
        assert sum(row["lengths"]) == len(row["input_ids"]) == len(row["labels"]) <= 20
        start = 0
        for size in row["lengths"]:
            assert len(set(row["input_ids"][start : start + size])) == 1
            parts.append((row["input_ids"][start], size))
            start += size
    assert sorted(parts) == list(enumerate(lengths))
    assert sum(2 * len(row["input_ids"]) <= 20 for row in packed) <= 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_loss_that_they_have_alone(tiny_model_dir: Path, attention: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, attn_implementation=attention)
    generator = torch.Generator().manual_seed(0)
    lengths = [7, 3, 12, 5]
    rows = []
    for size in lengths:
        ids = torch.randint(3, 290, (size,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED, *ids[1:]]})
    collate = SftCollator(2)

    def losses(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits[:, :-1]
        found = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return found[labels != IGNORED]

    alone = torch.cat([losses(collate([row])) for row in rows])
    padded = losses(collate(rows))
    packed = [
        {
            "input_ids": [token for row in part for token in row["input_ids"]],
            "labels": [label for row in part for label in row["labels"]],
            "lengths": [len(row["input_ids"]) for row in part],
        }
        for part in (rows[:2], rows[2:])
    ]
    together = losses(collate(packed))
    assert torch.allclose(padded, alone, atol=1e-5)
    assert together.shape == alone.shape and torch.allclose(together, alone, atol=1e-5)


def test_steps_and_order_depend_on_the_seed_alone() -> None:
    assert optimizer_steps(10, 4, 1.0, None) == 3 and optimizer_steps(10, 4, 2.0, None) == 5
    assert optimizer_steps(10, 4, 5.0, 2) == 2 and optimizer_steps(1, 32, 0.1, None) == 1
    order = row_order(10, 24, 0, "sft")
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10)) and order[:10] != order[10:20]
    assert order == row_order(10, 24, 0, "sft") and order[:12] == row_order(10, 12, 0, "sft")
    assert order != row_order(10, 24, 1, "sft") != row_order(10, 24, 1, "reward")


@given(st.integers(1, 23), st.integers(1, 5), st.integers(1, 4))
def test_every_rank_runs_equally_many_batches_and_each_row_once(count: int, micro: int, ranks: int) -> None:
    rows = [[0] * (1 + i % 7) for i in range(count)]
    found = [list(rank_batches(rows, micro, rank, ranks)) for rank in range(ranks)]
    assert len({len(batches) for batches in found}) == 1
    assert sorted(i for batches in found for chosen, _ in batches for i in chosen) == list(range(count))
    assert all(batch for batches in found for _, batch in batches)
