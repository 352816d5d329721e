"""Files that describe a version of a data set, in YAML; docs/howto/data.md is their manual."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml

from protos.suanli.v1 import data_pb2
from suanli.amounts import mebibytes
from suanli.cli import exits, human
from suanli.cli.runtime import Failure
from suanli.errors import InvalidArgument

MAX_BYTES = 256 * 1024
LEVELS = {"public": 1, "internal": 2, "restricted": 3, "sensitive": 4}
ON_REVOKE = {"stop": data_pb2.ON_REVOKE_STOP, "finish": data_pb2.ON_REVOKE_FINISH}


def read_data_set(path: str) -> data_pb2.DataSet:
    """The data set that a file, or stdin for ``-``, describes. A ``Failure`` names what is wrong in it."""
    try:
        raw = sys.stdin.buffer.read(MAX_BYTES + 1) if path == "-" else _bytes_of(path)
        if len(raw) > MAX_BYTES:
            raise Failure(f"{path} has more than {MAX_BYTES:,} bytes.", exits.USAGE)
        document = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Failure(f"{path} is not YAML: {error}", exits.USAGE) from error
    found = data_pb2.DataSet()
    for name, value in _mapping(document, "the file").items():
        read = _FIELDS.get(name)
        if read is None:
            raise Failure(f"{name!r} is not known; the settings are {', '.join(_FIELDS)}.", exits.USAGE)
        try:
            read(found, name, value)
        except InvalidArgument as error:
            raise Failure(error.message, exits.USAGE) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise Failure(f"{name}: {value!r} cannot stand here.", exits.USAGE) from error
    return found


def _bytes_of(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Failure(f"{what}: give names with values, as in 'name: census'.", exits.USAGE)
    return value


def _plain(found: data_pb2.DataSet, name: str, value: object) -> None:
    # Versions such as 2024 and 1.0 are written without quotes.
    is_text = isinstance(getattr(found, name), str)
    setattr(found, name, str(value) if is_text and isinstance(value, (int, float)) and value is not True else value)


def _texts(found: data_pb2.DataSet, name: str, value: object) -> None:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Failure(f"{name}: give a list, as in [{name[0]}, {name[-1]}].", exits.USAGE)
    getattr(found, name).extend(value)


def _one_of(numbers: Mapping[str, int]) -> Callable[[data_pb2.DataSet, str, object], None]:
    def read(found: data_pb2.DataSet, name: str, value: object) -> None:
        number = numbers.get(str(value).lower())
        if number is None:
            raise Failure(f"{name}: {value!r} is none of {', '.join(numbers)}.", exits.USAGE)
        setattr(found, name, number)

    return read


def _size(found: data_pb2.DataSet, name: str, value: Any) -> None:
    found.size_mib = mebibytes(value, name)


def _schema(found: data_pb2.DataSet, name: str, value: object) -> None:
    found.schema_json = json.dumps(value, ensure_ascii=False)


def _retention(found: data_pb2.DataSet, name: str, value: object) -> None:
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    found.retention_until_ms = human.parse_instant(text, human.now_ms())


def _replicas(found: data_pb2.DataSet, name: str, value: object) -> None:
    for region, each in _mapping(value, name).items():
        copy = found.replicas[region]
        for key, given in _mapping(each, f"{name}.{region}").items():
            if key == "size":
                copy.size_mib = mebibytes(given, f"{name}.{region}.size")
            elif key in ("location", "checksum"):
                setattr(copy, key, given)
            else:
                raise Failure(f"{name}.{region}.{key} is not known; give location, size, checksum.", exits.USAGE)


_FIELDS: dict[str, Callable[[data_pb2.DataSet, str, Any], None]] = {
    **dict.fromkeys(("name", "version", "title", "institution", "steward"), _plain),
    "classification": _one_of(LEVELS),
    **dict.fromkeys(("personal", "minors", "deidentification", "listed", "home_region"), _plain),
    "allowed_regions": _texts,
    "purposes": _texts,
    "size": _size,
    "content_hash": _plain,
    "replicas": _replicas,
    "schema": _schema,
    "retention_until": _retention,
    "on_revoke": _one_of(ON_REVOKE),
}
