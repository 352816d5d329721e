"""Settings for the tests that start Ray clusters."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def own_token() -> Iterator[None]:
    """A process that has once connected keeps that cluster's token for the next one, too: forget it between modules."""
    yield
    importlib.import_module("ray._raylet").AuthenticationTokenLoader.instance().reset_cache()
