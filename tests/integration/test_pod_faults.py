"""What can go wrong around jobs in pods: the API, the node, the keepers, the executor. On the fake cluster only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tests.integration.executor_tools import SLEEPER, Run, alive, eventually, shell
from tests.integration.pod_tools import SETTINGS, InPods, executor_in, fake, log, shows, stand_in, volume
from tests.support.kubernetes import FakeKubernetes
from workers.executor.pod_manifest import START_LABEL, WORKER_LABEL, name_of
from workers.executor.types import ExitReason, Started, Stream

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNT = "i=0; while [ $i -lt {n} ]; do i=$((i+1)); echo $i; sleep 0.02; done"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with volume() as folder:
        yield folder


@pytest.fixture(scope="module")
def cluster(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeKubernetes]:
    with fake(tmp_path_factory.mktemp("cluster"), place) as cluster, pytest.MonkeyPatch.context() as patch:
        stand_in(patch, str(cluster.kubeconfig))
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(cluster: FakeKubernetes, place: Path) -> AsyncIterator[Run]:
    executor = await executor_in(place)
    yield Run(executor)
    await executor.close()


@pytest_asyncio.fixture(loop_scope="module")
async def hasty(run: Run) -> AsyncIterator[Callable[..., None]]:
    """Change the settings for one test."""
    executor = run.executor
    assert isinstance(executor, InPods)
    usual = executor.isolation

    async def change(**changes: object) -> None:
        settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
        await executor.pod_problem(settings)
        executor.isolation = replace(usual, pod=settings)

    yield change  # type: ignore[misc]
    executor.isolation = usual


def job() -> str:
    return f"job-{uuid.uuid4().hex[:8]}"


async def begun(run: Run, script: str, **fields: object) -> str:
    """Start a job and wait until it runs."""
    name = job()
    assert await run.executor.launch([shell(script, name, **fields)]) == ()
    await run.until(lambda one: isinstance(one, Started) and one.job_id == name)
    return name


def pod_of(cluster: FakeKubernetes, name: str) -> str:
    (found,) = [pod for pod, one in cluster.jobs().items() if one["metadata"]["labels"]["suanli.io/job"] == name]
    return found


def pod_name(name: str) -> str:
    return name_of("", name, 1, 0)


def processes(*words: str) -> list[psutil.Process]:
    """Living processes below this one's whose command line holds all the words."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        line = " ".join(one.info["cmdline"] or ())
        if all(word in line for word in words):
            found.append(one)
    return found


# --- pods that do not start ---------------------------------------------------------------------------------------


async def test_an_image_that_cannot_be_pulled(run: Run, cluster: FakeKubernetes, hasty: Callable[..., None]) -> None:
    await hasty(image="nowhere/nothing:1", start_timeout_ms=1500)
    ended = await run.run(shell("true", job()))
    assert ended.reason is ExitReason.SPAWN_FAILED
    assert "image nowhere/nothing:1 cannot be started (ImagePullBackOff): Back-off pulling" in ended.message
    assert cluster.jobs() == {}


async def test_no_room_on_the_node(run: Run, cluster: FakeKubernetes, hasty: Callable[..., None]) -> None:
    await hasty(start_timeout_ms=1000)
    cluster.kubelet.room = False
    try:
        ended = await run.run(shell("true", job()))
    finally:
        cluster.kubelet.room = True
    assert ended.reason is ExitReason.SPAWN_FAILED
    assert "no room for the pod on its node within 1 s: 0/1 nodes are available" in ended.message
    assert cluster.jobs() == {}


async def test_a_node_that_is_slow_says_what_kubernetes_warns_of(
    run: Run, cluster: FakeKubernetes, hasty: Callable[..., None]
) -> None:
    await hasty(start_timeout_ms=1000)
    cluster.kubelet.slow_start_s = 3.0
    cluster.events = [{"message": "failed to create sandbox: no runtime for runsc is configured", "lastTimestamp": "x"}]
    try:
        ended = await run.run(shell("true", job()))
    finally:
        cluster.kubelet.slow_start_s, cluster.events = 0.0, []
    assert "the pod did not start within 1 s: failed to create sandbox: no runtime" in ended.message
    assert cluster.jobs() == {}


