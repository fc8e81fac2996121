"""What a form's boxes were filled with, sent along with them in the page.

A ``gr.State`` would not do: it changes on the server while the boxes still show what was there before, and a click in
between would take one person's or task's boxes for another's. Its text is only a hint, checked against the store.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Self

import gradio as gr


@dataclass(frozen=True)
class Shown:
    """Base of the notes; all fields have defaults, which stand for nothing shown, and JSON values."""

    @classmethod
    def read(cls, text: str | None) -> Self:
        """What came back from the page; anything else is nothing shown."""
        try:
            return cls(**json.loads(text or "{}"))
        except (TypeError, ValueError):
            return cls()

    def as_text(self) -> str:
        """For the page."""
        return json.dumps(dataclasses.asdict(self))


def as_sent(event: dict[str, Any]) -> dict[str, Any]:
    """Options of an event whose handler takes boxes as the page sends them.

    Gradio remembers on the server which choices a session's lists have, and refuses any other answer with an error over
    every box. After a restart it remembers none, and a page that stayed open could send nothing any more. What comes is
    a hint like every other, checked against the store. A ``gr.State`` is not among what is sent.
    """
    return event | {"preprocess": False}


def note_box() -> gr.Textbox:
    """The component that a note travels in."""
    return gr.Textbox(visible=False)
