"""Usage, the ledger and their files, against a server that says what a test wants."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from click.testing import Result

from protos.suanli.v1 import common_pb2, usage_pb2, usage_pb2_grpc
from tests.unit.cli.tools import invoke

PER_MINOR = 128_000 * 3_600_000 * 10**10
HOUR = 1000 * 3_600_000
RECORDS = 2500


class Server(usage_pb2_grpc.UsageServiceServicer):
    """Canned answers, and the last question."""

    def __init__(self) -> None:
        self.asked: Any = None
        self.currency = "CNY"
        self.fail_after = -1

    def GetUsage(self, request: Any, context: Any) -> Any:
        self.asked = request
        rows = [
            usage_pb2.UsageRow(
                key=[name, "2026-10"][: len(request.group_by)],
                cpu_milli_ms=str(hours * HOUR),
                memory_mib_ms=str(1024 * 3_600_000),
                gpu_milli_ms=str(gpu * HOUR),
                segments=3,
                attempts=2,
                cpu_used_milli_ms=str(hours * HOUR // 2),
                memory_peak_mib_ms="0",
                gpu_used_milli_ms=str(gpu * HOUR // 3),
                cost_units=str(cost * PER_MINOR + 1),
                list_cost_units=str(2 * cost * PER_MINOR),
                service_cost_units="0",
                energy_wh="1500.5" if request.include_energy else "",
                carbon_g="750" if request.include_energy else "",
            )
            for name, hours, gpu, cost in (("aa", 10, 0, 5), ("bb", 2, 3, 123_456), ("cc", 30, 1, -7))
        ]
        total = usage_pb2.UsageRow()
        total.CopyFrom(rows[0])
        total.key[:] = []
        total.cpu_milli_ms = str(42 * HOUR)
        answer = usage_pb2.GetUsageResponse(
            rows=rows, total=total, ledger_sequence=9, cost_units_per_minor=str(PER_MINOR)
        )
        if self.currency:
            answer.currency, answer.currency_digits = self.currency, 2
        return answer

    def StreamLedger(self, request: Any, context: Any) -> Iterator[Any]:
        self.asked = request
        for first in range(request.after_sequence + 1, RECORDS + 1, 1000):
            if self.fail_after == first:
                self.fail_after = -1
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            numbers = range(first, min(first + 1000, RECORDS + 1))
            yield usage_pb2.StreamLedgerResponse(records=[record(number) for number in numbers])

    def ListLedger(self, request: Any, context: Any) -> Any:
        self.asked = request
        return usage_pb2.ListLedgerResponse(records=[record(1), record(2)])

    def ExportUsage(self, request: Any, context: Any) -> Iterator[Any]:
        self.asked = request
        yield usage_pb2.ExportUsageResponse(data=b"BilledCost\n1\n")
        if request.institution == "broken":
            context.abort(grpc.StatusCode.INTERNAL, "the ledger's records and its sums differ")
        yield usage_pb2.ExportUsageResponse(data=b"2\n")


def record(number: int) -> usage_pb2.LedgerRecord:
    return usage_pb2.LedgerRecord(
        sequence=number,
        institution="aa",
        project="p",
        user="u",
        job_id=f"j{number}",
        attempt=1,
        start_ms=1_790_812_800_000,
        end_ms=1_790_812_800_500,
        cpu_milli=-5,
        kind=usage_pb2.LEDGER_KIND_REVERSAL,
        outcome=common_pb2.ATTEMPT_OUTCOME_FAILED,
        reason="=cmd()",
        hash=b"\xff\x00",
        cost_units="-12345678901234567890123",
        preemptible=True,
    )


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    servicer = Server()
    running = grpc.server(ThreadPoolExecutor(4))
    usage_pb2_grpc.add_UsageServiceServicer_to_server(servicer, running)  # type: ignore[no-untyped-call]
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUANLI_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setenv("SUANLI_API_KEY", "suanli_a_b")
    monkeypatch.setenv("SUANLI_STATE_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    yield servicer
    running.stop(None)


def run(*arguments: str, code: int = 0) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    return result


def test_the_table_has_hours_money_and_on_demand_efficiency_and_energy(server: Server) -> None:
    lines = run("usage", "--by", "institution,month", "--used", "--energy").stdout.splitlines()
    assert lines[0].split("  ")[0] == "INSTITUTION"
    for title in ("CPU-HOURS", "ATTEMPTS", "CPU USED", "GPU USED", "COST", "KWH", "KG CO2E"):
        assert title in lines[0]
    assert "UNITS" not in lines[0]
    assert lines[2].split() == [
        "bb", "2026-10", "2.000", "1.000", "3.000", "2", "50.0", "%", "0.0", "%", "33.3", "%",
        "1,234.56", "CNY", "1.500", "0.750",
    ]  # fmt: skip
    assert lines[-1].split()[:2] == ["TOTAL", "42.000"]
    assert server.asked.include_energy
    plain = run("usage", "show", "--no-costs").stdout
    assert "COST" not in plain
    assert not server.asked.include_energy


def test_without_a_price_list_there_is_no_cost(server: Server) -> None:
    server.currency = ""
    assert "COST" not in run("usage").stdout
    result = run("usage", "--costs")
    assert "COST" in result.stdout
    assert "no price list" in result.stderr


def test_the_greatest_first_and_only_some(server: Server) -> None:
    result = run("usage", "--sort", "cost", "--top", "2")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["bb", "aa", "TOTAL"]
    assert "2 of 3 rows are shown" in result.stderr
    assert [row["institution"] for row in json.loads(run("usage", "--sort", "gpu", "-o", "json").stdout)["rows"]] == [
        "bb", "cc", "aa",
    ]  # fmt: skip
    run("usage", "--sort", "moon", code=2)


def test_json_is_exact_and_goes_into_a_file_whole(server: Server, tmp_path: Path) -> None:
    data = json.loads(run("usage", "--by", "priority", "-o", "json").stdout)
    row = data["rows"][1]
    assert row["priority"] == "bb"
    assert row["cost_units"] == 123_456 * PER_MINOR + 1
    assert row["cost"] == "1234.5600000000"
    assert (data["currency"], data["currency_digits"], data["cost_units_per_minor"]) == ("CNY", 2, PER_MINOR)
    assert "energy_wh" not in row
    file = tmp_path / "usage.json"
    assert run("usage", "--by", "priority", "-o", "json", "--out", str(file)).stdout == ""
    assert json.loads(file.read_text()) == data
    run("usage", "--by", "priority", "-o", "yaml", "--out", str(file))
    assert yaml.safe_load(file.read_text()) == data
    assert [path.name for path in tmp_path.iterdir()] == ["usage.json"]


def test_csv_and_parquet_say_the_same_without_a_float(server: Server, tmp_path: Path) -> None:
    options = ("usage", "--by", "institution,period", "--used", "--energy")
    rows = list(csv.DictReader(io.StringIO(run(*options, "-o", "csv").stdout)))
    assert [row["institution"] for row in rows] == ["aa", "bb", "cc"]
    assert rows[1]["cost"] == "1234.5600000000"
    assert rows[1]["cost_units"] == str(123_456 * PER_MINOR + 1)
    assert (rows[1]["cpu_efficiency"], rows[0]["gpu_efficiency"], rows[0]["energy_kwh"]) == ("0.5000", "", "1.500500")
    file = tmp_path / "usage.parquet"
    run(*options, "-o", "parquet", "--out", str(file))
    table = pyarrow.parquet.read_table(file)
    assert not [each for each in table.schema if pyarrow.types.is_floating(each.type)]
    assert table.schema.field("cost").type == pyarrow.decimal128(38, 10)
    assert table.column_names == list(rows[0])
    for mine, theirs in zip(table.to_pylist(), rows, strict=True):
        for name, text in theirs.items():
            value = mine[name]
            expected = None if value is None else Decimal(text) if isinstance(value, Decimal) else type(value)(text)
            assert value == expected, name
    piped = run(*options, "-o", "parquet").stdout_bytes
    assert pyarrow.parquet.read_table(io.BytesIO(piped)).equals(table)


def test_bars_are_drawn_below_the_table_only(server: Server) -> None:
    lines = run("usage", "--chart").stdout.splitlines()
    assert lines[lines.index("COST") + 1].startswith("bb")
    assert "█" in lines[lines.index("COST") + 1]
    assert "█" not in lines[-1]
    assert "CPU" in run("usage", "--chart", "--sort", "cpu").stdout.splitlines()
    run("usage", "--chart", "-o", "json", code=2)
    run("usage", "--out", "x", code=2)


def test_the_ledger_as_it_always_was(server: Server) -> None:
    assert [one["sequence"] for one in json.loads(run("ledger", "--job", "j1", "-o", "json").stdout)] == [1, 2]
    assert server.asked.job_id == "j1"
    table = run("ledger", "-n", "3")
    assert len(table.stdout.splitlines()) == 4
    assert "reversal" in table.stdout
    assert "Only the oldest 3" in table.stderr
    found = json.loads(run("ledger", "list", "-o", "json").stdout)
    assert len(found) == 1000
    assert found[0]["hash"] == "ff00"


def test_all_of_the_ledger_as_a_file_over_a_break(server: Server, tmp_path: Path) -> None:
    server.fail_after = 2001
    rows = list(csv.DictReader(io.StringIO(run("ledger", "list", "-o", "csv").stdout)))
    assert [int(row["sequence"]) for row in rows] == list(range(1, RECORDS + 1))
    assert server.asked.after_sequence == 2000
    assert (rows[0]["kind"], rows[0]["cpu_milli"], rows[0]["reason"]) == ("REVERSAL", "-5", "'=cmd()")
    file = tmp_path / "ledger.parquet"
    run("ledger", "list", "-o", "parquet", "--out", str(file))
    table = pyarrow.parquet.read_table(file)
    assert table.num_rows == RECORDS
    first = table.slice(0, 1).to_pylist()[0]
    assert first["cost_units"] == Decimal("-12345678901234567890123")
    assert (first["reason"], first["hash"], first["preemptible"]) == ("=cmd()", "ff00", True)
    assert first["start_ms"].isoformat() == "2026-10-01T00:00:00+00:00"
    assert len(json.loads(run("ledger", "list", "-o", "json", "-n", "0").stdout)) == RECORDS


def test_an_export_is_there_when_it_is_whole(server: Server, tmp_path: Path) -> None:
    result = run("usage", "export", "--institution", "aa", "--from", "2026-10", "--to", "2026-11", "--out", "x.csv")
    assert (tmp_path / "x.csv").read_text() == "BilledCost\n1\n2\n"
    assert "2 rows" in result.stderr
    assert (server.asked.institution, server.asked.from_month, server.asked.to_month) == ("aa", "2026-10", "2026-11")
    assert server.asked.format == usage_pb2.EXPORT_FORMAT_FOCUS_CSV
    assert run("usage", "export").stdout == "BilledCost\n1\n2\n"
    run("usage", "export", "--from", "2026-13", code=2)
    failed = run("usage", "export", "--institution", "broken", "--out", "y.csv", code=1)
    assert "sums differ" in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
