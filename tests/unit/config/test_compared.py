"""Keys that came later, at their default, change neither a config's hash nor what a checkpoint belongs to."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from rlhf.config import STAGES, build_config, config_hash
from rlhf.config.compared import compared_tree

TREES: dict[str, dict[str, Any]] = {
    "sft": {"data": {"train": "a.jsonl"}},
    "ppo": {
        "prompts": "p.jsonl",
        "scores": [{"kind": "http", "url": "https://rewards.example.org/s"}, {"kind": "function", "path": "a:b"}],
        "ptx": {"train": "d.jsonl"},
    },
    "evaluate": {"prompts": "p.jsonl", "baseline": "b", "judge": {"kind": "http", "url": "https://r.example.org/s"}},
}
LATER: dict[str, list[tuple[str, Any]]] = {
    "sft": [("data.on_overlap", "drop")],
    "ppo": [("on_bad_row", "drop"), ("scores.0.send_meta", True), ("ptx.on_bad_row", "drop")],
    "evaluate": [("on_bad_row", "drop"), ("judge.send_meta", True)],
}


def walk(tree: Any, key: str) -> tuple[Any, Any]:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree[int(parent)] if isinstance(tree, list) else tree[parent]
    return tree, last


@pytest.mark.parametrize("stage", sorted(TREES))
def test_later_keys_at_their_default_are_not_compared(stage: str) -> None:
    base = TREES[stage] | {"run_dir": "r", "model": {"name": "m"}}
    config = build_config(STAGES[stage], base, source="test")
    whole = config.model_dump(mode="json")
    for key, _ in LATER[stage]:
        node, last = walk(whole, key)
        del node[last]
    assert compared_tree(config) == whole
    assert config_hash(config) == hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize(("stage", "key", "value"), [(stage, *one) for stage, keys in LATER.items() for one in keys])
def test_set_to_something_else_they_are(stage: str, key: str, value: Any) -> None:
    base = json.loads(json.dumps(TREES[stage] | {"run_dir": "r", "model": {"name": "m"}}))
    before = config_hash(build_config(STAGES[stage], base, source="test"))
    node, last = walk(base, key)
    node[last] = value
    assert config_hash(build_config(STAGES[stage], base, source="test")) != before
