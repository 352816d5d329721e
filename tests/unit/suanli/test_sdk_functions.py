"""A call of a function, packed here and run by the runner as a job would."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protos.suanli.v1 import jobs_pb2
from suanli import functions
from suanli.errors import InvalidArgument, JobFailed, RemoteError, TransferError
from suanli.info import JobInfo, info_of

INFO: JobInfo = info_of(jobs_pb2.Job(id="j1", state=6, exit_code=1, spec=jobs_pb2.JobSpec(name="f")))


def run(folder: Path, function: Callable[..., Any], *calls: Any, index: int = 0, rank: int = 0) -> tuple[int, str]:
    """Unpack into a folder and run there, away from this project's code; gives the exit code and stderr."""
    for blob in functions.pack_call(function, calls).blobs[:-1]:
        name = functions.RUNNER if b"def main" in blob.content[:4000] else functions.CALL_FILE
        (folder / name).write_bytes(blob.content)
    environment = {"SUANLI_RESULTS": str(folder / "out"), "SUANLI_ARRAY_INDEX": str(index), "RANK": str(rank)}
    done = subprocess.run(
        [sys.executable, functions.RUNNER], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def helper(n: int) -> int:
    return n * 2


def uses_helper(n: int) -> int:
    return helper(n) + 1


class LocalError(Exception):
    """Of this module, which the job's machine does not have."""


def fails() -> None:
    raise LocalError("here")


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")
        self.lock = sys.stdout.buffer


def fails_unpicklably() -> None:
    raise Unpicklable(1, 2)


def test_a_function_takes_the_module_it_is_from_along(tmp_path: Path) -> None:
    assert run(tmp_path, uses_helper, ((4,), {})) == (0, "")
    assert functions.load_value((tmp_path / "out" / functions.VALUE_FILE).read_bytes()) == 9


def test_a_task_of_an_array_takes_its_own_arguments(tmp_path: Path) -> None:
    assert run(tmp_path, divmod, ((7, 2), {}), ((9, 4), {}), index=1) == (0, "")
    assert functions.load_value((tmp_path / "out" / functions.VALUE_FILE).read_bytes()) == (2, 1)


def test_one_replica_of_a_gang_gives_the_value(tmp_path: Path) -> None:
    assert run(tmp_path, helper, ((1,), {}), rank=1)[0] == 0
    assert not list((tmp_path / "out").iterdir())


def test_an_exception_comes_back_as_itself_with_its_traceback(tmp_path: Path) -> None:
    code, stderr = run(tmp_path, fails, ((), {}))
    assert code == 1
    assert "LocalError: here" in stderr
    error = functions.failure(INFO, (tmp_path / "out" / functions.ERROR_FILE).read_bytes())
    assert isinstance(error, LocalError)
    assert isinstance(error.__cause__, RemoteError)
    assert "in fails" in str(error.__cause__)


def test_an_exception_that_cannot_travel_is_told_in_words(tmp_path: Path) -> None:
    assert run(tmp_path, fails_unpicklably, ((), {}))[0] == 1
    error = functions.failure(INFO, (tmp_path / "out" / functions.ERROR_FILE).read_bytes())
    assert isinstance(error, RemoteError)
    assert error.kind.endswith("Unpicklable")
    assert "1 2" in error.traceback_text
    assert error.job_id == "j1"


def test_a_value_that_cannot_travel_is_an_error_of_the_job(tmp_path: Path) -> None:
    code, stderr = run(tmp_path, lambda: (n for n in [1]), ((), {}))
    assert code == 1
    assert "generator" in stderr


def test_another_python_says_so(tmp_path: Path) -> None:
    run(tmp_path, helper, ((1,), {}))
    call = pickle.loads((tmp_path / functions.CALL_FILE).read_bytes())
    (tmp_path / functions.CALL_FILE).write_bytes(pickle.dumps({**call, "python": (3, 1)}))
    done = subprocess.run(
        [sys.executable, functions.RUNNER],
        cwd=tmp_path,
        env={"SUANLI_RESULTS": str(tmp_path / "out")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Python 3.1" in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"junk", pickle.dumps([1]), pickle.dumps({"kind": "x"})])
def test_results_that_are_no_report_leave_the_job_s_own_error(content: bytes | None) -> None:
    error = functions.failure(INFO, content)
    assert type(error) is JobFailed
    assert "j1" in str(error)


def test_what_cannot_be_sent_or_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="not a function"):
        functions.pack_call("f", [((), {})])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="cannot be sent"):
        functions.pack_call(print, [((sys.stdout.buffer,), {})])
    monkeypatch.setattr(functions, "MAX_CALL_BYTES", 10)
    with pytest.raises(InvalidArgument, match="are the most"):
        functions.pack_call(helper, [((1,), {})])
    with pytest.raises(TransferError, match="cannot be read here"):
        functions.load_value(b"junk")


def test_a_job_is_named_after_its_function() -> None:
    assert functions.name_of(helper) == "helper"
    assert functions.name_of(lambda: 1) == "test_a_job_is_named_after_its_function.<lambda>"
    assert len(functions.name_of(type("x" * 300, (), {"__call__": helper})())) == 128
