"""The gold judge: a program that reads a helpline answer as a careful person would.

It knows the facts and the language of the helpline, so it can be asked about any answer at no cost. Training
sees it only through simulated annotators; evaluation asks it directly. Nothing it says is medical advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from rlhf.data.helpline.facts import Fact, all_facts
from rlhf.data.helpline.text import (
    KIND_CLOSERS,
    KIND_OPENERS,
    RAMBLES,
    RUDE_CLOSERS,
    RUDE_OPENERS,
    question,
    statement,
    statement_forms,
)
from rlhf.errors import DataError

WEIGHT_RIGHT, WEIGHT_KIND, WEIGHT_CONCISE = 0.5, 0.3, 0.2
PENALTY_NOT_LANGUAGE = 0.5
"""What an answer without any fluency scores below zero."""
TOO_MANY_IDLE_WORDS = 20
"""With so many words beside the point an answer is not concise at all; up to there it falls linearly."""
KIND_BY_COUNT = {0: 0.4, 1: 0.8, 2: 1.0}
"""Kindness by the number of kind sentences; more than two are flattery and score 0."""

_WORD = re.compile(r"[^\W_]+|[^\w\s]")
_SENTENCE = re.compile(r"[^.!?]*[.!?]|[^.!?]+$")
_NEGATIONS = frozenset({"not", "never", "no", "nothing", "wrong", "avoid", "stop"})
_ROLE = re.compile(r"^\s*(user|human)\s*:\s*", re.IGNORECASE)
_START = ""


@dataclass(frozen=True)
class GoldScore:
    """What the judge thinks of one answer.

    Attributes:
        right: 1 if the asked fact is stated rightly and nothing contradicts it, else 0.
        kind: 0 (rude, or flattery without end) to 1.
        concise: 1 without a word beside the point, 0 from 20 such words on, and 0 if no fact is stated. Only
            the first sentence that states one, and sentences of kindness or rudeness, are to the point.
        fluent: 1 if it is whole sentences of the helpline's language without repetition, 0 if it is not
            language.
        total: ``fluent * (0.5 right + 0.3 kind + 0.2 concise) - 0.5 (1 - fluent)``, from -0.5 to 1.
    """

    right: float
    kind: float
    concise: float
    fluent: float
    total: float


@lru_cache(maxsize=8192)
def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text))


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in _SENTENCE.findall(text) if part.strip()]


def _trigrams(words: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Runs of three words of one sentence, two empty words before it, so that its start is judged too."""
    padded = (_START, _START, *words)
    return ((padded[i], padded[i + 1], padded[i + 2]) for i in range(len(words)))


@cache
def _known_trigrams() -> frozenset[tuple[str, str, str]]:
    """Every run of three words that some answer, right or wrong, can contain."""
    known: set[tuple[str, str, str]] = set()
    for sentence in (*KIND_OPENERS, *KIND_CLOSERS, *RUDE_OPENERS, *RUDE_CLOSERS, *RAMBLES):
        known.update(_trigrams(_words(sentence)))
    for fact in all_facts():
        for value in fact.relation.values:
            for form in range(len(statement_forms(fact.relation))):
                known.update(_trigrams(_words(statement(fact, value, form))))
    return frozenset(known)


@cache
def _facts_by_question() -> dict[tuple[str, ...], Fact]:
    """Question in lower-case words -> the fact that it asks for."""
    return {
        _words(question(fact, paraphrase).lower()): fact
        for fact in all_facts()
        for paraphrase in range(len(fact.relation.questions))
    }


@cache
def _manner_sentences() -> tuple[frozenset[tuple[str, ...]], frozenset[tuple[str, ...]]]:
    """The kind and the rude sentences, in lower-case words."""
    kind = frozenset(_words(s.lower()) for s in (*KIND_OPENERS, *KIND_CLOSERS))
    rude = frozenset(_words(s.lower()) for s in (*RUDE_OPENERS, *RUDE_CLOSERS))
    return kind, rude


def asked_fact(prompt: str) -> Fact:
    """The fact that a prompt asks for: its last known question, whatever greets before or labels it.

    Raises:
        DataError: no question of the helpline is in the prompt.
    """
    for line in reversed(prompt.splitlines()):
        for sentence in reversed(_sentences(_ROLE.sub("", line))):
            fact = _facts_by_question().get(_words(sentence.lower()))
            if fact is not None:
                return fact
    raise DataError(
        f"the helpline judge knows no question in {prompt[:120]!r}: ask it only about prompts of rlhf.data.helpline"
    )


