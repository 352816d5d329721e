"""Data sets: registering, finding, withdrawing, asking whether a job may use them, and what a job made of them."""

from __future__ import annotations

import json

import click

from protos.suanli.v1 import common_pb2, data_pb2, jobs_pb2
from suanli.cli import human
from suanli.cli.asking import confirm
from suanli.cli.data_file import read_data_set
from suanli.cli.exits import REFUSED
from suanli.cli.output import Column, Output, output_option, short_name
from suanli.cli.runtime import Link, connected, listed
from suanli.cli.values import Duration


def level_name(number: int) -> str:
    """ "sensitive"; empty for none."""
    return (short_name(data_pb2.Classification.DESCRIPTOR, number) or "").lower()


def reference(name: str) -> tuple[str, str]:
    """Name and version of "census@2024"; the version is empty for "census"."""
    first, _, version = name.partition("@")
    return first, version


def _regions(one: data_pb2.DataSet) -> str:
    regions = sorted(one.replicas) or sorted({one.home_region, *one.allowed_regions} - {""})
    return ", ".join(regions) or "any"


_COLUMNS: list[Column[data_pb2.DataSet]] = [
    Column("DATA SET", lambda d: f"{d.name}@{d.version}", whole=True),
    Column("TITLE", lambda d: d.title),
    Column("LEVEL", lambda d: level_name(d.classification), whole=True),
    Column("OWNER", lambda d: d.institution),
    Column("STEWARD", lambda d: d.steward, whole=True),
    Column("REGIONS", _regions),
    Column("SIZE", lambda d: human.size(d.size_mib << 20) if d.size_mib else "", right=True),
    Column("", lambda d: "withdrawn" if d.withdrawn_time_ms else ""),
]


@click.group()
def data() -> None:
    """Data sets: what there is, who may use it and where.

    docs/howto/data.md tells more.
    """


@data.command("put")
@click.argument("file", metavar="FILE")
@output_option
@connected
async def put_data(link: Link, file: str, out: Output) -> None:
    """Register a version of a data set that FILE (YAML; - for stdin) describes, or change its terms.

    \b
    suanli data put census.yaml
    """
    request = data_pb2.PutDataSetRequest(data_set=read_data_set(file))
    _sheet((await link.call("DataService/PutDataSet", request)).data_set, out)


@data.command("list")
@click.argument("name", default="", required=False)
@click.option("--all", "everything", is_flag=True, help="Also those that were withdrawn.")
@output_option
@connected
async def list_data(link: Link, name: str, everything: bool, out: Output) -> None:
    """List the data sets that you may know of, or the versions of one.

    \b
    suanli data list
    suanli data list census --all
    """
    request = data_pb2.ListDataSetsRequest(name=name, include_withdrawn=everything)
    found = await listed(link, "DataService/ListDataSets", request, "data_sets")
    out.listing(found, _COLUMNS, "There is no data set that you may know of.")


@data.command("show")
@click.argument("name", metavar="NAME[@VERSION]")
@output_option
@connected
async def show_data(link: Link, name: str, out: Output) -> None:
    """Show a data set: the newest version, or the one named.

    \b
    suanli data show census@2024
    """
    first, version = reference(name)
    request = data_pb2.GetDataSetRequest(name=first, version=version)
    _sheet((await link.call("DataService/GetDataSet", request)).data_set, out)


def _sheet(one: data_pb2.DataSet, out: Output) -> None:
    about = [word for word, yes in (("persons", one.personal), ("minors", one.minors)) if yes]
    revoke = (short_name(data_pb2.OnRevoke.DESCRIPTOR, one.on_revoke) or "").lower()
    lines = [
        ("Data set", f"{one.name}@{one.version}"),
        ("Title", one.title),
        ("Owner", one.institution),
        ("Steward", one.steward),
        ("Level", level_name(one.classification)),
        ("About", " and ".join(about)),
        ("De-identified", f"level {one.deidentification} of 3"),
        ("Regions", _regions(one)),
        ("Purposes", ", ".join(one.purposes) or "any"),
        ("Size", human.size(one.size_mib << 20) if one.size_mib else ""),
        ("Content", one.content_hash),
        *((f"In {region}", one.replicas[region].location) for region in sorted(one.replicas)),
        ("May be kept", f"until {human.instant(one.retention_until_ms)}" if one.retention_until_ms else ""),
        ("When a grant goes", f"running jobs {'are stopped' if revoke == 'stop' else 'finish'}"),
        ("Found by", "everybody" if one.listed or level_name(one.classification) == "public" else "owner and granted"),
        (
            "Withdrawn",
            f"{human.instant(one.withdrawn_time_ms)}: {one.withdrawn_reason}" if one.withdrawn_time_ms else "",
        ),
        ("By", f"{one.author}, {human.instant(one.create_time_ms)}"),
    ]
    out.sheet(one, lines)


