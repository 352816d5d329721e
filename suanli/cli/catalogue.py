"""The catalogue of algorithms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from protos.suanli.v1 import jobs_pb2
from suanli.cli import human
from suanli.cli.exits import NOT_FOUND
from suanli.cli.output import Column, Output, output_option, to_data
from suanli.cli.runtime import Failure, Link, connected

_COLUMNS: list[Column[jobs_pb2.Algorithm]] = [
    Column("ALGORITHM", lambda a: a.name, whole=True),
    Column("VERSION", lambda a: a.version),
    Column("TITLE", lambda a: a.title),
    Column("PER REPLICA", lambda a: human.resources(a.resources)),
    Column("REPLICAS", lambda a: str(a.replicas), right=True),
]
_PARAMETER_COLUMNS: list[Column[tuple[str, dict[str, Any]]]] = [
    Column("PARAMETER", lambda p: p[0], whole=True),
    Column("TYPE", lambda p: _type(p[1])),
    Column("DEFAULT", lambda p: json.dumps(p[1]["default"], ensure_ascii=False) if "default" in p[1] else "(required)"),
    Column("MEANING", lambda p: str(p[1].get("description", ""))),
]


@click.group()
def algorithms() -> None:
    """The catalogue of algorithms: list them, and show one with its parameters."""


@algorithms.command("list")
@output_option
@connected
async def list_algorithms(link: Link, out: Output) -> None:
    """List the algorithms of the catalogue."""
    found = await _all(link)
    if out.form == "table":
        out.table(found, _COLUMNS, "The catalogue is empty.")
    else:
        out.data([_data(one) for one in found])


@algorithms.command("show")
@click.argument("name")
@output_option
@connected
async def show_algorithm(link: Link, name: str, out: Output) -> None:
    """Show an algorithm: what it does, its parameters and what it writes."""
    found = [one for one in await _all(link) if one.name == name]
    if not found:
        raise Failure(f"There is no algorithm {name!r}; 'suanli algorithms list' shows them.", NOT_FOUND)
    one = found[-1]
    if out.form != "table":
        out.data(_data(one))
        return
    out.lines(_sheet(one))
    parameters = _schema(one).get("properties", {})
    if parameters:
        out.text("")
        out.table(list(parameters.items()), _PARAMETER_COLUMNS, "")
    out.text(f"\nRun it: suanli submit --algorithm {one.name} -p NAME=VALUE --wait")


async def _all(link: Link) -> list[jobs_pb2.Algorithm]:
    request = jobs_pb2.ListAlgorithmsRequest()
    response = await link.call("JobService/ListAlgorithms", request)
    return list(response.algorithms)


def _sheet(one: jobs_pb2.Algorithm) -> Iterator[tuple[str, str]]:
    yield "Algorithm", f"{one.name} {one.version}"
    yield "Title", one.title
    yield "Summary", " ".join(one.summary.split())
    yield "Licence", one.licence
    yield "Per replica", human.resources(one.resources)
    yield "Replicas", str(one.replicas)
    yield "Writes", "\n".join(f"{name}: {one.outputs[name]}" for name in sorted(one.outputs))


def _schema(one: jobs_pb2.Algorithm) -> dict[str, Any]:
    try:
        schema = json.loads(one.parameters_schema_json or "{}")
    except ValueError:
        return {}
    return schema if isinstance(schema, dict) else {}


def _data(one: jobs_pb2.Algorithm) -> dict[str, Any]:
    data = to_data(one)
    del data["parameters_schema_json"]
    return {**data, "parameters_schema": _schema(one)}


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    kind = schema.get("type", "")
    return " | ".join(kind) if isinstance(kind, list) else str(kind)
