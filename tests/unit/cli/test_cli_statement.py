"""``suanli statement``: what is written where, and the check of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from protos.suanli.v1 import admin_pb2, statements_pb2
from suanli.cli import exits, human
from suanli.cli.runtime import Link
from tests.unit.cli.tools import invoke
from tests.unit.reports.samples import statement

STATEMENT = statement(title="华清师范大学")


@pytest.fixture(autouse=True)
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[statements_pb2.GetStatementRequest]:
    """Answers with one statement, in a folder of its own; these requests were made."""
    requests: list[statements_pb2.GetStatementRequest] = []

    async def call(link: Link, method: str, request: Any, **options: Any) -> Any:
        del link, options
        if method == "AdminService/WhoAmI":
            return admin_pb2.WhoAmIResponse(institution="hua-uni")
        assert method == "UsageService/GetStatement"
        requests.append(request)
        return STATEMENT

    monkeypatch.setattr(Link, "call", call)
    monkeypatch.chdir(tmp_path)
    return requests


def run(*arguments: str, code: int = 0, stdin: str = "") -> Any:
    result = invoke("--address", "127.0.0.1:1", "--api-key", "suanli_a_b", "statement", *arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    return result


def test_a_table_for_a_terminal_is_the_default(
    asked: list[statements_pb2.GetStatementRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(human, "now_ms", lambda: 1_767_225_600_000)  # 2026-01-01

    result = run("--lang", "zh", "--energy")

    assert "算力用量结算单 hua-uni-2026-10" in result.stdout
    assert "provisional" not in result.stderr
    assert asked == [statements_pb2.GetStatementRequest(institution="hua-uni", month="2025-12", include_energy=True)]


def test_each_form_goes_where_it_is_told(asked: list[statements_pb2.GetStatementRequest]) -> None:
    month = ("--institution", "x", "--month", "2026-10", "--format")
    assert run(*month, "csv").stdout_bytes.startswith(b"statement,status,institution,number,")
    assert run(*month, "html", "--out", "-").stdout.startswith("<!doctype html>")
    result = run(*month, "json", "--out", "it.json")
    assert (result.stdout, result.stderr) == ("", "Written to it.json.\n")
    assert json.loads(Path("it.json").read_text())["digest"] == STATEMENT.digest.hex()
    assert run(*month, "pdf").stderr == "Written to hua-uni-2026-10.pdf.\n"
    assert Path("hua-uni-2026-10.pdf").read_bytes().startswith(b"%PDF-")
    assert run(*month, "pdf", "--out", "-").stdout_bytes.startswith(b"%PDF-")
    assert {(each.institution, each.month) for each in asked} == {("x", "2026-10")}
    assert sorted(path.name for path in Path().iterdir()) == ["hua-uni-2026-10.pdf", "it.json"]


def test_a_month_that_is_none_is_refused() -> None:
    assert "write it as in 2026-10" in run("--month", "2026-13", code=exits.USAGE).stderr


def test_a_file_is_checked_by_itself() -> None:
    run("--month", "2026-10", "--format", "json", "--out", "it.json")

    result = run("verify", "it.json")
    assert f"{len(STATEMENT.lines)} lines, their total and the digest {STATEMENT.digest.hex()} agree" in result.stdout
    assert f"suanli ledger verify --head 4711:{STATEMENT.head_hash.hex()}" in result.stderr

    data = json.loads(Path("it.json").read_text())
    data["total_minor"] += 1
    result = run("verify", "-", stdin=json.dumps(data), code=exits.FAILED)
    assert "hua-uni-2026-10: the total is not the sum of the lines" in result.stdout
    assert "was changed after it was issued" in result.stderr

    Path("other.json").write_bytes(b"\xff{}")
    for name in ("other.json", "-"):
        assert "is not a statement" in run("verify", name, stdin="[1]", code=exits.USAGE).stderr
