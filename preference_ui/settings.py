"""What a project asks of its annotators."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from preference_ui.errors import ConfigError, WordedConfigError
from preference_ui.ids import canonical_json

MIN_RESPONSES, MAX_RESPONSES = 2, 9
# Distances asked of the reward model for "negligibly", "slightly", "clearly" and "much" better.
DEFAULT_MARGINS = (0.0, 1 / 3, 2 / 3, 1.0)


@dataclass(frozen=True)
class Axis:
    """A quality rated per response with whole numbers from ``low`` to ``high``."""

    name: str
    low: int = 1
    high: int = 7


@dataclass(frozen=True)
class ProjectSettings:
    """Settings of one project.

    Attributes:
        overlap: independent votes per item.
        adaptive_extra: further votes an item may get when its raters disagree.
        adaptive_agreement: raters disagree when their mean pair agreement lies below this share.
        allow_ties: whether two responses may share a tier.
        axes: ratings asked per response.
        flags: codes offered per response and per item.
        ask_strength: whether the page asks how much better the best response is.
        strength_margins: margin per strength level 0, 1, ... of the top pair. It holds for votes of the past too, so
            it stays when strength is no longer asked; empty: there are no levels to ask for.
        gold_rate: chance that a claim is answered with an unseen gold item.
        repeat_rate: chance that a claim asks again what the annotator answered before.
        repeat_after_seconds: age an answer must have before it is asked again.
        lease_seconds: how long an item is held without a renewal.
        max_skips: so many skips take an item out of the queue and into the lead's inbox.
        min_seconds: a vote sooner than this after the claim is refused (0: any).
        ask_rationale: whether the page offers a free-text reason.
        allow_edits: whether the page offers to rewrite a response.
        qualify_items: gold items that who ranks here for the first time must answer before anything else (0: none).
        qualify_share: share of them to be right; see ``qualification``.
        time_zone: name of the zone (IANA) in which the lead's pages count days.
    """

    overlap: int = 1
    adaptive_extra: int = 0
    adaptive_agreement: float = 0.75
    allow_ties: bool = True
    axes: tuple[Axis, ...] = ()
    flags: tuple[str, ...] = ()
    ask_strength: bool = True
    strength_margins: tuple[float, ...] = DEFAULT_MARGINS
    gold_rate: float = 0.0
    repeat_rate: float = 0.0
    repeat_after_seconds: float = 86_400.0
    lease_seconds: float = 900.0
    max_skips: int = 2
    min_seconds: float = 0.0
    ask_rationale: bool = True
    allow_edits: bool = True
    qualify_items: int = 0
    qualify_share: float = 0.75
    time_zone: str = "UTC"

    def __post_init__(self) -> None:
        # Setting, whether the rule holds, the rule, and its key in the page's catalogues.
        rules = [
            ("overlap", self.overlap >= 1, "at least 1", "one"),
            ("adaptive_extra", self.adaptive_extra >= 0, "0 or more", "zero"),
            ("adaptive_agreement", 0 <= self.adaptive_agreement <= 1, "between 0 and 1", "share"),
            ("gold_rate", 0 <= self.gold_rate <= 1, "between 0 and 1", "share"),
            ("repeat_rate", 0 <= self.repeat_rate <= 1, "between 0 and 1", "share"),
            ("gold_rate", self.gold_rate + self.repeat_rate <= 1, "at most 1 together with repeat_rate", "together"),
            ("repeat_after_seconds", self.repeat_after_seconds >= 0, "0 or more", "zero"),
            ("lease_seconds", self.lease_seconds >= 1, "at least 1", "one"),
            ("qualify_items", self.qualify_items >= 0, "0 or more", "zero"),
            ("qualify_share", 0 <= self.qualify_share <= 1, "between 0 and 1", "share"),
            ("max_skips", self.max_skips >= 1, "at least 1", "one"),
            ("min_seconds", 0 <= self.min_seconds < self.lease_seconds, "0 or more and below lease_seconds", "hold"),
            (
                "axes",
                all(a.low < a.high and 0 < len(a.name) <= 24 for a in self.axes),
                "low < high, short names",
                "range",
            ),
            ("axes", len({a.name for a in self.axes}) == len(self.axes), "free of repeated names", "twice"),
            ("flags", all(0 < len(f) <= 24 for f in self.flags), "codes of 1 to 24 characters", "codes"),
            ("strength_margins", all(m >= 0 for m in self.strength_margins), "0 or more each", "zero"),
            (
                "strength_margins",
                list(self.strength_margins) == sorted(self.strength_margins),
                "ascending",
                "ascending",
            ),
            # Whether it is known here is asked where it is set: a store may move to a machine that knows fewer.
            ("time_zone", 0 < len(self.time_zone) <= 64, "the name of a time zone", "zone"),
        ]
        for name, holds, rule, key in rules:
            if not holds:
                text = f"project setting {name}={getattr(self, name)!r} must be {rule}"
                raise WordedConfigError(text, f"setting.{key}", field=name)

    @property
    def strength_levels(self) -> int:
        """How many levels of strength the page offers; 0: it does not ask."""
        return len(self.strength_margins) if self.ask_strength else 0

    def to_json(self) -> str:
        """JSON text that ``from_json`` reads back."""
        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ProjectSettings:
        """Build from plain values (a YAML or JSON file).

        Raises:
            ConfigError: an unknown name or an impossible value.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown project setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
        values = dict(values)
        try:
            if "axes" in values:
                values["axes"] = tuple(Axis(**a) if isinstance(a, dict) else Axis(str(a)) for a in values["axes"])
            for name in ("flags", "strength_margins"):
                if name in values:
                    values[name] = tuple(values[name])
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"project settings do not fit: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> ProjectSettings:
        """Read what ``to_json`` wrote."""
        return cls.from_dict(json.loads(text))
