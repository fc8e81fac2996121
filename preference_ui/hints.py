"""Commands to go on with, which find the store that the last one has used."""

from __future__ import annotations

import shlex

from preference_ui.db import STORE_VARIABLE, Store, default_store, make_engine

TRAIN = "rlhf reward --config configs/reward/tiny_cpu.yaml model.name=runs/sft"


def training_on(store: Store, spec: str) -> str:
    """The command that trains a reward model on a frozen version, from the SFT run of the shipped configs."""
    place, command = _elsewhere(store), f"{TRAIN} {shlex.quote(f'data.train={spec}')}"
    return f"{STORE_VARIABLE}={place} {command}" if place else command


def ranking_page(store: Store, project: str) -> str:
    """The command that serves the page."""
    place = _elsewhere(store)
    return f"rlhf annotate --project {project}" + (f" --store {place}" if place else "")


def _elsewhere(store: Store) -> str | None:
    """The store as a word of a command, None where every command finds it; a URL's password is not shown."""
    if store.engine.url == make_engine(default_store()).url:
        return None
    return shlex.quote(str(store.path or store.url))
