import json
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.tools import Platform, invoke


def test_a_job_is_submitted_waited_for_and_shown(platform: Platform) -> None:
    result = platform.run(
        "submit", "--name", "分析任务", "--wait", "--cpus", "500m", "--memory", "1.5GiB", "--", "true"
    )
    job = result.stdout.strip()
    assert "succeeded" in result.stderr
    shown = platform.data("show", job)
    assert shown["id"] == job
    assert shown["state"] == "SUCCEEDED"
    assert shown["spec"]["resources"] == {"cpu_milli": 500, "memory_mib": 1536, "gpu_milli": 0}
    assert shown["spec"]["command"] == {"argv": ["true"]}
    assert "algorithm" not in shown["spec"]
    assert isinstance(shown["submit_time_ms"], int)
    assert shown["attempts"][0]["outcome"] == "SUCCEEDED"
    table = platform.run("show", job).stdout
    assert "分析任务" in table
    assert "0.5 CPU, 1.5 GiB" in table


@pytest.mark.parametrize(
    ("command", "code"), [(("true",), 0), (("exit", "7"), 7), (("exit", "200"), 1), (("signal", "9"), 137)]
)
def test_waiting_exits_with_the_jobs_fate(platform: Platform, command: tuple[str, ...], code: int) -> None:
    job = platform.submit("--wait", "--", *command, code=code)
    assert platform.data("wait", job, code=code)[0]["id"] == job


def test_the_first_of_several_that_did_not_succeed_decides(platform: Platform) -> None:
    jobs = [platform.submit("--", *words) for words in (("true",), ("exit", "4"), ("exit", "5"))]
    platform.run("wait", *jobs, code=4)


def test_waiting_has_an_end(platform: Platform) -> None:
    job = platform.submit("--", "stay")
    result = platform.run("wait", job, "--timeout", "0.3s", code=124)
    assert "goes on" in result.stderr
    assert "is being cancelled" in platform.run("cancel", job).stdout
    platform.run("wait", job, "--timeout", "20s", code=130)
    assert "already ended" in platform.run("cancel", job).stdout


def test_follow_prints_the_log_alone_on_stdout(platform: Platform) -> None:
    result = platform.run("submit", "--follow", "log", "hello", "there")
    assert result.stdout == "hello there\n"
    assert "warn\n" in result.stderr
    job = result.stderr.split()[1].rstrip(".")
    assert platform.run("logs", job).stdout == "hello there\n"
    assert platform.run("logs", job, "--stderr").stdout == "warn\n"
    assert platform.run("logs", job, "--stdout", "--tail", "6").stdout == "there\n"
    assert platform.run("logs", "-f", job).stdout == "hello there\n"


def test_follow_prints_every_attempt_once(platform: Platform) -> None:
    for _ in range(5):
        result = platform.run("submit", "--follow", "--retries", "2", "fail", "try", "ATTEMPT", code=1)
        assert result.stdout == "try 1\ntry 2\ntry 3\n"
    job = result.stderr.split()[1].rstrip(".")
    assert platform.run("logs", "-f", job, code=1).stdout == "try 3\n"
    assert platform.run("logs", job, "--attempt", "2").stdout == "try 2\n"


def test_ps_filters_and_its_forms_agree(platform: Platform) -> None:
    mine = platform.submit("--name", "marked", "--label", "run=ps", "--wait", "true")
    other = platform.submit("--name", "other", "--label", "run=ps", "--wait", "true", user="abe")
    assert [job["id"] for job in platform.data("ps", "-l", "run=ps")] == [mine]
    assert [job["id"] for job in platform.data("ps", "-A", "-l", "run=ps")] == [other, mine]
    assert [job["id"] for job in platform.data("ps", "-A", "--name", "marked", "-s", "succeeded")] == [mine]
    assert platform.data("ps", "--name", "marked", "-s", "queued") == []
    assert platform.data("ps", "--name", "marked", "--since", "2100-01") == []
    assert yaml.safe_load(platform.run("ps", "--name", "marked", "-o", "yaml").stdout)[0]["id"] == mine
    table = platform.run("ps", "-A", "-l", "run=ps").stdout.splitlines()
    assert table[0].split()[:2] == ["JOB", "NAME"]
    assert "uni-a/default" in table[-1]
    limited = platform.run("ps", "-A", "-l", "run=ps", "-n", "1")
    assert mine not in limited.stdout
    assert "--limit" in limited.stderr
    assert "no such job" in platform.run("ps", "--name", "nobody").stderr


