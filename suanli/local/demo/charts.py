"""The report's drawings, as SVG text. Colours come from the page's style sheet by class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from suanli.local.demo.findings import JobRun

_WIDTH = 1000
_LEFT = 8
_ROW = 26
_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120)


def timeline(jobs: Sequence[JobRun], regions: Sequence[str], classes: Mapping[str, str]) -> str:
    """Jobs by region over time: waiting as a thin line, holding its allocation as a bar.

    ``classes`` gives the CSS class of each institution.
    """
    shown = [job for job in jobs if job.end_ms and job.grant_ms]
    if not shown:
        return ""
    begin = min(job.submit_ms for job in shown)
    span = max(1, max(job.end_ms for job in shown) - begin)

    def x(ms: int) -> float:
        return _LEFT + (ms - begin) / span * (_WIDTH - 2 * _LEFT)

    parts: list[str] = []
    y = 4
    for region in regions:
        parts.append(f'<text class="axis strong" x="{_LEFT}" y="{y + 16}">region {escape(region)}</text>')
        y += _ROW
        for job in sorted((j for j in shown if j.region == region), key=lambda j: (j.grant_ms, j.name)):
            parts.append(_bar(job, x, y, classes[job.institution]))
            y += _ROW
        y += 10
    step = next((s for s in _STEPS_S if span / 1000 / s <= 12), _STEPS_S[-1])
    grid = []
    for second in range(0, span // 1000 + 1, step):
        at = x(begin + second * 1000)
        grid.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{y}"/>')
        anchor = "start" if second == 0 else "middle"
        grid.append(f'<text class="axis" x="{at:.1f}" y="{y + 16}" text-anchor="{anchor}">{second} s</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {y + 24}" role="img" aria-label="Jobs over time, by region">'
        f"{''.join(grid)}{''.join(parts)}</svg>"
    )


def _bar(job: JobRun, x: Callable[[int], float], y: int, css: str) -> str:
    left, right, submitted = x(job.grant_ms), x(job.end_ms), x(job.submit_ms)
    width = max(2.0, right - left)
    name = f"{job.name} × {job.replicas}" if job.replicas > 1 else job.name
    seconds = (job.end_ms - job.grant_ms) / 1000
    tip = f"{name}: waited {(job.grant_ms - job.submit_ms) / 1000:.1f} s, held {seconds:.1f} s, {job.state}"
    label = f"{name}, {seconds:.1f} s"
    inside = width > 7 * len(label)
    at = left + 6 if inside else right + 6
    anchor, place = "start", "in" if inside else "out"
    if not inside and at + 7 * len(label) > _WIDTH:
        at, anchor = left - 6, "end"
    return (
        f'<g class="{css}"><title>{escape(tip)}</title>'
        f'<line class="wait" x1="{submitted:.1f}" x2="{left:.1f}" y1="{y + 10}" y2="{y + 10}"/>'
        f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="20" rx="4"/>'
        f'<text class="{place}" x="{at:.1f}" y="{y + 14}" text-anchor="{anchor}">{escape(label)}</text></g>'
    )


def curve(points: Sequence[tuple[int, float]], target: float, css: str) -> str:
    """A share (0 to 1) over a count, with a line at the share that is aimed at."""
    if len(points) < 2:
        return ""
    width, height, left, bottom = 560, 264, 48, 44
    most = max(count for count, _ in points)

    def at(count: float, share: float) -> tuple[float, float]:
        return left + count / most * (width - left - 20), 10 + (1 - share) * (height - bottom - 10)

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1.0):
        _, y = at(0, share)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="axis" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    _, y = at(0, target)
    parts.append(f'<line class="target" x1="{left}" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}"/>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
    parts.append(f'<polyline class="line" points="{path}"/>')
    for count, share in points:
        x, y = at(count, share)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{count}: {share:.1%}</title></circle>')
        parts.append(f'<text class="axis" x="{x:.1f}" y="{height - 24}" text-anchor="middle">{count}</text>')
    parts.append(
        f'<text class="axis" x="{width / 2}" y="{height - 6}" text-anchor="middle">pupils in each group</text>'
    )
    return (
        f'<svg class="{css}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Power of a trial by its size">{"".join(parts)}</svg>'
    )
