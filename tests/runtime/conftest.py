"""Fixtures of the tests that need a Ray runtime and start their own workers there."""

from tests.support.runtime import ray_session  # noqa: F401 - a fixture
from tests.support.tiny import tiny_base  # noqa: F401 - a fixture
