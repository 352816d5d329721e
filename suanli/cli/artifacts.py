"""What is kept in the artifact store: listing, deleting, and how much of it there is."""

from __future__ import annotations

from typing import Any

import click

from protos.suanli.v1 import artifacts_pb2
from suanli.artifact_choice import KINDS, ArtifactChoice
from suanli.cli import human
from suanli.cli.asking import confirm
from suanli.cli.output import Column, Output, output_option, short_name
from suanli.cli.runtime import Link, connected, listed, who_am_i
from suanli.cli.values import Duration


def kind_name(number: int) -> str:
    """ "result"; empty for none."""
    return (short_name(artifacts_pb2.ArtifactKind.DESCRIPTOR, number) or "").lower()


def _of(one: artifacts_pb2.Artifact) -> str:
    return f"{one.job_id} attempt {one.attempt}" if one.attempt else one.job_id


def _size(one: artifacts_pb2.Artifact) -> str:
    return human.size(one.size_bytes) if one.size_bytes >= 0 else "…"


_COLUMNS: list[Column[artifacts_pb2.Artifact]] = [
    Column("KIND", lambda a: kind_name(a.kind), whole=True),
    Column("JOB", _of, whole=True),
    Column("PROJECT", lambda a: a.project),
    Column("USER", lambda a: a.user),
    Column("SIZE", _size, right=True),
    Column("AGE", lambda a: human.age(a.store_time_ms, human.now_ms()), right=True),
    Column("DIGEST", lambda a: a.digest),
]
_STORAGE: list[Column[artifacts_pb2.Storage]] = [
    Column("HELD BY", lambda s: f"{s.institution}/{s.project}" if s.project else s.institution, whole=True),
    Column("ITEMS", lambda s: f"{s.items:,}", right=True),
    Column("STORED", lambda s: human.size(s.size_bytes), right=True),
    Column("QUOTA", lambda s: "no limit" if s.limit_mib < 0 else human.memory(s.limit_mib), right=True),
]


def _choosing(command: Any) -> Any:
    """The options that say which are meant."""
    for option in (
        click.option(
            "--older-than", "older_ms", type=Duration(), default=None, help="Stored so long ago or longer, as in 30d."
        ),
        click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, help="May be repeated."),
        click.option("--job", "jobs", multiple=True, metavar="JOB", help="Left by this job or array; may be repeated."),
        click.option("--user", default="", help="Of this user."),
        click.option("--project", default="", help="Of this project."),
        click.option("--institution", default="", help="Default: yours."),
    ):
        command = option(command)
    return command


def _choice(
    institution: str,
    project: str,
    user: str,
    jobs: tuple[str, ...],
    kinds: tuple[str, ...],
    older_ms: int | None,
    digests: tuple[str, ...] = (),
) -> ArtifactChoice:
    return ArtifactChoice(
        institution=institution,
        project=project,
        user=user,
        kinds=kinds,
        job_ids=jobs,
        digests=digests,
        stored_before_ms=0 if older_ms is None else max(1, human.now_ms() - older_ms),
    )


@click.group()
def artifacts() -> None:
    """What is kept in the artifact store: uploads, and the results, checkpoints and logs of jobs.

    docs/howto/artifacts.md tells more.
    """


@artifacts.command("list")
@_choosing
@click.option("--sort", type=click.Choice(["age", "size"]), default="age", help="Newest, or largest, first.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many.")
@output_option
@connected
async def list_artifacts(link: Link, /, sort: str, limit: int, out: Output, **chosen: Any) -> None:
    """List what is kept: your own, or, as your role allows, that of your projects or your institution.

    \b
    suanli artifacts list --sort size --limit 20
    suanli artifacts list --kind result --older-than 90d -o json
    """
    choice = await _mine(link, _choice(**chosen))
    found = [one async for one in link.client.artifacts(largest_first=sort == "size", limit=limit, **choice)]
    out.listing(found, _COLUMNS, "Nothing is kept that you may see.")


@artifacts.command("delete")
@click.argument("digests", nargs=-1, metavar="[DIGEST]...")
@_choosing
@click.option("--reason", default="", help="For the audit log; at most 1,000 characters.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@connected
async def delete_artifacts(
    link: Link, /, digests: tuple[str, ...], reason: str, dry_run: bool, yes: bool, out: Output, **chosen: Any
) -> None:
    """Delete what is kept: by digest, job, kind or age. What unfinished jobs need stays.

    \b
    suanli artifacts delete --job JOB --dry-run
    suanli artifacts delete --kind log --kind checkpoint --older-than 30d --yes
    """
    if not (digests or chosen["jobs"] or chosen["kinds"] or chosen["older_ms"] is not None):
        raise click.UsageError("Say what to delete: digests, --job, --kind or --older-than.")
    choice = await _mine(link, _choice(**chosen, digests=digests))
    would = await link.client.delete_artifacts(dry_run=True, **choice)
    what = f"{would.items:,} {'thing' if would.items == 1 else 'things'}, {human.size(would.size_bytes)}"
    if dry_run or not would.items:
        _tell(out, would._asdict() | {"dry_run": dry_run}, f"{what} would be deleted.", would.kept)
        return
    confirm(f"Delete {what}, for good?", yes)
    done = await link.client.delete_artifacts(reason=reason, **choice)
    _tell(
        out,
        done._asdict() | {"dry_run": False},
        f"Deleted {done.items:,}, {human.size(done.size_bytes)} are free.",
        done.kept,
    )


def _tell(out: Output, data: dict[str, Any], sentence: str, kept: int) -> None:
    if out.form == "table":
        out.note(sentence)
        if kept:
            out.note(f"{kept:,} stay: unfinished jobs need them.")
    else:
        out.data(data)


@artifacts.command("usage")
@click.option("--institution", default="", help="Of this institution. Default: all that you may see.")
@output_option
@connected
async def show_usage(link: Link, institution: str, out: Output) -> None:
    """Show how much is kept, by institution and project, beside the quotas on it.

    \b
    suanli artifacts usage
    """
    request = artifacts_pb2.GetStorageRequest(institution=institution)
    found = await listed(link, "ArtifactService/GetStorage", request, "storage")
    out.listing(found, _STORAGE, "Nothing is kept.")


async def _mine(link: Link, choice: ArtifactChoice) -> ArtifactChoice:
    """The choice, of the profile's institution where it names none and the caller belongs to none."""
    if not choice["institution"] and not choice["job_ids"] and link.client.settings.institution:
        institution = (await who_am_i(link)).institution or link.client.settings.institution
        return {**choice, "institution": institution}
    return choice
