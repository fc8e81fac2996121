"""The lead's form for a project's settings. Reviewers read it; only an admin changes anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from preference_ui.app.refusal import Refusal, refusable
from preference_ui.errors import ConfigError
from preference_ui.projects import get_project, update_settings
from preference_ui.settings import DEFAULT_MARGINS, Axis, ProjectSettings

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage

NUMBERS = ("overlap", "adaptive_extra", "adaptive_agreement", "gold_rate", "repeat_rate", "max_skips", "min_seconds")
_WHOLE = {"overlap", "adaptive_extra", "max_skips"}
_SHARES = {"adaptive_agreement", "gold_rate", "repeat_rate"}
SWITCHES = ("allow_ties", "ask_rationale", "allow_edits")


def axes_text(axes: tuple[Axis, ...]) -> str:
    """One axis per line, as ``name low high``."""
    return "\n".join(f"{axis.name} {axis.low} {axis.high}" for axis in axes)


def parse_axes(text: str) -> tuple[Axis, ...]:
    """Read what ``axes_text`` writes; the range may be left out.

    Raises:
        ConfigError: naming the line that cannot be read.
    """
    axes = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        words = line.split()
        numbers = words[1:]
        if len(numbers) not in (0, 2) or not all(n.lstrip("-").isdecimal() for n in numbers):
            raise ConfigError(f"rating {line!r} must be a name, or a name with a lowest and a highest number")
        axes.append(Axis(words[0], *map(int, numbers)))
    return tuple(axes)


def settings_form(lead: LeadPage, page: gr.Blocks, event: dict[str, Any]) -> None:
    """Add the form to a page that is being built."""
    say = lead.say

    def field(name: str, build: Callable[..., Any], **more: Any) -> Any:
        return build(label=say(f"settings.{name}"), **more)

    with gr.Row():
        with gr.Column():
            numbers = {
                name: field(
                    name, gr.Number, precision=0 if name in _WHOLE else None, minimum=0,
                    **({"maximum": 1, "step": 0.01} if name in _SHARES else {}),
                )
                for name in NUMBERS
            }  # fmt: skip
            minutes = field("lease_minutes", gr.Number, minimum=5)
            days = field("repeat_days", gr.Number, minimum=0)
        with gr.Column():
            switches = {name: field(name, gr.Checkbox) for name in SWITCHES}
            strength = field("strength", gr.Checkbox)
            axes = field("axes", gr.Textbox, lines=4, max_length=2000, info=say("settings.axes.hint"))
            flags = field("flags", gr.Textbox, lines=4, max_length=2000, info=say("settings.flags.hint"))
            gr.Markdown(say("settings.hint"))
            save = gr.Button(say("settings.save"), variant="primary", elem_classes=["narrow"])
    fields = [*numbers.values(), *switches.values(), minutes, days, strength, axes, flags]

    def load(request: gr.Request) -> tuple[Any, ...]:
        lead.caller(request, "reviewer")
        now = get_project(lead.site.store, lead.site.project).settings
        return (
            *(getattr(now, name) for name in (*NUMBERS, *SWITCHES)),
            round(now.lease_seconds / 60, 4),
            round(now.repeat_after_seconds / 86_400, 4),
            now.strength_levels > 0,
            axes_text(now.axes),
            "\n".join(now.flags),
        )

    def write(request: gr.Request, *values: Any) -> None:
        person = lead.caller(request, "admin")
        project = get_project(lead.site.store, lead.site.project)
        try:
            update_settings(lead.site.store, project.id, read_form(project.settings, values), actor=person.id)
        except ConfigError as error:
            raise Refusal(str(error)) from error
        gr.Info(say("settings.saved"))

    page.load(refusable(load), None, fields, **event)

    save.click(refusable(write, outputs=False), fields, None, **event)


def read_form(before: ProjectSettings, values: tuple[Any, ...]) -> ProjectSettings:
    """The form's values over the settings they change."""
    plain = dict(zip((*NUMBERS, *SWITCHES), values, strict=False))
    minutes, days, strength, axes, flags = values[len(plain) :]
    missing = next((name for name in NUMBERS if plain[name] is None), None)
    if missing or minutes is None or days is None:
        raise ConfigError(f"{missing or 'a time'} needs a number")
    changed: dict[str, Any] = {name: int(value) if name in _WHOLE else value for name, value in plain.items()}
    return dataclasses.replace(
        before,
        **changed,
        lease_seconds=60.0 * minutes,
        repeat_after_seconds=86_400.0 * days,
        ask_strength=bool(strength),
        strength_margins=before.strength_margins or (DEFAULT_MARGINS if strength else ()),
        axes=parse_axes(axes or ""),
        flags=tuple(filter(None, map(str.strip, (flags or "").split("\n")))),
    )
