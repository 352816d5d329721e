import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from protos.suanli.v1 import common_pb2, jobs_pb2, usage_pb2
from suanli.cli import exits, human
from suanli.cli.main import SECTIONS, cli
from suanli.cli.output import Column, build_table, to_data
from suanli.cli.reference import main as reference
from tests.unit.cli.tools import REPOSITORY, invoke


def test_data_has_the_names_of_the_contract_and_plain_values() -> None:
    job = jobs_pb2.Job(id="j", state=common_pb2.JOB_STATE_TIMED_OUT, submit_time_ms=1 << 60)
    job.spec.algorithm.name = "irt"
    job.spec.environment["B"] = "2"
    job.spec.environment["A"] = "1"
    data = to_data(job)
    assert data["state"] == "TIMED_OUT"
    assert data["submit_time_ms"] == 1 << 60
    assert data["array"] is None
    assert data["spec"]["grace_period_ms"] is None
    assert data["spec"]["priority_class"] is None
    assert list(data["spec"]["environment"]) == ["A", "B"]
    assert data["spec"]["algorithm"]["name"] == "irt"
    assert "command" not in data["spec"]
    job.spec.grace_period_ms = 0
    assert to_data(job)["spec"]["grace_period_ms"] == 0
    json.dumps(data)


def test_every_message_has_data() -> None:
    for module in (common_pb2, jobs_pb2, usage_pb2):
        for name in module.DESCRIPTOR.message_types_by_name:
            json.dumps(to_data(getattr(module, name)()))


def rendered(rows: list[str], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    columns: list[Column[str]] = [
        Column("ID", lambda row: "0123456789", whole=True),
        Column("NAME", lambda row: row),
        Column("LAST", lambda row: "|"),
    ]
    console.print(build_table(rows, columns, width))
    assert isinstance(console.file, io.StringIO)
    return [line for line in console.file.getvalue().splitlines() if "|" in line]


def test_columns_stand_below_one_another_with_wide_characters() -> None:
    wide, narrow = rendered(["教育数据", "abcdefgh"], 80)
    assert wide.replace("教育数据", "abcdefgh") == narrow


def test_a_table_fits_its_terminal_and_ids_stay_whole() -> None:
    (line,) = rendered(["名" * 60], 40)
    assert line.startswith("0123456789")
    assert "…" in line
    assert len(line) + line.count("名") <= 40


def test_text_from_elsewhere_does_not_steer_the_terminal() -> None:
    (line,) = rendered(["a\x1b[31mred\nnext\u202ereversed"], 80)
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert "red next" in line


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0ms"), (999, "999ms"), (1_000, "1s"), (61_000, "1m 1s"), (3_600_000, "1h"), (90_061_000, "1d 1h")],
)
def test_durations(ms: int, text: str) -> None:
    assert human.duration(ms) == text


def test_ages_and_instants() -> None:
    now = 1_800_000_000_000
    assert human.age(0, now) == ""
    assert human.age(now - 200_000, now) == "3m ago"
    assert human.age(now + 5_000, now) == "in 5s"
    assert human.instant(now) == "2027-01-15T08:00:00Z"
    assert human.instant(0) == ""


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2026-10", 1_790_812_800_000),
        ("2026-10-01", 1_790_812_800_000),
        ("2026-10-01T08:00+08:00", 1_790_812_800_000),
        ("7d", 1_800_000_000_000 - 7 * 86_400_000),
    ],
)
def test_times_people_write(text: str, ms: int) -> None:
    assert human.parse_instant(text, 1_800_000_000_000) == ms


@pytest.mark.parametrize("text", ["", "soon", "2026-13", "1969-12-31", "7", "-7d", "0000-01"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|1970"):
        human.parse_instant(text, 0)


def test_amounts() -> None:
    assert (human.cpus(1500), human.cpus(100), human.cpus(64_000)) == ("1.5", "0.1", "64")
    assert (human.memory(512), human.memory(1536), human.memory(262_144)) == ("512 MiB", "1.5 GiB", "256 GiB")
    assert (human.size(5), human.size(2048), human.size(3 << 40)) == ("5 B", "2 KiB", "3 TiB")
    assert human.unit_hours(str(3_600_000_000 * 12_345)) == "12,345.000"
    assert human.unit_hours(str(36 * 10**40)) == f"{10**32:,}.000"
    assert (human.unit_hours("0"), human.unit_hours("36000")) == ("0.000", "0.000010")


def job(state: int, code: int = 0, signal: int = 0) -> jobs_pb2.Job:
    return jobs_pb2.Job(state=state, exit_code=code, exit_signal=signal)  # type: ignore[arg-type]


def test_the_fate_of_a_job_as_an_exit_code() -> None:
    assert exits.of_job(job(common_pb2.JOB_STATE_SUCCEEDED)) == 0
    assert exits.of_job(job(common_pb2.JOB_STATE_FAILED, 3)) == 3
    assert exits.of_job(job(common_pb2.JOB_STATE_FAILED, 126)) == 1
    assert exits.of_job(job(common_pb2.JOB_STATE_FAILED, 0, 15)) == 143
    assert exits.of_job(job(common_pb2.JOB_STATE_FAILED)) == 1
    assert exits.of_job(job(common_pb2.JOB_STATE_TIMED_OUT, 0, 9)) == 124
    assert exits.of_job(job(common_pb2.JOB_STATE_CANCELLED)) == 130


def test_the_reference_is_up_to_date() -> None:
    assert reference(["--check", str(REPOSITORY / "docs/reference/cli.md")]) == 0


def test_every_command_has_help_and_reading_ones_have_forms() -> None:
    names = [name for section in SECTIONS.values() for name in section]
    for name in names:
        if name in ("server", "agent"):
            continue
        result = invoke(name, "--help")
        assert result.exit_code == 0
        assert "Usage: suanli" in result.stdout
    for name in ("ps", "show", "why", "watch", "regions", "pools", "nodes", "whoami", "health"):
        assert "table|json|yaml" in invoke(name, "--help").stdout
    for group, name in (("usage", "show"), ("ledger", "list")):
        assert "table|json|yaml|csv|parquet" in invoke(group, name, "--help").stdout
    assert set(names) == set(cli.list_commands(None))  # type: ignore[arg-type]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert "_SUANLI_COMPLETE" in result.stdout


def test_bash_completes_commands_and_options() -> None:
    words = {"COMP_WORDS": "suanli su", "COMP_CWORD": "1", "_SUANLI_COMPLETE": "bash_complete"}
    code = "from suanli.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", **words},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["plain,submit"]
