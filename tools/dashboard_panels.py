"""The forms of panel that our Grafana dashboards are made of; ``tools.dashboards`` says what each shows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, text, timeseries
from grafana_foundation_sdk.cog import builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
_COLUMNS = 24
Panel = builder.Builder[models.Panel]
Query = tuple[str, str]
"""PromQL, and the legend of its series ({{label}} stands for a label's value)."""


def ceiling(amber: float, red: float) -> dashboard.ThresholdsConfig:
    """Green below the first value, amber from it on, red from the second on."""
    steps = [models.Threshold(None, "green"), models.Threshold(amber, "orange"), models.Threshold(red, "red")]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def floor(amber: float, green: float) -> dashboard.ThresholdsConfig:
    """Red below the first value, amber from it on, green from the second on."""
    steps = [models.Threshold(None, "red"), models.Threshold(amber, "orange"), models.Threshold(green, "green")]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


PLAIN = (
    dashboard.ThresholdsConfig()
    .mode(models.ThresholdsMode.ABSOLUTE)
    .steps([models.Threshold(None, "super-light-blue")])
)


def number(
    title: str,
    says: str,
    query: Query,
    unit: str = "short",
    thresholds: dashboard.ThresholdsConfig = PLAIN,
    decimals: float | None = None,
    width: int = 4,
) -> Panel:
    """One figure, or one for each series, as it is at the end of the chosen time."""
    panel = stat.Panel().title(title).description(says).unit(unit).thresholds(thresholds).datasource(SOURCE)
    panel = panel.span(width).height(4).graph_mode(common_models.BigValueGraphMode.NONE)
    if decimals is not None:
        panel = panel.decimals(decimals)
    return panel.reduce_options(_last()).with_target(_instant(query, "A"))


def bars(
    title: str,
    says: str,
    query: Query,
    unit: str,
    thresholds: dashboard.ThresholdsConfig = PLAIN,
    most: float | None = None,
    width: int = 8,
) -> Panel:
    """A lying bar for each series, at the end of the chosen time."""
    panel = bargauge.Panel().title(title).description(says).unit(unit).thresholds(thresholds).datasource(SOURCE)
    panel = panel.span(width).height(HEIGHT).min(0).orientation(common_models.VizOrientation.HORIZONTAL)
    if most is not None:
        panel = panel.max(most)
    return panel.reduce_options(_last()).with_target(_instant(query, "A"))


def curve(title: str, says: str, queries: Sequence[Query], unit: str, width: int = 12, *, stack: bool = False) -> Panel:
    """Lines over the chosen time; stacked ones add up."""
    panel = timeseries.Panel().title(title).description(says).unit(unit).datasource(SOURCE).span(width).height(HEIGHT)
    panel = panel.line_width(1).fill_opacity(30 if stack else 5).show_points(common_models.VisibilityMode.NEVER).min(0)
    if stack:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    return _with_ranges(panel, queries)


def columns(title: str, says: str, query: Query, unit: str, width: int = 12) -> Panel:
    """A stacked column for each interval, an hour at least."""
    panel = timeseries.Panel().title(title).description(says).unit(unit).datasource(SOURCE).span(width).height(HEIGHT)
    panel = panel.draw_style(common_models.GraphDrawStyle.BARS).fill_opacity(80).line_width(0).min(0).interval("1h")
    panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    return _with_ranges(panel, [query])


def grid(title: str, says: str, figures: Sequence[Query], width: int = 24) -> Panel:
    """A table at the end of the chosen time: a row for each set of labels, a column for each query."""
    panel = table.Panel().title(title).description(says).datasource(SOURCE).span(width).height(HEIGHT + 2)
    names = {}
    for ref, (expression, name) in zip("ABCDEFGH", figures, strict=False):
        query = _instant((expression, ""), ref).format(prometheus_models.PromQueryFormat.TABLE)
        panel = panel.with_target(query)
        names[f"Value #{ref}"] = name
    # A single query's column has no letter.
    names["Value"] = figures[0][1]
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    shape = {"excludeByName": {"Time": True}, "renameByName": names}
    return panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=shape))


