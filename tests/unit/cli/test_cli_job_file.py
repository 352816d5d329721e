from pathlib import Path

import pytest

from suanli.cli.job_file import OPTION_OF, read_job_file
from suanli.cli.runtime import Failure
from suanli.errors import InvalidArgument
from suanli.spec import KNOWN
from tests.unit.cli.tools import Platform

GOOD = """\
# Two jobs
name: prepare
command: [log, ready]
labels: {run: file}
---
name: train
shell: "true"
after: prepare
labels:
  run: file
"""


def test_a_file_of_jobs_that_depend_on_each_other(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text(GOOD)
    result = platform.run("submit", "-f", "jobs.yaml", "--wait", "--label", "extra=1", "--timeout", "30s")
    first, second = result.stdout.split()
    job = platform.data("show", second)
    assert job["spec"]["dependencies"][0]["job_id"] == first
    assert job["spec"]["labels"] == {"run": "file", "extra": "1"}
    assert len(platform.run("submit", "-f", "-", stdin=GOOD).stdout.split()) == 2
    checked = platform.run("submit", "-f", "jobs.yaml", "--check")
    assert (checked.stdout, "2 jobs would be accepted" in checked.stderr) == ("", True)


def test_jobs_wait_for_an_array_of_the_same_file(platform: Platform) -> None:
    text = """
name: sweep
command: ["true"]
array: 3
---
command: ["true"]
after_any: sweep
after: [0]
"""
    array, report = platform.run("submit", "-f", "-", "--wait", "--timeout", "30s", stdin=text).stdout.split()
    ended = [platform.data("show", job)["end_time_ms"] for job in (array, report)]
    assert 0 < ended[0] <= ended[1]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("command: [x]\nmemroy: 2GiB\n", 2, "did you mean memory?"),
        ("command: [x]\nmemory: lots\n", 2, "memory: 'lots'"),
        ("command: [x]\n---\ncommand: [x]\n\ncpus: 0\n", 5, "cpus:"),
        ("command:\n  - x\n  - 7\n", 3, "command[1]"),
        ("command: [x]\nenv:\n  A: '1'\n  B: 2\n", 4, "env.B"),
        ("command: [x]\nenv:\n  A: '1'\n  SUANLI_B: '2'\n", 2, "SUANLI_B"),
        ("name: x\ncpus: 1\n", 1, "nothing to run"),
        ("command: [x]\nshell: y\n", 2, "command and shell"),
        ("command: [x]\ncpus: 1\ncpus: 2\n", 3, "given twice"),
        ("command: [x\ncpus: 1\n", 2, "not readable YAML"),
        ("- command: [x]\n", 1, "names and values"),
        ("command: [x]\n1: 2\n", 2, "is a text"),
        (
            "name: a\ncommand: [x]\n---\nname: a\ncommand: [x]\n---\ncommand: [x]\nafter: [a]\n",
            8,
            "2 jobs are named 'a'",
        ),
        ("name: a\ncommand: [x]\nafter: b\n---\nname: b\ncommand: [x]\nafter: a\n", 3, "form a cycle"),
        ("command: [x]\nafter_any:\n  - 5\n", 3, "out of range"),
        ("command: [x]\nmax_runtime: 5ms\n", 2, "max_runtime:"),
        ("command: [x]\nproject: Not A Slug\n", 2, "project:"),
        ("command: &a [*a]\n", 1, "contains itself"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    platform: Platform, tmp_path: Path, text: str, line: int, words: str
) -> None:
    (tmp_path / "job.yaml").write_text(text)
    result = platform.run("submit", "-f", "job.yaml", code=2)
    assert f"job.yaml:{line}: " in result.stderr
    assert words in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no job in it"),
        (b"---\n---\n", "no job in it"),
        (b"name: a\n\xff\n", ":2: this is not UTF-8"),
        (b"#" * (9 << 20), "larger than"),
        (b"a: !!python/object:os.system x\n", "not readable YAML"),
        (b"a: \x00\n", "not readable YAML"),
        (b"a: " + b"[" * 5000, "not readable YAML"),
        (
            b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 10)) for i in range(8)),
            "too many values",
        ),
    ],
    ids=["empty", "no documents", "bytes", "large", "object", "control", "deep", "laughs"],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(Failure) as caught:
        read_job_file(str(path))
    assert words in caught.value.message
    assert caught.value.exit_code == 2


def test_the_exit_code_is_that_of_the_error(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("command: [x]\nafter: [01k0000000000000aa]\n")
    assert "job.yaml:2: " in platform.run("submit", "-f", "job.yaml", code=3).stderr


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text("script: a.py\n---\nfolder: code\nscript: b.py\n")
    found = read_job_file(str(path))
    assert found.jobs == [{"script": str(tmp_path / "a.py")}, {"folder": str(tmp_path / "code"), "script": "b.py"}]


def test_files_and_flags_together(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("script: hello.py\nargs: [x]\n")
    assert "hello.py" in platform.run("submit", "-f", "job.yaml", code=2).stderr
    assert "leave shell out" in platform.run("submit", "-f", "job.yaml", "--shell", "x", code=2).stderr
    assert "none.yaml: No such file" in platform.run("submit", "-f", "none.yaml", code=2).stderr
    (tmp_path / "hello.py").write_text("print('hello')\n")
    job = platform.submit("-f", "job.yaml", "--cpus", "2", "--wait")
    spec = platform.data("show", job)["spec"]
    assert spec["python"] == {"script": "hello.py", "args": ["x"]}
    assert spec["resources"]["cpu_milli"] == 2000
    assert spec["working_folder"].startswith("sha256:")
    assert platform.data("show", platform.submit("--script", "hello.py", "--", "-v"))["spec"]["python"]["args"] == [
        "-v"
    ]


def test_fields_of_the_contract_lead_to_settings(tmp_path: Path) -> None:
    assert set(OPTION_OF.values()) <= set(KNOWN)
    path = tmp_path / "job.yaml"
    path.write_text("command: [x]\ngpus: 1\n")
    error = InvalidArgument("jobs[0].resources.gpu_milli: too many.", field="jobs[0].resources.gpu_milli")
    assert read_job_file(str(path)).locate(error).message == f"{path}:2: gpus: too many."
