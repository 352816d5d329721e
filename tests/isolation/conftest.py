"""What the tests of isolation share: bubblewrap, and a node to attack. Nothing here starts Ray, so they may run side by side."""

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import bubblewrap  # noqa: F401 - a fixture
from tests.isolation.attack_tools import Site, attacked_node


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """Everybody may look into it: what a job does not find there is hidden, not forbidden."""
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.fixture
async def site(open_folder: Path) -> AsyncIterator[Site]:
    async with attacked_node(open_folder) as site:
        yield site


@pytest.fixture
def listener() -> Iterator[int]:
    """The control plane, Ray's GCS or any other service on the node's loopback; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
