"""An algorithm's manifest: reading and checking it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from scheduler.domain.resources import Resources

MANIFEST = "manifest.yaml"
SCHEMA = "manifest.schema.json"
MAX_MANIFEST_BYTES = 256 * 1024


class CatalogueError(Exception):
    """A folder of the catalogue is not what it should be; the message names it and says what is wrong."""


@dataclass(frozen=True)
class Manifest:
    """What an algorithm says of itself. ``parameters`` is the JSON Schema of its parameters; ``outputs`` file to meaning."""

    name: str
    version: str
    title: str
    summary: str
    licence: str
    argv: tuple[str, ...]
    max_runtime_ms: int
    resources: Resources
    replicas: int
    parameters: Mapping[str, Any]
    outputs: Mapping[str, str]


def load_schema(folder: Path) -> jsonschema.Draft202012Validator:
    """The validator of manifests that the catalogue in ``folder`` brings with it."""
    path = folder / SCHEMA
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator.check_schema(schema)
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        raise CatalogueError(f"{path}: not a readable JSON Schema: {_first_line(error)}") from error
    return jsonschema.Draft202012Validator(schema)


def load_manifest(folder: Path, schema: jsonschema.Draft202012Validator) -> Manifest:
    """Read and check the manifest of one algorithm's folder."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise CatalogueError(f"{path}: larger than {MAX_MANIFEST_BYTES:,} bytes")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CatalogueError(f"{path}: not readable YAML: {_first_line(error)}") from error
    fault = next(iter(sorted(schema.iter_errors(document), key=lambda e: (len(e.path), e.json_path))), None)
    if fault is not None:
        raise CatalogueError(f"{path}: {fault.json_path}: {_first_line(fault.message)}")
    if document["name"] != folder.name:
        raise CatalogueError(f"{path}: $.name: is {document['name']!r} in a folder called {folder.name!r}")
    _check_parameters(document["parameters"], path)
    return _manifest(document)


def _check_parameters(schema: Mapping[str, Any], path: Path) -> None:
    """The parameters' schema is one, and every default obeys it."""
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise CatalogueError(f"{path}: $.parameters: not a JSON Schema: {_first_line(error.message)}") from error
    for name, property_schema in schema["properties"].items():
        fault = next(
            iter(jsonschema.Draft202012Validator(property_schema).iter_errors(property_schema["default"])), None
        )
        if fault is not None:
            raise CatalogueError(f"{path}: $.parameters.properties.{name}.default: {_first_line(fault.message)}")


def _manifest(document: Mapping[str, Any]) -> Manifest:
    resources = document["resources"]
    return Manifest(
        name=document["name"],
        version=document["version"],
        title=document["title"],
        summary=document["summary"],
        licence=document["licence"],
        argv=tuple(document["entry"]),
        max_runtime_ms=document["max_runtime_s"] * 1000,
        resources=Resources(resources["cpu_milli"], resources["memory_mib"], resources["gpu_milli"]),
        replicas=resources["replicas"],
        parameters=document["parameters"],
        outputs={output["file"]: output["meaning"] for output in document["outputs"]},
    )


def _first_line(error: object) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]