@data.command("withdraw")
@click.argument("name", metavar="NAME@VERSION")
@click.option("--reason", required=True, help="Why; kept with the data set. At most 1,000 characters.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@connected
async def withdraw_data(link: Link, name: str, reason: str, yes: bool, out: Output) -> None:
    """End the use of a version for good: jobs that would use it are held, running ones stopped if it says so.

    \b
    suanli data withdraw census@2024 --reason "Consent was withdrawn." --yes
    """
    first, version = reference(name)
    if not version:
        raise click.UsageError("Say which version, as in census@2024.")
    confirm(f"Withdraw {name} for good?", yes)
    request = data_pb2.WithdrawDataSetRequest(name=first, version=version, reason=reason)
    _sheet((await link.call("DataService/WithdrawDataSet", request)).data_set, out)


@data.command("check")
@click.argument("names", nargs=-1, required=True, metavar="NAME[@VERSION]...")
@click.option("--purpose", default="", help="What for.")
@click.option("--institution", default="", help="Default: yours.")
@click.option("--project", default="", help="Default: default.")
@click.option("--only-region", "regions", multiple=True, help="Nowhere but here; may be repeated.")
@click.option("--max-runtime", "runtime_ms", type=Duration(), default=None, help="Of the job. [default: 1d]")
@output_option
@connected
async def check_data(
    link: Link,
    names: tuple[str, ...],
    purpose: str,
    institution: str,
    project: str,
    regions: tuple[str, ...],
    runtime_ms: int | None,
    out: Output,
) -> None:
    """Say whether a job could use data now, where, and everything that stands against it (then with exit code 6).

    \b
    suanli data check census --purpose thesis --max-runtime 2h
    """
    spec = jobs_pb2.JobSpec(
        command=jobs_pb2.Command(argv=["true"]),
        resources=common_pb2.Resources(cpu_milli=1, memory_mib=1),
        institution=institution,
        project=project,
        purpose=purpose,
        data_sets=names,
        required_regions=regions,
        max_runtime_ms=runtime_ms or 0,
    )
    answer = await link.call("DataService/CheckAccess", data_pb2.CheckAccessRequest(spec=spec))
    lines = [
        ("Allowed", "yes" if answer.allowed else "no"),
        *((reason.code, reason.message) for reason in answer.reasons),
        ("Grants", ", ".join(f"{name}: {answer.grants[name]}" for name in sorted(answer.grants))),
        ("Pools", ", ".join(answer.pools)),
        ("Outputs", level_name(answer.classification)),
    ]
    out.sheet(answer, lines)
    if not answer.allowed:
        click.get_current_context().exit(REFUSED)


@data.command("lineage")
@click.argument("job")
@click.option("--export", is_flag=True, help="Print OpenLineage run events, a line of JSON each.")
@output_option
@connected
async def show_lineage(link: Link, job: str, export: bool, out: Output) -> None:
    """Show what a job read and made.

    \b
    suanli data lineage JOB
    suanli data lineage JOB --export > events.ndjson
    """
    answer = await link.call("DataService/GetLineage", data_pb2.GetLineageRequest(job_id=job))
    if export:
        for event in json.loads(answer.events_json):
            click.echo(json.dumps(event, ensure_ascii=False))
        return
    lines = [
        ("Job", job),
        *(("Read", f"{each.name}@{each.version} {each.content_hash}".rstrip()) for each in answer.inputs),
        ("Algorithm", answer.algorithm),
        ("Made", answer.results),
        ("Level", level_name(answer.classification)),
    ]
    out.sheet(answer, lines)
