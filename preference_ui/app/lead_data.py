"""The lead's tab for data: bring tasks in, freeze a version, take it away. Only admins bring in and freeze."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import gradio as gr

from preference_ui.app.guard import MAX_UPLOAD_BYTES
from preference_ui.app.pages import widget
from preference_ui.app.refusal import in_words, refusable
from preference_ui.app.takeaway import JUDGMENTS, version_address
from preference_ui.commands import pair_options
from preference_ui.datasets import VERSION_FILES, VersionLine, version_lines
from preference_ui.errors import RlhfError
from preference_ui.hints import training_on
from preference_ui.projects import get_project
from preference_ui.versions import freeze
from preference_ui.zones import zone_of

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage

_COLUMNS = ("number", "files", "when", "who", "tasks", "votes", "rows", "options", "retired", "sha256")

_COPY = "(text) => { navigator.clipboard?.writeText(text); }"


def _options_words(lead: LeadPage, line: VersionLine) -> str:
    words = [lead.say(f"data.votes.{line.votes}"), lead.say(f"data.ties.{line.ties}")]
    words += [lead.say("data.weighted")] if line.is_weighted else []
    words += [] if line.has_edits else [lead.say("data.no_edits")]
    return ", ".join(words)


def _row(lead: LeadPage, line: VersionLine, zone: str) -> str:
    left_out = line.num_retired
    cells = (
        f"{line.created.astimezone(zone_of(zone)):%Y-%m-%d %H:%M}",
        line.actor,
        "–" if line.num_tasks is None else str(line.num_tasks),
        str(line.num_judgments),
        str(line.num_rows),
        _options_words(lead, line),
        lead.say("data.kept") if left_out is None else lead.say("data.left_out", count=left_out),
    )
    links = "".join(
        f'<a href="{version_address(line.number, name)}" '
        f'aria-label="{html.escape(lead.say("data.download", file=name, number=line.number))}">{name}</a>'
        for name in VERSION_FILES
    )
    body = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    digest = f'<td><code title="{line.sha256}">{line.sha256[:12]}</code></td>'
    return f"<tr><th scope='row'>v{line.number}</th><td class='files'>{links}</td>{body}{digest}</tr>"


def _table(lead: LeadPage, lines: list[VersionLine]) -> str:
    if not lines:
        return f'<div class="rlhf"><p>{html.escape(lead.say("data.none"))}</p></div>'
    zone = get_project(lead.site.store, lead.site.project).settings.time_zone
    heads = "".join(f"<th scope='col'>{html.escape(lead.say(f'data.{name}'))}</th>" for name in _COLUMNS)
    rows = "".join(_row(lead, line, zone) for line in lines)
    label = html.escape(lead.say("data.versions"))
    return (
        f'<div class="rlhf versions" role="region" aria-label="{label}" tabindex="0"><table class="people">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        f'<p class="hint">{html.escape(lead.say("data.zone", zone=zone))}</p></div>'
    )


def data_tab(lead: LeadPage, tab: gr.Tab, event: dict[str, Any]) -> None:
    """Add the contents to a tab that is being built. Nothing is read before somebody opens it."""
    site, say = lead.site, lead.say
    widget("upload", limit=MAX_UPLOAD_BYTES)
    gr.Markdown(f"## {say('data.versions')}")
    table = gr.HTML(apply_default_css=False)
    with gr.Row():
        with gr.Column():
            gr.Markdown(f"## {say('data.freeze.title')}\n\n{say('data.freeze.hint')}")
            with gr.Group():
                votes = gr.Radio(
                    [(say(f"data.votes.{name}"), name) for name in ("soft", "each")], value="soft",
                    label=say("data.freeze.votes"),
                )  # fmt: skip
                ties = gr.Radio(
                    [(say(f"data.ties.{name}"), name) for name in ("soft", "drop")], value="soft",
                    label=say("data.freeze.ties"),
                )  # fmt: skip
                weighted = gr.Checkbox(label=say("data.freeze.weighted"))
                edits = gr.Checkbox(value=True, label=say("data.freeze.edits"))
                retired = gr.Checkbox(label=say("data.freeze.retired"))
            save = gr.Button(say("data.freeze"), variant="primary", elem_classes=["narrow"])
        with gr.Column():
            gr.Markdown(f"## {say('data.away')}\n\n{say('data.away.hint')}")
            # Without Gradio's own button to copy: it stands inside the label and takes the box's name away.
            line = gr.Textbox(label=say("data.train"), interactive=False, lines=2, placeholder=say("data.train.none"))
            copy = gr.Button(say("data.copy"), size="sm", elem_classes=["narrow"])
            gr.HTML(
                f'<p class="rlhf"><a href="{JUDGMENTS}">{html.escape(say("data.judgments"))}</a></p>',
                apply_default_css=False,
            )

    def show() -> tuple[str, str]:
        lines = version_lines(site.store, site.project)
        name = get_project(site.store, site.project).name
        return _table(lead, lines), training_on(lead.site.store, f"store:{name}@v{lines[0].number}") if lines else ""

    def load(request: gr.Request) -> tuple[str, str]:
        lead.caller(request, "reviewer")
        return show()

    def make(
        how: str, even: str, by_reliability: bool, with_edits: bool, with_retired: bool, request: gr.Request
    ) -> tuple[str, str]:
        boss = lead.caller(request, "admin")
        try:
            options = pair_options(site.store, site.project, how, even, by_reliability)
            version = freeze(
                site.store, site.project, options, include_edits=with_edits, with_retired=with_retired,
                only_new=True, actor=boss.id,
            )  # fmt: skip
        except RlhfError as error:
            raise in_words(lead.texts, error) from error
        gr.Info(say("data.frozen", number=version.number, rows=version.num_rows, votes=version.num_judgments))
        return show()

    copy.click(None, line, None, js=_COPY, **event)
    tab.select(refusable(load), None, [table, line], **event)
    save.click(refusable(make), [votes, ties, weighted, edits, retired], [table, line], **event)
