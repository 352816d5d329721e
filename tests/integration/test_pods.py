"""Jobs in pods, end to end: executor, warden, runner, keeper, the real Kubernetes client, and the pod's first process.

Against the fake cluster, or against the real one of ``SUANLI_TEST_KUBECONFIG`` (see ``pod_tools``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

import artifacts
from tests.integration.executor_tools import SLEEPER, Run, alive, eventually, python, shell
from tests.integration.pod_tools import REAL, InPods, executor_in, fake, log, real_worker, stand_in, volume
from workers.executor.isolation import Network
from workers.executor.types import ExitReason, Launch, Started, Stream

BACKEND = """
import os, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + "/node"
    processes = sum(one.isdigit() for one in os.listdir("/proc"))
    seen = {"uid": os.getuid(), "root": sorted(os.listdir(root)), "processes": processes}
    name = "spy-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("spy.py", f"SEEN = {seen!r}")
        wheel.writestr("spy-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: spy\\nVersion: 1\\n")
        wheel.writestr("spy-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("spy-1.dist-info/RECORD", "")
    return name
"""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with volume() as folder, pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        kubeconfig = REAL
        if REAL:
            stack.enter_context(real_worker(folder))
        else:
            cluster = stack.enter_context(fake(tmp_path_factory.mktemp("cluster"), folder))
            kubeconfig = str(cluster.kubeconfig)
        stand_in(patch, kubeconfig)
        yield folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(place: Path) -> AsyncIterator[Run]:
    executor = await executor_in(place)
    yield Run(executor)
    await executor.close()


def job() -> str:
    return f"job-{uuid.uuid4().hex[:8]}"


def stored(place: Path, manifest: str | None) -> dict[str, bytes]:
    assert manifest is not None
    store = artifacts.ArtifactStore(str(place / "store"), place / "scratch")
    folder = place / f"fetched-{uuid.uuid4().hex}"
    store.fetch_tree(manifest, folder)
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


async def test_a_job_leaves_its_results_its_logs_and_its_code(run: Run, place: Path) -> None:
    name = job()
    script = (
        "echo out; echo err >&2; printf 'no newline'; echo kept > $SUANLI_RESULTS/a; echo mine > $SUANLI_CHECKPOINT/c"
    )
    ended = await run.run(shell(f"{script}; exit 3", name, memory_mib=200, cpu_milli=500))
    assert (ended.reason, ended.exit_code, ended.message) == (
        ExitReason.EXITED,
        3,
        "the command ended with exit code 3",
    )
    assert 0 < ended.started_ms <= ended.ended_ms
    assert stored(place, ended.results_manifest) == {"a": b"kept\n"}
    assert stored(place, ended.checkpoint_manifest) == {"c": b"mine\n"}
    assert stored(place, ended.logs_manifest) == {"stdout.log": b"out\nno newline", "stderr.log": b"err\n"}
    assert ended.usage.peak_memory_mib > 0
    assert len([one for one in run.events if isinstance(one, Started) and one.job_id == name]) == 1
    assert (await run.run(shell("exit 0", job()))).succeeded


async def test_output_comes_out_to_the_byte(run: Run, place: Path) -> None:
    script = """
import os
os.write(1, bytes(range(256)) * 3)
os.write(2, b"x" * 100_000 + b"\\r\\n\\n")
os.write(1, b"\\n" * 5 + b"end")
"""
    ended = await run.run(python(script, job()))
    assert stored(place, ended.logs_manifest) == {
        "stdout.log": bytes(range(256)) * 3 + b"\n" * 5 + b"end",
        "stderr.log": b"x" * 100_000 + b"\r\n\n",
    }


async def test_the_job_gets_its_arguments_and_variables_as_they_are(run: Run) -> None:
    name = job()
    odd = "$(HOME) $$ $(SUANLI_POD_IP) ${X} \n é"
    script = "import os,sys,json; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    launch = Launch(name, 1, ("python", "-S", "-c", script, odd), env={"MINE": odd, "a.b-c": "1"}, gpu_indices=())
    assert (await run.run(launch)).succeeded
    arguments, env = json.loads(await log(run, job_id=name))
    assert arguments == [odd]
    assert (env["MINE"], env["a.b-c"]) == (odd, "1")
    assert env["SUANLI_JOB_ID"] == name
    assert not [one for one in env if one.startswith(("KUBE", "RAY")) or one == "SUANLI_POD_IP"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("no-such-command",), "no command 'no-such-command'"),
        (("./train.sh",), "no file './train.sh'"),
        (("/etc/passwd",), "not an executable file"),
    ],
)
async def test_a_command_that_cannot_be_run_says_why(run: Run, argv: tuple[str, ...], words: str) -> None:
    ended = await run.run(Launch(job(), 1, argv))
    assert ended.reason is ExitReason.SPAWN_FAILED
    assert words in ended.message
    assert ended.started_ms == 0


async def test_a_signal_is_told_as_one(run: Run) -> None:
    ended = await run.run(shell("kill -SEGV $$", job()))
    assert (ended.reason, ended.signal) == (ExitReason.SIGNALLED, "SIGSEGV")


async def test_a_job_that_is_cancelled_has_its_grace(run: Run, place: Path) -> None:
    name = job()
    script = "trap 'echo saving; sleep 0.3; echo saved > $SUANLI_CHECKPOINT/c; echo done; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    await run.executor.launch([shell(script, name)])
    await run.until(lambda one: isinstance(one, Started) and one.job_id == name)
    while not (await log(run, job_id=name)).startswith(b"ready"):
        await run.executor.poll(run.cursor, 0.05)
    await run.executor.stop(name, 1, 20_000, "enough")
    ended = await run.exited(name)
    assert (ended.reason, ended.message) == (ExitReason.STOPPED, "enough")
    assert ended.exit_code == 0
    assert stored(place, ended.checkpoint_manifest) == {"c": b"saved\n"}
    # A shell may add of its own that the sleep it waited for was ended.
    assert stored(place, ended.logs_manifest)["stdout.log"] == b"ready\nsaving\ndone\n"


async def test_a_job_that_does_not_listen_is_killed_after_its_grace(run: Run, place: Path) -> None:
    launch = shell("trap '' TERM; echo here; sleep 600 & wait; sleep 600", job(), max_runtime_ms=500, grace_ms=500)
    ended = await run.run(launch)
    assert ended.reason is ExitReason.TIMED_OUT
    assert ended.ended_ms - ended.started_ms >= 900
    assert stored(place, ended.logs_manifest) == {"stdout.log": b"here\n"}


async def test_a_job_that_takes_too_much_memory_is_out_of_memory(run: Run) -> None:
    ended = await run.run(python("import time; kept = b'x' * (300 << 20); time.sleep(60)", job(), memory_mib=100))
    assert ended.reason is ExitReason.OUT_OF_MEMORY
    assert ended.message == "the pod used more than its memory of 100 MiB and was killed"


async def test_other_jobs_and_the_platform_are_not_there(run: Run, place: Path) -> None:
    neighbour, name, marker = job(), job(), uuid.uuid4().hex
    await run.executor.launch([shell(f"echo secret > neighbour; : {marker}; sleep 600", neighbour)])
    await run.until(lambda one: isinstance(one, Started) and one.job_id == neighbour)
    script = f"""
import os, socket, sys
root = {str(place)!r}
names = lambda path: sorted(os.listdir(path)) if os.path.isdir(path) else None
print(names(root), names(root + "/node"), names(root + "/node/attempts"), names(root + "/store"))
print(os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token"), os.getuid() != 0, os.getppid())
print(sum(one.isdigit() for one in os.listdir("/proc")))
folders = ("/", "/usr", "/etc", root, root + "/node/pods/code", os.environ["SUANLI_RESULTS"], "/tmp", "/dev/shm")
print([one for one in folders if os.access(one, os.W_OK)] == [*folders[5:]])
def tries(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
print(tries(lambda: open("/etc/x", "w")), tries(lambda: os.setuid(0)), tries(lambda: os.listdir("/proc/1/fd")))
os.kill(1, 9)
print("done")
"""
    ended = await run.run(python(script, name, memory_mib=256))
    text = (await log(run, job_id=name)).decode().splitlines()
    await run.executor.stop(neighbour, 1, 0)
    assert ended.succeeded, (ended, text, await log(run, Stream.STDERR, name))
    assert text == [
        f"['node'] ['attempts', 'pods'] ['{name}@1-0'] None",
        "False True 1",
        "2",
        "True",
        "OSError PermissionError PermissionError",
        "done",
    ]
    assert (await run.exited(neighbour)).reason is ExitReason.STOPPED


async def test_data_sets_can_be_read_only(run: Run, place: Path) -> None:
    (place / "data").mkdir(exist_ok=True)
    (place / "data" / "rows.csv").write_text("1\n")
    script = (
        'cat "$SUANLI_DATA/scores/rows.csv" "$SUANLI_PARAMETERS"; echo no > "$SUANLI_DATA/scores/new" || echo refused'
    )
    name = job()
    launch = shell(script, name, data_dirs={"scores": str(place / "data")}, parameters_json='{"a":1}')
    assert (await run.run(launch)).succeeded
    assert await log(run, job_id=name) == b'1\n{"a":1}refused\n'
    for path in (place, place / "node", place / "node" / "attempts"):
        ended = await run.run(shell("true", job(), data_dirs={"all": str(path)}))
        assert ended.reason is ExitReason.SPAWN_FAILED
        assert "other jobs' folders" in ended.message
    ended = await run.run(shell("true", job(), data_dirs={"all": "/usr/share"}))
    assert "/usr/share lies on no volume of the worker's pod" in ended.message


async def test_a_gang_meets_at_the_pod_of_rank_0(run: Run) -> None:
    name = job()
    script = """
import os, socket
address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if os.environ["RANK"] == "0":
    with socket.create_server(("", address[1])) as server:
        peer, _ = server.accept()
        print(peer.recv(10).decode())
else:
    import time
    while True:
        try:
            peer = socket.create_connection(address)
            break
        except OSError:
            time.sleep(0.05)
    peer.sendall(b"hello")
"""
    ranks = [
        python(script, name, rank=rank, world_size=2, master_addr="192.0.2.1", master_port=run.executor.free_port())
        for rank in range(2)
    ]
    ranks = [dataclasses.replace(one, master_port=ranks[0].master_port) for one in ranks]
    assert await run.executor.launch(reversed(ranks)) == ()
    assert [(await run.exited(name, rank)).succeeded for rank in range(2)] == [True, True]
    assert await log(run, job_id=name) == b"hello\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu_indices": (0,), "gpu_milli": 500}, "whole GPUs"),
    ],
)
async def test_what_pods_cannot_have_is_refused_in_words(run: Run, changes: dict[str, object], words: str) -> None:
    ended = await run.run(dataclasses.replace(shell("true", job()), **changes))  # type: ignore[arg-type]
    assert ended.reason in {ExitReason.SPAWN_FAILED, ExitReason.ENVIRONMENT_FAILED}
    assert words in ended.message


async def test_packages_are_installed_in_a_pod_of_their_own(run: Run, place: Path) -> None:
    name, other = job(), job()
    project = place / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "spy"\nversion = "1"\n'
    )
    (project / "backend.py").write_text(BACKEND)
    executor = run.executor
    assert isinstance(executor, InPods)
    usual = executor.isolation
    executor.isolation = dataclasses.replace(usual, extra_read_only=(str(project),))
    script = "import spy, json; print(json.dumps(spy.SEEN))"
    try:
        launch = Launch(name, 1, ("python", "-c", script), packages=(f"spy @ file://{project}",))
        ended = await run.run(launch)
        assert ended.succeeded, ended
        bad = await run.run(shell("true", other, packages=(f"none @ file://{place}/no-such",)))
    finally:
        executor.isolation = usual
    seen = json.loads(await log(run, job_id=name))
    # Building ran in the pod: not as root, without the executor's folders, and not as a process of the node.
    assert seen["uid"] != 0
    assert seen["root"] == ["envs", "pods"]
    assert seen["processes"] < 8
    assert bad.reason is ExitReason.ENVIRONMENT_FAILED
    assert "no-such" in bad.message


async def test_a_gang_in_a_pool_without_a_network_is_refused(run: Run) -> None:
    executor = run.executor
    assert isinstance(executor, InPods)
    usual = executor.isolation
    executor.isolation = dataclasses.replace(usual, network=Network.NONE)
    try:
        ended = await run.run(shell("true", job(), world_size=2))
    finally:
        executor.isolation = usual
    assert "no network" in ended.message


async def test_what_a_job_leaves_running_ends_with_it(run: Run) -> None:
    marker = uuid.uuid4().hex
    assert (await run.run(shell(f"setsid {SLEEPER} {marker} & exit 0", job()))).succeeded
    await eventually(lambda: not alive(marker), "nothing of the job lives")


async def test_launching_twice_makes_one_pod(run: Run) -> None:
    name = job()
    launch = shell("echo once", name)
    await run.executor.launch([launch, launch])
    assert (await run.exited(name)).succeeded
    await run.executor.launch([launch])
    assert (await run.run(shell("true", job()))).succeeded
    assert len([one for one in run.events if isinstance(one, Started) and one.job_id == name]) == 1
    assert await log(run, job_id=name) == b"once\n"
