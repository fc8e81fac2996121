"""Alembic's entry point: migrate over the connection that the caller opened and locked."""

from alembic import context

from preference_ui.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
