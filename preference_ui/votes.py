"""A vote as the page sends it, its checks, and how it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import insert

from preference_ui.errors import DataError
from preference_ui.events import Transaction
from preference_ui.ids import canonical_json, checked_text, new_id, sha256_text
from preference_ui.models import Flag, Judgment, Rating, ResponseEdit
from preference_ui.settings import ProjectSettings
from rlhf.data.schema import check_text

MAX_TEXT = 100_000


@dataclass(frozen=True)
class Vote:
    """One ranking. Responses are named by slot: their place, from 0, in the order shown.

    Attributes:
        tiers: slots from best to worst; slots in one inner list are tied.
        strength: index into the project's ``strength_margins`` for the top pair, or None.
        all_bad: no response is acceptable (the order still counts).
        rationale: free text.
        ratings: ``{slot: {axis: value}}``.
        flags: ``(slot, code)``; slot None flags the whole item.
        edits: ``{slot: better text}``.
        active_ms: time the page was in use, as measured by the page.
        ui_sha256: digest of the page version that took the vote.
    """

    tiers: Sequence[Sequence[int]]
    strength: int | None = None
    all_bad: bool = False
    rationale: str = ""
    ratings: dict[int, dict[str, int]] = field(default_factory=dict)
    flags: Sequence[tuple[int | None, str]] = ()
    edits: dict[int, str] = field(default_factory=dict)
    active_ms: int | None = None
    ui_sha256: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON values, in the form a draft takes; ``from_dict`` reads them back."""
        return {
            "tiers": [list(t) for t in self.tiers],
            "strength": self.strength,
            "all_bad": self.all_bad,
            "rationale": self.rationale,
            "ratings": {str(slot): dict(axes) for slot, axes in self.ratings.items()},
            "flags": [[slot, code] for slot, code in self.flags],
            "edits": {str(slot): text for slot, text in self.edits.items()},
            "active_ms": self.active_ms,
            "ui_sha256": self.ui_sha256,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Vote:
        """Build a vote from untrusted JSON values.

        Raises:
            DataError: the values do not have the shape of a vote.
        """
        try:
            return cls(
                tiers=[list(tier) for tier in values["tiers"]],
                strength=values.get("strength"),
                all_bad=values.get("all_bad", False),
                rationale=values.get("rationale", ""),
                ratings={int(slot): dict(axes) for slot, axes in (values.get("ratings") or {}).items()},
                flags=[(slot, code) for slot, code in values.get("flags") or []],
                edits={int(slot): text for slot, text in (values.get("edits") or {}).items()},
                active_ms=values.get("active_ms"),
                ui_sha256=values.get("ui_sha256", ""),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"this is not a vote: {type(error).__name__} {error}") from error


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_vote(vote: Vote, num_slots: int, settings: ProjectSettings) -> None:
    """Refuse a vote that does not fit its lease and project; what a page sends is only a hint.

    Raises:
        DataError: naming the field at fault.
    """
    flat = [slot for tier in vote.tiers for slot in tier]
    if not all(_is_int(s) for s in flat) or sorted(flat) != list(range(num_slots)) or not all(vote.tiers):
        raise DataError(f"tiers: must place each of the {num_slots} responses exactly once")
    if not settings.allow_ties and len(vote.tiers) != num_slots and not vote.all_bad:
        raise DataError("tiers: this project allows no ties")
    levels = len(settings.strength_margins)
    if vote.strength is not None and not (_is_int(vote.strength) and 0 <= vote.strength < levels):
        raise DataError(f"strength: must be none or 0 to {levels - 1}")
    if not isinstance(vote.all_bad, bool):
        raise DataError("all_bad: must be true or false")
    if len(checked_text(vote.rationale, "rationale")) > MAX_TEXT:
        raise DataError(f"rationale: is longer than {MAX_TEXT} characters")
    if vote.active_ms is not None and not (_is_int(vote.active_ms) and 0 <= vote.active_ms < 2**31):
        raise DataError("active_ms: must be a whole number of milliseconds")
    if not isinstance(vote.ui_sha256, str) or len(vote.ui_sha256) > 64:
        raise DataError("ui_sha256: must be a hex digest")
    _check_details(vote, num_slots, settings)


def _check_details(vote: Vote, num_slots: int, settings: ProjectSettings) -> None:
    slots = set(range(num_slots))
    axes = {axis.name: axis for axis in settings.axes}
    for slot, values in vote.ratings.items():
        if slot not in slots:
            raise DataError(f"ratings: there is no slot {slot!r}")
        for name, value in values.items():
            axis = axes.get(name)
            if axis is None or not _is_int(value) or not axis.low <= value <= axis.high:
                raise DataError(f"ratings: {name!r}={value!r} is not a rating this project asks for")
    for flagged, code in vote.flags:
        if (flagged is not None and not (_is_int(flagged) and flagged in slots)) or code not in settings.flags:
            raise DataError(f"flags: {code!r} on slot {flagged!r} is not a flag this project offers")
    if len(set(vote.flags)) != len(vote.flags):
        raise DataError("flags: one is given twice")
    for slot, text in vote.edits.items():
        if slot not in slots or not settings.allow_edits:
            raise DataError(f"edits: slot {slot!r} cannot be edited")
        if len(check_text(text, f"edits[{slot}]")) > MAX_TEXT:
            raise DataError(f"edits[{slot}]: is longer than {MAX_TEXT} characters")


def vote_content(vote: Vote, responses: Sequence[str]) -> dict[str, Any]:
    """The vote with slots replaced by response ids: what its digest covers.

    Times measured by the page are left out, so that a double click is recognised as the same vote.
    """
    return {
        "tiers": [sorted(responses[slot] for slot in tier) for tier in vote.tiers],
        "strength": vote.strength,
        "all_bad": vote.all_bad,
        "rationale": vote.rationale,
        "ratings": sorted([responses[s], axis, v] for s, axes in vote.ratings.items() for axis, v in axes.items()),
        "flags": sorted([responses[s] if s is not None else "", code] for s, code in vote.flags),
        "edits": sorted([responses[s], text] for s, text in vote.edits.items()),
    }


def content_digest(content: dict[str, Any], retracted: bool = False) -> str:
    """Digest of ``vote_content``; a retraction has its own."""
    return sha256_text(canonical_json([content, retracted]))


_JUDGMENT = insert(Judgment)


def insert_judgment(tx: Transaction, vote: Vote, responses: Sequence[str], columns: dict[str, Any]) -> str:
    """Write a judgment with its ratings, flags and edits; returns its digest.

    Args:
        responses: response id per slot.
        columns: the judgment's columns that do not come from the vote.
    """
    content = vote_content(vote, responses)
    digest = content_digest(content, columns["retracted"])
    judgment_id = columns["id"]
    tx.run(
        _JUDGMENT,
        columns
        | {
            "tiers_json": canonical_json(content["tiers"]),
            "strength": vote.strength,
            "all_bad": vote.all_bad,
            "rationale": vote.rationale,
            "active_ms": vote.active_ms,
            "ui_sha256": vote.ui_sha256,
            "digest": digest,
            "created": tx.now,
        },
    )
    if content["ratings"]:
        tx.run(
            insert(Rating),
            [{"judgment_id": judgment_id, "response_id": r, "axis": a, "value": v} for r, a, v in content["ratings"]],
        )
    if content["flags"]:
        tx.run(
            insert(Flag),
            [
                {"id": new_id(), "judgment_id": judgment_id, "response_id": r or None, "code": c}
                for r, c in content["flags"]
            ],
        )
    if content["edits"]:
        tx.run(
            insert(ResponseEdit),
            [{"judgment_id": judgment_id, "response_id": r, "text": t} for r, t in content["edits"]],
        )
    return digest
