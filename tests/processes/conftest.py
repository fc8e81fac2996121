"""Fixtures of the tests that start processes of their own."""

from tests.support.tiny import tiny_base  # noqa: F401 - a fixture
