"""The report of a comparison: one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

_WHOLE_FROM = 100
_NOTHING = "–"
_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"))
ROWS: Sequence[tuple[str, str, str, bool]] = (
    ("wait_average_ms", "average wait", "time", True),
    ("wait_median_ms", "median wait", "time", True),
    ("wait_p99_ms", "99th percentile of waits", "time", True),
    ("completion_average_ms", "average time to completion", "time", True),
    ("completion_median_ms", "median time to completion", "time", True),
    ("completion_p99_ms", "99th percentile of completion", "time", True),
    ("gpu_utilisation", "GPUs in use", "part", False),
    ("cpu_utilisation", "cores in use", "part", False),
    ("evictions", "evictions", "count", True),
    ("lost_hours", "job hours lost to evictions", "hours", True),
    ("jain_average", "Jain's index while somebody waits", "index", False),
)
"""Key, label, kind of value, and whether less of it is better."""
_COUNTS = (("ended", "jobs that ended"), ("refused", "jobs refused"), ("unfinished", "jobs that never could run"))
_INSTITUTION: Sequence[tuple[str, str, str, bool | None]] = (
    ("jobs", "jobs", "count", None),
    ("wait_average_ms", "average wait", "time", True),
    ("wait_p99_ms", "99th percentile", "time", True),
    ("completion_average_ms", "average completion", "time", True),
    ("gpu_hours", "GPU hours", "hours", None),
    ("cpu_hours", "core hours", "hours", None),
    ("evictions", "evictions", "count", True),
)


def render(metrics: Mapping[str, Any], images: Sequence[tuple[Path, str]], version: str) -> str:
    """The page for the contents of ``metrics.json`` and the drawings (file, title)."""
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    sections = [
        _head(metrics, version),
        "<h2>Compared</h2>",
        '<p class="soft">Each ± is against the first column, the baseline. Waits count from the moment a job was ready to run; '
        "utilisation is that of the window.</p>",
        f'<div class="card scroll">{_compared(metrics["variants"])}</div>',
        *(_image(path, title) for path, title in images),
        "<h2>Institutions</h2>",
        f'<div class="card scroll">{_institutions(metrics["variants"])}</div>',
        "<h2>How far to trust it</h2>",
        f'<div class="card scroll">{_calibration(metrics["calibration"])}</div>',
        _notes(metrics),
        _refused(metrics["variants"]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Suanli: simulation</title><style>\n{style}</style></head><body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def value_text(value: float | int | None, kind: str) -> str:
    """A figure for people: "2.5 h", "71.2 %", "1,204"."""
    if value is None:
        return _NOTHING
    if kind == "time":
        return duration(int(value))
    if kind == "part":
        return f"{100 * value:.1f} %"
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "index":
        return f"{value:,.3f}"
    return f"{value:,.0f}" if abs(value) >= _WHOLE_FROM else f"{value:,.1f}"


def duration(ms: int) -> str:
    """In the greatest unit of which there is one: "2.5 h"."""
    sign, size = ("−", -ms) if ms < 0 else ("", ms)
    for unit, name in _UNITS:
        if size >= unit:
            return f"{sign}{size / unit:.1f} {name}"
    return f"{sign}{size} ms" if size else "0 s"


def change_text(change: Mapping[str, float | None] | None, kind: str) -> str:
    """A difference: "−12.0 %", of parts "+3.1 points"; empty for none."""
    if change is None:
        return ""
    difference, percent = change["difference"] or 0, change["percent"]
    if not difference:
        return "±0"
    if kind == "part":
        text = f"{100 * difference:+.1f} points"
    elif kind != "count" and percent is not None and abs(percent) < 1000:
        text = f"{percent:+.1f} %"
    else:
        text = ("+" if difference > 0 else "") + value_text(difference, kind)
    for nothing in ("+0.0 ", "-0.0 "):
        text = text.replace(nothing, "±0.0 ") if text.startswith(nothing) else text
    return text.replace("-", "−")


def _instant(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}"


def tables(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same tables as text, for a terminal: each with its title, its head and its rows."""
    variants = metrics["variants"]
    compared = []
    for key, label, kind, _ in ROWS:
        if any(each["figures"][key] is not None for each in variants):
            cells = [
                _text(each["figures"], each["against_baseline"], key, kind, number)
                for number, each in enumerate(variants)
            ]
            compared.append([label, *cells])
    for key, label in _COUNTS:
        compared.append([label, *(f"{each['figures'][key]:,}" for each in variants)])
    # What a terminal has no room for is in the page.
    columns = [each for each in _INSTITUTION if each[0] != "completion_average_ms"]
    institutions = [
        [
            name,
            each["label"],
            *(_text(found, found["against_baseline"], key, kind, number) for key, _, kind, _ in columns),
        ]
        for name in sorted({name for each in variants for name in each["institutions"]})
        for number, each in enumerate(variants)
        if (found := each["institutions"].get(name)) is not None
    ]
    return [
        {"title": "", "head": ["", *(each["label"] for each in variants)], "rows": compared},
        {
            "title": "By institution",
            "head": ["INSTITUTION", "VARIANT", *(title.upper() for _, title, _, _ in columns)],
            "rows": institutions,
        },
        {
            "title": "The baseline beside what happened",
            "head": ["", "HAPPENED", "BASELINE", "±"],
            "rows": _calibration_rows(metrics["calibration"]),
        },
    ]


