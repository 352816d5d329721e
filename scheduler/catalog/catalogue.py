"""The algorithms a job may name, and what a job that names one runs."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from scheduler.catalog.artifacts import ArtifactStore
from scheduler.catalog.manifest import MANIFEST, Manifest, load_manifest, load_schema
from scheduler.catalog.resolve import ResolvedAlgorithm
from scheduler.domain.errors import InvalidArgument

_MAX_SHOWN = 200


@dataclass(frozen=True)
class Algorithm:
    """A manifest with the digest of its folder in the artifact store."""

    manifest: Manifest
    folder: str


class Catalogue:
    """Algorithms by name and version. Fixed once made."""

    def __init__(self, algorithms: Iterable[Algorithm] = ()) -> None:
        self._versions: dict[str, list[Algorithm]] = {}
        for algorithm in algorithms:
            self._versions.setdefault(algorithm.manifest.name, []).append(algorithm)
        for versions in self._versions.values():
            versions.sort(key=lambda a: _version_key(a.manifest.version))
        self._validators = {
            (a.manifest.name, a.manifest.version): jsonschema.Draft202012Validator(a.manifest.parameters)
            for a in self.all()
        }

    def all(self) -> list[Algorithm]:
        """Every algorithm, by name and then from the oldest version to the newest."""
        return [algorithm for name in sorted(self._versions) for algorithm in self._versions[name]]

    def resolve(self, name: str, version: str, parameters_json: str, field: str) -> ResolvedAlgorithm:
        """What a run of the algorithm is: its newest version when ``version`` is empty, all parameters checked and filled in.

        Raises ``InvalidArgument`` naming ``<field>.name``, ``.version`` or ``.parameters_json`` (with the JSON path inside).
        """
        algorithm = self._find(name, version, field)
        manifest = algorithm.manifest
        parameters = _parse(parameters_json, f"{field}.parameters_json")
        filled = {key: schema["default"] for key, schema in manifest.parameters["properties"].items()} | parameters
        _check(self._validators[manifest.name, manifest.version], filled, manifest, f"{field}.parameters_json")
        return ResolvedAlgorithm(
            name=manifest.name,
            version=manifest.version,
            argv=manifest.argv,
            folder=algorithm.folder,
            parameters_json=json.dumps(filled, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
            resources=manifest.resources,
            replicas=manifest.replicas,
            max_runtime_ms=manifest.max_runtime_ms,
        )

    def _find(self, name: str, version: str, field: str) -> Algorithm:
        versions = self._versions.get(name)
        if versions is None:
            known = sorted(self._versions)
            hint = difflib.get_close_matches(name[:64], known, 1, 0.5)
            advice = f"did you mean {hint[0]!r}?" if hint else f"there are: {', '.join(known[:20]) or 'none'}."
            raise _invalid(f"{field}.name", f"the catalogue has no algorithm {name[:64]!r}; {advice}")
        if not version:
            return versions[-1]
        for algorithm in versions:
            if algorithm.manifest.version == version:
                return algorithm
        there = ", ".join(a.manifest.version for a in versions[-10:])
        raise _invalid(f"{field}.version", f"there is no version {version[:64]!r} of {name!r}; there are: {there}.")


def load_catalogue(folder: Path, artifacts: ArtifactStore) -> Catalogue:
    """Read every algorithm below ``folder``, and put each one's files into the artifact store.

    Blocks. Raises ``CatalogueError`` when one is not in order: a catalogue is served whole or not at all.
    """
    schema = load_schema(folder)
    folders = sorted(path for path in folder.iterdir() if (path / MANIFEST).is_file())
    manifests = [(path, load_manifest(path, schema)) for path in folders]
    return Catalogue(Algorithm(manifest, artifacts.put_folder(path)) for path, manifest in manifests)


def _parse(parameters_json: str, field: str) -> dict[str, Any]:
    if not parameters_json:
        return {}
    try:
        value = json.loads(parameters_json, parse_constant=_no_constant, object_pairs_hook=_unique)
        # An escape such as \\ud800 gives half a character, which no UTF-8 can hold.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise _invalid(field, f"not JSON: {reason[:_MAX_SHOWN]}.") from error
    if not isinstance(value, dict):
        raise _invalid(field, 'give a JSON object, as in {"model": "2pl"}.')
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object names the same key twice")
    return value


def _check(
    validator: jsonschema.Draft202012Validator, parameters: Mapping[str, Any], manifest: Manifest, field: str
) -> None:
    fault = next(iter(sorted(validator.iter_errors(parameters), key=lambda e: e.json_path)), None)
    if fault is None:
        return
    sentence = f"at {fault.json_path}: {fault.message[:_MAX_SHOWN]}."
    if fault.validator == "additionalProperties":
        unknown = sorted(parameters.keys() - manifest.parameters["properties"].keys())[0]
        hint = difflib.get_close_matches(unknown[:64], manifest.parameters["properties"], 1, 0.5)
        sentence = f"at $.{unknown[:64]}: {manifest.name} has no such parameter" + (
            f"; did you mean {hint[0]!r}?" if hint else "; `suanli algorithms` lists those it has."
        )
    raise InvalidArgument(f"{field}: {sentence}", field=field, metadata={"json_path": fault.json_path})


def _invalid(field: str, sentence: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {sentence}", field=field)


def _version_key(version: str) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]:
    """Orders semantic versions: a pre-release goes before its release, numbers in it count as numbers."""
    release, _, pre = version.partition("-")
    parts = tuple((not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in re.split(r"\.", pre)) if pre else ()
    return tuple(int(part) for part in release.split(".")), not pre, parts
