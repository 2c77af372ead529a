"""Tools are run here as in their own tests."""

from tests.tools.conftest import run  # noqa: F401  # a fixture
