"""A planted reward for stories: how many words of a short happy list a continuation holds."""

HAPPY = frozenset(
    [
        "happy",
        "smile",
        "smiled",
        "fun",
        "love",
        "loved",
        "laugh",
        "laughed",
        "friend",
        "friends",
        "nice",
        "good",
        "great",
        "joy",
        "kind",
    ]
)
PROMPTS = (
    "Once upon a time",
    "One day, a boy",
    "There was a cat",
    "A little girl named",
    "Tom and Sam went to",
    "The big dog",
    "In the park, a bird",
    "Mom said",
)


def score(prompts: list[str], responses: list[str]) -> list[float]:
    """Counts happy words in every response."""
    return [float(sum(word in HAPPY for word in words(response))) for response in responses]


def words(text: str) -> list[str]:
    """Lower-case words without the commonest punctuation."""
    for mark in ".,!":
        text = text.replace(mark, " ")
    return text.lower().split()
