"""Gold keys for tasks that the project has already are told, not dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path

from store_helpers import count

from preference_ui.db import Store
from preference_ui.importing import import_file
from preference_ui.models import Item
from preference_ui.projects import create_project


def _file(folder: Path, *keys: list[list[int]] | None) -> Path:
    rows = []
    for number, tiers in enumerate(keys):
        row = {"prompt": f"question {number}", "responses": [f"{number}.{r}" for r in range(3)]}
        rows.append(json.dumps(row | ({} if tiers is None else {"gold_tiers": tiers})))
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_gold_keys_that_come_too_late_are_told(store: Store, tmp_path: Path) -> None:
    create_project(store, "helpline")
    first = import_file(store, "helpline", _file(tmp_path, None, [[0], [1, 2]], [[0], [2, 1]]))
    assert (first.num_new, first.left_out) == (3, [])
    again = import_file(store, "helpline", _file(tmp_path, [[0], [1, 2]], [[1], [0, 2]], [[0], [1, 2]]))
    assert again.num_new == 0
    normal, other = again.left_out
    assert "tasks.jsonl:1: " in normal and "as a normal one" in normal
    assert "tasks.jsonl:2: " in other and "with other ones" in other
    assert count(store, Item, Item.kind == "gold") == 2
