"""PromQL that several dashboards share. `RUN` selects the run that the dashboard shows.

A quantile is taken in one of three ways: the exporter's own (exact as the report, `quantile`), from the dense buckets
over a window (`recent`), or from all buckets since the run began (`whole`, no rate: counters start at 0 in a run).

A Prometheus keeps a histogram as series of buckets (`…_bucket`, `…_sum`, `…_count`), as one native histogram under its
own name, or both. Each query here asks for the first and, where that is not there, for the second.
"""

from __future__ import annotations

from exporters.load.table import FAMILIES

RUN = 'run_id="$run_id"'
ENGINE = 'instance=~"$engine"'
HOST = 'instance=~"$host"'
GPU = 'gpu=~"$gpu"'
"""A Prometheus may know more than this run: its engines, the machines of its GPU exporters, its GPUs (frame.py)."""

RATE = "$__rate_interval"

TTFT = "tokenswarm_time_to_first_token_seconds"
ITL = "tokenswarm_inter_token_latency_seconds"
TPOT = "tokenswarm_time_per_output_token_seconds"
E2E = "tokenswarm_request_duration_seconds"
STALL = "tokenswarm_max_inter_token_gap_seconds"
SEND_LAG = "tokenswarm_schedule_lag_seconds"
LOOP_LAG = "tokenswarm_event_loop_lag_seconds"
RECEIVE_LAG = "tokenswarm_receive_lag_seconds"


GOES_ON = f"unless on (run_id) tokenswarm_run_end_timestamp_seconds{{{RUN}}}"
"""What a run that is over says of the moment is of its last one."""

PUSH_AGE = f"max(tokenswarm_run_last_push_age_seconds{{{RUN}}} {GOES_ON})"
IN_FLIGHT = f"max(tokenswarm_requests_in_flight{{{RUN}}})"
DECODING = f"max(tokenswarm_streams_decoding{{{RUN}}})"


def once(name: str, expr: str) -> str:
    """The sum of `expr`, which is of a metric, however many jobs scrape its page, and from which address: each counts
    once. Of a run an exporter's counts begin where they were at another address, so an old series is no further one.
    """
    if name in FAMILIES:
        own = ", ".join(FAMILIES[name].labels)
        return f"sum(max by ({own}) ({expr}))" if own else f"max({expr})"
    if name.startswith("tokenswarm_"):  # a histogram's
        return f"sum(max by (phase, outcome) ({expr}))"
    return f"sum(max without (job) ({expr}))"


def server(what: str) -> str:
    """Requests that run, or wait, in the run's engines."""
    return f"sum(max by (instance) (tokenswarm:server_requests_{what}:sum{{{ENGINE}}}))"


def quantile(metric: str, q: str, window: str = "10s") -> str:
    """The exporter's own percentile of ttft, itl, tpot, e2e or stall over 10s or the run.

    `q` is an expression: Prometheus 3 writes the quantile 1 as 1.0.
    """
    return f'max(tokenswarm_latency_quantile_seconds{{{RUN},metric="{metric}",quantile=~"{q}",window="{window}"}})'


def _bare(expr: str) -> str:
    return expr.replace("{}", "")


def _quantile(q: float | str, histogram: str, selector: str, over: str, add: str = "sum") -> str:
    """`over`: what is done with each series, with `%s` where it goes."""
    buckets, native = (over % f"{histogram}{part}{{{selector}}}" for part in ("_bucket", ""))
    return _bare(f"(histogram_quantile({q}, {add} by (le) ({buckets})) or histogram_quantile({q}, sum({native})))")


def recent(q: float | str, histogram: str, window: str = RATE, selector: str = RUN) -> str:
    """A percentile over the window, from the buckets."""
    return _quantile(q, histogram, selector, f"rate(%s[{window}])")


def recorded(metric: str, q: str, window: str = "1m") -> str:
    """A percentile over 1m or 5m of steady windows, as a rule has recorded it: one series in place of hundreds."""
    return f'max(tokenswarm:latency_seconds:window{window}{{{RUN},metric="{metric}",quantile="{q}"}})'


def of_run(metric: str, q: float, selector: str = RUN) -> str:
    """A percentile of a whole run, as a rule has recorded it last."""
    series = f'tokenswarm:latency_seconds:run{{{selector},metric="{metric}",quantile="{q:g}"}}'
    return f"max(last_over_time({series}[$__range]))"


