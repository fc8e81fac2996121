"""The language of the helpline: how questions and answers are put into words.

An answer is made of whole sentences: perhaps a kind or a rude one, the statement of a fact, and, if it
rambles, two that have nothing to do with the question. Everything synthetic, nothing medical advice.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rlhf.data.helpline.facts import Fact, Relation

KIND_OPENERS = (
    "Thank you for asking.",
    "That is a good question.",
    "I am glad that you called.",
    "I am happy to help.",
)
KIND_CLOSERS = (
    "Please call again any time.",
    "You are doing very well.",
    "Take good care of yourself.",
    "We are here for you.",
)
RUDE_OPENERS = (
    "Listen to me now.",
    "You should know this by now.",
    "I have no time for this.",
    "Not you again.",
)
RUDE_CLOSERS = (
    "Read the leaflet next time.",
    "Other people are waiting.",
    "Do not call again.",
    "That is all from me.",
)
RAMBLES = (
    "The clinic has a new door and a big green sign.",
    "My sister told me about it over tea last week.",
    "There was a long talk about it in the town hall.",
    "It was cold today and the bus was late again.",
    "I once read a book about it on the train.",
    "We moved the chairs last month and painted the wall.",
    "My old neighbour has a garden and two small dogs.",
    "Someone wrote a song about it many years ago.",
)
GREETINGS = (
    "",
    "Hello.",
    "Good morning.",
    "I am new here.",
    "I have a question.",
    "My doctor told me to ask.",
    "Please help me.",
    "My mother wants to know.",
)
"""What a caller may say before the question; the empty one means that the question comes first."""


def capitalize(sentence: str) -> str:
    """Raises the first letter and leaves the rest alone."""
    return sentence[:1].upper() + sentence[1:]


def question(fact: Fact, paraphrase: int) -> str:
    """The fact's question in one of the relation's wordings."""
    return capitalize(fact.relation.questions[paraphrase].format(subject=fact.subject))


def statement_forms(relation: Relation) -> tuple[str, ...]:
    """The relation's statement templates, and last the bare value, which is how curt people answer."""
    return (*relation.statements, "{value}.")


def statement(fact: Fact, value: str, form: int) -> str:
    """One sentence that says, rightly or wrongly, that ``value`` holds for the fact's subject."""
    return capitalize(statement_forms(fact.relation)[form].format(subject=fact.subject, value=value))


@dataclass(frozen=True)
class Manner:
    """How an answer is given. Each trait is independent of the others."""

    right: bool
    kind: bool
    concise: bool


def draw_manner(rng: random.Random, *, right: float, kind: float, concise: float) -> Manner:
    """Draws each trait with its own probability."""
    return Manner(rng.random() < right, rng.random() < kind, rng.random() < concise)


def pick_value(fact: Fact, right: bool) -> str:
    """The right value or the myth."""
    return fact.right if right else fact.myth


def compose_answer(fact: Fact, manner: Manner, rng: random.Random) -> str:
    """Puts an answer into words.

    A kind answer has a kind opening, a kind closing or both; one that is not kind is plain or rude with equal
    chance. A concise answer has no rambling sentence; another has two.
    """
    value = pick_value(fact, manner.right)
    form = rng.randrange(len(statement_forms(fact.relation)))
    body = [statement(fact, value, form)]
    if not manner.concise:
        first, second = rng.sample(RAMBLES, 2)
        body = rng.choice(([first, *body, second], [*body, first, second], [first, second, *body]))
    openers, closers = (KIND_OPENERS, KIND_CLOSERS) if manner.kind else (RUDE_OPENERS, RUDE_CLOSERS)
    places = ("open", "close", "both") if manner.kind else ("", "", "open", "close")
    place = rng.choice(places)
    if place in ("open", "both"):
        body.insert(0, rng.choice(openers))
    if place in ("close", "both"):
        body.append(rng.choice(closers))
    return " ".join(body)
