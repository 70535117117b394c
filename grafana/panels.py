"""The few kinds of panel that the dashboards are made of, on top of grafana-foundation-sdk.

Each panel takes its title, unit, `About` (what it shows, the formula, what bad looks like, why it may be empty) and
targets. The reason for emptiness stands in the panel itself instead of "No data". Thresholds are (value, colour) pairs,
ascending; below the first all is green.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard as dashboard_builder
from grafana_foundation_sdk.builders import heatmap as heatmap_builder
from grafana_foundation_sdk.builders import prometheus as prometheus_builder
from grafana_foundation_sdk.builders import stat as stat_builder
from grafana_foundation_sdk.builders import statetimeline as statetimeline_builder
from grafana_foundation_sdk.builders import table as table_builder
from grafana_foundation_sdk.builders import timeseries as timeseries_builder
from grafana_foundation_sdk.builders import xychart as xychart_builder
from grafana_foundation_sdk.models import common, dashboard, prometheus
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models import xychart as xychart_model

SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, RED = "green", "#EAB839", "red"

Thresholds = Sequence[tuple[float, str]]
Builder = Any
"""The SDK's panel builders share their methods, but no type."""


@dataclass(frozen=True)
class About:
    """The description of a panel; `empty` is what it shows where there is nothing to show."""

    what: str
    formula: str
    bad: str
    empty: str

    @property
    def text(self) -> str:
        return f"{self.what}\n\nFormula: {self.formula}\n\nBad: {self.bad}\n\nEmpty: {self.empty}"


def query(expr: str, legend: str = "", ref: str = "A") -> prometheus_builder.Dataquery:
    """A range query, drawn over time."""
    target = (
        prometheus_builder.Dataquery().expr(expr).range().ref_id(ref).format(prometheus.PromQueryFormat.TIME_SERIES)
    )
    return target.legend_format(legend or "__auto").datasource(SOURCE)


def now(expr: str, legend: str = "", ref: str = "A") -> prometheus_builder.Dataquery:
    """An instant query, drawn as one value."""
    return query(expr, legend, ref).instant()


def rows(expr: str, ref: str) -> prometheus_builder.Dataquery:
    """An instant query whose labels become columns; its value is the column `Value #REF`."""
    return query(expr, "", ref).instant().format(prometheus.PromQueryFormat.TABLE)


def lines(*pairs: tuple[str, str]) -> list[prometheus_builder.Dataquery]:
    """Range queries with refIds A, B, C … from (expr, legend) pairs."""
    return [query(expr, legend, chr(ord("A") + number)) for number, (expr, legend) in enumerate(pairs)]


def _thresholds(steps: Thresholds) -> dashboard_builder.ThresholdsConfig:
    all_steps = [dashboard.Threshold(value=None, color=GREEN)]
    all_steps += [dashboard.Threshold(value=value, color=color) for value, color in steps]
    return dashboard_builder.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(all_steps)


def _color(mode: dashboard.FieldColorModeId) -> dashboard_builder.FieldColor:
    return dashboard_builder.FieldColor().mode(mode)


def _common(
    panel: Builder, title: str, unit: str, about: About, targets: Iterable[Builder], size: tuple[int, int]
) -> Builder:
    panel = panel.title(title).description(about.text).datasource(SOURCE).unit(unit).no_value(about.empty)
    for target in targets:
        panel = panel.with_target(target)
    return panel.span(size[0]).height(size[1])


def stat(
    title: str,
    unit: str,
    about: About,
    target: Builder,
    *,
    thresholds: Thresholds = (),
    decimals: int | None = None,
    names: bool = False,
    words: Sequence[tuple[float, float, str, str]] = (),
    width: int = 4,
    height: int = 4,
) -> Builder:
    """One number (`names`: the name of its series instead). `words` are (from, to, text, colour) in its place."""
    panel = _common(stat_builder.Panel(), title, unit, about, [target], (width, height))
    panel = panel.thresholds(_thresholds(thresholds)).color_scheme(_color(dashboard.FieldColorModeId.THRESHOLDS))
    panel = panel.color_mode(common.BigValueColorMode.VALUE).justify_mode(common.BigValueJustifyMode.CENTER)
    panel = panel.graph_mode(common.BigValueGraphMode.NONE).reduce_options(
        common_builder.ReduceDataOptions().calcs(["lastNotNull"])
    )
    panel = panel.text_mode(common.BigValueTextMode.NAME if names else common.BigValueTextMode.VALUE)
    if decimals is not None:
        panel = panel.decimals(decimals)
    ranges = [
        dashboard.RangeMap(
            dashboard.DashboardRangeMapOptions(
                from_val=low, to=high, result=dashboard.ValueMappingResult(text=text, color=color, index=index)
            )
        )
        for index, (low, high, text, color) in enumerate(words)
    ]
    return panel.mappings(ranges) if ranges else panel


