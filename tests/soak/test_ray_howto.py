"""The page docs/howto/ray-jobs.md is true: its example runs on a whole platform, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.platform import running_platform
from workers.agent_ray import RayTokens

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "ray-jobs.md"


def test_the_example_runs_as_written_and_leaves_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (said,) = re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE)
    folder = tmp_path / "platform"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    with running_platform(folder) as platform:
        monkeypatch.setenv("SUANLI_ADDRESS", platform.address)
        monkeypatch.setenv("SUANLI_API_KEY", platform.keys["ada"])
        names: dict[str, object] = {"__name__": "__main__"}
        exec(compile(example, str(PAGE), "exec"), names)
        job = names["job"].id  # type: ignore[attr-defined]
        names["client"].close()  # type: ignore[attr-defined]
    assert said in capsys.readouterr().out
    # Neither a store, nor the agent's spool, nor a log holds what let the job in, or the region's own token.
    secret = (folder / "agent" / "ray_secret").read_bytes()
    token = RayTokens(secret).token(job, 1).encode()
    for path in folder.rglob("*"):
        assert not path.is_file() or token not in path.read_bytes(), path