def note(title: str, markdown: str, width: int = 24, height: int = 3) -> Panel:
    """Words."""
    return text.Panel().title(title).content(markdown).span(width).height(height)


def board(
    name: str, says: str, since: str, variables: Sequence[str], rows: Sequence[tuple[str, Sequence[Panel]]]
) -> models.Dashboard:
    """A whole dashboard. ``variables`` are labels to narrow by; ``since`` is the time it opens with."""
    made = dashboard.Dashboard(f"Suanli: {name}").uid(f"suanli-{name}").description(says).tags(["suanli"])
    made = made.time(f"now-{since}", "now").refresh("1m").timezone("utc").readonly()
    made = made.tooltip(models.DashboardCursorSync.CROSSHAIR)
    made = made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for label in variables:
        made = made.with_variable(_variable(label))
    for title, panels in rows:
        made = made.with_row(dashboard.Row(title))
        for panel in panels:
            made = made.with_panel(panel)
    built = made.build()
    _lay_out(built.panels or [])
    return built


def _lay_out(panels: Sequence[models.Panel | models.RowPanel]) -> None:
    """Number the panels and put them in lines of 24 columns; the last of each line fills it."""
    x = y = tallest = 0
    spots: list[models.GridPos] = []
    for place, each in enumerate(panels, 1):
        each.id_val = place
        assert each.grid_pos is not None
        spots.append(each.grid_pos)
        if x + spots[-1].w > _COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        spots[-1].x, spots[-1].y = x, y
        x, tallest = x + spots[-1].w, max(tallest, spots[-1].h)
    for spot, after in itertools.zip_longest(spots, spots[1:]):
        if after is None or after.y > spot.y:
            spot.w = _COLUMNS - spot.x


def queries_of(document: object) -> list[str]:
    """Every PromQL expression in a dashboard's JSON."""
    if isinstance(document, list):
        return [found for item in document for found in queries_of(item)]
    if isinstance(document, dict):
        own = [document["expr"]] if isinstance(document.get("expr"), str) else []
        return own + [found for value in document.values() for found in queries_of(value)]
    return []


def filled_in(expression: str, window: str, variables: Sequence[str]) -> str:
    """An expression as Grafana sends it when everything is chosen and every interval is ``window``."""
    expression = re.sub(r"\$__(range|interval|rate_interval)\b", window, expression)
    for label in variables:
        expression = re.sub(rf"\${label}\b", ".*", expression)
    return expression


_OF = {"institution": "suanli_usage_cpu_core_seconds_total", "project": "suanli_usage_cpu_core_seconds_total"}
_OF |= {"region": "suanli_region_up", "pool": "suanli_pool_nodes"}


def _variable(label: str) -> builder.Builder[models.VariableModel]:
    within = 'institution=~"$institution"' if label == "project" else 'region=~"$region"' if label == "pool" else ""
    query = f"label_values({_OF[label]}{{{within}}}, {label})" if within else f"label_values({_OF[label]}, {label})"
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    made = dashboard.QueryVariable(label).label(label.capitalize()).datasource(SOURCE).query(query)
    made = made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    return made.multi(True).include_all(True).all_value(".*").current(everything)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def _instant(query: Query, ref: str) -> prometheus.Dataquery:
    expression, legend = query
    made = prometheus.Dataquery().expr(expression).instant().ref_id(ref).datasource(SOURCE)
    return made.legend_format(legend) if legend else made


def _with_ranges(panel: timeseries.Panel, queries: Sequence[Query]) -> Panel:
    for ref, (expression, legend) in zip("ABCDEFGH", queries, strict=False):
        panel = panel.with_target(
            prometheus.Dataquery().expr(expression).range().legend_format(legend).ref_id(ref).datasource(SOURCE)
        )
    return panel