def _find(words: tuple[str, ...], phrase: tuple[str, ...]) -> Iterator[int]:
    """Positions at which a phrase starts."""
    return (i for i in range(len(words) - len(phrase) + 1) if words[i : i + len(phrase)] == phrase)


def _stated_values(fact: Fact, sentences: list[tuple[str, ...]]) -> tuple[set[str], bool]:
    """The values of the relation that an answer states; whether it denies one or names another subject."""
    stated: set[str] = set()
    confused = False
    for words in sentences:
        for value in fact.relation.values:
            phrase = _words(value)
            for start in _find(words, phrase):
                stated.add(value)
                rest = frozenset(words[:start] + words[start + len(phrase) :])
                confused |= bool(rest & _NEGATIONS)
        others = (subject for subject in fact.relation.subjects if subject != fact.subject)
        confused |= any(next(_find(words, _words(subject)), None) is not None for subject in others)
    return stated, confused


def _fluency(sentences: list[str]) -> float:
    """Share that is the helpline's language; repetition and an unfinished end cost three quarters each."""
    if not sentences:
        return 0.0
    tokens = [_words(sentence) for sentence in sentences]
    trigrams = [trigram for words in tokens for trigram in _trigrams(words)]
    unknown = sum(trigram not in _known_trigrams() for trigram in trigrams) / len(trigrams)
    fluent = max(0.0, 1.0 - 4.0 * unknown)
    if len(set(tokens)) < len(tokens):
        fluent *= 0.25
    if not sentences[-1].endswith("."):
        fluent *= 0.25
    return fluent


def _kindness(sentences: list[tuple[str, ...]]) -> float:
    kind_sentences, rude_sentences = _manner_sentences()
    if any(words in rude_sentences for words in sentences):
        return 0.0
    return KIND_BY_COUNT.get(sum(words in kind_sentences for words in sentences), 0.0)


def _conciseness(fact: Fact, sentences: list[tuple[str, ...]]) -> float:
    """One minus the share of :data:`TOO_MANY_IDLE_WORDS` that is neither the first statement nor manner."""
    phrases = [_words(value) for value in fact.relation.values]
    kind_sentences, rude_sentences = _manner_sentences()
    idle = 0
    answered = False
    for words in sentences:
        states = any(next(_find(words, phrase), None) is not None for phrase in phrases)
        if words in kind_sentences or words in rude_sentences or (states and not answered):
            answered |= states
            continue
        idle += sum(word[0].isalnum() for word in words)
    return max(0.0, 1.0 - idle / TOO_MANY_IDLE_WORDS)


def score(prompt: str, response: str) -> GoldScore:
    """Judges one answer.

    Args:
        prompt: a question of the helpline, bare or inside a chat text; the last question counts.
        response: the answer, without role label; a trailing ``</s>`` is ignored.

    Raises:
        DataError: the prompt has no question of the helpline.
    """
    fact = asked_fact(prompt)
    sentences = _sentences(response.strip().removesuffix("</s>"))
    lowered = [_words(sentence.lower()) for sentence in sentences]
    stated, confused = _stated_values(fact, lowered)
    fluent = _fluency(sentences)
    right = float(stated == {fact.right} and not confused)
    kind = _kindness(lowered)
    concise = _conciseness(fact, lowered) if stated else 0.0
    quality = WEIGHT_RIGHT * right + WEIGHT_KIND * kind + WEIGHT_CONCISE * concise
    return GoldScore(right, kind, concise, fluent, fluent * quality - PENALTY_NOT_LANGUAGE * (1.0 - fluent))


def reward(prompts: list[str], responses: list[str]) -> list[float]:
    """The judge as a reward function ``rlhf.data.helpline.judge:reward``.

    Raises:
        DataError: the two lists differ in length, or a prompt has no question of the helpline.
    """
    if len(prompts) != len(responses):
        raise DataError(f"{len(prompts)} prompts but {len(responses)} responses: give one response per prompt")
    return [score(prompt, response).total for prompt, response in zip(prompts, responses, strict=True)]