async def test_a_pod_that_kubernetes_refuses(run: Run, cluster: FakeKubernetes) -> None:
    cluster.runtime_classes.clear()
    try:
        ended = await run.run(shell("true", job()))
    finally:
        cluster.runtime_classes.add("gvisor")
    assert ended.reason is ExitReason.SPAWN_FAILED
    assert ended.message == 'Kubernetes refuses the pod: pod rejected: RuntimeClass "gvisor" not found'
    cluster.quota = "exceeded quota: cpu"
    try:
        assert "exceeded quota" in (await run.run(shell("true", job()))).message
    finally:
        cluster.quota = ""


async def test_a_stop_before_the_start_makes_an_end_of_it(run: Run, cluster: FakeKubernetes) -> None:
    cluster.kubelet.room = False
    name = job()
    try:
        await run.executor.launch([shell("true", name)])
        await eventually(lambda: bool(cluster.jobs()), "the pod waits")
        await run.executor.stop(name, 1, 60_000, "changed my mind")
        ended = await run.exited(name)
    finally:
        cluster.kubelet.room = True
    assert (ended.reason, ended.message, ended.started_ms) == (ExitReason.STOPPED, "changed my mind", 0)
    assert cluster.jobs() == {}


# --- starts happen once -------------------------------------------------------------------------------------------


async def test_a_pod_whose_creation_was_not_answered_is_ours(run: Run, cluster: FakeKubernetes) -> None:
    cluster.lose_answers = 1
    name = job()
    made = len(cluster.created)
    assert (await run.run(shell("echo once", name))).succeeded
    assert len(cluster.created) == made + 1
    assert await log(run, job_id=name) == b"once\n"


async def test_a_pod_of_another_start_is_left_alone(run: Run, cluster: FakeKubernetes) -> None:
    name = job()
    pod = pod_name(name)
    foreign = {
        "metadata": {"name": pod, "labels": {START_LABEL: "other", WORKER_LABEL: "another"}},
        "spec": {},
        "status": {},
    }
    cluster._add(foreign)
    try:
        ended = await run.run(shell("true", name))
        assert ended.reason is ExitReason.SPAWN_FAILED
        assert f"there is a pod {pod} of this attempt already" in ended.message
        assert pod in cluster.pods
    finally:
        cluster.remove(pod)


# --- the API comes and goes ---------------------------------------------------------------------------------------


async def test_a_job_goes_on_while_the_api_is_away(run: Run, cluster: FakeKubernetes) -> None:
    name = await begun(run, COUNT.format(n=100))
    await shows(run, name, b"\n5\n")
    cluster.go_away()
    await asyncio.sleep(1)
    cluster.come_back()
    ended = await run.exited(name)
    assert ended.succeeded
    assert await log(run, job_id=name) == b"".join(b"%d\n" % i for i in range(1, 101))


async def test_a_job_that_ends_while_the_api_is_away_is_seen_after_it(run: Run, cluster: FakeKubernetes) -> None:
    name = await begun(run, "echo a; sleep 0.5; echo b; exit 4")
    cluster.go_away()
    await eventually(lambda: cluster.kubelet.container(pod_of(cluster, name)).over, "the container is over")
    cluster.come_back()
    assert (await run.exited(name)).exit_code == 4
    assert await log(run, job_id=name) == b"a\nb\n"


async def test_a_stop_reaches_the_job_while_the_api_is_away(run: Run, cluster: FakeKubernetes) -> None:
    marker = uuid.uuid4().hex
    name = await begun(run, f"trap 'echo last words; exit 0' TERM; {SLEEPER} {marker} & wait")
    await eventually(lambda: bool(alive(marker)), "the job sleeps")
    cluster.go_away()
    await run.executor.stop(name, 1, 20_000)
    await eventually(lambda: not alive(marker), "the job has been told")
    cluster.come_back()
    assert (await run.exited(name)).reason is ExitReason.STOPPED
    assert await log(run, job_id=name) == b"last words\n"


async def test_a_kill_without_an_api_ends_in_time(
    run: Run, cluster: FakeKubernetes, hasty: Callable[..., None]
) -> None:
    await hasty(switch_ms=1000)
    marker = uuid.uuid4().hex
    name = await begun(run, f"trap '' TERM; {SLEEPER} {marker}")
    await eventually(lambda: bool(alive(marker)), "the job sleeps")
    cluster.go_away()
    try:
        await run.executor.stop(name, 1, 0)
        await eventually(lambda: not alive(marker), "the job is dead")
        # Nobody can say so, but after a while it cannot be otherwise.
        assert (await run.exited(name)).reason is ExitReason.STOPPED
    finally:
        cluster.come_back()
    await eventually(lambda: cluster.jobs() == {}, "the pod is deleted once that can be asked for")


