"""What the page is told, as JSON: texts in the order shown and a lease id, and nothing that could bias or leak."""

from __future__ import annotations

from typing import Any

from preference_ui.app.site import Site, page_digest
from preference_ui.i18n import HTML_LANG, LOCALES, catalogue
from preference_ui.people import Person
from preference_ui.projects import ProjectInfo, load_project
from preference_ui.qualification import QUALIFIED, standing_of
from preference_ui.render import direction, markdown_html, plain_html
from preference_ui.views import Assignment
from preference_ui.zones import zone_of


def text_json(text: str) -> dict[str, str]:
    """One text, rendered and as written."""
    return {"html": markdown_html(text), "plain": plain_html(text), "dir": direction(text)}


def task_json(task: Assignment | None, project: ProjectInfo) -> dict[str, Any] | None:
    """One task. Raw texts go along only where the project lets people rewrite them.

    ``hold_seconds`` is how long it is held from now on: the page renews in time, and its clock need not be right.
    """
    if task is None:
        return None
    responses = [text_json(text) for text in task.responses]
    if project.settings.allow_edits:
        for response, text in zip(responses, task.responses, strict=True):
            response["text"] = text
    return {
        "lease": task.lease_id,
        "revision": task.revision,
        "prompt": [{"role": m.role, **text_json(m.content)} for m in task.prompt],
        "responses": responses,
        "draft": task.draft,
        "guideline_version": task.guideline_version,
        "lang": task.language,
        "hold_seconds": project.settings.lease_seconds,
    }


def standing_json(site: Site, person: Person, zone: str) -> dict[str, Any]:
    """Whether the person may rank here, and the progress line: during the qualification round of the round alone.

    Args:
        zone: name of the reader's time zone.
    """
    with site.store.read() as session:
        project = load_project(session, site.project)
        standing = standing_of(session, project, person.id)
    if standing.state == QUALIFIED:
        return {"standing": standing.state, "progress": progress_json(site, person, zone)}
    # How many are right is the lead's affair: it would tell the keys one by one.
    line = {"today": 0, "mine": 0, "done": standing.answered, "total": project.settings.qualify_items, "round": True}
    return {"standing": standing.state, "progress": line}


def progress_json(site: Site, person: Person, zone: str) -> dict[str, int]:
    """Counts for the progress line; ``zone`` names the time zone of the page's reader."""
    counts = site.progress.of(site.project, person.id, zone_of(zone))
    return {
        "today": counts.mine_today,
        "mine": counts.mine_total,
        "done": counts.project_done,
        "total": counts.project_total,
    }


def questions_json(project: ProjectInfo) -> dict[str, Any]:
    """What the project asks. Rates of gold and repeated items, overlap and limits stay on the server."""
    settings = project.settings
    return {
        "ties": settings.allow_ties,
        "axes": [{"name": a.name, "low": a.low, "high": a.high} for a in settings.axes],
        "flags": list(settings.flags),
        "strengths": settings.strength_levels,
        "rationale": settings.ask_rationale,
        "edits": settings.allow_edits,
    }


def boot_json(site: Site, person: Person, project: ProjectInfo, locale: str) -> dict[str, Any]:
    """All that the page needs once, besides the task."""
    texts = catalogue(locale)
    return {
        "me": {"id": person.id, "handle": person.handle, "role": person.role},
        "project": project.name,
        "locale": locale,
        "lang": HTML_LANG[locale],
        "locales": LOCALES,
        "texts": {key: text for key, text in texts.items() if not key.startswith(("lead.", "login."))},
        "guideline_version": project.guideline_version,
        "ui_sha256": page_digest(),
    }
