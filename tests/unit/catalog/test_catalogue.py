"""The catalogue: manifests, versions, parameters."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from scheduler.catalog.catalogue import Algorithm, Catalogue, load_catalogue
from scheduler.catalog.manifest import CatalogueError, load_manifest, load_schema
from scheduler.domain.errors import InvalidArgument
from tests.unit.catalog.stores import FolderStore

SHIPPED = Path(__file__).parents[3] / "algorithms"
FIELD = "jobs[2].algorithm"


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return load_catalogue(SHIPPED, FolderStore(tmp_path / "store"))


def test_the_shipped_catalogue_loads_and_is_published(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    algorithms = load_catalogue(SHIPPED, store).all()
    assert {"irt"} <= {a.manifest.name for a in algorithms}
    for algorithm in algorithms:
        assert "main.py" in {entry.path for entry in store.read_manifest(algorithm.folder)}


def test_defaults_are_filled_in_and_the_callers_values_kept(catalogue: Catalogue) -> None:
    resolved = catalogue.resolve("irt", "", '{"model": "rasch"}', FIELD)
    parameters = json.loads(resolved.parameters_json)
    assert parameters["model"] == "rasch"
    assert parameters["quadrature_points"] == 61
    assert resolved.argv == ("python", "main.py")
    assert resolved.max_runtime_ms == 3_600_000
    same = catalogue.resolve("irt", resolved.version, ' { "model" : "rasch" } ', FIELD)
    assert same == resolved


@pytest.mark.parametrize(
    ("name", "version", "parameters", "field", "words"),
    [
        ("itr", "", "", "name", "'irt'"),
        ("nothing-like-it", "", "", "name", "there are"),
        ("irt", "0.0.1", "", "version", "1.0.0"),
        ("irt", "", "{", "parameters_json", "not JSON"),
        ("irt", "", "[]", "parameters_json", "object"),
        ("irt", "", "[" * 60_000, "parameters_json", "not JSON"),
        ("irt", "", '{"tolerance": NaN}', "parameters_json", "NaN"),
        ("irt", "", '{"model": "1pl", "model": "2pl"}', "parameters_json", "twice"),
        ("irt", "", '{"dataset": "\\ud800"}', "parameters_json", "not JSON"),
        ("irt", "", '{"quadrature_points": 5}', "parameters_json", "$.quadrature_points"),
        ("irt", "", '{"items": ["a", 3]}', "parameters_json", "$.items[1]"),
        ("irt", "", '{"modell": "2pl"}', "parameters_json", "'model'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    catalogue: Catalogue, name: str, version: str, parameters: str, field: str, words: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        catalogue.resolve(name, version, parameters, FIELD)
    assert caught.value.field == f"{FIELD}.{field}"
    assert words in caught.value.message
    assert len(caught.value.message) < 600


def test_the_newest_version_is_taken(catalogue: Catalogue) -> None:
    irt = next(a for a in catalogue.all() if a.manifest.name == "irt")
    from dataclasses import replace

    versions = ["1.9.0", "2.0.0-rc.2", "1.10.0", "2.0.0-rc.10"]
    many = Catalogue(Algorithm(replace(irt.manifest, version=v), f"sha256:{v}") for v in versions)
    assert [a.manifest.version for a in many.all()] == ["1.9.0", "1.10.0", "2.0.0-rc.2", "2.0.0-rc.10"]
    final = Catalogue([*many.all(), Algorithm(replace(irt.manifest, version="2.0.0"), "sha256:final")])
    assert final.resolve("irt", "", "", FIELD).folder == "sha256:final"
    assert final.resolve("irt", "1.9.0", "", FIELD).folder == "sha256:1.9.0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "other"}, "$.name"),
        ({"version": "1"}, "$.version"),
        ({"surprise": 1}, "surprise"),
        ({"parameters": {"type": "object"}}, "$.parameters"),
        ({"max_runtime_s": 0}, "$.max_runtime_s"),
    ],
)
def test_a_faulty_manifest_is_refused_with_its_path(tmp_path: Path, change: dict[str, object], words: str) -> None:
    shutil.copytree(SHIPPED / "irt", tmp_path / "irt")
    shutil.copy(SHIPPED / "manifest.schema.json", tmp_path)
    path = tmp_path / "irt" / "manifest.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with pytest.raises(CatalogueError, match="irt") as caught:
        load_catalogue(tmp_path, FolderStore(tmp_path / "store"))
    assert words in str(caught.value)


def test_a_default_must_obey_its_own_schema(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "irt", tmp_path / "irt")
    path = tmp_path / "irt" / "manifest.yaml"
    document = yaml.safe_load(path.read_text())
    document["parameters"]["properties"]["quadrature_points"]["default"] = 1
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(CatalogueError, match="quadrature_points"):
        load_manifest(tmp_path / "irt", load_schema(SHIPPED))


@pytest.mark.parametrize("text", ["[", "just text", "\x00"])
def test_spoilt_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "irt").mkdir()
    (tmp_path / "irt" / "manifest.yaml").write_text(text)
    with pytest.raises(CatalogueError):
        load_manifest(tmp_path / "irt", load_schema(SHIPPED))