async def test_lost_connections_and_a_forgotten_history_lose_nothing(run: Run, cluster: FakeKubernetes) -> None:
    name = await begun(run, COUNT.format(n=120))
    for _ in range(4):
        await asyncio.sleep(0.3)
        cluster.forget_history()
        cluster.cut()
    assert (await run.exited(name)).succeeded
    assert await log(run, job_id=name) == b"".join(b"%d\n" % i for i in range(1, 121))


async def test_a_watch_that_times_out_goes_on_where_it_was(run: Run, cluster: FakeKubernetes) -> None:
    cluster.longest_watch_s = 0.3
    asked = len(cluster.requests)
    try:
        name = await begun(run, "sleep 1.5; exit 6")
        assert (await run.exited(name)).exit_code == 6
    finally:
        cluster.longest_watch_s = 1800.0
    own = [one for one in cluster.requests[asked:] if "fieldSelector" in one and pod_name(name) in one]
    watches = [one for one in own if "watch=true" in one]
    assert len(watches) >= 3
    # One list at the start: no change was missed, and none asked for anew.
    assert len(own) - len(watches) == 1


async def test_a_watch_that_is_too_old_begins_anew(run: Run, cluster: FakeKubernetes) -> None:
    name = await begun(run, "echo on; sleep 1.5; exit 5")
    lists = len([one for one in cluster.requests if "fieldSelector" in one and "watch" not in one])
    # The watch is open: it learns of this with the next change only.
    cluster.forget_history()
    assert (await run.exited(name)).exit_code == 5
    assert len([one for one in cluster.requests if "fieldSelector" in one and "watch" not in one]) > lists


async def test_a_log_that_the_node_has_thrown_away_has_a_hole_that_says_so(run: Run, cluster: FakeKubernetes) -> None:
    name = await begun(run, f"{COUNT.format(n=20)}; sleep 0.5; echo end")
    await shows(run, name, b"3\n")
    cluster.go_away()
    await eventually(lambda: len(cluster.kubelet.container(pod_of(cluster, name)).lines) >= 21, "all is said")
    cluster.kubelet.rotate(pod_of(cluster, name), 2)
    cluster.come_back()
    assert (await run.exited(name)).succeeded
    assert (await log(run, job_id=name)).endswith(b"end\n")
    assert b"lines left out ...]" in await log(run, Stream.STDERR, job_id=name)


# --- others interfere ---------------------------------------------------------------------------------------------


async def test_an_evicted_pod_is_a_lost_one(run: Run, cluster: FakeKubernetes) -> None:
    name = await begun(run, "sleep 600")
    cluster.kubelet.evict(pod_of(cluster, name))
    ended = await run.exited(name)
    assert ended.reason is ExitReason.LOST
    assert ended.message == "the node evicted the pod: The node was low on resource: memory."


async def test_a_pod_that_somebody_deletes_is_a_lost_one(run: Run, cluster: FakeKubernetes) -> None:
    name = await begun(run, "sleep 600")
    cluster.remove(pod_of(cluster, name))
    ended = await run.exited(name)
    assert (ended.reason, ended.message) == (ExitReason.LOST, "somebody has deleted the pod")


# --- our own processes are killed ---------------------------------------------------------------------------------


async def test_a_killed_runner_takes_its_pod_along(run: Run, cluster: FakeKubernetes) -> None:
    marker = uuid.uuid4().hex
    name = await begun(run, f"echo here; {SLEEPER} {marker}")
    info = next(one for one in await run.executor.attempts() if one.job_id == name)
    assert info.pid
    os.kill(info.pid, signal.SIGKILL)
    ended = await run.exited(name)
    assert ended.reason is ExitReason.LOST
    assert "runner" in ended.message
    assert (alive(marker), cluster.jobs()) == ([], {})


async def test_a_killed_warden_takes_the_pods_along(run: Run, cluster: FakeKubernetes) -> None:
    marker = uuid.uuid4().hex
    name = await begun(run, f"{SLEEPER} {marker}")
    assert run.executor._link is not None
    os.kill(run.executor._link.pid, signal.SIGKILL)
    assert (await run.exited(name)).reason is ExitReason.LOST
    assert (alive(marker), cluster.jobs()) == ([], {})
    assert (await run.run(shell("true", job()))).succeeded