def whole(q: float | str, histogram: str, selector: str = RUN) -> str:
    """A percentile of the whole run, which may be over for long (so: the last value within the dashboard's range)."""
    return _quantile(q, histogram, selector, "last_over_time(%s[$__range])", "max")


def since_start(q: float | str, histogram: str, selector: str = RUN) -> str:
    """A percentile of the run so far."""
    return _quantile(q, histogram, selector, "%s")


def sum_rate(histogram: str, selector: str = "", window: str = RATE) -> str:
    """The rate of a histogram's sum."""
    classic = once(histogram, f"rate({histogram}_sum{{{selector}}}[{window}])")
    return _bare(f"({classic} or histogram_sum(sum(rate({histogram}{{{selector}}}[{window}]))))")


def count_rate(histogram: str, selector: str = "", window: str = RATE) -> str:
    """The rate of a histogram's count."""
    classic = once(histogram, f"rate({histogram}_count{{{selector}}}[{window}])")
    return _bare(f"({classic} or histogram_count(sum(rate({histogram}{{{selector}}}[{window}]))))")


def mean(histogram: str, selector: str = "", window: str = RATE) -> str:
    """The mean of a histogram over the window: rate of the sum / rate of the count."""
    return f"{sum_rate(histogram, selector, window)} / {count_rate(histogram, selector, window)}"


def shares(native: str, first: int, last: int) -> str:
    """The share up to 2^first … 2^last, by `le`, from an expression of one native histogram: for one moment only."""
    edges = [f"{2.0**power:.6g}" for power in range(first, last + 1)]
    rows = (f'label_replace(histogram_fraction(0, {edge}, {native}), "le", "{edge}", "", "")' for edge in edges)
    return " or ".join(rows)


def rate(counter: str, selector: str = RUN, window: str = RATE) -> str:
    """The sum of a counter's rates."""
    return _bare(once(counter, f"rate({counter}{{{selector}}}[{window}])"))


def octaves(first: int, last: int) -> str:
    """A matcher for the bucket edges 2^first … 2^last: eight rows an octave are too many to read in a heatmap.

    Prometheus 3 writes whole numbers with `.0`; protobuf scrapes carry edges unrounded.
    """
    edges = []
    for power in range(first, last + 1):
        edge = 2.0**power
        texts = {f"{edge:.6g}", repr(edge), f"{edge:g}"} | ({f"{edge:.0f}"} if power >= 0 else set())
        edges += sorted(texts)
    return 'le=~"' + "|".join(edge.replace(".", "[.]") for edge in edges) + '"'


STREAMED = rate("tokenswarm_output_tokens_streamed_total")
REQUESTS = rate("tokenswarm_requests_total")
ENERGY_PER_TOKEN = f"1 / (max(tokenswarm:tokens_per_joule:rate1m{{{RUN}}}) > 0)"


def doubts(*runs: str) -> str:
    """What each of these runs ($NAME) concluded of itself: its verdict by `status`, doubts by `code` and `severity`."""
    of_runs = 'run_id=~"' + "|".join(runs) + '"'
    doubt, verdict = (f"last_over_time(tokenswarm_run_{what}{{{of_runs}}}[$__range])" for what in ("doubt", "verdict"))
    return f"max by (run_id, status) ({verdict}) == 1 or max by (run_id, code, severity) ({doubt})"


def alerts(*runs: str, places: bool = True) -> str:
    """Alerts that fire for these runs ($NAME), or with `places` for what the run is against; and lost exporters."""
    more = ',gpu=~"$gpu|",instance=~"$host|$engine|"' if places else ',gpu="",instance=""'
    named = "|".join((*runs, ""))
    firing = 'alertname=~"LLM.*",alertstate="firing"'
    return f'ALERTS{{{firing},run_id=~"{named}"{more}}} or ALERTS{{alertname="LLMExporterDown",alertstate="firing"}}'


def stage(name: str, selector: str = RUN, **labels: str) -> str:
    """A gauge of the stages that are over, by stage, also after the run."""
    more = "".join(f',{key}="{value}"' for key, value in labels.items())
    return f"max by (stage) (last_over_time({name}{{{selector}{more}}}[$__range]))"


def load_of_stage(selector: str = RUN) -> str:
    """What each stage that is over asked for: its users; in an open loop its requests a second."""
    names = ("tokenswarm_stage_concurrency", "tokenswarm_stage_target_requests_per_second")
    return f"({' or '.join(stage(name, selector) for name in names)})"
