"""Rows are checked at birth, travel between processes, and cost no tensor library."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from typing import Any

import pytest

from rlhf.data.schema import DemonstrationRow, Message, PreferenceRow, PromptRow, RowError, prompt_hash
from rlhf.errors import DataError

HI = (Message("user", "Hi"),)
BYE = (*HI, Message("assistant", "Bye"))


def test_the_schema_loads_neither_torch_nor_transformers_nor_ray() -> None:
    code = "import sys, rlhf.data.schema; print(sorted({'torch', 'transformers', 'ray', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_prompt_hash_is_sha256_of_canonical_json() -> None:
    expected = hashlib.sha256('[["user","Hé"],["assistant","\\"b\\""]]'.encode()).hexdigest()
    assert prompt_hash((Message("user", "Hé"), Message("assistant", '"b"'))) == expected


def test_the_prompt_hash_tells_prompts_apart_but_not_formats() -> None:
    assert prompt_hash((Message("text", "Hi"),)) == prompt_hash(HI)
    different = [HI, BYE, (Message("system", "Hi"),), (Message("user", "Hi "),)]
    assert len({prompt_hash(messages) for messages in different}) == 4


def test_rows_of_one_prompt_share_a_group_by_default() -> None:
    rows = [PreferenceRow(str(i), HI, f"a{i}", "b") for i in range(2)]
    assert rows[0].group == rows[1].group == prompt_hash(HI)
    assert PreferenceRow("x", HI, "a", "b", group="mine").group == "mine"


def test_rows_and_their_errors_survive_pickling() -> None:
    rows = (PromptRow("p", HI, {"n": 1}), DemonstrationRow("d", BYE), PreferenceRow("c", HI, "a", "b", 0.5))
    for row in rows:
        assert pickle.loads(pickle.dumps(row)) == row
    error = pickle.loads(pickle.dumps(RowError("field", "reason", "remedy")))
    assert isinstance(error, DataError)
    assert str(error) == "field 'field': reason; remedy"


def test_a_demonstration_is_a_prompt_and_a_response() -> None:
    row = DemonstrationRow("d", (*BYE, *BYE))
    assert (row.prompt, row.response) == ((*BYE, *HI), "Bye")


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Message("robot", "x"), "role"),
        (lambda: Message("user", ""), "content"),
        (lambda: Message("user", "\t\n"), "content"),
        (lambda: Message("user", "a\0"), "content"),
        (lambda: Message("user", "\udfff"), "content"),
        (lambda: Message("user", None), "content"),  # type: ignore[arg-type]
        (lambda: PromptRow("", HI), "id"),
        (lambda: PromptRow("p", ()), "messages"),
        (lambda: PromptRow("p", list(HI)), "messages"),  # type: ignore[arg-type]
        (lambda: PromptRow("p", BYE), "messages"),
        (lambda: PromptRow("p", (Message("text", "x"), *HI)), "messages"),
        (lambda: PromptRow("p", HI, {"x": float("nan")}), "meta"),
        (lambda: PromptRow("p", HI, {"x": object()}), "meta"),
        (lambda: PromptRow("p", HI, {"x": "\ud800"}), "meta"),
        (lambda: PromptRow("p", HI, {1: "x"}), "meta"),  # type: ignore[dict-item]
        (lambda: DemonstrationRow("d", HI), "messages"),
        (lambda: DemonstrationRow("d", BYE[1:]), "messages"),
        (lambda: DemonstrationRow("d", ()), "messages"),
        (lambda: PreferenceRow("c", HI, "a", ""), "rejected"),
        (lambda: PreferenceRow("c", BYE, "a", "b"), "prompt"),
        (lambda: PreferenceRow("c", HI, "a", "b", probability=-0.1), "probability"),
        (lambda: PreferenceRow("c", HI, "a", "b", probability=float("nan")), "probability"),
        (lambda: PreferenceRow("c", HI, "a", "b", margin=-1.0), "margin"),
        (lambda: PreferenceRow("c", HI, "a", "b", weight=float("inf")), "weight"),
        (lambda: PreferenceRow("c", HI, "a", "b", group=" "), "group"),
    ],
)
def test_what_does_not_fit_is_refused_by_field(build: Any, field: str) -> None:
    with pytest.raises(RowError) as error:
        build()
    assert error.value.field == field
    assert error.value.reason