def timeseries(
    title: str,
    unit: str,
    about: About,
    targets: Iterable[Builder],
    *,
    thresholds: Thresholds = (),
    log: bool = False,
    stacked: bool = False,
    bars: bool = False,
    low: float | None = 0,
    high: float | None = None,
    width: int = 8,
    height: int = 8,
) -> Builder:
    """Lines over time. Thresholds are dashed lines. Gaps stay gaps: a missed scrape is not a straight line."""
    panel = _common(timeseries_builder.Panel(), title, unit, about, targets, (width, height))
    panel = panel.color_scheme(_color(dashboard.FieldColorModeId.PALETTE_CLASSIC)).line_width(1)
    panel = panel.fill_opacity(30 if stacked or bars else 0).show_points(common.VisibilityMode.AUTO).span_nulls(False)
    legend = common_builder.VizLegendOptions().display_mode(common.LegendDisplayMode.TABLE).show_legend(True)
    panel = panel.legend(legend.placement(common.LegendPlacement.BOTTOM).calcs(["lastNotNull", "max"]))
    tooltip = common_builder.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    panel = panel.tooltip(tooltip.sort(common.SortOrder.DESCENDING))
    if bars:
        panel = panel.draw_style(common.GraphDrawStyle.BARS)
    if stacked:
        panel = panel.stacking(common_builder.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if log:
        panel = panel.scale_distribution(_log_scale())
    elif low is not None:
        panel = panel.min(low)
    if high is not None:
        panel = panel.max(high)
    if thresholds:
        style = common_builder.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(thresholds)).thresholds_style(style)
    return panel


def _log_scale() -> common_builder.ScaleDistributionConfig:
    return common_builder.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)


def heatmap(title: str, unit: str, about: About, target: Builder, *, width: int = 12, height: int = 8) -> Builder:
    """A classic histogram over time: one row a bucket, cells without samples left out."""
    panel = _common(heatmap_builder.Panel(), title, unit, about, [target], (width, height))
    color = heatmap_builder.HeatmapColorOptions().mode(heatmap_model.HeatmapColorMode.SCHEME).scheme("Oranges")
    panel = panel.calculate(False).color(color.steps(64).exponent(0.5).fill("dark-orange"))
    panel = panel.filter_values(heatmap_builder.FilterValueRange().le(1e-9)).cell_gap(1)
    axis = heatmap_builder.YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT).reverse(False)
    layout = heatmap_builder.RowsHeatmapOptions().layout(common.HeatmapCellLayout.LE)
    tooltip = heatmap_builder.HeatmapTooltip().mode(common.TooltipDisplayMode.SINGLE).y_histogram(True)
    panel = panel.y_axis(axis).rows_frame(layout).tooltip(tooltip.show_color_scale(False))
    return panel.show_legend().show_value(common.VisibilityMode.NEVER)


def states(
    title: str,
    unit: str,
    about: About,
    targets: Iterable[Builder],
    *,
    thresholds: Thresholds = ((1e-9, RED),),
    width: int = 12,
    height: int = 6,
) -> Builder:
    """Bands over time, coloured by the value."""
    panel = _common(statetimeline_builder.Panel(), title, unit, about, targets, (width, height))
    panel = panel.thresholds(_thresholds(thresholds)).color_scheme(_color(dashboard.FieldColorModeId.THRESHOLDS))
    panel = panel.merge_values(True).show_value(common.VisibilityMode.NEVER).row_height(0.8).fill_opacity(80)
    legend = common_builder.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(False)
    return panel.legend(legend.placement(common.LegendPlacement.BOTTOM))


def transformation(name: str, **options: object) -> dashboard.DataTransformerConfig:
    """A step between the answers of the data source and the picture."""
    return dashboard.DataTransformerConfig(id_val=name, options=options)


