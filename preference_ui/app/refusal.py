"""How a page says no: a warning beside its contents, which stay as they are.

Gradio marks each output of a handler that raises ``gr.Error`` with the word "Error", in place of what it showed, and
prints a traceback. A name that is taken is neither: the person reads why, and mends one field.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from preference_ui.errors import RlhfError, Worded

# Settings that the form shows in other units.
_BOXES = {"lease_seconds": "lease_minutes", "repeat_after_seconds": "repeat_days", "strength_margins": "strength"}


class Refusal(Exception):
    """What a person asked for is not done; the text says why, in the page's language where there is one."""


def in_words(texts: Mapping[str, str], error: RlhfError) -> Refusal:
    """An error as a refusal in the language of ``texts``; what has no words of its own is told as details."""
    if not isinstance(error, Worded):
        return Refusal(texts["lead.refused"].format(text=error))
    values = {
        name: texts.get(f"lead.settings.{_BOXES.get(str(value), value)}", value) if name == "field" else value
        for name, value in error.values.items()
    }
    return Refusal(texts[f"lead.refused.{error.key}"].format(**values))


def refusable(handler: Callable[..., Any], *, outputs: bool = True) -> Callable[..., Any]:
    """A handler of an event whose refusals are shown as warnings, escaped.

    Args:
        handler: a Gradio handler; may raise ``Refusal``.
        outputs: whether the event has outputs; all of them are left as they are.
    """

    @functools.wraps(handler)
    def answered(*values: Any, **named: Any) -> Any:
        try:
            return handler(*values, **named)
        except Refusal as refusal:
            gr.Warning(html.escape(str(refusal)))
            return gr.skip() if outputs else None

    return answered
