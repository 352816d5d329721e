"""Why a pod ended, from what Kubernetes says of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from workers.executor.pod_outcome import Outcome, is_over, judge_pod
from workers.executor.types import ExitReason


def pod(terminated: dict[str, Any] | None, **status: Any) -> dict[str, Any]:
    states = [] if terminated is None else [{"name": "job", "state": {"terminated": terminated}}]
    return {"status": {"phase": "Failed", "containerStatuses": states, **status}}


@pytest.mark.parametrize(
    ("of", "ran", "reason", "words", "code"),
    [
        (pod({"exitCode": 0}), True, ExitReason.EXITED, "finished", 0),
        (pod({"exitCode": 3}), True, ExitReason.EXITED, "exit code 3", 3),
        (pod({"exitCode": 137, "reason": "OOMKilled"}), True, ExitReason.OUT_OF_MEMORY, "its memory of 64 MiB", -9),
        (pod({"exitCode": 139}), True, ExitReason.SIGNALLED, "SIGSEGV", -11),
        (pod({"exitCode": 255}), True, ExitReason.EXITED, "exit code 255", 255),
        (
            pod({"exitCode": 137}, reason="Evicted", message="low on memory"),
            True,
            ExitReason.LOST,
            "low on memory",
            None,
        ),
        (pod(None, reason="Evicted", message="a taint"), False, ExitReason.LOST, "a taint", None),
        (pod(None, reason="OutOfcpu", message="no cpu"), False, ExitReason.SPAWN_FAILED, "OutOfcpu no cpu", None),
        (pod(None, reason="NodeLost"), True, ExitReason.LOST, "NodeLost", None),
        (
            pod({"exitCode": 128, "reason": "StartError", "message": "exec: no such file"}),
            False,
            ExitReason.SPAWN_FAILED,
            "StartError exec: no such file",
            None,
        ),
    ],
)
def test_each_end_has_a_reason_and_a_sentence(
    of: dict[str, Any], ran: bool, reason: ExitReason, words: str, code: int | None
) -> None:
    outcome = judge_pod(of, ran=ran, failure="", memory_mib=64)
    assert outcome.reason is reason
    assert words in outcome.message
    assert (None if outcome.status is None else os.waitstatus_to_exitcode(outcome.status)) == code


def test_why_the_command_could_not_be_run_counts_for_more_than_the_code() -> None:
    outcome = judge_pod(pod({"exitCode": 127}), ran=False, failure="no command 'x'", memory_mib=0)
    assert (outcome.reason, outcome.message) == (ExitReason.SPAWN_FAILED, "no command 'x'")


def test_a_pod_is_over_when_nothing_of_it_runs() -> None:
    assert not is_over({"status": {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}})
    assert not is_over({"metadata": {}})
    assert is_over({"status": {"phase": "Running", "containerStatuses": [{"state": {"terminated": {}}}]}})
    assert is_over({"status": {"phase": "Failed"}})


def test_an_outcome_goes_through_its_file(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    assert Outcome.read(path) is None
    outcome = Outcome(ExitReason.SIGNALLED, "é", True, 5, int(signal.SIGKILL), 7, 8)
    outcome.write(path)
    assert Outcome.read(path) == outcome
