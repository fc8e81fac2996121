"""The schema: what the migrations build is what the models say, and down and up again works."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from store_helpers import MakeProject, by_text, claim, people

from preference_ui import commands, migrations, queue
from preference_ui.db import Store, open_store
from preference_ui.errors import StoreError
from preference_ui.models import Base
from preference_ui.versions import load_preferences


def _tables(store: Store) -> set[str]:
    with store.engine.connect() as connection:
        return set(inspect(connection).get_table_names()) - {"alembic_version"}


def test_upgrade_downgrade_upgrade(store: Store, store_url: str, make_project: MakeProject) -> None:
    make_project(2)
    assert _tables(store) == set(Base.metadata.tables)
    migrations.downgrade(store.engine)
    assert _tables(store) == set()
    migrations.upgrade(store.engine)
    assert _tables(store) == set(Base.metadata.tables)
    make_project(1)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    assert queue.submit(store, ann, task.lease_id, by_text(task)).counted
    again = open_store(store_url, create=False)
    assert queue.history(again, ann, "helpline")[0].lease_id == task.lease_id
    again.close()


def test_migrations_build_what_the_models_say(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_named_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(next(iter(migrations.__path__))))
    assert ScriptDirectory.from_config(config).get_current_head() == migrations.HEAD


def test_an_older_store_comes_up_whatever_is_asked_of_it(
    store: Store, store_url: str, make_project: MakeProject, tmp_path: Path
) -> None:
    make_project(1, num_responses=2)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    migrations.downgrade(store.engine, "0002")
    if not store.is_postgres:
        commands.prefs_backup(store_url, tmp_path / "before.sqlite")
        assert _tables(store) < set(Base.metadata.tables), "what is copied stays as it is"
    assert "helpline" in commands.prefs_stats(store_url, "helpline")[0].title
    assert _tables(store) == set(Base.metadata.tables)
    migrations.downgrade(store.engine, "0002")
    assert len(load_preferences("store:helpline", store_url)) == 1
    if not store.is_postgres:
        assert commands.prefs_verify(tmp_path / "before.sqlite").title == "the store is sound"


def test_what_is_no_store_and_what_a_newer_release_wrote_is_said(store: Store, store_url: str, tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE notes (text)")
    with pytest.raises(StoreError, match="holds no preference store; create one with `rlhf prefs import`"):
        open_store(tmp_path / "other.sqlite", create=False)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for create in (True, False):
        with pytest.raises(StoreError, match="was written by a newer release"):
            open_store(store_url, create)


def test_two_starters_at_once_migrate_once(store_url: str) -> None:
    code = "import sys; from preference_ui.db import open_store; open_store(sys.argv[1]).close()"
    starters = [subprocess.Popen([sys.executable, "-c", code, store_url]) for _ in range(3)]
    assert [p.wait(timeout=120) for p in starters] == [0, 0, 0]
    store = open_store(store_url, create=False)
    assert _tables(store) == set(Base.metadata.tables)
    store.close()


def test_voting_loads_no_heavy_library() -> None:
    code = (
        "import sys, preference_ui.queue, preference_ui.simulate, preference_ui.auth, preference_ui.versions;"
        "print(sorted({'torch', 'ray', 'gradio', 'transformers', 'deepspeed', 'fastapi', 'alembic', 'pyarrow'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
