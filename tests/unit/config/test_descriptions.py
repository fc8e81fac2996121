"""``rlhf config schema STAGE`` says of every key what it means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rlhf.config import STAGES


def keys(schema: dict[str, Any], node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted key, its schema) of every key; a key that always is one section is told by the section's own meaning."""
    for name, field in node.get("properties", {}).items():
        for section in inside(schema, field):
            yield from keys(schema, section, f"{prefix}{name}.")
        if "$ref" not in field:
            yield prefix + name, field


def inside(schema: dict[str, Any], field: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sections that a key may hold, in whatever list or choice."""
    if "$ref" in field:
        yield schema["$defs"][field["$ref"].rpartition("/")[2]]
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for each in field.get(key, ()):
            yield from inside(schema, each)
    if isinstance(field.get("items"), dict):
        yield from inside(schema, field["items"])


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_of_a_stage_has_a_meaning(stage: str) -> None:
    schema = STAGES[stage].model_json_schema()
    found = dict(keys(schema, schema))
    assert len(found) > 40 and "placement.num_ranks" in found and "model.name" in found
    silent = [key for key, field in found.items() if not field.get("description", "").strip()]
    assert not silent, f"{stage}: no meaning of {silent}"
    sections = [name for name, section in schema["$defs"].items() if not section.get("description", "").strip()]
    assert not sections, f"{stage}: no meaning of {sections}"


def test_a_key_in_a_list_or_choice_is_looked_at() -> None:
    schema = STAGES["ppo"].model_json_schema()
    found = dict(keys(schema, schema))
    assert {"scores.weight", "prompts.files", "prompts", "loss.clip_low", "ptx.coef", "lora.r"} <= set(found)
    assert "scores.rows_per_request" in found, "of every kind of source"
