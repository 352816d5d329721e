"""The bill of materials: what the product needs is in it, what its developers need is not."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from tools import sbom


def test_the_bill_is_of_the_product(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bom.json"
    assert sbom.main(["--no-validate", "--output", str(path)]) == 0
    bill = json.loads(path.read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "suanli")
    found = {sbom.normal(one["name"]): one for one in bill["components"]}
    # Of the product, of what that needs in turn, of an extra; and the tools of its developers.
    assert {"grpcio", "sqlalchemy", "markdown-it-py", "psycopg", "psycopg-binary"} <= set(found)
    assert not {"pytest", "mypy", "hypothesis", "pip-audit", "cyclonedx-bom", "suanli"} & set(found)
    assert found["grpcio"]["purl"] == f"pkg:pypi/grpcio@{version('grpcio')}"
    refs = {one["bom-ref"] for one in bill["components"]} | {"root-component"}
    assert {one["ref"] for one in bill["dependencies"]} == refs
    for one in bill["dependencies"]:
        assert set(one.get("dependsOn", ())) <= refs
    assert set(found) == set(sbom.product())


def test_requirements_are_pinned(capsys: pytest.CaptureFixture[str]) -> None:
    assert sbom.main(["--requirements"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"grpcio=={version('grpcio')}" in lines
    assert len(lines) == len(sbom.product())
    assert not any("+" in line for line in lines)
