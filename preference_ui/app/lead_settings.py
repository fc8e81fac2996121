"""The lead's form for a project's settings. Reviewers read it; only an admin changes anything.

What the boxes were filled with goes along with them: only boxes that were changed are written, over the settings that
they were filled from. So what the form cannot show exactly stays as it is, and no admin undoes another's change.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from preference_ui.app.boxes import note_box
from preference_ui.app.refusal import Refusal, in_words, refusable
from preference_ui.errors import ConfigError, StaleSettings, WordedConfigError
from preference_ui.projects import get_project, update_settings
from preference_ui.settings import DEFAULT_MARGINS, Axis, ProjectSettings
from preference_ui.zones import find_zone

if TYPE_CHECKING:
    from preference_ui.app.lead import LeadPage

NUMBERS = (
    "overlap", "adaptive_extra", "adaptive_agreement", "gold_rate", "repeat_rate", "qualify_items", "qualify_share",
    "max_skips", "min_seconds",
)  # fmt: skip
_WHOLE = {"overlap", "adaptive_extra", "qualify_items", "max_skips"}
_SHARES = {"adaptive_agreement", "gold_rate", "repeat_rate", "qualify_share"}
SWITCHES = ("allow_ties", "ask_rationale", "allow_edits")
_SPANS = {"lease_minutes": ("lease_seconds", 60.0), "repeat_days": ("repeat_after_seconds", 86_400.0)}
# In the order of the form's boxes.
FIELDS = (*NUMBERS, *SWITCHES, *_SPANS, "strength", "axes", "flags", "time_zone")
MIN_LEASE_MINUTES = 5


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
            message = f"rating {line!r} must be a name, or a name with a lowest and a highest number"
            raise WordedConfigError(message, "axis", line=line)
        axes.append(Axis(words[0], *map(int, numbers)))
    return tuple(axes)


def settings_form(lead: LeadPage, page: gr.Blocks, event: dict[str, Any]) -> None:
    """Add the form to a page that is being built."""
    say = lead.say
    boxes: dict[str, Any] = {}

    def field(name: str, build: Callable[..., Any], **more: Any) -> None:
        boxes[name] = build(label=say(f"settings.{name}"), **more)

    with gr.Row():
        with gr.Column():
            for name in NUMBERS:
                field(
                    name, gr.Number, precision=0 if name in _WHOLE else None, minimum=0,
                    **({"maximum": 1, "step": 0.01} if name in _SHARES else {}),
                )  # fmt: skip
            for name in _SPANS:
                field(name, gr.Number, minimum=0)
            field("time_zone", gr.Textbox, max_length=64, info=say("settings.time_zone.hint"))
        with gr.Column():
            for name in (*SWITCHES, "strength"):
                field(name, gr.Checkbox)
            for name in ("axes", "flags"):
                field(name, gr.Textbox, lines=4, max_length=2000, info=say(f"settings.{name}.hint"))
            gr.Markdown(say("settings.hint"))
            save = gr.Button(say("settings.save"), variant="primary", elem_classes=["narrow"])
    fields, loaded = [boxes[name] for name in FIELDS], note_box()

    def show(settings: ProjectSettings) -> tuple[Any, ...]:
        return *form_values(settings).values(), settings.to_json()

    def load(request: gr.Request) -> tuple[Any, ...]:
        lead.caller(request, "reviewer")
        return show(get_project(lead.site.store, lead.site.project).settings)

    def write(request: gr.Request, filled_with: str, *values: Any) -> tuple[Any, ...]:
        person = lead.caller(request, "admin")
        project = get_project(lead.site.store, lead.site.project)
        if not filled_with:
            raise Refusal(say("settings.not_loaded"))
        before = ProjectSettings.from_json(filled_with)
        try:
            changed = read_form(before, values)
            update_settings(lead.site.store, project.id, changed, actor=person.id, based_on=before)
        except StaleSettings as error:
            names = [say(f"settings.{name}") for name in _differences(before, project.settings)]
            raise Refusal(say("settings.stale", names=", ".join(names))) from error
        except ConfigError as error:
            raise in_words(lead.texts, error) from error
        gr.Info(html.escape(say("settings.saved")))
        return show(changed)

    page.load(refusable(load), None, [*fields, loaded], **event)

    save.click(refusable(write), [loaded, *fields], [*fields, loaded], **event)


def form_values(settings: ProjectSettings) -> dict[str, Any]:
    """What the boxes show, by ``FIELDS``."""
    spans = {name: round(getattr(settings, key) / unit, 4) for name, (key, unit) in _SPANS.items()}
    texts = {"axes": axes_text(settings.axes), "flags": "\n".join(settings.flags)}
    shown = {"strength": settings.strength_levels > 0} | spans | texts
    return {name: shown[name] if name in shown else getattr(settings, name) for name in FIELDS}


def _differences(one: ProjectSettings, other: ProjectSettings) -> list[str]:
    a, b = form_values(one), form_values(other)
    return [name for name in FIELDS if a[name] != b[name]]


def _lines(text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, (text or "").split("\n"))))


def read_form(before: ProjectSettings, values: Sequence[Any]) -> ProjectSettings:
    """The boxes that no longer show ``before``, over the settings they change.

    Raises:
        ConfigError: a box cannot be read, or the settings do not go together.
    """
    shown, now = form_values(before), dict(zip(FIELDS, values, strict=True))
    for name in ("axes", "flags"):  # browsers write line ends in their own way
        now[name] = "\n".join(_lines(now[name]))
    changed = {name: value for name, value in now.items() if value != shown[name]}
    settings: dict[str, Any] = {}
    for name, value in changed.items():
        if value is None:
            raise WordedConfigError(f"{name} needs a number", "setting.number", field=name)
        if name in _SPANS:
            key, unit = _SPANS[name]
            settings[key] = unit * value
        elif name in NUMBERS:
            settings[name] = int(value) if name in _WHOLE else value
        elif name in SWITCHES:
            settings[name] = bool(value)
    if "strength" in changed:
        settings["ask_strength"] = bool(now["strength"])
        settings["strength_margins"] = before.strength_margins or (DEFAULT_MARGINS if now["strength"] else ())
    if "axes" in changed:
        settings["axes"] = parse_axes(now["axes"])
    if "flags" in changed:
        settings["flags"] = _lines(now["flags"])
    if "time_zone" in changed:
        settings["time_zone"] = _known_zone(now["time_zone"])
    if "lease_minutes" in changed and now["lease_minutes"] < MIN_LEASE_MINUTES:
        message = f"lease_minutes must be at least {MIN_LEASE_MINUTES}"
        raise WordedConfigError(message, "setting.minutes", field="lease_minutes", low=MIN_LEASE_MINUTES)
    return dataclasses.replace(before, **settings)


def _known_zone(name: str) -> str:
    if find_zone(name.strip()) is None:
        raise WordedConfigError(f"{name!r} is no time zone that this machine knows", "zone", name=name)
    return name.strip()
