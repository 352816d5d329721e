"""What a node does for a ray job beside starting it: the token's file, the command line in front, the short way, the last words."""

import os
import stat
import sys
from pathlib import Path

import pytest

from suanli.ray_job import plan
from workers.executor import environment, ray_job, staging
from workers.executor.folders import Folders
from workers.executor.types import AttemptKey, Launch, RayCluster

LAUNCH = Launch(
    "job", 1, ("echo", "hi"), cpu_milli=2500, memory_mib=2048, gpu_indices=(1, 3), ray=RayCluster(300, "t0ken")
)


def plain(**fields: object) -> Launch:
    return Launch("job", 1, ("echo", "hi"), **fields)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folders = Folders(tmp_path / "node")
    folders.clear()
    made = folders.of(AttemptKey("job", 1))
    folders.make(made)
    return made


def test_the_token_is_in_a_file_of_the_job_alone_and_nowhere_else(folder: Path) -> None:
    staging.furnish(folder, LAUNCH)
    token = folder / "home/.ray/auth_token"
    assert token.read_text() == "t0ken"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    env = environment.build(LAUNCH, folder)
    front = ray_job.front(LAUNCH, str(folder), env, sandboxed=True)
    assert "t0ken" not in " ".join([*front, *env, *env.values()])


def test_any_other_job_gets_nothing_of_it(folder: Path) -> None:
    staging.furnish(folder, plain())
    env = environment.build(plain(), folder)
    assert list((folder / "home").iterdir()) == []
    assert ray_job.front(plain(), str(folder), env, sandboxed=False) == []
    assert "SUANLI_PYTHON" not in env


@pytest.mark.parametrize("sandboxed", [True, False])
def test_the_supervisor_is_told_what_the_rank_was_granted(folder: Path, sandboxed: bool) -> None:
    env = environment.build(LAUNCH, folder, "/env/bin/python")
    front = ray_job.front(LAUNCH, str(folder), env, sandboxed)
    assert front[:2] == [sys.executable, "-P"]
    settings = plan.read([*front[5:], *LAUNCH.argv], {"RANK": "1", "WORLD_SIZE": "2"})
    assert (settings.argv, settings.python) == (("echo", "hi"), "/env/bin/python")
    assert (settings.cpu_milli, settings.gpus, settings.memory_mib, settings.store_mib) == (2500, 2, 2048, 300)
    assert settings.token_path == f"{folder}/home/.ray/auth_token"
    if sandboxed:
        assert (settings.folder, settings.link_to) == ("/tmp/ray", "")
    else:
        assert settings.link_to == f"{folder}/tmp/ray"


def test_a_job_cannot_choose_another_interpreter_for_its_cluster(folder: Path) -> None:
    env = environment.build(plain(ray=RayCluster(), env={"PATH": "/mine", "VIRTUAL_ENV": "/mine"}), folder)
    front = ray_job.front(LAUNCH, str(folder), env, sandboxed=True)
    assert plan.read([*front[5:], "x"], {}).python == sys.executable


def test_the_short_way_is_short_and_goes_with_the_attempt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    front = ray_job.front(LAUNCH, str(folder), environment.build(LAUNCH, folder), sandboxed=False)
    link = Path(plan.read([*front[5:], "x"], {}).folder).parent
    other = link.with_name("another")
    for made, target in ((link, folder / "tmp/ray"), (other, Path("/somebody/else"))):
        made.parent.mkdir(exist_ok=True)
        made.symlink_to(target)
    staging.clear(folder)
    assert os.listdir(link.parent) == ["another"]
    link.symlink_to(folder / "tmp/ray")
    # An executor that was killed leaves it to the next.
    Folders(folder.parent.parent).clear()
    assert os.listdir(link.parent) == ["another"]
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    front = ray_job.front(LAUNCH, str(folder), environment.build(LAUNCH, folder), sandboxed=False)
    assert len(plan.read([*front[5:], "x"], {}).folder) <= 40


@pytest.mark.parametrize(
    ("code", "log", "said"),
    [
        (70, "noise\nsuanli: the node of rank 1 is gone\n", "the node of rank 1 is gone"),
        (127, "suanli: cannot run 'x'\n", "cannot run 'x'"),
        (70, "x" * 5000 + "\nsuanli: short\n", "short"),
        (1, "suanli: a program that says so\n", ""),
        (70, "suanli: earlier\nits own last words\n", ""),
        (70, "", ""),
        (None, "suanli: no code\n", ""),
    ],
)
def test_the_last_words_of_a_supervisor_are_heard(tmp_path: Path, code: int | None, log: str, said: str) -> None:
    (tmp_path / "stderr.log").write_text(log)
    assert ray_job.said(LAUNCH, tmp_path, code) == said
    assert ray_job.said(plain(), tmp_path, code) == ""


def test_both_sides_mean_the_same() -> None:
    assert {plan.CLUSTER_FAILED, plan.NOT_EXECUTABLE, plan.NOT_FOUND} == ray_job.CODES
    assert plan.SAYS.encode() == ray_job.SAYS
