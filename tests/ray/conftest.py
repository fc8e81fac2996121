"""Fixtures of the tests that need a Ray runtime."""

from tests.support.runtime import actor_pool, ray_session  # noqa: F401 - fixtures
from tests.support.tiny import tiny_base  # noqa: F401 - a fixture
