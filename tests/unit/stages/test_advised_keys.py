"""What a message about rows advises can be done: each key that it names is one of the stage's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import (
    STAGES,
    ModelConfig,
    PpoConfig,
    RewardConfig,
    SftConfig,
    build_config,
    known_keys,
)
from rlhf.data.chat import ChatFormat
from rlhf.errors import RlhfError
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.stages import pairs, reward, sft
from rlhf.stages.anchor import load_anchor
from rlhf.stages.prompts import read_prompts

MODEL = {"name": "builtin:helpline_base"}
SCORE = {"kind": "function", "path": "a.b:c"}
PLACES = {
    "sft": ("data.train", "data.evaluation"),
    "reward": ("data.train", "data.evaluation", "normalize_on"),
    "ppo": ("prompts", "ptx.train"),
    "sample": ("prompts",),
    "evaluate": ("prompts",),
}
GOOD = {"prompt": "What should I eat?", "chosen": "An apple.", "rejected": "Nothing."}
DEMONSTRATION = {"prompt": "What should I eat?", "completion": "An apple."}
OTHER = {"prompt": "And then?", "chosen": "A pear.", "rejected": "Nothing.", "completion": "A pear."}
KINDS = {"sft": DEMONSTRATION, "reward": GOOD}
BROKEN: dict[str, list[dict[str, Any]]] = {
    "a bad row": [{}, {"prompt": 3, "completion": "x", "chosen": "a", "rejected": "b", "id": "bad"}],
    "an unknown format": [{"query": "x", "reply": "y"}],
    "an ambiguous format": [{"messages": [], "conversations": [], "chosen": "Human: a", "rejected": "Human: b"}],
    "a format that is not known": [{}],
    "a long line": [{}, {"prompt": "x" * 9 * 2**20}],
    "a long row": [{}, {"prompt": "word " * 3000, "completion": "x", "chosen": "a", "rejected": "b"}],
}


def tree(stage: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"run_dir": str(folder / "run"), "model": MODEL}
    if stage in ("sft", "reward"):
        return found | {"data": {}}
    found["prompts"] = write(folder / "prompts.jsonl", [DEMONSTRATION])
    more: dict[str, dict[str, Any]] = {
        "ppo": {"scores": [SCORE]},
        "sample": {},
        "evaluate": {"baseline": MODEL["name"], "judge": SCORE},
    }
    return found | more[stage]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def put(node: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return load_chat(resolve_model(MODEL["name"]), ModelConfig(name=MODEL["name"]))[1]


def read(config: Any, chat: ChatFormat, folder: Path) -> None:
    """Reads every file that a stage's config names."""
    if isinstance(config, SftConfig):
        sft.read_rows(config, chat, folder)
    elif isinstance(config, RewardConfig):
        rows = pairs.read_pairs(config, chat, folder)
        reward.sequences_to_normalize_on(config, rows.train, chat, folder)
    else:
        read_prompts(config, folder)
        if isinstance(config, PpoConfig):
            load_anchor(config, chat, 0, folder)


FORMAT_KEYS = {"prompts": "prompt_format", "ptx.train": "ptx.format"}
DROP_KEYS = {"prompts": "on_bad_row=drop", "ptx.train": "ptx.on_bad_row=drop"}
CASES = [
    (stage, place, what)
    for stage, places in PLACES.items()
    for place in places
    for what in BROKEN
    if (place, what) not in (("normalize_on", "a format that is not known"), ("prompts", "a long row"))
]
"""Nothing names the format of normalize_on; prompts are measured by a rule of their own."""


@pytest.mark.parametrize(("stage", "place", "what"), CASES)
def test_every_key_that_a_message_names_exists(
    stage: str, place: str, what: str, chat: ChatFormat, tmp_path: Path
) -> None:
    config, kind = tree(stage, tmp_path), KINDS.get(stage, DEMONSTRATION)
    if stage in KINDS:
        put(config, "data.train", write(tmp_path / "train.jsonl", [kind] * 3))
        put(config, "data.evaluation", write(tmp_path / "held_out.jsonl", [OTHER]))
        put(config, "data.format", "prompt_completion" if stage == "sft" else "preference")
    own = DEMONSTRATION if place == "normalize_on" else kind
    if "format" in what:
        put(config, FORMAT_KEYS.get(place, "data.format"), "chatty" if "not known" in what else "auto")
    put(config, place, write(tmp_path / "broken.jsonl", [row or own for row in BROKEN[what]]))
    section = build_config(STAGES[stage], config, source="test")
    with pytest.raises(RlhfError) as error:
        read(section, chat, tmp_path)
    text = str(error.value)
    advised = re.findall(r"\b([a-z_]+(?:\.[a-z_]+)*)=", re.sub(r"\w+=\[", "", text))
    assert set(advised) <= set(known_keys(STAGES[stage])), text
    assert what != "a bad row" or f" {DROP_KEYS.get(place, 'data.on_bad_row=drop')}" in text


@pytest.mark.parametrize("stage", ["ppo", "sample", "evaluate"])
def test_bad_prompts_are_left_out_and_listed_where_asked(stage: str, tmp_path: Path) -> None:
    config = tree(stage, tmp_path) | {"on_bad_row": "drop"}
    write(tmp_path / "prompts.jsonl", [DEMONSTRATION, {"prompt": 3}, {"prompt": "Hi"}])
    section = build_config(STAGES[stage], config, source="test")
    rows = read_prompts(section, tmp_path)
    assert [row.id for row in rows] == ["prompts.jsonl:1", "prompts.jsonl:3"]
    (entry,) = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text("utf-8").splitlines()]
    assert entry["line"] == 2 and entry["field"] == "prompt"
    assert len(read_prompts(section, None)) == 2