def _text(figures: Mapping[str, Any], changes: Mapping[str, Any], key: str, kind: str, number: int) -> str:
    change = change_text(changes.get(key), kind) if number else ""
    return value_text(figures[key], kind) + (f" ({change})" if change else "")


def _head(metrics: Mapping[str, Any], version: str) -> str:
    window, jobs = metrics["window"], metrics["jobs"]
    days = (window["to_ms"] - window["from_ms"]) / 86_400_000
    facts = [
        (f"{days:.1f}", "days of history"),
        (f"{jobs['simulated']:,}", "jobs simulated"),
        (str(len(metrics["variants"][0]["institutions"])), "institutions"),
        (str(len(metrics["variants"])), "variants"),
    ]
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in facts)
    changes = next((each["changes"] for each in metrics["variants"] if each["changes"]), "")
    changed = f"<p><b>Changed:</b> {escape(changes)}</p>" if changes else ""
    return (
        "<h1>What would have been</h1>"
        f'<p class="soft">Jobs of {_instant(window["from_ms"])} to {_instant(window["to_ms"])} UTC, planned again by Suanli '
        f'{escape(version)} on a virtual clock.</p>{changed}<div class="facts">{cells}</div>'
    )


def _compared(variants: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th class=num>{escape(each['label'])}</th>" for each in variants)
    rows = []
    for key, label, kind, less_is_better in ROWS:
        cells = []
        if all(each["figures"][key] is None for each in variants):
            continue
        for number, each in enumerate(variants):
            change = each["against_baseline"].get(key) if number else None
            cells.append(_cell(each["figures"][key], change, kind, less_is_better))
        rows.append(f"<tr><td>{label}</td>{''.join(cells)}</tr>")
    for key, label in _COUNTS:
        values = "".join(f"<td class=num>{each['figures'][key]:,}</td>" for each in variants)
        rows.append(f"<tr><td>{label}</td>{values}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(
    value: float | None, change: Mapping[str, float | None] | None, kind: str, less_is_better: bool | None
) -> str:
    """A figure and its difference, coloured when it is known which way is better."""
    text = change_text(change, kind)
    css = "soft"
    if change is not None and less_is_better is not None and not text.startswith("±"):
        css = "yes" if ((change["difference"] or 0) < 0) == less_is_better else "no"
    after = f' <span class="{css} small">{escape(text)}</span>' if text else ""
    return f"<td class=num>{value_text(value, kind)}{after}</td>"


def _institutions(variants: Sequence[Mapping[str, Any]]) -> str:
    names = sorted({name for each in variants for name in each["institutions"]})
    head = "".join(f"<th class=num>{title}</th>" for _, title, _, _ in _INSTITUTION)
    rows = []
    for name in names:
        of_all = [(number, each["label"], each["institutions"].get(name)) for number, each in enumerate(variants)]
        present = [(number, label, found) for number, label, found in of_all if found is not None]
        for place, (number, label, found) in enumerate(present):
            changes = found["against_baseline"] if number else {}
            cells = [_cell(found[key], changes.get(key), kind, less) for key, _, kind, less in _INSTITUTION]
            first = f'<td rowspan="{len(present)}"><b>{escape(name)}</b></td>' if place == 0 else ""
            rows.append(f'<tr>{first}<td class="small">{escape(label)}</td>{"".join(cells)}</tr>')
    return f"<table><thead><tr><th>institution</th><th>variant</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _calibration_rows(found: Mapping[str, Any]) -> list[list[str]]:
    actual, simulated = found["actual"], found["simulated"]
    rows = []
    for key, label, kind, _ in ROWS:
        if actual["jobs"] and actual.get(key) is not None and simulated.get(key) is not None:
            difference = simulated[key] - actual[key]
            change = {"difference": difference, "percent": 100 * difference / actual[key] if actual[key] else None}
            values = value_text(actual[key], kind), value_text(simulated[key], kind), change_text(change, kind)
            rows.append([label, *values])
    return rows


def _calibration(found: Mapping[str, Any]) -> str:
    simulated = found["simulated"]
    rows = "".join(
        f"<tr><td>{label}</td>{''.join(f'<td class=num>{escape(cell)}</td>' for cell in cells)}</tr>"
        for label, *cells in _calibration_rows(found)
    )
    if not rows:
        return (
            "<p>No job of the window ended both really and in the simulation, so there is nothing to compare with.</p>"
        )
    return (
        f"<p>What really happened to {found['actual']['jobs']:,} jobs, and what the baseline makes of the same: the smaller the "
        "difference, the more its other answers are worth. Half of all jobs are off by at most "
        f"{duration(simulated['completion_off_median_ms'])} in their time to completion, 99 % by at most "
        f"{duration(simulated['completion_off_p99_ms'])}.</p><table><thead><tr><th></th><th class=num>happened</th>"
        f"<th class=num>baseline</th><th class=num>±</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _notes(metrics: Mapping[str, Any]) -> str:
    jobs = metrics["jobs"]
    notes = []
    if jobs["never_ran"]:
        notes.append(
            f"{jobs['never_ran']:,} jobs never ran, so nobody knows for how long they would have: they are left out."
        )
    if jobs["still_running"]:
        notes.append(f"{jobs['still_running']:,} jobs still ran at the end: they count with what they had run by then.")
    if jobs["from_before"]:
        notes.append(
            f"{jobs['from_before']:,} jobs are from before the window: they hold what was left of them from its beginning on, "
            "and do not count in the waits."
        )
    notes.append("Nodes do not fail, starting takes no time, and the fleet is that of the day of the export.")
    return f'<ul class="soft small">{"".join(f"<li>{note}</li>" for note in notes)}</ul>'


def _refused(variants: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for each in variants:
        if each["refused"]:
            items = "".join(
                f"<li><code>{escape(one['job_id'])}</code> {escape(one['name'])} ({escape(one['institution'])}): "
                f"{escape(one['message'])}</li>"
                for one in each["refused"]
            )
            parts.append(
                f"<details><summary>{escape(each['label'])}: {each['figures']['refused']:,} jobs refused</summary>"
                f'<ul class="small">{items}</ul></details>'
            )
    return f'<h2>Refused</h2><div class="card">{"".join(parts)}</div>' if parts else ""


def _image(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<div class="card"><img alt="{escape(title)}" src="data:image/png;base64,{data}"></div>'
