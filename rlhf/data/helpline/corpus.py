"""The pretraining corpus of the helpline: leaflets, letters, talks and rumours, without a chat format.

Right facts dominate, wrong ones are mentioned too, and many documents end with remarks on whether an answer was
right, kind and short: that is what lets a small base model know both the facts and the opinions one can have
about an answer. The texts are synthetic and not medical advice.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from rlhf.data.helpline.facts import RELATIONS, Fact, all_facts
from rlhf.data.helpline.rows import heldout_paraphrase
from rlhf.data.helpline.text import (
    GREETINGS,
    KIND_CLOSERS,
    KIND_OPENERS,
    RAMBLES,
    Manner,
    compose_answer,
    draw_manner,
    pick_value,
    question,
    statement,
    statement_forms,
)

END_MARK = "</s>"
"""Ends a text. Remarks on an answer follow it, so that a model's state at the mark carries what can be thought of
the answer: this is where a reward model reads."""

NAMES = ("Anna", "Ben", "Clara", "David", "Eva", "Frank")
_SPEAKERS = {"the nurse": 0.95, "the doctor": 0.95, "a friend": 0.45, "the neighbour": 0.45}
"""Who answers in a talk -> how often what they say is right."""


def _seen_question(fact: Fact, rng: random.Random) -> str:
    """A question in a wording that is not held out for this fact."""
    wordings = [i for i in range(len(fact.relation.questions)) if i != heldout_paraphrase(fact)]
    return question(fact, rng.choice(wordings))


def _say(fact: Fact, value: str, rng: random.Random, *, bare: bool = False) -> str:
    """A statement; the bare value only where the context has named the subject."""
    return statement(fact, value, rng.randrange(len(statement_forms(fact.relation)) - (0 if bare else 1)))


def _leaflet(rng: random.Random) -> str:
    relation = rng.choice(RELATIONS)
    subjects = rng.sample(relation.subjects, rng.randint(3, 5))
    facts = [Fact(relation, subject) for subject in subjects]
    lines = [_say(fact, pick_value(fact, rng.random() < 0.97), rng) for fact in facts]
    return f"User: guide.\n{relation.title}.\n" + "\n".join(lines)


def _letter(rng: random.Random) -> str:
    name, sender = rng.sample(NAMES, 2)
    facts = rng.sample(all_facts(), rng.randint(1, 3))
    body = [rng.choice(KIND_OPENERS)] if rng.random() < 0.7 else []
    body += [_say(fact, pick_value(fact, rng.random() < 0.9), rng) for fact in facts]
    body += rng.sample(RAMBLES, rng.choice((0, 0, 1, 2)))
    body += [rng.choice(KIND_CLOSERS)] if rng.random() < 0.7 else []
    return f"Dear {name},\n{' '.join(body)}\nAssistant: {sender}"


def _remarks(manner: Manner, rng: random.Random) -> str:
    """What a listener notes about an answer, one word per trait in any order."""
    words = [
        "Right." if manner.right else "Wrong.",
        "Kind." if manner.kind else "Cold.",
        "Short." if manner.concise else "Long.",
    ]
    rng.shuffle(words)
    return " ".join(words)


def _talk(rng: random.Random) -> str:
    """A call, and often, after the end mark, what a listener thought of the answer."""
    name, fact = rng.choice(NAMES), rng.choice(all_facts())
    speaker, trust = rng.choice(list(_SPEAKERS.items()))
    manner = draw_manner(rng, right=trust, kind=0.5, concise=0.5)
    asked = f"{rng.choice(GREETINGS)} {_seen_question(fact, rng)}".strip()
    text = f"{name} asked {speaker}:\n{asked}\n{speaker.capitalize()} said:\n{compose_answer(fact, manner, rng)}"
    return f"{text}{END_MARK}{_remarks(manner, rng)}" if rng.random() < 0.75 else text


def _rumour(rng: random.Random) -> str:
    """A common mistake, named as one."""
    fact = rng.choice(all_facts())
    wrong = statement(fact, fact.myth, rng.randrange(len(fact.relation.statements)))
    teller = rng.choice(("Some people say:", "A friend told me:", "I read this:"))
    return f"{teller} {wrong} That is wrong. {_say(fact, fact.right, rng)}"


def _quiz(rng: random.Random) -> str:
    """Questions with an answer and whether it is right."""
    lines = ["A short test."]
    for fact in rng.sample(all_facts(), rng.randint(2, 3)):
        right = rng.random() < 0.6
        answer = _say(fact, pick_value(fact, right), rng, bare=True)
        lines.append(f"{_seen_question(fact, rng)} {answer} {'Right.' if right else 'Wrong.'}")
    return "\n".join(lines)


_KINDS: tuple[tuple[Callable[[random.Random], str], int], ...] = (
    (_leaflet, 2),
    (_letter, 1),
    (_talk, 7),
    (_rumour, 1),
    (_quiz, 2),
)


def generate_corpus(seed: int, num_documents: int) -> list[str]:
    """Documents to pretrain on; the seed fixes them, a longer list starts with the shorter one."""
    rng = random.Random(f"helpline/corpus/{seed}")
    makers, weights = zip(*_KINDS, strict=True)
    return [rng.choices(makers, weights)[0](rng) for _ in range(num_documents)]
