"""What is odd about a data set: poison, slips and surprises, found before they are learnt.

Nothing is removed here; the report says where to look.
"""

from __future__ import annotations

import math
import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rlhf.data.schema import Message, PreferenceRow, Row

_EXAMPLES = 5
_LENGTH_DEVIATIONS = 6.0
_MIN_ROWS_FOR_LENGTHS = 20
_MIN_VOTES = 20
_POSITION_P_VALUE = 1e-4
_TABLE_ID_CHARACTERS = 40
# Spellings that steer well-known model families.
_MARKUP = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<(?:bos|eos|pad|unk)>"
)
# Everything but printable ASCII, line ends and tabs, and the letters of Latin scripts.
_UNUSUAL = re.compile(r"[^\n\t\r -~\u00c0-\u024f]")
_ROLE_LINE = re.compile(r"^(?:User|Human|Assistant|System):", re.MULTILINE)


@dataclass(frozen=True)
class PositionVote:
    """Which of several shown responses an annotator put first.

    Args:
        annotator: who.
        position: 0-based place on the screen of the response put first.
        num_positions: how many responses were shown.
    """

    annotator: str
    position: int
    num_positions: int = 2


@dataclass(frozen=True)
class Finding:
    """One kind of oddity.

    Args:
        name: the kind, e.g. ``"conflicting_pairs"``.
        explanation: what it does to training.
        ids: the rows (or annotators) concerned, in order.
    """

    name: str
    explanation: str
    ids: tuple[str, ...]


@dataclass(frozen=True)
class QualityReport:
    """Findings over one data set; kinds without any row are left out."""

    num_rows: int
    findings: tuple[Finding, ...] = field(default=())

    def ids(self, name: str) -> tuple[str, ...]:
        """Return the rows that one kind of finding names; none when there is no such finding."""
        return next((finding.ids for finding in self.findings if finding.name == name), ())

    def as_table(self) -> str:
        """Return the report as one table of plain text."""
        lines = [("finding", "rows", "percent", "first", "why it matters")]
        for finding in self.findings:
            share = 100.0 * len(finding.ids) / max(self.num_rows, 1)
            shown = ", ".join(row_id[:_TABLE_ID_CHARACTERS] for row_id in finding.ids[:_EXAMPLES])
            percent = f"{share:.1f}" if finding.name != "position_annotators" else "-"
            lines.append((finding.name, str(len(finding.ids)), percent, shown, finding.explanation))
        if not self.findings:
            return f"{self.num_rows} rows, nothing odd found"
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
        text = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]])
            for line in lines
        ]
        return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def inspect_rows(rows: Sequence[Row], votes: Iterable[PositionVote] = ()) -> QualityReport:
    """Look for oddities.

    Args:
        rows: rows of any kind.
        votes: where annotators clicked, if it is known.
    """
    pairs = [row for row in rows if isinstance(row, PreferenceRow)]
    checks: list[tuple[str, str, list[str]]] = [
        (
            "chosen_is_rejected",
            "both responses read the same; the pair only adds noise",
            [row.id for row in pairs if row.chosen.split() == row.rejected.split()],
        ),
        ("conflicting_pairs", "the same pair is also there with the other winner", _conflicting(pairs)),
        ("duplicate_rows", "said more than once, so it weighs more than it should", _duplicates(rows)),
        ("position_annotators", "votes follow the place on the screen", _position_voters(votes)),
        ("special_tokens", "spells control tokens", _with_text(rows, _has_markup)),
        ("role_lines", "imitates a turn of a plain-word template", _with_text(rows, _has_role_line)),
        ("invisible_characters", "changes tokens, shows nothing", _with_text(rows, _has_invisible)),
        ("very_long", "may be cut, or dominate a batch", _length_outliers(rows, +1)),
        ("very_short", "often a slip", _length_outliers(rows, -1)),
    ]
    findings = tuple(Finding(name, why, tuple(ids)) for name, why, ids in checks if ids)
    return QualityReport(len(rows), findings)


def _texts(row: Row) -> tuple[str, ...]:
    if isinstance(row, PreferenceRow):
        return (*(message.content for message in row.prompt), row.chosen, row.rejected)
    return tuple(message.content for message in row.messages)


def _with_text(rows: Iterable[Row], is_odd: Callable[[str], bool]) -> list[str]:
    return [row.id for row in rows if any(is_odd(text) for text in _texts(row))]


def _has_markup(text: str) -> bool:
    return _MARKUP.search(text) is not None


