"""Write the generated pages of ``docs/reference`` from the sources: configuration, metrics, permissions, errors, protocol.

    python -m tools.reference           write the pages
    python -m tools.reference --check   write nothing; exit 1 and name the pages that are not up to date

The page of the command line has a generator of its own, ``suanli.cli.reference``.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import itertools
import re
import sys
import typing
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import scheduler.api.tls
import scheduler.config
import scheduler.identity.issuers
import workers.config
from scheduler.api import errors as wire_errors
from scheduler.api.metrics import Metrics, gauge_families
from scheduler.api.permissions import (
    PERMISSIONS,
    PLATFORM_AUDIT,
    PLATFORM_FINANCE,
    PLATFORM_STEWARD,
    PUBLIC,
    Role,
    Scope,
)
from scheduler.api.tls import Tls
from scheduler.api.usage_metrics import budget_families, usage_families
from scheduler.config import Config
from scheduler.governance import limits
from scheduler.identity.issuers import Claims, Issuer
from scheduler.metering import names
from scheduler.metering.prices import PriceBook, PriceList
from scheduler.service.audit_trail import AuditVerified
from scheduler.service.contract import Gauges, Metered, Verified
from tools import reference_protocol
from tools.markdown import NOTE, cell, table

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = REPOSITORY / "docs" / "reference"


# --- configuration ------------------------------------------------------------------------------------------------

_CONFIGURATION = """
Both processes read one YAML file. A key that is not known, or a value out of range, ends the start with exit status 2 and a
sentence that names the key.

## Control plane

`suanli server --config server.yaml`. Relative paths count from the file's folder.
"""
_TLS_HEAD = """
### tls

Needed for any `listen` but the loopback. See [TLS](../howto/tls.md).

"""
_LIMITS_HEAD = """
### limits

What one caller, and all callers of one institution, may take up of the server; 0 anywhere is no limit. Whoever meets one gets
`RESOURCE_EXHAUSTED` with the reason `RATE_LIMITED` and, where it helps to wait, a `google.rpc.RetryInfo` that says how long; the metric
`suanli_rpc_limited_total` counts it. Agents are not limited, and users of no institution only each by themselves.

"""
_OIDC_HEAD = """
### oidc

`oidc.issuers` is a list; each issuer has these keys. See [identity](../howto/identity.md).

"""
_AGENT_HEAD = """
## Region agent

`suanli agent --config agent.yaml`. Only `region` is required; relative paths count from the file's folder. The process must
run on a machine of the region's Ray cluster, with that cluster's token in its environment (`RAY_AUTH_MODE`,
`RAY_AUTH_TOKEN_PATH`). See [add a region](../howto/add-a-region.md).

"""


def configuration() -> str:
    """The keys of both configuration files."""
    comments = attribute_comments(Path(scheduler.config.__file__), "Config")
    rows = [setting_row(field, comments.get(field.name, "")) for field in dataclasses.fields(Config)]
    tls_comments = attribute_comments(Path(scheduler.api.tls.__file__), "Tls")
    tls = [tls_row(field, tls_comments[field.name]) for field in dataclasses.fields(Tls)]
    meanings = attribute_comments(Path(limits.__file__), "Limits")
    most = [
        (f"`limits.{field.name}`", f"`{field.default:,}`", cell(meanings[field.name]))
        for field in dataclasses.fields(limits.Limits)
    ]
    agent = [(f"`{key}`", cell(text)) for key, text in docstring_table(workers.config.__doc__ or "")]
    return "".join(
        [
            f"# Configuration\n\n{NOTE}{_CONFIGURATION}\n",
            table(("key", "default", "meaning"), rows),
            _TLS_HEAD,
            table(("key", "default", "meaning"), tls),
            f"\n{cell(Tls.__doc__ or '')}\n",
            _LIMITS_HEAD,
            table(("key", "default", "meaning"), most),
            _OIDC_HEAD,
            table(("key", "default", "meaning"), issuer_rows()),
            _AGENT_HEAD,
            table(("key", "meaning and default"), agent),
        ]
    )


def issuer_rows() -> list[tuple[str, str, str]]:
    """The rows of an issuer's settings, those of its claims among them."""
    source = Path(scheduler.identity.issuers.__file__)
    rows = []
    for kind, prefix in ((Issuer, ""), (Claims, "claims.")):
        comments = attribute_comments(source, kind.__name__)
        for field in dataclasses.fields(kind):
            if field.type != "Claims":
                name, default, text = setting_row(field, comments.get(field.name, ""))
                rows.append((f"`{prefix}{name.strip('`')}`", default, text))
    return rows


def tls_row(field: dataclasses.Field[typing.Any], comment: str) -> tuple[str, str, str]:
    """The row of one of the settings below ``tls``."""
    key, default, meaning = setting_row(field, comment)
    return f"`tls.{key.strip('`')}`", default, meaning


