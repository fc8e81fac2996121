"""Projects, guidelines, and filling a project with items."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from preference_ui.db import Store
from preference_ui.errors import ConfigError, DataError, StaleSettings
from preference_ui.events import Transaction
from preference_ui.groups import checked_group
from preference_ui.ids import canonical_json, checked_text, new_id, sha256_text
from preference_ui.models import (
    GoldKey,
    Guideline,
    Item,
    ItemResponse,
    PolicyVersion,
    Project,
    Prompt,
    Response,
)
from preference_ui.settings import MAX_RESPONSES, MIN_RESPONSES, ProjectSettings
from rlhf.data.schema import Message, check_text, prompt_hash


@dataclass(frozen=True)
class ProjectInfo:
    """A project as read from the store."""

    id: str
    name: str
    settings: ProjectSettings
    guideline_version: int


@dataclass(frozen=True)
class ResponseSpec:
    """A candidate response to add.

    Attributes:
        text: what the model (or a person) wrote.
        run, step: training run and step of the policy that wrote it; empty run: unknown origin.
        adapter_uri, adapter_sha256: which adapter that was.
        sampling: temperature, seed and the like; JSON values.
        num_tokens: length in tokens, when known.
    """

    text: str
    run: str = ""
    step: int = 0
    adapter_uri: str = ""
    adapter_sha256: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    num_tokens: int | None = None


@dataclass(frozen=True)
class ItemSpec:
    """An item to add: a prompt with 2 to 9 different responses.

    Attributes:
        gold_tiers: for a gold item, the expected tiers as indices into ``responses``, best first.
        priority: higher is asked earlier.
        group: which people it is for, see ``groups``; empty: anybody.
    """

    prompt: tuple[Message, ...]
    responses: tuple[ResponseSpec, ...]
    gold_tiers: tuple[tuple[int, ...], ...] | None = None
    priority: float = 0.0
    topic: str = ""
    language: str = ""
    split: str = ""
    source: str = ""
    group: str = ""


_PROJECT = select(Project.id, Project.name, Project.settings_json, Project.guideline_version).where(
    (Project.name == bindparam("key")) | (Project.id == bindparam("key"))
)
_settings_of = functools.lru_cache(maxsize=64)(ProjectSettings.from_json)


def create_project(
    store: Store,
    name: str,
    *,
    guideline: str = "",
    settings: ProjectSettings | None = None,
    actor: str = "system",
) -> ProjectInfo:
    """Create a project with version 1 of its guideline.

    Raises:
        ConfigError: the name is taken, empty, holds ``@``, ``#`` or ``/`` (they end a name in a store spec), or is no
            name of a folder.
    """
    settings = settings or ProjectSettings()
    if not name.strip() or len(name) > 200 or set(name) & set("@#/\\") or name in (".", ".."):
        raise ConfigError(f"project name {name!r} must be 1 to 200 characters without @, #, / and \\, not . or ..")
    checked_text(guideline, "guideline")

    def change(tx: Transaction) -> None:
        if tx.session.scalar(select(Project.id).where(Project.name == name)):
            raise ConfigError(f"project {name!r} exists already; choose another name")
        project_id = new_id()
        tx.session.execute(
            insert(Project).values(
                id=project_id,
                name=name,
                guideline_version=1,
                settings_json=settings.to_json(),
                created=tx.now,
            )
        )
        tx.session.execute(
            insert(Guideline).values(
                id=new_id(),
                project_id=project_id,
                version=1,
                markdown=guideline,
                reason="",
                author=actor,
                created=tx.now,
            )
        )
        tx.record(
            actor,
            "project.create",
            "project",
            project_id,
            {"name": name, "settings": json.loads(settings.to_json()), "guideline": sha256_text(guideline)},
        )

    store.transact(change)
    return get_project(store, name)


def load_project(session: Session, name_or_id: str) -> ProjectInfo:
    """Read a project inside an open session; see ``get_project``."""
    row = session.connection().execute(_PROJECT, {"key": name_or_id}).first()
    if row is None:
        names = session.scalars(select(Project.name).order_by(Project.name)).all()
        raise DataError(f"no project {name_or_id!r} in the store; there are: {', '.join(names) or 'none'}")
    return ProjectInfo(row.id, row.name, _settings_of(row.settings_json), row.guideline_version)


def get_project(store: Store, name_or_id: str) -> ProjectInfo:
    """Read a project by name or id.

    Raises:
        DataError: there is none; the message lists those that exist.
    """
    with store.read() as session:
        return load_project(session, name_or_id)


def get_guideline(store: Store, project_id: str, version: int | None = None) -> str:
    """Markdown of a guideline version, by default the one in force.

    Raises:
        DataError: no such version.
    """
    with store.read() as session:
        project = load_project(session, project_id)
        number = version or project.guideline_version
        text = session.scalar(
            select(Guideline.markdown).where(Guideline.project_id == project.id, Guideline.version == number)
        )
    if text is None:
        raise DataError(f"project {project.name!r} has no guideline version {number}")
    return text


def list_projects(store: Store) -> list[ProjectInfo]:
    """All projects by name."""
    with store.read() as session:
        return [load_project(session, n) for n in session.scalars(select(Project.name).order_by(Project.name))]


def ensure_project(
    store: Store, name: str, *, guideline: str = "", settings: ProjectSettings | None = None
) -> ProjectInfo:
    """The project of that name, created when missing; an existing one keeps its settings."""
    with store.read() as session:
        exists = session.scalar(select(Project.id).where(Project.name == name))
    return get_project(store, name) if exists else create_project(store, name, guideline=guideline, settings=settings)


def update_settings(
    store: Store, project_id: str, settings: ProjectSettings, *, actor: str, based_on: ProjectSettings | None = None
) -> None:
    """Replace a project's settings; items already made keep the overlap they were made with.

    Args:
        based_on: the settings that these were made from; None: whichever are in force.

    Raises:
        StaleSettings: others are in force by now.
    """

    def change(tx: Transaction) -> None:
        row = select(Project.settings_json).where(Project.id == project_id).with_for_update()
        stored = tx.session.scalar(row)
        if based_on is not None and (stored is None or ProjectSettings.from_json(stored) != based_on):
            raise StaleSettings
        tx.session.execute(update(Project).where(Project.id == project_id).values(settings_json=settings.to_json()))
        tx.record(actor, "project.settings", "project", project_id, json.loads(settings.to_json()))

    store.transact(change)


def add_items(store: Store, project_id: str, specs: Sequence[ItemSpec], *, actor: str = "system") -> list[str]:
    """Add items in one transaction, all or none.

    A prompt or response that the store knows already is used again; an item with the same prompt and the
    same set of responses is not added twice, so an import may be repeated.

    Returns:
        The item id per spec, new or found.

    Raises:
        DataError: a spec does not fit; the message says which.
    """
    for index, spec in enumerate(specs):
        check_spec(spec, f"item {index}")

    def change(tx: Transaction) -> list[str]:
        project = load_project(tx.session, project_id)
        policies: dict[tuple[str, int, str], str] = {}
        ids = []
        added = 0
        for spec in specs:
            prompt_id = _ensure_prompt(tx, spec)
            response_ids = [_ensure_response(tx, prompt_id, r, policies) for r in spec.responses]
            found = _find_item(tx.session, project.id, prompt_id, set(response_ids))
            if found is None:
                found = _insert_item(tx, project, prompt_id, response_ids, spec)
                added += 1
            ids.append(found)
        tx.record(actor, "items.add", "project", project.id, {"added": added, "given": len(specs)})
        return ids

    return store.transact(change)


def check_spec(spec: ItemSpec, where: str) -> None:
    """Raises a DataError that begins with ``where`` for an item that does not fit."""
    checked_group(spec.group, f"{where}: field 'group'")
    count = len(spec.responses)
    if not MIN_RESPONSES <= count <= MAX_RESPONSES:
        raise DataError(f"{where}: has {count} responses; an item takes {MIN_RESPONSES} to {MAX_RESPONSES}")
    if not spec.prompt or spec.prompt[-1].role not in ("user", "text"):
        raise DataError(f"{where}: the prompt must end with the user's turn")
    for index, response in enumerate(spec.responses):
        try:
            check_text(response.text, f"responses[{index}]")
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    if len({r.text for r in spec.responses}) != count:
        raise DataError(f"{where}: two responses have the same text; remove one")
    if spec.gold_tiers is not None:
        flat = [i for tier in spec.gold_tiers for i in tier]
        if sorted(flat, key=repr) != list(range(count)) or len(spec.gold_tiers) < 2:
            raise DataError(f"{where}: gold_tiers must place every response once, in at least two tiers")


def _ensure_prompt(tx: Transaction, spec: ItemSpec) -> str:
    digest = prompt_hash(spec.prompt)
    found = tx.session.scalar(select(Prompt.id).where(Prompt.content_sha256 == digest))
    if found:
        return found
    prompt_id = new_id()
    tx.session.execute(
        insert(Prompt).values(
            id=prompt_id,
            content_sha256=digest,
            messages_json=canonical_json([m.as_dict() for m in spec.prompt]),
            language=spec.language,
            topic=spec.topic,
            split=spec.split,
            source=spec.source,
            created=tx.now,
        )
    )
    return prompt_id


def _ensure_response(
    tx: Transaction, prompt_id: str, spec: ResponseSpec, policies: dict[tuple[str, int, str], str]
) -> str:
    digest = sha256_text(spec.text)
    found = tx.session.scalar(
        select(Response.id).where(Response.prompt_id == prompt_id, Response.content_sha256 == digest)
    )
    if found:
        return found
    response_id = new_id()
    tx.session.execute(
        insert(Response).values(
            id=response_id,
            prompt_id=prompt_id,
            policy_version_id=_ensure_policy(tx, spec, policies),
            sampling_json=canonical_json(spec.sampling),
            text=spec.text,
            num_tokens=spec.num_tokens,
            content_sha256=digest,
            created=tx.now,
        )
    )
    return response_id


def _ensure_policy(tx: Transaction, spec: ResponseSpec, known: dict[tuple[str, int, str], str]) -> str | None:
    if not spec.run:
        return None
    key = (spec.run, spec.step, spec.adapter_sha256)
    if key not in known:
        run = spec.run
        found = _find_policy(tx.session, run, spec.step)
        if found is not None and spec.adapter_sha256 not in ("", found.sha256):
            # The run was trained anew in the same place: the adapter's digest tells its versions apart.
            run = f"{spec.run}#{spec.adapter_sha256[:12]}"
            found = _find_policy(tx.session, run, spec.step)
        policy_id = found.id if found is not None else new_id()
        if found is None:
            tx.session.execute(
                insert(PolicyVersion).values(
                    id=policy_id, run=run, step=spec.step, uri=spec.adapter_uri, sha256=spec.adapter_sha256
                )
            )
        known[key] = policy_id
    return known[key]


def _find_policy(session: Session, run: str, step: int) -> PolicyVersion | None:
    return session.scalar(select(PolicyVersion).where(PolicyVersion.run == run, PolicyVersion.step == step))


def _find_item(session: Session, project_id: str, prompt_id: str, responses: set[str]) -> str | None:
    rows = session.execute(
        select(ItemResponse.item_id, ItemResponse.response_id)
        .join(Item, Item.id == ItemResponse.item_id)
        .where(Item.project_id == project_id, Item.prompt_id == prompt_id, Item.kind != "repeat")
    )
    members: dict[str, set[str]] = {}
    for item_id, response_id in rows:
        members.setdefault(item_id, set()).add(response_id)
    return next((item_id for item_id, have in members.items() if have == responses), None)


def _insert_item(tx: Transaction, project: ProjectInfo, prompt_id: str, response_ids: list[str], spec: ItemSpec) -> str:
    item_id = new_id()
    overlap = project.settings.overlap
    tx.session.execute(
        insert(Item).values(
            id=item_id,
            project_id=project.id,
            prompt_id=prompt_id,
            kind="gold" if spec.gold_tiers else "normal",
            state="open",
            base_needed=overlap,
            needed=overlap,
            active=0,
            done=0,
            skips=0,
            priority=spec.priority,
            group=checked_group(spec.group, "group"),
            created=tx.now,
        )
    )
    tx.session.execute(
        insert(ItemResponse),
        [{"item_id": item_id, "position": p, "response_id": r} for p, r in enumerate(response_ids)],
    )
    if spec.gold_tiers:
        tiers = [[response_ids[i] for i in tier] for tier in spec.gold_tiers]
        tx.session.execute(insert(GoldKey).values(item_id=item_id, tiers_json=canonical_json(tiers)))
    return item_id
