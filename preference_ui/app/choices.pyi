"""Lists to choose from whose choices come while the page is open.

Gradio remembers a session's choices on the server and refuses any other answer with an error over every box. After a
restart it remembers none, and a page that has stayed open could send nothing any more. What comes back here is taken
as it is: like every hint of a page it is checked against the store.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


def _one(payload: Any) -> str | None:
    return payload if isinstance(payload, str) else None

from gradio.events import Dependency

class OpenDropdown(gr.Dropdown):
    """A dropdown of one text."""

    is_template = True  # shown as its parent is

    def preprocess(self, payload: Any) -> str | None:
        """What was chosen."""
        return _one(payload)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class OpenRadio(gr.Radio):
    """Radio buttons, each a text."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        """What was chosen."""
        return _one(payload)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class OpenCheckboxGroup(gr.CheckboxGroup):
    """Checkboxes, each a text."""

    is_template = True

    def preprocess(self, payload: Any) -> list[Any]:
        """What was ticked."""
        return [value for value in payload if isinstance(value, str)] if isinstance(payload, list) else []
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component