"""``rlhf prefs sample``: a policy answers prompts, and its answers become tasks, with everything about their origin.

The policy runs in ``rlhf sample``, a process of its own, so nothing of the training stack is loaded here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import case, func, select

from preference_ui.db import Store
from preference_ui.errors import ConfigError, DataError, GenerationError
from preference_ui.groups import row_group
from preference_ui.importing import ImportReport, import_file
from preference_ui.models import Item, PolicyVersion, Prompt, Response
from preference_ui.projects import get_project, list_projects
from preference_ui.record_files import read_records
from preference_ui.settings import MAX_RESPONSES, MIN_RESPONSES

CANDIDATES_FILE = "candidates.jsonl"
PROMPTS_FILE = "prompts.jsonl"


@dataclass(frozen=True)
class SampleOrder:
    """What to draw.

    Attributes:
        run: the policy: a run directory, a model directory or a hub id.
        prompts: a file of prompts; None: the project's own prompts, those that need judgments most first.
        limit: most prompts taken from the project.
        responses_per_prompt: candidates per prompt.
        folder: where ``rlhf sample`` works; it must not exist yet.
        overrides: further ``key=value`` for ``rlhf sample``.
    """

    run: str
    folder: Path
    prompts: str | None = None
    limit: int = 100
    responses_per_prompt: int = 4
    seed: int = 0
    config: str | None = None
    overrides: Sequence[str] = ()


def chosen_project(store: Store, name: str | None) -> str:
    """The named project, or the only one there is.

    Raises:
        ConfigError: no name was given and the store holds none or several.
    """
    if name is not None:
        return get_project(store, name).name
    names = [p.name for p in list_projects(store)]
    if len(names) != 1:
        raise ConfigError(f"name the project; the store holds {', '.join(names) or 'none'}")
    return names[0]


def prompts_in_need(store: Store, project: str, run: str, limit: int) -> list[dict[str, Any]]:
    """Prompts of a project as rows to answer: unanswered by ``run`` first, then those with the fewest votes.

    A row has the group of its prompt's tasks, where they have one (of several the last in order).
    """
    with store.read() as session:
        info = get_project(store, project)
        # A run trained anew in the same place carries its digest behind "#".
        own = (PolicyVersion.run == run) | PolicyVersion.run.startswith(f"{run}#", autoescape=True)
        answered = (
            select(Response.id)
            .join(PolicyVersion, PolicyVersion.id == Response.policy_version_id)
            .where(Response.prompt_id == Prompt.id, own)
            .exists()
        )
        rows = session.execute(
            select(Prompt.id, Prompt.messages_json, func.max(Item.group))
            .join(Item, Item.prompt_id == Prompt.id)
            .where(Item.project_id == info.id, Item.kind == "normal", Item.state != "retired")
            .group_by(Prompt.id, Prompt.messages_json)
            .order_by(case((answered, 1), else_=0), func.sum(Item.done), Prompt.id)
            .limit(limit)
        ).all()
    return [
        {"id": prompt_id, "messages": json.loads(messages)} | ({"group": group} if group else {})
        for prompt_id, messages, group in rows
    ]


def sample_into(store: Store, project: str, order: SampleOrder) -> ImportReport:
    """Draw candidates and import them as tasks of a project.

    Raises:
        ConfigError: an impossible order.
        DataError: the project has no prompts to answer.
        GenerationError: ``rlhf sample`` failed; what it said went to the terminal, and its exit code is the error's.
    """
    if not MIN_RESPONSES <= order.responses_per_prompt <= MAX_RESPONSES:
        raise ConfigError(f"--k {order.responses_per_prompt} must be {MIN_RESPONSES} to {MAX_RESPONSES}")
    if order.limit < 1:
        raise ConfigError(f"--count {order.limit} must be at least 1")
    if order.folder.exists():
        raise ConfigError(f"{order.folder} exists already: choose another --run-dir")
    _check_groups(order.prompts)
    prompts = order.prompts or str(_write_prompts(store, project, order))
    command = [
        sys.executable, "-m", "rlhf.cli", "sample", "--no-next",
        *(["--config", order.config] if order.config else []),
        f"model.name={order.run}", f"prompts={prompts}", f"run_dir={order.folder}",
        f"responses_per_prompt={order.responses_per_prompt}", f"seed={order.seed}", *order.overrides,
    ]  # fmt: skip
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        error = GenerationError(f"`rlhf sample` ended with exit code {code}; nothing was imported")
        if code > 0:  # below 0: the number of a signal
            error.exit_code = code
        raise error
    return import_file(store, project, order.folder / CANDIDATES_FILE, actor="rlhf prefs sample")


def _check_groups(prompts: str | None) -> None:
    """Refuses groups that the import would refuse when all is drawn. What else is wrong, `rlhf sample` says."""
    if prompts is None or not Path(prompts).is_file():
        return
    try:
        rows = read_records(Path(prompts))
    except DataError:
        return
    for where, row in rows:
        row_group(row.get("group"), f"{where}: field 'group'")


def _write_prompts(store: Store, project: str, order: SampleOrder) -> Path:
    found = prompts_in_need(store, project, order.run, order.limit)
    if not found:
        raise DataError(f"project {project!r} has no prompts yet: give some with --prompts FILE")
    path = order.folder.with_name(f"{order.folder.name}-{PROMPTS_FILE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    path.write_text("".join(lines), encoding="utf-8")
    return path
