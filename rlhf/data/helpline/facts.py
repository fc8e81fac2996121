"""What the helpline knows: twelve relations of five facts each, about a simplified picture of diabetes.

The texts are synthetic and simplified so that a reader can judge an answer at a glance. They are NOT medical
advice.

A *relation* is a kind of question (when to take a medicine, what to bring to an appointment). A *fact* is a
relation and one of its subjects. Each fact has one right value and one popular myth; no myth is right about
anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Relation:
    """A kind of question.

    Attributes:
        name: short identifier, also the leaflet's topic.
        title: the heading of a leaflet about it.
        questions: templates with ``{subject}``, each one sentence that ends in a question mark.
        statements: templates with ``{subject}`` and ``{value}``, each one sentence that ends in a full stop.
        answers: subject -> (right value, myth); all are distinct and none contains another.
    """

    name: str
    title: str
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    answers: dict[str, tuple[str, str]]

    @property
    def subjects(self) -> tuple[str, ...]:
        """What can be asked about, in table order."""
        return tuple(self.answers)

    @property
    def values(self) -> tuple[str, ...]:
        """Everything that is said to hold for some subject, rightly or wrongly."""
        return tuple(value for pair in self.answers.values() for value in pair)


@dataclass(frozen=True)
class Fact:
    """One subject of one relation, e.g. *when to take metformin*."""

    relation: Relation
    subject: str

    @property
    def id(self) -> str:
        """Stable identifier, e.g. ``"time/metformin"``."""
        return f"{self.relation.name}/{self.subject}"

    @property
    def right(self) -> str:
        """The right value."""
        return self.relation.answers[self.subject][0]

    @property
    def myth(self) -> str:
        """The wrong value that people mention."""
        return self.relation.answers[self.subject][1]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "type",
        "The types",
        (
            "What is {subject}?",
            "Can you explain {subject}?",
            "What happens in {subject}?",
            "Can you tell me about {subject}?",
        ),
        ("{subject} means that {value}.", "In {subject}, {value}.", "With {subject}, {value}."),
        {
            "type one diabetes": ("the body makes no insulin", "the heart is too small"),
            "type two diabetes": ("the body uses insulin badly", "the lungs are full of dust"),
            "pregnancy diabetes": ("sugar rises until the baby is born", "the baby eats too many sweets"),
            "early diabetes": ("sugar is only a little high", "the bones are very thin"),
            "steroid diabetes": ("strong tablets push the sugar up", "loud music hurts the ears"),
        },
    ),
    Relation(
        "time",
        "When to take medicines",
        (
            "When should I take {subject}?",
            "What is the best time for {subject}?",
            "At what time do I take {subject}?",
            "When do I need {subject}?",
        ),
        (
            "Take {subject} {value}.",
            "You should take {subject} {value}.",
            "The best time for {subject} is {value}.",
        ),
        {
            "metformin": ("with your evening meal", "while you swim"),
            "gliclazide": ("shortly before breakfast", "in the middle of the night"),
            "long insulin": ("at the same hour every day", "only on sunny days"),
            "fast insulin": ("just before each meal", "after a hot bath"),
            "the statin": ("when you go to bed", "during a film"),
        },
    ),
    Relation(
        "job",
        "What medicines do",
        (
            "What does {subject} do?",
            "Why do I take {subject}?",
            "How does {subject} work?",
            "What is {subject} for?",
        ),
        (
            "{subject} {value}.",
            "You take {subject} because it {value}.",
            "We give you {subject} because it {value}.",
        ),
        {
            "metformin": ("slows sugar from the liver", "makes the hair grow"),
            "gliclazide": ("helps the body make insulin", "cleans the teeth"),
            "long insulin": ("keeps sugar steady all day", "turns the eyes blue"),
            "fast insulin": ("handles the sugar in food", "cures a cold"),
            "the statin": ("lowers the fat in the blood", "makes you taller"),
        },
    ),
    Relation(
        "storage",
        "Where to keep things",
        (
            "Where do I keep {subject}?",
            "Where should {subject} go?",
            "What is the right place for {subject}?",
            "How do I store {subject}?",
        ),
        (
            "Keep {subject} {value}.",
            "The right place for {subject} is {value}.",
            "You should keep {subject} {value}.",
        ),
        {
            "spare insulin": ("in the fridge", "in the oven"),
            "the open pen": ("at room temperature", "under hot water"),
            "used needles": ("in the yellow box", "under the pillow"),
            "test strips": ("in a dry tub", "in a wet towel"),
            "glucose tablets": ("in your pocket", "on the roof"),
        },
    ),
    Relation(
        "visits",
        "How often we see you",
        (
            "How often do I need {subject}?",
            "How many times do I have {subject}?",
            "How often is {subject}?",
            "How often should I come for {subject}?",
        ),
        ("You need {subject} {value}.", "We plan {subject} {value}.", "Please come for {subject} {value}."),
        {
            "the eye photo": ("once a year", "every hour"),
            "the foot check": ("twice a year", "every ten years"),
            "the long sugar test": ("every three months", "at each full moon"),
            "the diet class": ("once a week", "only in summer"),
            "the baby scan": ("every two weeks", "when it rains"),
        },
    ),
    Relation(
        "bring",
        "What to bring",
        (
            "What should I bring to {subject}?",
            "What do I need for {subject}?",
            "What must I carry to {subject}?",
            "Can you tell me what to bring to {subject}?",
        ),
        (
            "Bring {value} to {subject}.",
            "For {subject}, you need {value}.",
            "You should bring {value} to {subject}.",
        ),
        {
            "the eye photo": ("dark glasses", "a loud drum"),
            "the foot check": ("your daily shoes", "a bag of sand"),
            "the blood test": ("the white form", "a birthday cake"),
            "the diet class": ("a food diary", "two pillows"),
            "the nurse visit": ("your sugar meter", "a fishing rod"),
        },
    ),
    Relation(
        "people",
        "Who can help",
        (
            "Who can help with {subject}?",
            "Who should I see about {subject}?",
            "Who do I call about {subject}?",
            "Who looks after {subject}?",
        ),
        (
            "Call {value} about {subject}.",
            "You should see {value} about {subject}.",
            "For {subject}, ask {value}.",
        ),
        {
            "eye problems": ("the eye doctor", "the baker"),
            "foot problems": ("the foot nurse", "the bus driver"),
            "food questions": ("the diet expert", "the plumber"),
            "pump problems": ("the pump trainer", "the hairdresser"),
            "a low mood": ("the counsellor", "the tax office"),
        },
    ),
    Relation(
        "meals",
        "What to eat",
        (
            "What should I eat for {subject}?",
            "What is a good choice for {subject}?",
            "What food is best for {subject}?",
            "Do you have an idea for {subject}?",
        ),
        (
            "A good choice for {subject} is {value}.",
            "For {subject}, eat {value}.",
            "Try {value} for {subject}.",
        ),
        {
            "breakfast": ("oats with berries", "jam from the jar"),
            "lunch": ("bean soup", "a bowl of candy"),
            "dinner": ("fish with salad", "fried butter"),
            "a snack": ("some plain nuts", "three donuts"),
            "a long walk": ("a ripe banana", "a cup of salt"),
        },
    ),
    Relation(
        "swaps",
        "Better choices",
        (
            "What can I have instead of {subject}?",
            "What is better than {subject}?",
            "How can I replace {subject}?",
            "What is a good swap for {subject}?",
        ),
        (
            "Have {value} instead of {subject}.",
            "You can replace {subject} with {value}.",
            "A good swap for {subject} is {value}.",
        ),
        {
            "white bread": ("rye bread", "sweet pastry"),
            "cola": ("cold water", "maple syrup"),
            "cake": ("fruit and yogurt", "caramel cream"),
            "chips": ("a baked potato", "fried cheese"),
            "white rice": ("brown lentils", "honey toast"),
        },
    ),
    Relation(
        "signs",
        "What signs mean",
        (
            "Why do I have {subject}?",
            "What causes {subject}?",
            "What is behind {subject}?",
            "What is the reason for {subject}?",
        ),
        (
            "{subject} can be a sign of {value}.",
            "The usual reason for {subject} is {value}.",
            "If you have {subject}, think of {value}.",
        ),
        {
            "shaking hands": ("low sugar", "bad weather"),
            "strong thirst": ("high sugar", "old paint"),
            "numb feet": ("tired nerves", "tight hats"),
            "blurred sight": ("a change in the eye", "too much sleep"),
            "fruity breath": ("acid in the blood", "a happy dream"),
        },
    ),
    Relation(
        "action",
        "What to do",
        (
            "What should I do about {subject}?",
            "What do I do with {subject}?",
            "What is the first step with {subject}?",
            "What helps with {subject}?",
        ),
        (
            "If you have {subject}, {value}.",
            "With {subject}, you should {value}.",
            "The first step is to {value}.",
        ),
        {
            "shaking hands": ("drink some juice", "go for a run"),
            "strong thirst": ("test your sugar", "paint the kitchen"),
            "numb feet": ("book a foot check", "walk on hot stones"),
            "blurred sight": ("book an eye photo", "drive a fast car"),
            "fruity breath": ("go to hospital", "wait for a month"),
        },
    ),
    Relation(
        "target",
        "Good sugar levels",
        (
            "What should my sugar be {subject}?",
            "What sugar level is good {subject}?",
            "What number do I want {subject}?",
            "What is a safe level {subject}?",
        ),
        (
            "Your sugar should be {value} {subject}.",
            "A number {value} is good {subject}.",
            "A safe level {subject} is {value}.",
        ),
        {
            "before breakfast": ("between four and seven", "over thirty"),
            "after meals": ("below nine", "near fifty"),
            "at bedtime": ("between six and eight", "about zero"),
            "before driving": ("above five", "exactly one"),
            "during sport": ("above seven", "past sixty"),
        },
    ),
)


@cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact, in table order."""
    return tuple(Fact(relation, subject) for relation in RELATIONS for subject in relation.subjects)
