"""The report of a demonstration: one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from html import escape
from pathlib import Path

from suanli.local.demo import charts
from suanli.local.demo.findings import Analysis, Answer, Bill, Figure, Findings, Tenant

PLOT = "plot.png"
POWER_WANTED = 0.8
_CLASSES = ("a", "b")
_SECOND_MS = 1000
_MIB_PER_GIB = 1024


def render(findings: Findings) -> str:
    """Return the page."""
    classes = {tenant.id: _CLASSES[index % len(_CLASSES)] for index, tenant in enumerate(findings.tenants)}
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    sections = [
        _head(findings),
        _tenants(findings, classes),
        _timeline(findings, classes),
        "<h2>What the analyses found</h2>",
        '<p class="soft">Three algorithms of the catalogue on real data. Where a figure has been published, it stands '
        "beside ours.</p>",
        *(_analysis(analysis, findings.tenants, classes) for analysis in findings.analyses),
        _own_code(findings, classes),
        _answers(findings),
        _bills(findings, classes),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Suanli: demonstration</title><style>\n{style}</style></head><body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def bill_lines(findings: Findings) -> list[tuple[str, str]]:
    """What each institution used in each region, for a terminal."""
    titles = {tenant.id: tenant.title for tenant in findings.tenants}
    return [
        (
            titles[bill.institution],
            f"{bill.region}: {bill.attempts} jobs, {_exact(bill.cpu_milli_ms, 1000 * _SECOND_MS)} core seconds, "
            f"{_exact(bill.memory_mib_ms, _MIB_PER_GIB * _SECOND_MS)} GiB seconds",
        )
        for bill in findings.bills
    ]


def _head(findings: Findings) -> str:
    ended = sum(job.state == "SUCCEEDED" for job in findings.jobs)
    facts = [
        (str(len(findings.tenants)), "institutions"),
        (str(len(findings.regions)), "regions, each a Ray cluster"),
        (f"{ended} of {len(findings.jobs)}", "jobs succeeded"),
        (f"{findings.startup_ms / _SECOND_MS:.0f} s", "to start the platform"),
        (f"{(findings.end_ms - findings.begin_ms) / _SECOND_MS:.0f} s", "from nothing to this page"),
    ]
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in facts)
    trouble = ""
    if findings.problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in findings.problems)
        trouble = f'<div class="trouble"><b>Not everything went well.</b><ul>{items}</ul></div>'
    return (
        "<h1>Two institutions, two regions, one platform</h1>"
        f'<p class="soft">A demonstration of Suanli {escape(findings.version)}: everything below ran as metered jobs on '
        f'this machine, on real education data.</p><div class="facts">{cells}</div>{trouble}'
    )


def _tenants(findings: Findings, classes: dict[str, str]) -> str:
    cards = [
        f'<div class="card"><h3 class="{classes[tenant.id]}-text">{escape(tenant.title)}</h3>'
        f'<p class="soft small">institution <code>{escape(tenant.id)}</code>, project '
        f"<code>{escape(tenant.project)}</code>, user <code>{escape(tenant.user)}</code></p>"
        f"<p>Works in region <b>{escape(tenant.region)}</b>.</p></div>"
        for tenant in findings.tenants
    ]
    return f'<div class="two" style="margin-top:16px">{"".join(cards)}</div>'


def _timeline(findings: Findings, classes: dict[str, str]) -> str:
    return (
        '<h2>Where and when jobs ran</h2><p class="soft">A bar is the time in which a job held its share of a region: what '
        'is metered. The dots before it are the wait in the queue, which is free.</p><div class="card scroll">'
        f"{charts.timeline(findings.jobs, findings.regions, classes)}</div>"
    )


def _analysis(analysis: Analysis, tenants: Sequence[Tenant], classes: dict[str, str]) -> str:
    title = next(tenant.title for tenant in tenants if tenant.id == analysis.institution)
    image = base64.b64encode((analysis.folder / PLOT).read_bytes()).decode()
    warnings = "".join(f'<p class="small soft">Note: {escape(text)}</p>' for text in analysis.warnings)
    source = f'<p class="small soft">Published: {escape(analysis.source)}.</p>' if analysis.source else ""
    links = "".join(
        f'<li><a href="{escape(f"{analysis.folder.name}/{path.name}")}">{escape(path.name)}</a></li>'
        for path in sorted(analysis.folder.iterdir())
        if path.is_file()
    )
    return (
        f'<div class="card"><h3>{escape(analysis.title)}</h3><p><span class="tag {classes[analysis.institution]}">'
        f'{escape(title)}</span> <span class="soft small">region {escape(analysis.region)}, job '
        f"<code>{escape(analysis.job_id)}</code></span></p><p>{escape(analysis.question)}</p>"
        f"<blockquote>{escape(analysis.summary)}</blockquote>"
        f'<div class="analysis"><img alt="Plot: {escape(analysis.title)}" src="data:image/png;base64,{image}">'
        f'<div><div class="scroll">{_figures(analysis.figures)}</div>{source}{warnings}'
        f'<details class="small"><summary>Its files</summary><ul>{links}</ul></details></div></div></div>'
    )


def _figures(figures: Sequence[Figure]) -> str:
    compared = any(figure.published is not None for figure in figures)
    head = "<tr><th>figure</th><th class=num>here</th>" + ("<th class=num>published</th><th></th>" if compared else "")
    rows = []
    for figure in figures:
        row = f"<tr><td>{escape(figure.label)}</td><td class=num>{_number(figure.value, figure.decimals)}</td>"
        if compared:
            published = "" if figure.published is None else _number(figure.published, figure.decimals)
            mark = {True: "<span class=yes>✓</span>", False: "<span class=no>differs</span>", None: ""}[figure.agrees]
            row += f"<td class=num>{published}</td><td>{mark}</td>"
        rows.append(row + "</tr>")
    return f"<table><thead>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _own_code(findings: Findings, classes: dict[str, str]) -> str:
    cards = []
    if findings.power:
        enough = next((str(pupils) for pupils, power in findings.power if power >= POWER_WANTED), "more than that")
        css = classes[findings.tenants[-1].id]
        cards.append(
            f'<div class="card"><h3>An array of {len(findings.power)} jobs</h3><p>How many pupils does a trial need to find an '
            f"effect of 0.3 standard deviations? Each job simulates one size. For 80 %: <b>{enough}</b> in each group.</p>"
            f"{charts.curve(findings.power, POWER_WANTED, css)}</div>"
        )
    source, value = findings.function
    if source:
        cards.append(
            '<div class="card"><h3>A Python function as a job</h3><p>Sent from a notebook or a script with '
            f"<code>client.run(function, …)</code>; its value comes back.</p><pre>{escape(source)}</pre>"
            f"<p>Returned: <b>{escape(value)}</b></p></div>"
        )
    if not cards:
        return ""
    return f'<h2>Own code</h2><div class="two" style="margin-top:16px">{"".join(cards)}</div>'


def _answers(findings: Findings) -> str:
    cards = [
        f'<div class="card"><h3>{title}</h3><p class="soft">{escape(answer.asked)}</p>'
        f"<blockquote>{escape(answer.said)}</blockquote>{_details(answer)}</div>"
        for title, answer in (("“Why is my job waiting?”", findings.why), ("Refused at once", findings.refused))
        if answer is not None
    ]
    return f'<h2>Straight answers</h2><div class="two" style="margin-top:16px">{"".join(cards)}</div>' if cards else ""


def _details(answer: Answer) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in answer.details)
    return f'<ul class="small">{items}</ul><p class="small soft">code <code>{escape(answer.code)}</code></p>'


def _bills(findings: Findings, classes: dict[str, str]) -> str:
    cards = []
    for tenant in findings.tenants:
        bills = [bill for bill in findings.bills if bill.institution == tenant.id]
        cards.append(
            f'<div class="card"><h3 class="{classes[tenant.id]}-text">{escape(tenant.title)}</h3><div class="scroll"><table>'
            "<thead><tr><th>region</th><th class=num>jobs</th><th class=num>core seconds</th><th class=num>GiB seconds</th>"
            f"</tr></thead><tbody>{''.join(_bill_row(bill.region, [bill]) for bill in bills)}</tbody>"
            f"<tfoot>{_bill_row('together', bills)}</tfoot></table></div>{_statements(findings, tenant)}</div>"
        )
    if findings.ledger_agrees:
        seal = (
            f'<p class="seal">Checked: these figures are the sums of {findings.ledger_records} records of the append-only '
            f"ledger, in whole milli-core milliseconds, to the last unit; {findings.verified_records} records and all totals were "
            "verified anew, and each record's hash seals those before it.</p>"
        )
    else:
        seal = '<p class="trouble">These figures are not the sums of the ledger\'s records.</p>'
    return (
        '<h2>What each institution used</h2><p class="soft">Metered from grant to release: what a job asked for, times how '
        f'long it held it.</p><div class="two" style="margin-top:16px">{"".join(cards)}</div>{seal}'
    )


def _statements(findings: Findings, tenant: Tenant) -> str:
    """Links to what a finance officer would file."""
    items = "".join(
        f'<li><a href="{escape(each.file)}">Statement {escape(each.number)}</a>: {escape(each.total)}</li>'
        for each in findings.statements
        if each.institution == tenant.id
    )
    return f'<ul class="small">{items}</ul>' if items else ""


def _bill_row(label: str, bills: Iterable[Bill]) -> str:
    listed = list(bills)
    cpu = sum(bill.cpu_milli_ms for bill in listed)
    memory = sum(bill.memory_mib_ms for bill in listed)
    return (
        f"<tr><td>{escape(label)}</td><td class=num>{sum(bill.attempts for bill in listed)}</td>"
        f"<td class=num>{_exact(cpu, 1000 * _SECOND_MS)}</td><td class=num>{_exact(memory, _MIB_PER_GIB * _SECOND_MS)}</td></tr>"
    )


def _exact(amount: int, unit: int) -> str:
    return f"{(Decimal(amount) / unit).quantize(Decimal('0.001'), ROUND_HALF_EVEN):,}"


def _number(value: float, decimals: int) -> str:
    # A true minus sign, of the width of a digit.
    return f"{value:,.{decimals}f}".replace("-", "−")
