"""What goes into a job's folders and what becomes of what it leaves: working folder, results, checkpoint, packages."""

import asyncio
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import artifacts
from tests.integration.executor_tools import IsolatingExecutor, Run, config, python, shell
from workers.executor.isolation import Isolation, Tier
from workers.executor.node_executor import NodeExecutor
from workers.executor.types import Checkpointed, ExitReason


@pytest.fixture(params=["process", "sandbox"])
async def run(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Run]:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    settings = config(tmp_path, checkpoint_interval_ms=200, pip_arguments=("--no-index", "--find-links", str(wheels)))
    executor = (IsolatingExecutor if request.param == "sandbox" else NodeExecutor)(settings)
    if isinstance(executor, IsolatingExecutor):
        executor.isolation = Isolation(Tier.SANDBOX, extra_read_only=(str(wheels),))
    await executor.start()
    yield Run(executor)
    await executor.close()


@pytest.fixture
def store(tmp_path: Path) -> artifacts.ArtifactStore:
    return artifacts.ArtifactStore(str(tmp_path / "store"))


def content(store: artifacts.ArtifactStore, ref: str | None) -> dict[str, bytes]:
    assert ref is not None
    return {one.path: store.get_bytes(f"sha256:{one.sha256}", 1 << 20) for one in store.manifest(ref)}


def folder(base: Path, **files: str) -> artifacts.Part:
    base.mkdir()
    for name, text in files.items():
        (base / name).write_text(text)
    return artifacts.Part(base)


async def test_working_folder_in_and_results_out(run: Run, store: artifacts.ArtifactStore, tmp_path: Path) -> None:
    work = store.put_tree(
        folder(tmp_path / "in", script="mkdir $SUANLI_RESULTS/d; cp data $SUANLI_RESULTS/d", data="7")
    )
    ended = await run.run(shell("sh ./script; echo out; echo err >&2", workdir_artifact=work.ref))
    assert ended.succeeded
    assert content(store, ended.results_manifest) == {"d/data": b"7"}
    assert content(store, ended.logs_manifest) == {"stdout.log": b"out\n", "stderr.log": b"err\n"}
    left = [path.name for path in (tmp_path / "node/attempts/job@1-0").iterdir()]
    assert sorted(left) == ["stderr.log", "stdout.log"]


async def test_results_of_a_failed_job_are_kept_and_ranks_do_not_collide(
    run: Run, store: artifacts.ArtifactStore
) -> None:
    gang = [shell("echo $RANK > $SUANLI_RESULTS/rank; exit 1", rank=rank, world_size=2) for rank in range(2)]
    await run.executor.launch(gang)
    assert content(store, (await run.exited(rank=0)).results_manifest) == {"rank": b"0\n"}
    assert content(store, (await run.exited(rank=1)).results_manifest) == {"rank-1/rank": b"1\n"}


async def test_links_out_of_the_results_are_refused_and_named(run: Run, store: artifacts.ArtifactStore) -> None:
    ended = await run.run(shell("cd $SUANLI_RESULTS; echo a > a; ln -s a b; ln -s /etc/passwd c; mkfifo d"))
    assert content(store, ended.results_manifest) == {"a": b"a\n", "b": b"a\n"}
    assert "'c' was left out: it is a link" in ended.message
    assert "'d' was left out: it is not a plain file" in ended.message


async def test_a_checkpoint_goes_from_attempt_to_attempt(run: Run, store: artifacts.ArtifactStore) -> None:
    step = "cat $SUANLI_CHECKPOINT/* 2>/dev/null; echo $SUANLI_ATTEMPT >> $SUANLI_CHECKPOINT/state"
    first = await run.run(shell(step))
    second = await run.run(shell(step, "job2", attempt=2, checkpoint_artifact=first.checkpoint_manifest))
    assert content(store, second.checkpoint_manifest) == {"state": b"1\n2\n"}
    # Untouched, it keeps its name; another rank gets a copy, and its changes are not kept.
    third = await run.run(shell("true", "job3", checkpoint_artifact=second.checkpoint_manifest))
    assert third.checkpoint_manifest == second.checkpoint_manifest
    rank = shell(step, "job4", rank=1, world_size=2, checkpoint_artifact=second.checkpoint_manifest)
    ended = await run.run(rank)
    assert ended.checkpoint_manifest is None or ended.checkpoint_manifest == second.checkpoint_manifest
    assert content(store, ended.logs_manifest) == {"rank-1/stdout.log": b"1\n2\n"}


async def test_a_running_job_is_checkpointed(run: Run, store: artifacts.ArtifactStore) -> None:
    await run.executor.launch([shell("echo 1 > $SUANLI_CHECKPOINT/state; sleep 600")])
    event = await run.until(lambda one: isinstance(one, Checkpointed))
    assert isinstance(event, Checkpointed)
    assert content(store, event.manifest) == {"state": b"1\n"}
    await run.executor.stop("job", 1, 0)
    assert (await run.exited()).checkpoint_manifest == event.manifest


async def test_a_job_whose_results_cannot_be_stored_has_not_succeeded(run: Run, tmp_path: Path) -> None:
    (tmp_path / "store" / "sha256").write_text("in the way")
    ended = await run.run(shell("echo 1 > $SUANLI_RESULTS/a"))
    assert ended.reason is ExitReason.ENVIRONMENT_FAILED
    assert "could not be stored" in ended.message
    assert (tmp_path / "node/attempts/job@1-0/results/a").read_text() == "1\n"


async def test_a_damaged_working_folder_is_noticed(run: Run, store: artifacts.ArtifactStore, tmp_path: Path) -> None:
    work = store.put_tree(folder(tmp_path / "in", data="right"))
    blob = next(path for path in (tmp_path / "store/sha256").glob("*/*") if path.read_bytes() == b"right")
    blob.write_bytes(b"wrong")
    ended = await run.run(shell("true", workdir_artifact=work.ref))
    assert ended.reason is ExitReason.ENVIRONMENT_FAILED
    assert "damaged" in ended.message


def make_wheel(folder: Path, version: str) -> None:
    info = f"sltest-{version}.dist-info"
    with zipfile.ZipFile(folder / f"sltest-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("sltest.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: sltest\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


async def test_packages_are_installed_once_for_equal_lists(run: Run, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "1.5")
    script = "import sltest, numpy, sys; assert sltest.VERSION == '1.5'; assert 'envs' in sys.prefix"
    jobs = [python(script, f"job{i}", packages=("sltest==1.5",)) for i in range(3)]
    # -S would keep the environment's packages from being seen.
    from dataclasses import replace

    await run.executor.launch([replace(job, argv=tuple(word for word in job.argv if word != "-S")) for job in jobs])
    for job in jobs:
        ended = await run.exited(job.job_id)
        assert ended.succeeded, ended
    assert len(list((tmp_path / "node/envs").iterdir())) == 1


async def test_packages_that_do_not_exist_end_with_pips_words(run: Run, tmp_path: Path) -> None:
    ended = await run.run(shell("true", packages=("sltest==9",)))
    assert ended.reason is ExitReason.ENVIRONMENT_FAILED
    assert "No matching distribution found for sltest==9" in ended.message
    assert list((tmp_path / "node/envs").iterdir()) == []


async def test_stop_while_preparing(run: Run, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "1.5")
    await run.executor.launch([shell("true", packages=("sltest==1.5",))])
    await asyncio.sleep(0)
    await run.executor.stop("job", 1, 1000)
    ended = await run.exited()
    assert (ended.reason, ended.started_ms) == (ExitReason.STOPPED, 0)
