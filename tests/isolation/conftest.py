"""What the tests of isolation share: bubblewrap, and a node to attack. Nothing here starts Ray, so they may run side by side."""

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import bubblewrap  # noqa: F401 - a fixture
from tests.integration.executor_tools import SLEEPER, IsolatingExecutor, alive, config, eventually, shell
from tests.isolation.attack_tools import MARKER, SECRETS, Site
from workers.executor.types import Started


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """Everybody may look into it: what a job does not find there is hidden, not forbidden."""
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.fixture
async def site(open_folder: Path) -> AsyncIterator[Site]:
    tmp_path = open_folder
    executor = IsolatingExecutor(config(tmp_path, masked=(str(tmp_path / "agent"), str(tmp_path / "agent/token"))))
    await executor.start()
    assert executor.sandbox_problem == ""
    site = Site(tmp_path, executor)
    script = f"echo secret > $SUANLI_RESULTS/secret; echo secret; {SLEEPER} {MARKER}"
    await executor.launch([shell(script, "victim")])
    started = await site.run.until(lambda event: isinstance(event, Started))
    assert isinstance(started, Started)
    await eventually(lambda: alive(MARKER, sandbox=False) != [], "the victim")
    site.victim = next(pid for pid in alive(MARKER, sandbox=False))
    for name in SECRETS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), path.open("x") as file:
            file.write("secret\n")
    yield site
    await executor.close()


@pytest.fixture
def listener() -> Iterator[int]:
    """The control plane, Ray's GCS or any other service on the node's loopback; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
