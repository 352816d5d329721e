"""Settings for the tests that run real jobs."""

import os

import pytest

from tools.bubblewrap import bubblewrap_folder


@pytest.fixture(scope="session", autouse=True)
def bubblewrap() -> None:
    """Jobs can run in the sandbox, on a machine without bubblewrap too."""
    os.environ["PATH"] += f":{bubblewrap_folder()}"
