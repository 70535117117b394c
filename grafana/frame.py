"""What all dashboards share: variables, annotations, links, and the dashboard around the rows of panels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from grafana_foundation_sdk.builders import dashboard as builder
from grafana_foundation_sdk.models import dashboard

from grafana.panels import SOURCE, Builder
from grafana.queries import RUN, alerts

TAG = "tokenswarm"
SOURCE_UID = "tokenswarm-prometheus"
"""The data source that is provisioned (provisioning/datasources); any other Prometheus can be chosen in the page."""

Rows = Sequence[tuple[str, Sequence[Builder]]]


def data_source() -> Builder:
    chosen = dashboard.VariableOption(text="tokenswarm", value=SOURCE_UID, selected=True)
    return builder.DatasourceVariable("datasource").label("Data source").type("prometheus").current(chosen)


def _from_prometheus(name: str, label: str, text: str, expr: str) -> builder.QueryVariable:
    variable = builder.QueryVariable(name).label(label).description(text).datasource(SOURCE)
    query: dict[str, object] = {
        "query": expr,
        "refId": f"Prometheus-{name}",
        "qryType": 5 if "label_" not in expr else 1,
    }
    return variable.query(query).refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)


def run(name: str = "run_id", label: str = "Run") -> Builder:
    """Choose a run; run ids begin with their date, so the newest stands first."""
    text = "Runs that Prometheus has seen in the time range of the dashboard, the newest first."
    variable = _from_prometheus(name, label, text, "label_values(tokenswarm_run_info, run_id)")
    return variable.sort(dashboard.VariableSort.ALPHABETICAL_DESC)


def _of_run(name: str, label: str, text: str, expr: str, key: str) -> Builder:
    """All that the run has, several at a time. Never `.*`: a run that has none shows none."""
    variable = _from_prometheus(name, label, text, f"query_result({expr})").multi(True).include_all(True)
    everything = dashboard.VariableOption(text="All", value="$__all", selected=True)
    return variable.regex(f'/{key}="([^"]+)"/').current(everything)


def against() -> list[Builder]:
    """What the run is against: its engines, the machines of its GPU exporters, its GPUs.

    A run that names none (of an earlier version, or without GPU exporters of its own) shows all that are scraped.
    """
    named = 'last_over_time(tokenswarm_run_target_info{%s,role="%s"}[$__range])'
    no_run = " unless on () " + named
    engines, hosts, gpus = (named % (RUN, role) for role in ("engine", "host", "gpu"))
    all_that = 'max by (target) (label_replace(last_over_time(%s[$__range]), "target", "$1", "%s", "(.+)"))'
    running = all_that % ("tokenswarm:server_requests_running:sum", "instance")
    machines = all_that % ("tokenswarm_host_cpus", "instance")
    cards = all_that % ("tokenswarm:gpu_power:watts", "gpu")
    return [
        _of_run(
            "engine",
            "Engine",
            "The run's engines, by their label `instance`: telemetry.engine_instances, or their addresses.",
            f"max by (target) ({engines}) or ({running}{no_run % (RUN, 'engine')})",
            "target",
        ),
        _of_run(
            "host",
            "Host",
            "The run's GPU exporters, by the label `instance`: telemetry.host_instances, or their addresses.",
            f"max by (target) ({hosts}) or ({machines}{no_run % (RUN, 'host')})",
            "target",
        ),
        _of_run(
            "gpu",
            "GPU",
            "The GPUs that the run's exporters tell, by UUID.",
            f"max by (target) ({gpus}) or ({cards}{no_run % (RUN, 'gpu')})",
            "target",
        ),
    ]


def started() -> Builder:
    """The second at which the run began, for `@`; hidden. 0 without a run: an empty one would be a syntax error."""
    begin = f"max(last_over_time(tokenswarm_run_start_timestamp_seconds{{{RUN}}}[$__range]))"
    expr = f"query_result({begin} or vector(0))"
    variable = _from_prometheus("started", "Start", "When the run began, seconds since 1970.", expr)
    return variable.regex(r"/ ([0-9.]+) [0-9.]+$/").hide(dashboard.VariableHide.HIDE_VARIABLE)


def choice(name: str, label: str, text: str, values: Sequence[str], default: str) -> Builder:
    """One of a few values."""
    options = [dashboard.VariableOption(text=value, value=value, selected=value == default) for value in values]
    variable = builder.CustomVariable(name).label(label).description(text).values(",".join(values)).options(options)
    return variable.current(next(option for option in options if option.value == default))


def _annotation(name: str, color: str, expr: str, title: str, tags: str = "", *, at_value: bool = False) -> Builder:
    one = builder.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(color).expr(expr)
    one = one.title_format(title).text_format("").tag_keys(tags).step("5s")
    return one.use_value_for_time(True) if at_value else one


def run_annotations(*runs: str, places: bool = True) -> list[Builder]:
    """Start, end, stages and phases of the runs ($NAME each), and their alerts; with `places` those of `against`, too.

    Marks are at the value of a timestamp: on a long range the step of the query is longer than any event.
    """
    of_runs = 'run_id=~"' + "|".join(runs) + '"'
    begin, end = (f"tokenswarm_run_{what}_timestamp_seconds{{{of_runs}}}" for what in ("start", "end"))
    stage = f"tokenswarm_stage_start_timestamp_seconds{{{of_runs}}} * 1000"
    users = f" * on (run_id, stage) group_left (load) tokenswarm_stage_info{{{of_runs}}}"
    phase = f'tokenswarm_run_phase{{{of_runs},phase=~"warmup|drain"}} == 1'
    return [
        _annotation("Run start", "green", f"{begin} * 1000", "run {{run_id}} begins", "run_id", at_value=True),
        _annotation("Run end", "blue", f"{end} * 1000", "run {{run_id}} ends", "run_id", at_value=True),
        _annotation("Warm-up and drain", "rgba(160, 160, 160, 0.4)", phase, "{{phase}}", "phase"),
        _annotation(
            "Stages",
            "purple",
            stage + users,
            "stage {{stage}}: {{load}}",
            "run_id,stage",
            at_value=True,
        ),
        _annotation("Alerts", "red", alerts(*runs, places=places), "{{alertname}}", "alertname,severity"),
    ]


def assemble(
    uid: str,
    title: str,
    text: str,
    variables: Iterable[Builder],
    notes: Iterable[Builder],
    content: Rows,
    *,
    refresh: str,
    since: str,
) -> dashboard.Dashboard:
    """The dashboard; `content` is (heading, panels) for each row."""
    page = builder.Dashboard(title).uid(uid).description(text).tags([TAG]).readonly().timezone("browser")
    page = page.tooltip(dashboard.DashboardCursorSync.CROSSHAIR).refresh(refresh).time(since, "now")
    link = builder.DashboardLink("tokenswarm dashboards").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG])
    page = page.link(link.as_dropdown(True).include_vars(True).keep_time(True))
    for variable in (data_source(), *variables):
        page = page.with_variable(variable)
    page = page.annotations(list(notes))
    number = 0
    for heading, panels in content:
        page = page.with_row(builder.Row(heading))
        for panel in panels:
            number += 1
            page = page.with_panel(panel.id(number))
    return page.build()
