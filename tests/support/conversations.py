"""Small ragged conversations and preferences, the same on every machine."""

from __future__ import annotations

import json
import random
from pathlib import Path

TEXT = "the dog saw a cat and ran to play in the park with a red ball then they were good friends"
WORDS = TEXT.split()


def _words(generator: random.Random, low: int, high: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(low, high)))


def demonstrations(count: int, seed: int = 0) -> list[dict]:
    """Rows of 2 to 30 words per turn, so that no two batches hold equally many tokens."""
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        prompt, answer = f"{index} {_words(generator, 2, 20)}", _words(generator, 1, 30)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        rows.append({"id": f"d{index}", "messages": turns})
    return rows


def preferences(count: int, seed: int = 0, first: int = 0) -> list[dict]:
    """Pairs whose better response tells of the ball; prompts come once or twice, labels hard and soft.

    Args:
        first: number of the first pair's prompt.
    """
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        good, bad = f"{_words(generator, 1, 20)} red ball", _words(random.Random(index), 1, 20).replace("ball", "cat")
        prompt = [{"role": "user", "content": f"story {first + index * 2 // 3}"}]
        row = {"id": f"p{index}", "prompt": prompt, "chosen": good, "rejected": bad + " dog"}
        row |= {"probability": generator.choice([1.0, 1.0, 0.75, 0.5]), "margin": generator.choice([0.0, 0.5])}
        rows.append(row)
    return rows


def write_rows(path: Path, rows: list[dict]) -> str:
    """Writes JSONL and returns the path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
