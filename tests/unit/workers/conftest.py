"""The tiny model of this package's tests."""

from tests.support.tiny import tiny_base  # noqa: F401 - a fixture