def joined(by: str, *, sort: str | None = None) -> list[dashboard.DataTransformerConfig]:
    """Make one frame of several, by a field; sort it, so that a line through the points does not go back and forth.

    Outer: an inner join of frames without data ends in an error in Grafana 12, and a chart draws no half points anyway.
    """
    steps = [transformation("joinByField", byField=by, mode="outer")]
    return [*steps, transformation("sortBy", fields={}, sort=[{"field": sort}])] if sort else steps


def _matcher(name: str) -> xychart_builder.MatcherConfig:
    return xychart_builder.MatcherConfig().id("byName").options(name)


def _override(panel: Builder, name: str, **properties: object) -> Builder:
    """Of the field called so. A name with a variable matches by what stands before it: Grafana fills in no matcher."""
    values = [
        dashboard.DynamicConfigValue(id_val=key.replace("__", "."), value=value) for key, value in properties.items()
    ]
    before, variable, _ = name.partition("$")
    return panel.override_by_regexp(f"/^{before}/", values) if variable else panel.override_by_name(name, values)


def xy(
    title: str,
    units: tuple[str, str],
    labels: tuple[str, str],
    about: About,
    targets: Iterable[Builder],
    series: Iterable[tuple[str, str, str]],
    steps: Iterable[dashboard.DataTransformerConfig],
    *,
    connected: bool = True,
    log: bool = False,
    width: int = 12,
    height: int = 10,
) -> Builder:
    """y against x. `series` are (name, x field, y field) of the one frame that `steps` leave; units, labels (x, y)."""
    panel = _common(xychart_builder.Panel(), title, units[1], about, targets, (width, height))
    panel = panel.mapping(xychart_model.SeriesMapping.MANUAL).transformations(list(steps))
    frame = xychart_builder.MatcherConfig().id("byIndex").options(0)
    drawn, xs = [], []
    for name, x, y in series:
        one = xychart_builder.XYSeriesConfig().name(xychart_builder.XychartXYSeriesConfigName().fixed(name))
        one = one.frame(xychart_builder.XychartXYSeriesConfigFrame().matcher(frame))
        one = one.x(xychart_builder.XychartXYSeriesConfigX().matcher(_matcher(x)))
        drawn.append(one.y(xychart_builder.XychartXYSeriesConfigY().matcher(_matcher(y))))
        xs.append(x)
    show = xychart_model.XYShowMode.POINTS_AND_LINES if connected else xychart_model.XYShowMode.POINTS
    panel = panel.series(drawn).show(show).point_size(xychart_builder.XychartFieldConfigPointSize().fixed(7))
    panel = panel.line_width(2).fill_opacity(50).axis_label(labels[1])
    panel = panel.color_scheme(_color(dashboard.FieldColorModeId.PALETTE_CLASSIC))
    for x in dict.fromkeys(xs):
        scale: dict[str, object] = {"custom__scaleDistribution": {"type": "log", "log": 2}} if log else {}
        panel = _override(panel, x, unit=units[0], custom__axisLabel=labels[0], **scale)
    legend = common_builder.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
    tooltip = common_builder.VizTooltipOptions().mode(common.TooltipDisplayMode.SINGLE)
    return panel.legend(legend.placement(common.LegendPlacement.BOTTOM).calcs([])).tooltip(tooltip)


def table(
    title: str,
    about: About,
    targets: Iterable[Builder],
    columns: Sequence[tuple[str, str, str]],
    steps: Iterable[dashboard.DataTransformerConfig] = (),
    *,
    width: int = 24,
    height: int = 8,
) -> Builder:
    """`columns` are (field, heading, unit) in their order; every other field is left out."""
    panel = _common(table_builder.Panel(), title, "short", about, targets, (width, height))
    keep = transformation("filterFieldsByName", include={"names": [field for field, _, _ in columns]})
    order = {field: index for index, (field, _, _) in enumerate(columns)}
    names = {field: heading for field, heading, _ in columns}
    arrange = transformation("organize", indexByName=order, renameByName=names, excludeByName={})
    panel = panel.transformations([*steps, keep, arrange])
    # Else each empty cell of a table that is not empty would show the reason for an empty table.
    panel = panel.override_by_regexp("/.*/", [dashboard.DynamicConfigValue(id_val="noValue", value="–")])
    for _, heading, unit in columns:
        panel = _override(panel, heading, unit=unit)
    return panel