def test_why_speaks_of_every_pool(platform: Platform) -> None:
    holder = platform.submit("--cpus", "8", "--", "stay")
    waiting = platform.submit("--cpus", "8", "--", "true")
    said = platform.run("why", waiting).stdout
    assert "QUEUED" in said
    assert "east/cpu" in said
    assert "Expected to start about" in said
    assert "What would help:" not in said
    told = platform.data("why", waiting)
    assert told["pools"][0]["pool"] == "east/cpu"
    assert told["blockers"][0]["code"] == "FIT"
    assert told["expected_start"]["at_ms"] > 0
    assert told["reservation"]["pool"] == "east/cpu"
    platform.run("cancel", holder)
    platform.run("wait", waiting, "--timeout", "20s")


def test_why_answers_what_if_and_before_a_job_is_submitted(platform: Platform, tmp_path: Path) -> None:
    holder = platform.submit("--cpus", "5", "--", "stay")
    waiting = platform.submit("--cpus", "8", "--", "stay")
    said = platform.run("why", waiting).stdout
    assert "  - ask for 3 CPU cores instead of 8 CPU cores: 1 node in east/cpu would take it now." in said
    said = platform.run("why", waiting, "--cpus", "3", "--memory", "512MiB").stdout.splitlines()
    assert said[0].startswith("as asked: No pool can take the job now;")
    assert said[1].startswith("with 3 CPU, 512 MiB: could start now. There is room in east/cpu")
    both = platform.data("why", waiting, "--cpus", "3")
    assert (both["as_asked"]["code"], both["changed"]["code"]) == ("FIT", "NEXT")
    assert platform.data("show", waiting)["spec"]["resources"]["cpu_milli"] == 8000
    path = tmp_path / "job.yaml"
    path.write_text("command: [stay]\ncpus: 2\n")
    kept = platform.run("why", "-f", str(path)).stdout
    assert "It would wait: There is room in east/cpu, but it is kept for another job" in kept
    assert "  - lower its longest runtime to 23 hours" in kept
    path.write_text("command: [stay]\ncpus: 2\nmax_runtime: 1h\n")
    assert "It would start at once: There is room in east/cpu" in platform.run("why", "-f", str(path)).stdout
    assert "with 8 CPU: No pool can take the job now" in platform.run("why", "-f", str(path), "--cpus", "8").stdout
    path.write_text("command: [stay]\ncpus: 2000\n")
    refused = platform.run("why", "-f", str(path), code=2)
    assert "job.yaml:2:" in refused.stderr
    platform.run("cancel", holder, waiting)


def test_watch_resumes_after_a_sequence(platform: Platform) -> None:
    job = platform.submit("--wait", "true")
    lines = platform.run("watch", job, "--after", "0", "--count", "3", "-o", "json").stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["job_id"] for event in events] == [job] * 3
    again = platform.run("watch", job, "--after", str(events[0]["sequence"]), "--count", "2", "-o", "json").stdout
    assert [json.loads(line) for line in again.splitlines()] == events[1:]
    assert job in platform.run("watch", job, "--after", "0", "--count", "1").stdout


def test_an_array_is_waited_for_whole(platform: Platform) -> None:
    result = platform.run("submit", "--array", "3", "--array-parallel", "2", "--wait", "true")
    array = result.stdout.strip()
    assert platform.data("show", array)["array"]["succeeded"] == 3
    assert {job["id"] for job in platform.data("ps", "--array", array)} == {f"{array}.{index}" for index in range(3)}
    assert "3 of 3" in platform.run("ps", "--name", "true", "-n", "1000").stdout
    assert "log of its own" in platform.run("logs", "-f", array, code=2).stderr


