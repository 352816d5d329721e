"""The SDK against a real server process, and an agent that really runs what it is given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import suanli
from suanli import errors
from tests.integration.sdk_agent import Place, running_place

WAIT_S = 60.0


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with running_place() as place:
        yield place


@pytest.fixture
def client(place: Place) -> Iterator[suanli.Client]:
    with suanli.Client(place.address, place.ada) as client:
        yield client


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_folder_goes_up_runs_and_its_results_come_back(client: suanli.Client, tmp_path: Path) -> None:
    script = "import os,sys,helper\nopen(os.environ['SUANLI_RESULTS']+'/out.txt','w').write(helper.word+sys.argv[1])\n"
    source = write(
        tmp_path / "src",
        {"run.py": script, "helper.py": "word = 'hello '", "secret.txt": "x", ".suanliignore": "secret.*\n"},
    )
    job = client.submit(script="run.py", args=["you"], folder=str(source), cpus="500m", memory="256MiB")
    info = job.wait(WAIT_S)
    assert (info.state, info.region, info.user) == ("SUCCEEDED", "east", "ada")
    assert [file.path for file in job.files()] == ["out.txt"]
    folder = job.result(tmp_path / "results")
    assert (folder / "out.txt").read_text() == "hello you"
    assert info.proto.spec.resources.cpu_milli == 500


def test_logs_come_as_lines_of_both_streams_and_can_be_followed(client: suanli.Client) -> None:
    job = client.submit(shell="echo one; echo two >&2; printf three")
    lines = list(job.logs(follow=True))
    assert {(line.stream, line.text) for line in lines} == {("stdout", "one"), ("stdout", "three"), ("stderr", "two")}
    assert [line.text for line in job.logs(stream="stdout")] == ["one", "three"]
    assert b"".join(chunk.data for chunk in job.log_chunks(stream="stdout", tail_bytes=3)) == b"ree"


def test_a_job_that_fails_raises_with_its_own_exit_code(client: suanli.Client) -> None:
    job = client.submit(command=["sh", "-c", "exit 7"])
    with pytest.raises(errors.JobFailed) as caught:
        job.result(timeout=WAIT_S)
    assert caught.value.exit_code == 7
    assert caught.value.job_id == job.id


def test_cancelling_ends_the_wait_of_another_thread(client: suanli.Client) -> None:
    job = client.submit(command=["sleep", "60"])
    started = threading.Event()
    found: list[suanli.JobInfo] = []

    def wait() -> None:
        started.set()
        found.append(job.wait(WAIT_S))

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait()
    assert job.cancel("not needed")
    thread.join(WAIT_S)
    assert found[0].state == "CANCELLED"
    assert not job.cancel()
    with pytest.raises(errors.JobCancelled):
        job.result()


def test_waiting_has_a_limit_and_the_job_goes_on(client: suanli.Client) -> None:
    job = client.submit(command=["true"], after=[client.submit(command=["sleep", "60"])])
    with pytest.raises(suanli.WaitTimeout, match=job.id):
        job.wait(timeout=0.2)
    assert job.status().state == "HELD"
    why = job.why()
    assert list(why.waiting_for)
    assert why.message
    assert client.cancel([*why.waiting_for]) == list(why.waiting_for)
    assert job.wait(WAIT_S).reason == "DEPENDENCY_FAILED"


def test_many_jobs_one_of_which_is_wrong_are_none(client: suanli.Client) -> None:
    before = [info.id for info in client.jobs()]
    with pytest.raises(errors.InvalidArgument) as caught:
        client.submit_many([{"command": ["true"]}, {"command": ["true"], "cpus": 5000}])
    assert caught.value.field.startswith("jobs[1].resources")
    with pytest.raises(errors.InvalidArgument, match="memory") as caught:
        client.submit_many([{"command": ["true"]}, {"command": ["true"], "memory": "lots"}])
    assert caught.value.field == "jobs[1].memory"
    assert [info.id for info in client.jobs()] == before


def test_a_repeated_request_is_one_submission(client: suanli.Client) -> None:
    first = client.submit_many([{"command": ["true"]}] * 2, request_id="sdk-same")
    assert [job.id for job in client.submit_many([{"command": ["true"]}] * 2, request_id="sdk-same")] == [
        job.id for job in first
    ]
    with pytest.raises(errors.AlreadyExists):
        client.submit(command=["false"], request_id="sdk-same")
    assert [info.state for info in client.wait_all([*first, first[0]], WAIT_S)] == ["SUCCEEDED"] * 3


def test_an_array_has_tasks_with_results_of_their_own(client: suanli.Client, tmp_path: Path) -> None:
    array = client.submit(shell="echo $SUANLI_ARRAY_INDEX > $SUANLI_RESULTS/index", array=3)
    assert array.wait(WAIT_S).state == "SUCCEEDED"
    texts = [(task.result(tmp_path / task.id) / "index").read_text() for task in array.tasks()]
    assert texts == ["0\n", "1\n", "2\n"]
    with pytest.raises(errors.FailedPrecondition, match="tasks"):
        array.result()
    with pytest.raises(errors.FailedPrecondition, match="no array"):
        array.tasks()[0].tasks()
    assert {info.id for info in client.jobs(array=array.id)} == {task.id for task in array.tasks()}


def test_a_task_that_never_started_ends_with_its_array(client: suanli.Client) -> None:
    holder = client.submit(command=["sleep", "60"])
    array = client.submit(command=["true"], array=3, after=[holder])
    task = array.tasks()[1]
    ended: list[suanli.JobInfo] = []
    thread = threading.Thread(target=lambda: ended.append(task.wait(WAIT_S)))
    thread.start()
    assert task.status().state == "HELD"
    client.cancel([array.id, holder.id])
    thread.join(WAIT_S)
    assert [info.state for info in ended] == ["CANCELLED"]


def test_a_function_runs_elsewhere_and_its_value_or_exception_comes_back(client: suanli.Client) -> None:
    offset = 10
    assert client.run(lambda a, *, b: (a + b + offset, "数"), 1, b=2) == (13, "数")

    class OwnError(Exception):
        pass

    def fail() -> None:
        raise OwnError("as told")

    with pytest.raises(Exception, match="as told") as caught:
        client.run(fail)
    assert type(caught.value).__name__ == "OwnError"
    cause = caught.value.__cause__
    assert isinstance(cause, suanli.RemoteError)
    assert "in fail" in cause.traceback_text


def test_a_function_is_mapped_over_items_as_an_array(client: suanli.Client) -> None:
    assert client.map(lambda n: n * n, [3, 1, 2], name="squares") == [9, 1, 4]
    assert client.map(lambda n: n, []) == []
    with pytest.raises(ZeroDivisionError):
        client.map(lambda n: 1 / n, [1, 0])


def test_what_another_user_pickled_is_not_opened(place: Place) -> None:
    with suanli.Client(place.address, place.bob) as bob, suanli.Client(place.address, place.admin_key) as operator:
        job = bob.submit_function(int, ("5",))
        assert job.result(timeout=WAIT_S) == 5
        assert [file.path for file in operator.job(job.id).files()] == ["value.pkl"]
        with pytest.raises(errors.PermissionDenied) as caught:
            operator.job(job.id).result(timeout=WAIT_S)
        assert caught.value.reason == "NOT_YOUR_JOB"


def test_watching_from_a_sequence_number_misses_and_repeats_nothing(client: suanli.Client) -> None:
    job = client.submit(command=["true"])
    job.wait(WAIT_S)
    seen = []
    for event in client.watch(after_sequence=0, job_ids=[job.id]):
        seen.append(event)
        if event.state == job.status().proto.state:
            break
    again = []
    for event in client.watch(after_sequence=seen[0].sequence, job_ids=[job.id]):
        again.append(event.sequence)
        if event.sequence == seen[-1].sequence:
            break
    assert again == [event.sequence for event in seen[1:]]
    assert seen[0].kind == "SUBMITTED"


def test_usage_is_exact_integers(client: suanli.Client) -> None:
    job = client.submit(command=["sleep", "0.2"], cpus=2, project="default")
    job.wait(WAIT_S)
    attempt = job.status().proto.attempts[0]
    usage = client.usage(by=["project", "user"])
    row = next(row for row in usage.rows if row.key == {"project": "default", "user": "ada"})
    assert row.cpu_milli_ms >= 2000 * (attempt.end_time_ms - attempt.grant_time_ms)
    assert usage.total.cpu_milli_ms == sum(row.cpu_milli_ms for row in usage.rows)
    with pytest.raises(errors.InvalidArgument, match="colour"):
        client.usage(by=["colour"])


def test_a_wrong_key_and_a_wrong_role_say_so(place: Place, client: suanli.Client) -> None:
    with suanli.Client(place.address, "suanli_none_none") as stranger, pytest.raises(errors.Unauthenticated) as caught:
        stranger.whoami()
    assert caught.value.exit_code == 4
    assert client.whoami().institution == "uni"
    with pytest.raises(errors.NotFound):
        client.job("j0nothing").status()


async def test_the_asyncio_client_does_many_things_at_once(place: Place) -> None:
    async with suanli.AsyncClient(place.address, place.ada) as client:
        jobs = await asyncio.gather(*(client.submit(command=["true"], name=f"at-once-{n}") for n in range(8)))
        infos = await client.wait_all(jobs, WAIT_S)
        assert [info.name for info in infos] == [f"at-once-{n}" for n in range(8)]
        found = [info async for info in client.jobs(name="at-once-3")]
        assert [info.id for info in found] == [jobs[3].id]
        assert [algorithm.name for algorithm in await client.algorithms()] == [
            "irt",
            "response-model",
            "school-effects",
        ]


async def test_a_blocking_client_refuses_to_block_its_own_loop(client: suanli.Client) -> None:
    async def inside() -> None:
        client.whoami()

    with pytest.raises(RuntimeError, match="AsyncClient"):
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(inside(), client._loop._loop))