async def test_jobs_outlive_the_process_that_makes_keepers(run: Run, cluster: FakeKubernetes) -> None:
    name = await begun(run, "sleep 1; echo through")
    assert isinstance(run.executor, InPods)
    keepers = run.executor._pods._keepers
    assert keepers is not None
    os.kill(keepers.pid, signal.SIGKILL)
    keepers.wait()
    assert (await run.run(shell("true", job()))).succeeded
    assert (await run.exited(name)).succeeded
    assert await log(run, job_id=name) == b"through\n"


# --- the executor is killed ---------------------------------------------------------------------------------------

EXECUTOR = """
import asyncio, sys
from pathlib import Path
from tests.integration.executor_tools import Run, shell
from tests.integration.pod_tools import executor_in

async def main(place, marker):
    run = Run(await executor_in(Path(place)))
    await run.executor.launch([shell(f"exec python -S -c 'import time; time.sleep(600)' {marker}", "orphan")])
    await run.until(lambda one: one.job_id == "orphan")
    print("runs", flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def other(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, subprocess.Popen[str], str]]:
    """A second executor, in a process and a worker's pod of its own, that runs a job."""
    marker = uuid.uuid4().hex
    with volume() as folder:
        cluster.add_worker(folder, "worker-other")
        environment = {**os.environ, "SUANLI_POD_NAME": "worker-other"}
        monkeypatch.setenv("SUANLI_POD_NAME", "worker-other")
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(EXECUTOR), str(folder), marker],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "runs\n"
            yield folder, process, marker
        finally:
            process.kill()
            process.wait()
            for one in processes("pod_keepers", str(folder)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def kill_all(process: subprocess.Popen[str], folder: Path, *, keepers: bool) -> None:
    victims = [psutil.Process(process.pid), *(processes("pod_keepers", str(folder)) if keepers else ())]
    for one in victims:
        one.kill()
    process.wait()


async def test_a_killed_executor_leaves_no_pod(
    cluster: FakeKubernetes, other: tuple[Path, subprocess.Popen[str], str]
) -> None:
    folder, process, marker = other
    assert alive(marker)
    kill_all(process, folder, keepers=False)
    await eventually(lambda: not alive(marker) and not cluster.jobs(), "the keeper has deleted the pod")


async def test_when_nobody_is_left_the_pod_ends_itself_and_the_next_start_sweeps(
    cluster: FakeKubernetes, other: tuple[Path, subprocess.Popen[str], str]
) -> None:
    folder, process, marker = other
    foreign = {
        "metadata": {"name": "foreign", "labels": {WORKER_LABEL: "another", START_LABEL: "x"}},
        "spec": {},
        "status": {},
    }
    foreign["metadata"]["labels"]["app.kubernetes.io/component"] = "suanli-job"
    kill_all(process, folder, keepers=True)
    began = time.monotonic()
    assert alive(marker)
    await eventually(lambda: not alive(marker), "the pod has seen that nobody touches its file")
    assert time.monotonic() - began < SETTINGS.switch_ms / 1000 + 5
    assert len(cluster.jobs()) == 1
    cluster._add(foreign)
    executor = await executor_in(folder)
    try:
        assert list(cluster.jobs()) == ["foreign"]
    finally:
        cluster.remove("foreign")
        await executor.close()


async def test_a_restarted_executor_deletes_pods_that_still_run(
    cluster: FakeKubernetes, other: tuple[Path, subprocess.Popen[str], str]
) -> None:
    folder, process, marker = other
    kill_all(process, folder, keepers=True)
    executor = await executor_in(folder)
    try:
        await eventually(lambda: not alive(marker) and not cluster.jobs(), "the sweep has found the pod")
    finally:
        await executor.close()


async def test_closing_an_executor_deletes_its_pods(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = uuid.uuid4().hex
    with volume() as folder:
        cluster.add_worker(folder, "worker-closing")
        monkeypatch.setenv("SUANLI_POD_NAME", "worker-closing")
        executor = await executor_in(folder)
        await begun(Run(executor), f"{SLEEPER} {marker}")
        await executor.close()
        await eventually(lambda: not alive(marker) and not cluster.jobs(), "the pod is gone")
        assert not processes("pod_keepers", str(folder))
