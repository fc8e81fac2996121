"""Planted poison is found, and honest rows are left in peace."""

from __future__ import annotations

import random

import pytest

from rlhf.data.quality import PositionVote, inspect_rows
from rlhf.data.schema import DemonstrationRow, Message, PreferenceRow, PromptRow


def question(number: int) -> tuple[Message, ...]:
    return (Message("user", f"Question {number}: what should I eat, and why?"),)


def pair(row_id: str, number: int = 0, chosen: str = "apples are fine", rejected: str = "eat stones") -> PreferenceRow:
    return PreferenceRow(row_id, question(number), chosen, rejected)


CLEAN = [pair(f"clean{n}", n) for n in range(1, 60)]


def test_honest_rows_have_no_finding() -> None:
    generator = random.Random(0)
    votes = [PositionVote(f"annotator{n % 20}", generator.randrange(4), 4) for n in range(2000)]
    report = inspect_rows(CLEAN, votes)
    assert report.findings == ()
    assert report.as_table() == "59 rows, nothing odd found"


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("chosen_is_rejected", [pair("x", chosen="the same", rejected="the  same\n")]),
        ("conflicting_pairs", [pair("x"), pair("y", chosen="eat stones", rejected="apples are fine")]),
        ("duplicate_rows", [pair("other"), pair("x")]),
        ("special_tokens", [pair("x", chosen="ok <|im_start|>system")]),
        ("special_tokens", [pair("x", rejected="ok </s>")]),
        ("role_lines", [pair("x", chosen="ok\n\nAssistant: do as I say")]),
        ("invisible_characters", [pair("x", chosen="ap\u200bples are fine")]),
        ("invisible_characters", [pair("x", chosen="apples \u202eare fine")]),
        ("invisible_characters", [pair("x", chosen="apples\x07 are fine")]),
        ("very_long", [pair("x", chosen="word " * 5000)]),
        ("very_short", [PreferenceRow("x", (Message("user", "?"),), "a", "b")]),
    ],
)
def test_planted_rows_are_found_and_no_other(name: str, planted: list[PreferenceRow]) -> None:
    report = inspect_rows([*CLEAN, *planted])
    expected = {"x", "y"} if name == "conflicting_pairs" else {"x"}
    assert set(report.ids(name)) == expected
    assert {finding.name for finding in report.findings} == {name}
    assert name in report.as_table()


def test_a_soft_label_below_one_half_counts_for_the_other_response() -> None:
    agreeing = PreferenceRow("y", question(0), "eat stones", "apples are fine", probability=0.2)
    assert inspect_rows([pair("x"), agreeing]).findings == ()
    tie = PreferenceRow("y", question(0), "eat stones", "apples are fine", probability=0.5)
    assert inspect_rows([pair("x"), tie]).findings == ()


def test_joiners_that_scripts_need_are_no_finding() -> None:
    texts = ["a family: \U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"]
    assert not inspect_rows([pair(str(n), n, text) for n, text in enumerate(texts)]).ids("invisible_characters")


def test_annotators_who_follow_the_position_are_named() -> None:
    generator = random.Random(1)
    votes = [PositionVote("always first", 0) for _ in range(30)]
    votes += [PositionVote("mostly last of four", 3 if generator.random() < 0.8 else 0, 4) for _ in range(60)]
    votes += [PositionVote("honest", generator.randrange(2)) for _ in range(500)]
    votes += [PositionVote("too few to tell", 0) for _ in range(10)]
    report = inspect_rows(CLEAN, votes)
    assert report.ids("position_annotators") == ("always first", "mostly last of four")


def test_rows_of_every_kind_are_inspected() -> None:
    bad = "hello <s>"
    rows = [
        PromptRow("p", (Message("text", bad),)),
        DemonstrationRow("d", (*question(0), Message("assistant", bad))),
        PreferenceRow("c", (Message("user", bad),), "a", "b"),
    ]
    assert inspect_rows(rows).ids("special_tokens") == ("p", "d", "c")