def test_results_are_fetched_once(platform: Platform, tmp_path: Path) -> None:
    job = platform.submit("--wait", "leave", "结果")
    assert platform.data("fetch", job, "--list")[0]["path"] == "out/text"
    fetched = tmp_path / "suanli-results" / job / "out" / "text"
    assert platform.run("fetch", job).stdout.strip() == str(fetched.relative_to(tmp_path))
    assert fetched.read_text() == "结果"
    before = fetched.stat().st_mtime_ns
    assert platform.data("fetch", job, "out") == [str(fetched)]
    assert fetched.stat().st_mtime_ns == before
    fetched.write_text("else")
    platform.run("fetch", job, "--to", str(fetched.parents[1]))
    assert fetched.read_text() == "结果"
    assert "no 'a.csv'" in platform.run("fetch", job, "a.csv", code=3).stderr
    assert platform.run("fetch", job, user="abe", code=4).stdout == ""


def test_results_are_said_to_be_missing(platform: Platform) -> None:
    job = platform.submit("--wait", "true")
    assert "no results" in platform.run("fetch", job).stderr
    assert platform.data("fetch", job, "--list") == []
    assert "no 'a.csv'" in platform.run("fetch", job, "a.csv", code=3).stderr


def test_the_same_request_id_submits_once(platform: Platform) -> None:
    first = platform.submit("--request-id", "once-1", "true")
    assert platform.submit("--request-id", "once-1", "true") == first
    assert "request_id" in platform.run("submit", "--request-id", "once-1", "false", code=6).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("submit",), 2, "Nothing to run"),
        (("submit", "--cpus", "lots", "true"), 2, "cpus: 'lots'"),
        (("submit", "--cpus", "100000", "true"), 2, "cpus:"),
        (("submit", "--memory", "-1", "true"), 2, "memory"),
        (("submit", "--script", "missing.py"), 2, "missing.py"),
        (("submit", "--algorithm", "irt", "--shell", "x"), 2, "More than one thing"),
        (("submit", "--wait", "--check", "true"), 2, "--check submits nothing"),
        (("submit", "--institution", "nowhere", "true"), 4, "institution:"),
        (("submit", "--label", "nothing", "true"), 2, "KEY=VALUE"),
        (("submit", "--env", "SUANLI_X=1", "true"), 2, "env"),
        (("submit", "--project", "none-such", "true"), 3, "none-such"),
        (("show", "no-such-job"), 3, "no job"),
        (("show", "01k0000000000000aa"), 3, "01k0000000000000aa"),
        (("ps", "--since", "yesterday"), 2, "is no time"),
        (("ps", "--state", "BROKEN"), 2, "BROKEN"),
        (("ps", "--watch"), 2, "terminal"),
        (("user", "list"), 4, "role"),
        (("drain", "east", "node-one"), 4, "role"),
        (("sbumit",), 2, "Did you mean 'submit'"),
        (("algorithms", "show", "none"), 3, "'none'"),
    ],
)
def test_a_users_error_is_a_sentence(platform: Platform, arguments: tuple[str, ...], code: int, words: str) -> None:
    result = platform.run(*arguments, code=code)
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_control_plane_that_is_not_there(monkeypatch: pytest.MonkeyPatch, platform: Platform) -> None:
    monkeypatch.setattr("suanli.cli.runtime.PATIENCE_S", 0.2)
    for command in ("ps", "health", "watch"):
        result = invoke("--address", "127.0.0.1:1", "--api-key", "suanli_a_b", command)
        assert result.exit_code == 5
        assert "127.0.0.1:1 cannot be reached" in result.stderr
    result = invoke("ps")
    assert result.exit_code == 2
    assert "suanli up" in result.stderr
    assert platform.run("health").stdout == "SERVING\n"


def test_no_key_and_a_wrong_key(platform: Platform) -> None:
    assert platform.run("whoami", user="anonymous", code=4).stdout == ""
    assert invoke("--address", platform.address, "--api-key", "suanli_no_key", "whoami").exit_code == 4
    assert platform.run("health", user="anonymous").stdout == "SERVING\n"


def test_a_ray_job_is_asked_for_and_shown(platform: Platform) -> None:
    job = platform.submit("--ray", "--ray-object-store", "512MiB", "--memory", "2GiB", "--replicas", "2", "--", "true")
    assert platform.data("show", job)["spec"]["ray"] == {"object_store_mib": 512}
    assert "its own, 2 nodes, object store 512 MiB" in platform.run("show", job).stdout
    assert "Ray cluster" not in platform.run("show", platform.submit("--", "true")).stdout
    refused = platform.run("submit", "--ray", "--memory", "512MiB", "--", "true", code=2)
    assert "memory: 512 MiB are too few for a Ray cluster" in refused.stderr
