"""The strict base of every config section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1)]
"""A path, run or model: never empty."""
Files = Name | Annotated[tuple[Name, ...], Field(min_length=1)]
"""One file or several."""

NAMED, SECTION = "<name>", "<section>"
"""Tags of a union's members: which of the two was written; no key is called so."""


OnBadRow = Literal["refuse", "drop"]
"""A row that does not fit stops the run, or is left out and written to ``dropped.jsonl`` with its reason."""


class Section(BaseModel):
    """A frozen config section that refuses unknown keys and never coerces silently."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