def _has_role_line(text: str) -> bool:
    return _ROLE_LINE.search(text) is not None


def _has_invisible(text: str) -> bool:
    """Tell whether a character shows nothing yet changes the tokens; joiners inside emoji and scripts are
    let be."""
    if text.isascii() and text.isprintable():
        return False
    for match in _UNUSUAL.finditer(text):
        category = unicodedata.category(match[0])
        if category == "Cc" or (category == "Cf" and not _is_joining(text, match.start())):
            return True
    return False


def _is_joining(text: str, index: int) -> bool:
    """Tell whether a zero-width (non-)joiner stands between two characters that it can join."""
    if text[index] not in "\u200c\u200d" or not 0 < index < len(text) - 1:
        return False
    return not text[index - 1].isascii() and not text[index + 1].isascii()


def _conflicting(pairs: Iterable[PreferenceRow]) -> list[str]:
    """Return pairs whose two texts also occur the other way round, each with a winner."""
    kept = [row for row in pairs if row.probability != 0.5 and row.chosen != row.rejected]

    def ordered(row: PreferenceRow) -> tuple[tuple[Message, ...], str, str]:
        first, second = (row.chosen, row.rejected) if row.probability > 0.5 else (row.rejected, row.chosen)
        return _turns(row.prompt), first, second

    def turned(row: PreferenceRow) -> tuple[tuple[Message, ...], str, str]:
        prompt, first, second = ordered(row)
        return prompt, second, first

    # A million rows fit because only their hashes are kept; those that agree are then compared in full.
    hashes = {hash(ordered(row)) for row in kept}
    suspects = [row for row in kept if hash(turned(row)) in hashes]
    winners = {ordered(row) for row in suspects}
    return [row.id for row in suspects if turned(row) in winners]


def _duplicates(rows: Iterable[Row]) -> list[str]:
    """Return the rows whose turns and responses all stood in an earlier row."""

    def said(row: Row) -> tuple[tuple[Message, ...], tuple[str, ...]]:
        return _turns(row.prompt), _texts(row)

    counts = Counter(hash(said(row)) for row in rows)
    seen: set[tuple[tuple[Message, ...], tuple[str, ...]]] = set()
    repeated = []
    for row in rows:
        key = said(row)
        if counts[hash(key)] == 1:
            continue
        if key in seen:
            repeated.append(row.id)
        seen.add(key)
    return repeated


def _turns(prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """A prompt of role ``text`` and the same words of a user are one prompt."""
    return tuple(Message("user", m.content) if m.role == "text" else m for m in prompt)


def _position_voters(votes: Iterable[PositionVote]) -> list[str]:
    """Return annotators who put one place first so often that chance does it less than once in 10 000
    annotators.

    The test is binomial for the annotator's favourite place, corrected for choosing the favourite
    (Bonferroni), and only for screens of equal size.
    """
    counts: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for vote in votes:
        counts[(vote.annotator, vote.num_positions)][vote.position] += 1
    suspects = set()
    for (annotator, num_positions), places in counts.items():
        total, favourite = sum(places.values()), max(places.values())
        if num_positions < 2 or total < _MIN_VOTES:
            continue
        if num_positions * _binomial_tail(favourite, total, 1.0 / num_positions) < _POSITION_P_VALUE:
            suspects.add(annotator)
    return sorted(suspects)


def _binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Return P(X >= successes) for X ~ Binomial(trials, probability)."""
    logs = (math.log(probability), math.log1p(-probability))
    orders = math.lgamma(trials + 1)
    return sum(
        math.exp(orders - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * logs[0] + (trials - k) * logs[1])
        for k in range(successes, trials + 1)
    )


def _length_outliers(rows: Sequence[Row], side: int) -> list[str]:
    """Return rows whose log length lies far from the median, in robust deviations."""
    if len(rows) < _MIN_ROWS_FOR_LENGTHS:
        return []
    logs = [math.log(sum(map(len, _texts(row)))) for row in rows]
    middle = statistics.median(logs)
    # 1.4826 makes the median absolute deviation estimate a normal standard deviation; the floor of 0.1 in
    # the log keeps data of nearly equal lengths from being all outliers.
    spread = max(1.4826 * statistics.median(abs(value - middle) for value in logs), 0.1)
    limit = _LENGTH_DEVIATIONS * spread
    return [row.id for row, value in zip(rows, logs, strict=True) if side * (value - middle) > limit]
