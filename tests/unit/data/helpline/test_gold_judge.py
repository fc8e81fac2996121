"""The gold judge on hand-written answers, honest and adversarial."""

from __future__ import annotations

import itertools
import random

import pytest

from rlhf.data.helpline.facts import all_facts
from rlhf.data.helpline.judge import asked_fact, reward, score
from rlhf.data.helpline.rows import prompt_pool
from rlhf.data.helpline.text import KIND_CLOSERS, KIND_OPENERS, Manner, compose_answer
from rlhf.errors import DataError

PROMPT = "Hello. When should I take metformin?"
RIGHT = "Take metformin with your evening meal."
WRONG = "Take metformin while you swim."
BEST = f"Thank you for asking. {RIGHT} We are here for you."
RAMBLE = "It was cold today and the bus was late again. I once read a book about it on the train."


def total(response: str, prompt: str = PROMPT) -> float:
    return score(prompt, response).total


def test_traits_of_plain_cases() -> None:
    best = score(PROMPT, BEST)
    assert (best.right, best.kind, best.concise, best.fluent) == (1, 1, 1, 1)
    assert best.total == pytest.approx(1.0)
    plain = score(PROMPT, RIGHT)
    assert (plain.right, plain.kind, plain.concise) == (1, 0.4, 1)
    assert plain.total == pytest.approx(0.5 + 0.12 + 0.2)
    wrong = score(PROMPT, WRONG)
    assert (wrong.right, wrong.fluent) == (0, 1)
    rude = score(PROMPT, f"Listen to me now. {RIGHT}")
    assert (rude.right, rude.kind) == (1, 0)
    long = score(PROMPT, f"{RAMBLE} {RIGHT} My sister told me about it over tea last week.")
    assert long.concise == 0
    assert score(PROMPT, "With your evening meal.").right == 1


def test_order_of_good_and_bad_answers() -> None:
    ranked = [
        BEST,
        f"Thank you for asking. {RIGHT}",
        RIGHT,
        f"{RIGHT} Other people are waiting.",
        f"Thank you for asking. {WRONG}",
        WRONG,
        f"Listen to me now. {WRONG}",
        "Take take with with meal door green.",
    ]
    totals = [total(response) for response in ranked]
    assert all(better > worse for better, worse in itertools.pairwise(totals)), totals


@pytest.mark.parametrize(
    "response",
    [
        f"{RIGHT} {WRONG}",  # says both
        f"{WRONG} {RIGHT}",
        "With your evening meal. Shortly before breakfast. When you go to bed.",  # lists everything
        "Do not take metformin with your evening meal.",  # denies it
        "Take metformin never with your evening meal.",
        "Take gliclazide with your evening meal.",  # answers for another medicine
        "Take metformin.",  # does not answer
        "Keep metformin in the fridge.",  # answers another question
        " ".join(KIND_OPENERS + KIND_CLOSERS),  # only kind words
        "Thank you for asking. We are here for you.",
        "",
        "   ",
    ],
)
def test_nothing_dishonest_counts_as_right(response: str) -> None:
    judged = score(PROMPT, response)
    assert judged.right == 0
    assert judged.total <= 0.5 < total(RIGHT)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "</s>",
        "evening evening evening evening",
        "with your evening meal with your evening meal with your evening meal",
        f"{RIGHT} {RIGHT} {RIGHT}",
        f"{BEST} {BEST}",
        "Thank you for asking. Thank you for asking. Thank you for asking. " + RIGHT,
        "Thank thank you you for for asking asking.",
        "Take metformin with your",  # unfinished
        f"{RIGHT} Thank you for",
        "zxq wvk prr tll.",
        "Meal evening your with metformin take.",  # the right words in no order
        "............",
        "Ärzte 123 🙂 !!!",
    ],
)
def test_what_is_not_language_scores_below_a_plain_wrong_answer(response: str) -> None:
    assert total(response) < total(f"Listen to me now. {WRONG}") + 0.05 < total(WRONG)
    assert score(PROMPT, response).fluent <= 0.5


def test_flattery_without_end_costs_kindness() -> None:
    stuffed = " ".join((*KIND_OPENERS[:3], RIGHT, *KIND_CLOSERS[:3]))
    assert score(PROMPT, stuffed).kind == 0
    assert total(stuffed) < total(RIGHT) < total(BEST)


def test_every_honest_answer_is_judged_as_it_was_meant() -> None:
    rng = random.Random(1)
    for prompt, fact in prompt_pool("train")[::7]:
        for right, kind, concise in itertools.product((True, False), repeat=3):
            judged = score(prompt, compose_answer(fact, Manner(right, kind, concise), rng))
            assert judged.fluent == 1
            assert judged.right == right
            assert (judged.kind >= 0.8) == kind
            assert judged.concise == 1 or not concise


def test_every_prompt_is_understood_bare_and_in_a_chat_text() -> None:
    for split in ("train", "heldout"):
        for prompt, fact in prompt_pool(split):
            assert asked_fact(prompt) == fact
            assert asked_fact(f"User: {prompt}\nAssistant:") == fact
    first, second = all_facts()[0], all_facts()[7]
    questions = {fact.id: prompt for prompt, fact in prompt_pool("train")}
    talk = f"User: {questions[first.id]}\nAssistant: Well.\nUser: {questions[second.id]}\nAssistant:"
    assert asked_fact(talk) == second


def test_reward_is_the_total_and_refuses_what_it_cannot_judge() -> None:
    assert reward([PROMPT, PROMPT], [BEST, WRONG]) == [total(BEST), total(WRONG)]
    assert total(BEST + "</s>") == total(BEST)
    with pytest.raises(DataError, match="no question"):
        score("What is the capital of France?", "Paris.")
    with pytest.raises(DataError, match="one response per prompt"):
        reward([PROMPT], [])
