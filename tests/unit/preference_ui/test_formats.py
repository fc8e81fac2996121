"""Export formats: faithful where they promise it, inert where a spreadsheet would execute."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_ui.errors import DataError
from preference_ui.formats import encode, from_jsonl, guard_cell, hh_record, to_csv, to_jsonl, trl_record
from rlhf.data.schema import Message, PreferenceRow

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1).filter(str.strip)


@given(st.lists(texts, min_size=3, max_size=3), st.floats(0.5, 1), st.floats(0, 3))
def test_jsonl_comes_back_identical(parts: list[str], probability: float, margin: float) -> None:
    row = PreferenceRow("id", (Message("user", parts[0]),), parts[1], parts[2], probability, margin, 0.25, "g")
    data = to_jsonl([row, row])
    assert from_jsonl(data) == [row, row]
    assert to_jsonl(from_jsonl(data)) == data


FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "   +1", "\u00a0=1", "\u3000=1", "\u200b=1",
    "\ufeff=1", "\u2060@x", "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff201", " \uff1d1", "=cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0", "@SUM(1+1)*cmd|' /C calc'!A0", "=HYPERLINK(\"http://x\",\"y\")", "=IMPORTXML(\"x\")",
    "+A1", "\x0b=1", "\x0c=1", "\u202e=1", "%0A=1", "|calc", "\u00ad=1",
]  # fmt: skip


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_are_inert_in_the_spreadsheet_and_whole_in_jsonl(formula: str) -> None:
    row = PreferenceRow("id", (Message("user", formula),), formula, formula + "x", group="=g")
    cells = list(csv.reader(io.StringIO(to_csv([row]).decode("utf-8-sig"), newline="")))[1]
    for cell in (cells[2], cells[3], cells[7]):
        assert cell.startswith("'")
    assert cells[2][1:] == formula
    assert from_jsonl(to_jsonl([row]))[0].chosen == formula


def test_plain_text_is_left_alone() -> None:
    for text in ("hello", "1+1=2", "a-b", "  text", "你好", "e-mail@x", "", "\u200bword"):
        assert guard_cell(text) == text


def test_trl_and_hh_records() -> None:
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    row = PreferenceRow("id", turns, "good", "bad", margin=0.5, weight=0.25, group="g")
    record = trl_record(row)
    assert record["chosen"] == [{"role": "assistant", "content": "good"}] and record["margin"] == 0.5
    assert hh_record(row)["chosen"] == "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: good"
    plain = PreferenceRow("id", (Message("text", "Once"),), "good", "bad")
    assert trl_record(plain)["prompt"] == "Once" and trl_record(plain)["chosen"] == "good"
    with pytest.raises(DataError, match="system"):
        hh_record(PreferenceRow("id", (Message("system", "s"), Message("user", "u")), "x", "y"))
    with pytest.raises(DataError, match="looks like"):
        hh_record(PreferenceRow("id", (Message("user", "u"),), "x\n\nHuman: y", "z"))


def test_ties_are_left_out_of_hard_formats_and_counted() -> None:
    tie = PreferenceRow("t", (Message("user", "u"),), "x", "y", probability=0.5)
    sure = PreferenceRow("s", (Message("user", "u"),), "x", "z")
    assert [encode([tie, sure], f)[1] for f in ("jsonl", "parquet", "csv", "trl", "hh")] == [2, 2, 2, 1, 1]
    lines = encode([tie, sure], "trl")[0].decode().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["s"]
    with pytest.raises(DataError):
        encode([], "xml")
