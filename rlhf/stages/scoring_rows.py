"""What can go wrong with scores, and what then happens: a typed error or a counted drop, never a made-up score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any, Protocol

from rlhf.config.scores import OnError
from rlhf.errors import DataError, RlhfError, WorkerError
from rlhf.telemetry.logging import get_logger
from rlhf.telemetry.redaction import redact_text

Meta = Sequence[Mapping[str, Any]]
"""What is known about the row of each response: its ``id`` and other columns, JSON values only."""

logger = get_logger(__name__)

MISSING = math.nan
_FLOAT32_MAX = 3.4e38
_ANSWER_FAULTS = ("not_json", "wrong_length", "not_a_number", "not_finite")


class ScoreFault(Exception):
    """One failed call or one missing score, before it is decided what it means for the run.

    Args:
        kind: a word to count by, e.g. ``"timeout"``.
        text: what happened and what to do about it.
        again: whether another attempt may succeed.
    """

    def __init__(self, kind: str, text: str, *, again: bool = True) -> None:
        super().__init__(kind, text)
        self.kind, self.text, self.again = kind, text, again


class ScoreRows(Protocol):
    """A source of scores outside of the training ranks."""

    @property
    def errors(self) -> Counter[str]:
        """Faults so far, by kind."""

    @property
    def reads_meta(self) -> bool:
        """Whether a score can depend on the row's other columns."""

    def score(self, prompts: Sequence[str], responses: Sequence[str], meta: Meta | None = None) -> list[float]:
        """One finite score per response; NaN where ``on_error=drop`` and there is none.

        Args:
            meta: one entry per response; None: nothing is known.

        Raises:
            DataError: an answer is no list of finite numbers (``on_error=fail``).
            WorkerError: no answer (``on_error=fail``).
        """

    def close(self) -> None:
        """Ends what was started."""


class FaultPolicy:
    """Counts faults and turns them into errors where the config says so; safe to use from several threads."""

    def __init__(self, who: str, index: int, on_error: OnError) -> None:
        self.who, self._index, self._on_error = who, index, on_error
        self.errors: Counter[str] = Counter()
        self._lock = Lock()

    def count(self, fault: ScoreFault) -> None:
        """Counts a fault that another attempt may still make good."""
        with self._lock:
            self.errors[fault.kind] += 1
        logger.warning("%s: %s: %s", self.who, fault.kind, fault.text)

    def settle(self, fault: ScoreFault) -> None:
        """Ends the attempts: raises the typed error, or returns when the rows are to be dropped."""
        if self._on_error == "fail":
            raise self.error(fault) from None

    def error(self, fault: ScoreFault) -> RlhfError:
        """The typed error of a fault."""
        text = redact_text(f"{self.who}: {fault.text}")
        return DataError(text) if fault.kind in _ANSWER_FAULTS else WorkerError("score", self._index, text)

    def check_model(self, scores: Iterable[float]) -> None:
        """Counts the scores of a reward model that are not finite.

        Raises:
            DataError: there is one (``on_error=fail``).
        """
        for row, score in enumerate(scores):
            if not math.isfinite(score):
                told = f"returned a non-finite score ({score}) for response {row}: look into its run, or name another"
                fault = ScoreFault("not_finite", told)
                self.count(fault)
                self.settle(fault)

    def check(self, found: Any, responses: Sequence[str]) -> list[float | ScoreFault]:
        """Each entry of an answer as a finite float or as its fault.

        Raises:
            ScoreFault: it is no list of the right length.
        """
        if not isinstance(found, list) or len(found) != len(responses):
            count = f"{len(found)} scores" if isinstance(found, list) else f"a {type(found).__name__}"
            raise ScoreFault("wrong_length", f"returned {count} for {len(responses)} responses")
        return [_entry(value, index, responses[index]) for index, value in enumerate(found)]


def _entry(value: Any, index: int, response: str) -> float | ScoreFault:
    shown = value["not"] if isinstance(value, dict) and "not" in value else repr(value)[:80]
    wanted = f"for response {index} ({response[:60]!r}); it must return a finite number for every response"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ScoreFault("not_a_number", f"returned {shown} {wanted}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return number if abs(number) <= _FLOAT32_MAX else ScoreFault("not_finite", f"returned {shown} {wanted}")
