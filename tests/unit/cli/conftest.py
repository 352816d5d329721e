from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.tools import Platform, running_platform


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running_platform(tmp_path_factory.mktemp("platform")) as running:
        yield running


@pytest.fixture
def platform(deployment: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The platform, from a folder and an environment of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("SUANLI_ADDRESS", "SUANLI_API_KEY", "SUANLI_CA", "SUANLI_PROFILE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SUANLI_STATE_DIR", str(tmp_path / "no-state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    return deployment
