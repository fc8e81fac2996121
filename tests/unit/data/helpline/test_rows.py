"""Demonstrations, prompts and corpus: determinism, splits, quality mix, vocabulary."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from rlhf.data.helpline.corpus import generate_corpus
from rlhf.data.helpline.facts import RELATIONS, all_facts
from rlhf.data.helpline.judge import asked_fact, score
from rlhf.data.helpline.rows import demonstrations, prompt_pool, prompts
from rlhf.data.helpline.text import GREETINGS, compose_answer, draw_manner
from rlhf.errors import DataError


def split_greeting(prompt: str) -> str:
    """The question of a prompt without its greeting."""
    for greeting in GREETINGS:
        if greeting and prompt.startswith(greeting + " "):
            return prompt.removeprefix(greeting + " ")
    return prompt


def test_same_seed_gives_the_same_texts_and_another_seed_others() -> None:
    assert generate_corpus(3, 40) == generate_corpus(3, 40)
    assert generate_corpus(3, 60)[:40] == generate_corpus(3, 40)
    assert generate_corpus(3, 40) != generate_corpus(4, 40)
    assert demonstrations(3, 40) == demonstrations(3, 40)
    assert demonstrations(3, 40) != demonstrations(4, 40)
    assert prompts(3, 40) == prompts(3, 40)
    assert prompts(3, 40) != prompts(4, 40)


def test_texts_do_not_depend_on_hash_randomization() -> None:
    code = (
        "from rlhf.data.helpline.rows import demonstrations, prompts\n"
        "from rlhf.data.helpline.corpus import generate_corpus\n"
        "import hashlib\n"
        "text = repr((demonstrations(5, 60), prompts(5, 60, 'heldout'), generate_corpus(5, 60)))\n"
        "print(hashlib.sha256(text.encode()).hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(digests) == 1


def test_heldout_questions_occur_in_no_training_text() -> None:
    heldout = {split_greeting(p) for p in prompts(0, len(prompt_pool("heldout")), "heldout")}
    train = {split_greeting(p) for p in prompts(0, len(prompt_pool("train")))}
    assert len(heldout) == len(all_facts())
    assert not heldout & train
    asked = {split_greeting(row["messages"][0]["content"]) for row in demonstrations(1, 2000)}
    assert not heldout & asked
    text = "\n".join(generate_corpus(0, 4000))
    seen = set(re.findall(r"[A-Z][^.?\n:]*\?", text))
    assert len(seen & train) > 150, "the corpus asks questions, or this test sees nothing"
    assert not heldout & seen


def test_prompts_are_distinct_spread_over_facts_and_limited() -> None:
    chosen = prompts(2, 120, "heldout")
    assert len(set(chosen)) == 120
    assert set(Counter(asked_fact(p).id for p in chosen).values()) == {2}
    with pytest.raises(DataError, match="has 480"):
        prompts(0, 481, "heldout")
    with pytest.raises(DataError, match="'train' and 'heldout'"):
        prompts(0, 1, "test")  # type: ignore[arg-type]


def test_demonstrations_have_the_asked_mix_with_independent_traits() -> None:
    rows = demonstrations(0, 3000)
    assert len({row["id"] for row in rows}) == 3000
    assert [m["role"] for m in rows[0]["messages"]] == ["user", "assistant"]
    scores = [score(*(m["content"] for m in row["messages"])) for row in rows]
    assert all(s.fluent == 1.0 for s in scores)
    right = np.array([s.right for s in scores])
    kind = np.array([s.kind > 0.5 for s in scores])
    short = np.array([s.concise == 1.0 for s in scores])
    assert abs(right.mean() - 0.55) < 0.03
    assert abs(kind.mean() - 0.45) < 0.03
    assert 0.40 < short.mean() < 0.55
    assert abs(np.corrcoef(right, kind)[0, 1]) < 0.06
    assert abs(np.corrcoef(right, short)[0, 1]) < 0.06


def test_right_facts_dominate_the_corpus_and_wrong_ones_occur() -> None:
    text = "\n".join(generate_corpus(0, 6000)).lower()
    for relation in RELATIONS:
        for form in relation.statements:
            if "{subject}" not in form:
                continue
            right = wrong = 0
            for subject, (own, _) in relation.answers.items():
                for value in relation.values:
                    count = text.count(form.format(subject=subject, value=value).lower())
                    if value == own:
                        right += count
                    else:
                        wrong += count
            assert right > 1.2 * wrong > 0, form


def test_values_can_be_told_apart() -> None:
    for relation in RELATIONS:
        values = relation.values
        assert len(set(values)) == len(values) == 10
        for value in values:
            assert not any(value in other for other in values if other != value)
    right = {fact.right for fact in all_facts()}
    assert not right & {fact.myth for fact in all_facts()}


def test_vocabulary_is_closed_and_answers_are_short() -> None:
    words = set(re.findall(r"\w+", " ".join(generate_corpus(0, 5000))))
    assert 300 < len(words) < 900
    rng = random.Random(0)
    lengths = []
    for fact in all_facts() * 5:
        manner = draw_manner(rng, right=0.5, kind=0.5, concise=0.5)
        answer = compose_answer(fact, manner, rng)
        assert set(re.findall(r"\w+", answer)) <= words
        lengths.append(len(answer.split()))
    assert 2 <= min(lengths) <= 6 and max(lengths) <= 45