def required(field: dataclasses.Field[typing.Any]) -> bool:
    """Whether a setting has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def setting_row(field: dataclasses.Field[typing.Any], comment: str) -> tuple[str, str, str]:
    """The row of one of the server's settings."""
    value = field.default
    if required(field):
        default = "required"
    elif value is dataclasses.MISSING:
        default = "those below"
    elif isinstance(value, Path):
        default = "the shipped ones"
    elif isinstance(value, bool):
        default = str(value).lower()
    elif isinstance(value, tuple) and value:
        default = "`[" + ", ".join(value) + "]`"
    elif not isinstance(value, int | str) or value == "":
        default = "none"
    elif isinstance(value, bool):
        default = f"`{str(value).lower()}`"
    else:
        default = f"`{value:_}`".replace("_", ",") if isinstance(value, int) else f"`{value}`"
    return f"`{field.name}`", default, cell(comment)


def attribute_comments(path: Path, name: str) -> dict[str, str]:
    """The texts that stand below the attributes of a class."""
    tree = ast.parse(path.read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {}
    for before, node in itertools.pairwise(body):
        match before, node:
            case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                found[key] = text
    return found


def docstring_table(text: str) -> list[tuple[str, str]]:
    """The rows of the table in a docstring that is ruled with ``=``; a row may go on in the next line."""
    rows: list[tuple[str, str]] = []
    inside = text.split("\n====", 1)[1].split("\n====", 1)[0].splitlines()[1:]
    for line in inside:
        key, gap, meaning = line.partition("  ")
        if key.strip():
            rows.append((key.strip(), (gap + meaning).strip()))
        else:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}")
    return rows


# --- metrics ------------------------------------------------------------------------------------------------------

_METRICS = """
`GET /metrics` at the address `metrics_listen` (default `127.0.0.1:9464`), in the text form of Prometheus. It needs no key: keep
the address inside. `/healthz` answers 200 while the process is sound, `/readyz` 200 while it leads and 503 while it is a standby.

A standby shows only what it has measured itself. `suanli_usage_…` are counters computed from the ledger's sums at every scrape:
they are the same after a restart, and series of zero stand there before the first use. Nothing is labelled by job or user.
`resource` is `cpu_milli`, `memory_mib` or `gpu_milli`. [Dashboards](../howto/dashboards.md) and
[alerts](../howto/alerts.md) are built on them.

"""


def metrics() -> str:
    """Every metric with its kind, labels and meaning, as the live collector describes them."""
    registry = Metrics().registry
    # A family without samples does not tell its labels in public.
    made = {collector._name: collector for collector in registry._collector_to_names if hasattr(collector, "_name")}
    families = {family.name: family for family in registry.collect()}
    nothing = Gauges({}, [], [], [], 0, 0, 0, audit_verified=AuditVerified(0, 0))
    prices = PriceBook([PriceList(1, "", "CNY", 2, 0)])
    metered = Metered([], 0, [], prices, Verified(0, 0, 0))
    shown = [*usage_families(metered, nothing, []), *budget_families([]), *gauge_families(nothing)]
    families |= {family.name: family for family in shown}
    rows = []
    for name in sorted(metric_names()):
        short = name.removesuffix("_total")
        labels = getattr(made.get(short, families[short]), "_labelnames", ())
        marks = ", ".join(f"`{label}`" for label in labels) or "none"
        rows.append((f"`{name}`", families[short].type, marks, cell(families[short].documentation)))
    return f"# Metrics\n\n{NOTE}{_METRICS}{table(('name', 'kind', 'labels', 'meaning'), rows)}"


def metric_names() -> list[str]:
    """All names of ``scheduler.metering.names``."""
    return [value for value in vars(names).values() if isinstance(value, str) and value.startswith("suanli_")]


# --- permissions --------------------------------------------------------------------------------------------------

_PERMISSIONS = """
A key belongs to a user, and its role and institution are the user's. Each call is checked against this one table
(`scheduler/api/permissions.py`); a call without a row is refused. What lies outside a caller's scope is as if it were not there.

| scope | on whose things |
| --- | --- |
| own | the caller's own |
| project | the caller's own, and those of the projects the caller leads |
| institution | those of the caller's institution; a caller of no institution may not |
| any | everybody's |
| – | the call is refused with `ROLE_NOT_ALLOWED` |

Health and reflection need no key. Lists and watches leave out what the scope does not cover.
"""


def permissions() -> str:
    """Who may call what, one table for each service."""
    parts = [f"# Permissions\n\n{NOTE}{_PERMISSIONS}"]
    heads = ("call", *(role.name.lower().replace("_", " ") for role in Role))
    services: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for method, row in {**PERMISSIONS, **dict.fromkeys(sorted(PUBLIC), None)}.items():
        service, _, call = method.rpartition("/")
        if row is None:
            scopes = ["no key needed"] * len(Role)
        else:
            scopes = [scope_word(method, role, row.get(role)) for role in Role]
        services[service].append((f"`{call}`", *scopes))
    for service, rows in services.items():
        parts.append(f"\n## {service.rpartition('.')[2]}\n\n{table(heads, rows)}")
    parts.append(
        "\n¹ A finance officer of no institution is the platform's: for any institution here, prices included.\n"
        "² An auditor of no institution is the platform's: whatever an institution's reads, of everyone, and this.\n\n"
        "³ A steward of no institution is the platform's: for any institution here.\n"
    )
    return "".join(parts)


