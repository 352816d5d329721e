"""Every shipped algorithm keeps the contract that `algorithms/README.md` states."""

from __future__ import annotations

import ast
import copy
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

ALGORITHMS = Path(__file__).resolve().parents[3] / "algorithms"
SCHEMA = json.loads((ALGORITHMS / "manifest.schema.json").read_text(encoding="utf-8"))
FOLDERS = sorted(path.parent for path in ALGORITHMS.glob("*/manifest.yaml"))
IMPORT_NAMES = {"pyyaml": "yaml"}


def manifest_of(folder: Path) -> Any:
    return yaml.safe_load((folder / "manifest.yaml").read_text(encoding="utf-8"))


def accepted(manifest: object) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(manifest))


def test_the_catalogue_ships_the_three_first_algorithms() -> None:
    assert {"irt", "response-model", "school-effects"} <= {folder.name for folder in FOLDERS}


def test_the_schema_of_manifests_is_itself_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
class TestEach:
    def test_manifest_fits_the_schema_and_its_folder(self, folder: Path) -> None:
        manifest = manifest_of(folder)
        jsonschema.Draft202012Validator(SCHEMA).validate(manifest)
        assert manifest["name"] == folder.name
        assert (folder / manifest["entry"][1]).is_file()

    def test_parameters_are_a_schema_that_its_own_defaults_fit(self, folder: Path) -> None:
        schema = manifest_of(folder)["parameters"]
        jsonschema.Draft202012Validator.check_schema(schema)
        defaults = {name: each["default"] for name, each in schema["properties"].items()}
        jsonschema.Draft202012Validator(schema).validate(defaults)
        assert not jsonschema.Draft202012Validator(schema).is_valid(defaults | {"surprise": 1})

    def test_requirements_are_bounded_and_cover_the_imports(self, folder: Path) -> None:
        requirements = [Requirement(text) for text in manifest_of(folder)["requires"]]
        for each in requirements:
            assert {spec.operator for spec in each.specifier} == {">=", "<"}, each
        allowed = {IMPORT_NAMES.get(each.name.lower(), each.name.lower()) for each in requirements}
        allowed |= {path.stem for path in folder.glob("*.py")} | set(sys.stdlib_module_names)
        assert imports_of(folder) <= allowed

    def test_every_data_file_has_a_stated_source(self, folder: Path) -> None:
        source = (folder / "data" / "SOURCE.md").read_text(encoding="utf-8")
        files = [path for path in (folder / "data").iterdir() if path.name != "SOURCE.md"]
        assert files
        for path in files:
            assert path.name in source
            assert path.stat().st_size < 1024 * 1024

    def test_the_shared_module_is_the_same_everywhere(self, folder: Path) -> None:
        assert (folder / "job_io.py").read_bytes() == (FOLDERS[0] / "job_io.py").read_bytes()


def imports_of(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["version"], "1.0"),
        (["name"], "Bad Name"),
        (["entry"], []),
        (["resources", "cpu_milli"], 0.5),
        (["resources", "surprise"], 1),
        (["max_runtime_s"], 0),
        (["outputs", 0, "file"], "../escape.json"),
        (["parameters", "additionalProperties"], True),
        (["parameters", "properties", "epochs"], {"type": "integer", "default": 1, "description": "no bounds"}),
        (["parameters", "properties", "label"], {"type": "string", "default": "", "description": "no bound"}),
        (["parameters", "properties", "label"], {"type": "string", "maxLength": 9, "description": "no default"}),
    ],
)
def test_the_schema_refuses_a_manifest_with_a_fault(path: list[Any], value: object) -> None:
    manifest = manifest_of(ALGORITHMS / "irt")
    assert accepted(manifest)
    broken = copy.deepcopy(manifest)
    at = broken
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert not accepted(broken)


@pytest.mark.parametrize("field", SCHEMA["required"])
def test_the_schema_misses_no_field(field: str) -> None:
    manifest = manifest_of(ALGORITHMS / "irt")
    del manifest[field]
    assert not accepted(manifest)
