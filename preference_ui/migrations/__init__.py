"""Schema migrations. ``HEAD`` names the newest one, so opening an up-to-date store needs no alembic."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, text

HEAD = "0004"
_UPGRADE_LOCK = 0x70726567


def _run(engine: Engine, command_name: str, revision: str) -> None:
    # Loading alembic takes a third of a second that a normal start should not pay.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    # The write lock (SQLite's BEGIN IMMEDIATE, PostgreSQL's advisory lock) makes a second starter wait.
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        config.attributes["connection"] = connection
        getattr(command, command_name)(config, revision)


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the schema up to ``revision`` in one transaction."""
    _run(engine, "upgrade", revision)


def downgrade(engine: Engine, revision: str = "base") -> None:
    """Take the schema down to ``revision``; tables added later go with their data."""
    _run(engine, "downgrade", revision)