def scope_word(method: str, role: Role, scope: Scope | None) -> str:
    """How a scope is written in the table."""
    word = "–" if scope is None else scope.name.lower()
    if role is Role.AUDITOR and method in PLATFORM_AUDIT:
        return f"{word}²"
    if role is Role.STEWARD and method in PLATFORM_STEWARD:
        return f"{word}³"
    return f"{word}¹" if role is Role.FINANCE and method in PLATFORM_FINANCE else word


# --- errors -------------------------------------------------------------------------------------------------------

_ERRORS = """
A call that fails gives a gRPC status, a sentence for people, and a `google.rpc.ErrorInfo` for programs: domain `suanli`, a `reason`
from this page, and in `metadata` the `field` of the request where one is at fault. Match on the reason, never on the sentence.
The reason may also be the name of the status itself (`INVALID_ARGUMENT`, `NOT_FOUND`, …) where nothing more particular is to be said;
`INVALID_ARGUMENT` with a `field` is the answer to every value out of its bounds. Repeat a call that gave `UNAVAILABLE`; a submission
with a `request_id` may be repeated after any failure.

In the sentences `…` stands for what is filled in.
"""
_CLIENT_HEAD = """
## Raised by the SDK and the command line

These never travel: they are found on the caller's side (`suanli.errors`).

"""
Raised = tuple[str, str, str]


def raised(folders: typing.Iterable[Path]) -> dict[tuple[str, str], set[str]]:
    """(reason, name of the error's class) -> sentences, of every call with a constant ``reason=`` below the folders."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Name):
                    for keyword in node.keywords:
                        reason = constant(keyword.value) if keyword.arg == "reason" else ""
                        if reason:
                            found[reason, node.func.id] |= set(sentences(node.args[0]))
    return found


def constant(node: ast.expr) -> str:
    """The text a constant holds, else an empty one."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def sentences(node: ast.expr) -> Iterator[str]:
    """The sentences an expression may stand for, with … where a value goes in; none for what is made elsewhere."""
    if isinstance(node, ast.IfExp):
        yield from (*sentences(node.body), *sentences(node.orelse))
    elif isinstance(node, ast.Constant):
        yield constant(node)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(constant(part) or "…" for part in node.values)


def error_pages() -> str:
    """Every reason with its status and sentences."""
    statuses = {kind.__name__: code.name for kind, code in wire_errors.CODES.items()}
    # The in-memory store is for tests.
    server = {
        key: texts for key, texts in raised([REPOSITORY / "scheduler"]).items() if key[1] in statuses and texts != {""}
    }
    rows = [(f"`{reason}`", f"`{statuses[kind]}`", said(texts)) for (reason, kind), texts in sorted(server.items())]
    generic = [
        (f"`{kind.default_reason}`", f"`{code.name}`", cell(kind.__doc__ or ""))
        for kind, code in wire_errors.CODES.items()
    ]
    client = raised([REPOSITORY / "suanli"])
    client_rows = [(f"`{reason}`", f"`{kind}`", said(texts)) for (reason, kind), texts in sorted(client.items())]
    return "".join(
        [
            f"# Errors\n\n{NOTE}{_ERRORS}",
            f"\n## Where nothing more particular is said\n\n{table(('reason', 'status', 'meaning'), generic)}",
            f"\n## Reasons\n\n{table(('reason', 'status', 'sentence'), rows)}",
            f"{_CLIENT_HEAD}{table(('reason', 'error', 'sentence'), client_rows)}",
        ]
    )


def said(texts: set[str]) -> str:
    """The sentences of a cell, the variable ones of another place left out."""
    return (
        "<br>".join(cell(text).replace("<", "&lt;") for text in sorted(texts)) or "says what lacks, in the case at hand"
    )


# --- the command --------------------------------------------------------------------------------------------------

_PAGES = {
    "configuration.md": configuration,
    "metrics.md": metrics,
    "permissions.md": permissions,
    "errors.md": error_pages,
    "protocol.md": reference_protocol.protocol,
}


def pages() -> dict[str, str]:
    """All pages: file name -> content."""
    return {name: re.sub(r"\n{3,}", "\n\n", make()) for name, make in _PAGES.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.reference", description="Write docs/reference.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not up to date")
    parser.add_argument("--folder", type=Path, default=PAGES, help="where the pages are (default: docs/reference)")
    options = parser.parse_args(arguments)
    stale = 0
    for name, text in pages().items():
        target: Path = options.folder / name
        if target.exists() and target.read_text() == text:
            continue
        stale += 1
        if options.check:
            print(f"reference: {target} is not what the sources say; run: python -m tools.reference", file=sys.stderr)
        else:
            target.write_text(text)
    if not options.check:
        print(f"reference: {len(_PAGES)} pages, {stale} changed")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
