"""The board as a Gradio page: all runs, one run live, runs compared. Nothing here writes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from preference_ui.app.board import render
from preference_ui.app.board.site import BoardSite
from rlhf.telemetry.runs import RunView

_EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 2}
_SAMPLES = 24


def board_page(site: BoardSite, *, refresh_seconds: float) -> gr.Blocks:
    """Builds the page.

    Args:
        refresh_seconds: how often the run on screen is read again.
    """
    board = Board(site)
    with gr.Blocks(title="Board", fill_width=True, analytics_enabled=False) as page:
        gr.HTML(
            '<div class="rlhf"><div class="top"><h1>Board</h1><span class="hint">read-only</span></div></div>',
            apply_default_css=False,
        )
        seen = gr.State("")
        with gr.Tabs() as tabs:
            with gr.Tab("Runs", id="runs"):
                table = gr.HTML(apply_default_css=False)
            with gr.Tab("Run", id="run"):
                run = gr.Dropdown([], label="run", interactive=True, filterable=True, elem_classes=["board-pick"])
                head = gr.HTML(apply_default_css=False)
                with gr.Tabs():
                    with gr.Tab("Metrics"):
                        plots = gr.HTML(apply_default_css=False, elem_classes=["board-plots"])
                    with gr.Tab("Samples"):
                        samples = gr.HTML(apply_default_css=False)
                    with gr.Tab("Events"):
                        events = gr.HTML(apply_default_css=False)
                    with gr.Tab("Config"):
                        config = gr.HTML(apply_default_css=False)
            with gr.Tab("Compare", id="compare"):
                several = gr.Dropdown(
                    [], label=f"runs (at most {render.MAX_COMPARED})", multiselect=True, interactive=True,
                    max_choices=render.MAX_COMPARED, elem_classes=["board-pick"],
                )  # fmt: skip
                overlay = gr.HTML(apply_default_css=False)
                gr.HTML('<h2 class="rlhf">Where the configs differ</h2>', apply_default_css=False)
                difference = gr.HTML(apply_default_css=False)
        shown = [head, plots, samples, events, config, seen]
        page.load(board.open, None, [tabs, table, run, several, *shown], **_EVENT)
        run.change(board.show, run, shown, **_EVENT)
        several.change(board.compare, several, [overlay, difference], **_EVENT)
        gr.Timer(refresh_seconds).tick(board.tick, [run, seen], [table, *shown], **_EVENT)
    page.queue(api_open=False, default_concurrency_limit=4)
    return page


class Board:
    """What the page's events do. Names that come from the browser are looked up, never opened."""

    def __init__(self, site: BoardSite) -> None:
        self.site = site

    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """First paint: the list, and the run that the address names.

        Without one the tabs are left as they are: a reader may have turned one before the first answer came.
        """
        names = self.site.names()
        wanted = request.query_params.get("run")
        chosen = wanted if wanted in names else (names[0] if names else None)
        tabs = gr.update(selected="run") if wanted in names else gr.skip()
        picks = gr.update(choices=names, value=chosen), gr.update(choices=names, value=[])
        return tabs, self._table(names), *picks, *self.show(chosen)

    def show(self, name: str | None) -> tuple[str, ...]:
        """One run: head, plots, samples, events, config, and a mark of how far it was."""
        view = self.site.view(name)
        if view is None or name is None:
            return ('<p class="rlhf hint">No run.</p>', "", "", "", "", "")
        return (
            render.run_head(name, view),
            render.run_plots(view),
            render.samples(view.samples(_SAMPLES)),
            render.events(view.events(40)),
            render.config_table(view.config),
            _mark(name, view),
        )

    def tick(self, name: str | None, seen: str) -> tuple[Any, ...]:
        """The list again, and the run on screen when it has moved."""
        table = self._table(self.site.names())
        view = self.site.view(name)
        if view is None or name is None or _mark(name, view) == seen:
            return table, *(gr.skip() for _ in range(6))
        return table, *self.show(name)

    def compare(self, names: list[str] | None) -> tuple[str, str]:
        """Overlaid curves and the differences of the configs."""
        views = self._views((names or [])[: render.MAX_COMPARED])
        if not views:
            return render.comparison([]), ""
        return render.comparison(views), render.config_difference(views)

    def _table(self, names: list[str]) -> str:
        return render.runs_table(self._views(names))

    def _views(self, names: list[str]) -> list[tuple[str, RunView]]:
        found = [(name, self.site.view(name)) for name in names]
        return [(name, view) for name, view in found if view is not None]


def _mark(name: str, view: RunView) -> str:
    return f"{name}:{len(view.records)}:{view.state}"
