"""The tab where people put their own question to the policy and rank its answers at once.

The event has a concurrency group of its own, one place wide: it holds up neither votes, which bypass Gradio's queue
altogether, nor any other event of the page.
"""

from __future__ import annotations

import logging
import secrets

import gradio as gr

from preference_ui import queue
from preference_ui.app.site import Site
from preference_ui.auth import require_role
from preference_ui.errors import AuthError, DataError, GenerationError, LeaseError
from preference_ui.i18n import catalogue
from preference_ui.live import LivePolicy
from preference_ui.people import get_annotator
from preference_ui.projects import add_items, get_project, load_project
from preference_ui.qualification import QUALIFIED, standing_of
from preference_ui.settings import MAX_RESPONSES, MIN_RESPONSES
from rlhf.data.schema import check_text

logger = logging.getLogger(__name__)

GROUP = "generate"
MAX_CHARACTERS = 8000
MAX_WAITING = 20
# The page's script shows the new task; votes and drafts in the making were saved before.
_SHOW_TASK = "() => { window.rlhfNewTask && window.rlhfNewTask(); }"


class AskTab:
    """Builds the tab and answers its one event."""

    def __init__(self, site: Site, locale: str, policy: LivePolicy) -> None:
        self.site, self.policy = site, policy
        self.texts = catalogue(locale)

    def build(self) -> None:
        """Add the tab's contents to a page that is being built."""
        gr.Markdown(self.texts["ask.intro"])
        words = gr.Textbox(label=self.texts["ask.prompt"], lines=4, max_length=MAX_CHARACTERS, elem_classes=["ask"])
        count = gr.Radio(
            list(range(MIN_RESPONSES, MAX_RESPONSES + 1)), value=4, label=self.texts["ask.count"], elem_classes=["ask"]
        )
        button = gr.Button(self.texts["ask.button"], variant="primary", elem_classes=["narrow"])
        gr.Markdown(self.texts["ask.waiting"], elem_classes=["hint"])
        done = button.click(
            self.ask, [words, count], words, concurrency_id=GROUP, concurrency_limit=1,
            api_visibility="private", show_progress="full",
        )  # fmt: skip
        done.success(None, None, None, js=_SHOW_TASK, api_visibility="private")

    def _no(self, key: str) -> gr.Error:
        """An error, not a warning: what follows a success must not follow. It is no fault, so no traceback either."""
        return gr.Error(self.texts[key], print_exception=False)

    def ask(self, words: str, count: int, request: gr.Request) -> str:
        """Draw candidates, add them as a task of the project, and keep it for the caller's next claim.

        Raises:
            gr.Error: in the page's language; nothing was stored.
        """
        store = self.site.store
        try:
            person = require_role(get_annotator(store, str(request.username)), "annotator")
            text = check_text(words.strip(), "prompt") if isinstance(words, str) else ""
        except (AuthError, DataError) as error:
            raise self._no("error.role") from error
        if not text:
            raise self._no("ask.empty")
        with store.read() as session:
            if standing_of(session, load_project(session, self.site.project), person.id).state != QUALIFIED:
                raise self._no("ask.not_yet")
        if len(text) > MAX_CHARACTERS:
            raise self._no("ask.long")
        if count not in range(MIN_RESPONSES, MAX_RESPONSES + 1):
            raise self._no("error.data")
        try:
            spec = self.policy.item(text, count, secrets.randbits(31))
        except DataError as error:
            raise self._no("ask.few") from error
        except GenerationError as error:
            logger.error("live generation: %s", error)
            raise self._no("ask.failed") from error
        project = get_project(store, self.site.project)
        item_id = add_items(store, project.id, [spec], actor=person.id)[0]
        try:
            queue.reserve(store, project.id, person.id, item_id)
        except LeaseError as error:
            # The very same answers were ranked by this person before.
            raise self._no("ask.few") from error
        gr.Info(self.texts["ask.ready"])
        return ""
