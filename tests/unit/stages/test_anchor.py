"""Which demonstrations go into which update, and which of their tokens are learned."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from rlhf.config import PpoConfig, build_config
from rlhf.config.ppo_parts import PtxConfig
from rlhf.data.chat import chat_format
from rlhf.data.order import rows_at
from rlhf.errors import ConfigError, DataError
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer
from rlhf.stages.anchor import Anchor, load_anchor
from rlhf.stages.passes import anchoring_passes

ROWS = [{"input_ids": [1, 10 + i, 20 + i], "labels": [-100, -100, 20 + i]} for i in range(5)]
PTX = PtxConfig(train="talks.jsonl", sequences_per_update=2)


def anchor() -> Anchor:
    return Anchor(ROWS, PTX, seed=0, pad_id=0)


def test_updates_get_their_rows_back_to_back() -> None:
    found = anchor().batch(first_update=1, num_updates=3)
    wanted = [ROWS[i] for i in rows_at(0, "ptx", 5, 2, 6)]
    assert found.input_ids.tolist() == [row["input_ids"] for row in wanted]
    assert found.response_ids.tolist() == [row["input_ids"][2:] for row in wanted]
    assert bool(found.response_mask.all()) and found.num_sequences == 6


def test_a_later_turn_of_the_user_is_read_but_not_learned() -> None:
    talk = {"input_ids": [1, 5, 6, 7, 8, 9], "labels": [-100, -100, 6, -100, 8, 9]}
    short = {"input_ids": [1, 4], "labels": [-100, 4]}
    found = Anchor([talk, short], PTX, seed=0, pad_id=0).batch(0, 1)
    row = found.lengths.index(6)
    assert found.response_ids[row].tolist() == [6, 7, 8, 9]
    assert found.response_mask[row].tolist() == [True, False, True, True]
    assert found.response_mask[1 - row].tolist() == [True, False, False, False]
    alone = found.select([row])
    assert alone.attention_mask.all() and torch.equal(alone.response_ids, found.response_ids[row : row + 1])


@pytest.fixture
def tree(tmp_path: Path) -> dict:
    prompts, talks = tmp_path / "prompts.jsonl", tmp_path / "talks.jsonl"
    prompts.write_text('{"prompt": "a"}\n', encoding="utf-8")
    talks.write_text(json.dumps({"prompt": "Which day?", "completion": "On Monday."}) + "\n", encoding="utf-8")
    return {
        "run_dir": str(tmp_path / "run"),
        "model": {"name": "builtin:helpline_base"},
        "prompts": str(prompts),
        "scores": [{"kind": "function", "path": "tests.support.scores:nothing"}],
        "ptx": {"train": str(talks), "sequences_per_update": 2},
    }


def load(tree: dict) -> Anchor | None:
    config = build_config(PpoConfig, tree, source="test")
    tokenizer = load_tokenizer(resolve_model(config.model.name), config.model)
    return load_anchor(config, chat_format(tokenizer, config.model.chat_style), tokenizer.pad_token_id)


def test_demonstrations_are_read_as_sft_reads_them(tree: dict) -> None:
    found = load(tree)
    assert found is not None and len(found.rows) == 1
    labels = Counter(label == -100 for label in found.rows[0]["labels"])
    assert labels[True] > 3 and labels[False] > 3
    assert load({key: value for key, value in tree.items() if key != "ptx"}) is None


def test_what_does_not_fit_is_refused(tree: dict) -> None:
    with pytest.raises(DataError, match="max_sequence_tokens=8"):
        load({**tree, "ptx": {**tree["ptx"], "max_sequence_tokens": 8}})
    with pytest.raises(ConfigError, match=r"ptx.sequences_per_update=2 .* placement.num_ranks=3"):
        load({**tree, "placement": {"num_ranks": 3}, "batch": {"minibatch_sequences": 24, "prompts_per_step": 24}})


def test_passes_keep_an_update_s_rows_together_and_to_the_budget(tree: dict) -> None:
    lengths = [30, 10, 20, 40, 25, 15, 35, 5]
    batch = {"microbatch_sequences_per_gpu": 1, "minibatch_sequences": 32}
    config = build_config(PpoConfig, {**tree, "placement": {"num_ranks": 2}, "batch": batch}, source="test")
    by_number = anchoring_passes(config, lengths, 4)
    assert [plan.rows for plan in by_number] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert all([len(rows) for rows in rank] == [1, 1] for plan in by_number for rank in plan.ranks)
    changes = {
        "placement": {"num_ranks": 2},
        "ptx": {**tree["ptx"], "max_sequence_tokens": 50},
        "rollout": {"max_prompt_tokens": 25, "max_response_tokens": 25},
        "batch": {"microbatch_tokens_per_gpu": 50},
    }
    filled = anchoring_passes(build_config(PpoConfig, {**tree, **changes}, source="test"), lengths, 4)
    assert [plan.rows for plan in filled] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert all(sum(lengths[row] for row in rows) <= 50 for plan in filled for rank in plan.ranks for rows in rank)
    assert all(len(rank) == 1 for plan in filled for rank in plan.ranks)


def test_a_budget_must_hold_a_demonstration(tree: dict) -> None:
    with pytest.raises(ConfigError, match=r"microbatch_tokens_per_gpu=400 .* ptx.max_sequence_tokens=512"):
        load({**tree, "batch": {"microbatch_tokens_per_gpu": 400}})
