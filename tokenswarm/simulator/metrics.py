"""The engine's /metrics under vLLM 0.33's names, counted in plain integers and rendered when scraped.

An observation costs a bisect and two additions, and one of a gap between tokens an append: `settle` counts many at a
time; prometheus_client's would cost more than writing the token. Buckets and help texts are vLLM's (loggers.py,
buckets.py).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from tokenswarm.simulator.process import ABOUT

Bounds = tuple[float, ...]


def _bounds(text: str) -> Bounds:
    return tuple(float(bound) for bound in text.split())


_TTFT = _bounds("0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560")
_ITL = _bounds("0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80")
_REQUEST = _bounds("0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680")
_TOKENS = tuple(float(base * 10**power) for power in range(5) for base in (1, 2, 5))
_ITERATION = (1.0, *(float(2**power) for power in range(3, 15)))
REASONS = ("stop", "length", "abort", "error", "repetition")

_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "request_prompt_tokens": ("Number of prefill tokens processed.", _TOKENS),
    "request_generation_tokens": ("Number of generation tokens processed.", _TOKENS),
    "iteration_tokens_total": ("Histogram of number of tokens per engine_step.", _ITERATION),
    "time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _TTFT),
    "inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _ITL),
    "request_time_per_output_token_seconds": ("Histogram of time_per_output_token_seconds per request.", _ITL),
    "e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _REQUEST),
    "request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", _REQUEST),
    "request_inference_time_seconds": ("Histogram of time spent in RUNNING phase for request.", _REQUEST),
    "request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", _REQUEST),
    "request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", _REQUEST),
}

_COUNTERS = {
    "num_preemptions_total": "Cumulative number of preemption from the engine.",
    "prefix_cache_queries_total": "Prefix cache queries, in terms of number of queried tokens.",
    "prefix_cache_hits_total": "Prefix cache hits, in terms of number of cached tokens.",
    "prompt_tokens_total": "Number of prefill tokens processed.",
    "generation_tokens_total": "Number of generation tokens processed.",
}

_GAUGES = {
    "num_requests_running": "Number of requests in model execution batches.",
    "num_requests_waiting": "Number of requests waiting to be processed.",
    "kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
}


class Histogram:
    """Counts by bucket (not cumulative), and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_ns(self, values_ns: Sequence[int]) -> None:
        """The same for many, which come as ns: a search a bound, and none a value."""
        ordered, at = sorted(values_ns), 0
        for place, bound in enumerate(self.bounds):
            upto = bisect_right(ordered, bound * 1e9, at)
            self.counts[place] += upto - at
            at = upto
        self.counts[-1] += len(ordered) - at
        self.sum += sum(ordered) / 1e9


class Metrics:
    """All the counters of one server; `render` takes the gauges, which are the engine's state at that moment."""

    def __init__(self) -> None:
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in _HISTOGRAMS.items()}
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.gaps_ns = array("q")  # between tokens, not yet counted: each is a token of its own
        self.finished = dict.fromkeys(REASONS, 0)
        self.rejections = 0
        self.cache_queries = self.cache_hits = 0  # tokens

    def observe(self, name: str, value: float) -> None:
        self.histograms[name].observe(value)

    def settle(self) -> None:
        """Count what waits in `gaps_ns`."""
        self.histograms["inter_token_latency_seconds"].observe_ns(self.gaps_ns)
        self.generation_tokens += len(self.gaps_ns)
        del self.gaps_ns[:]

    def render(
        self,
        model: str,
        gauges: dict[str, float],
        preemptions: int,
        cache_config: dict[str, object],
        process: dict[str, float] | None = None,
    ) -> bytes:
        """The text exposition format 0.0.4. `process`: what prometheus_client tells of any process."""
        self.settle()
        labels = f'engine="0",model_name="{_label(model)}"'
        lines: list[str] = []
        for name, about in _GAUGES.items():
            _family(lines, name, about, "gauge", [(labels, gauges[name])])
        counters = {
            "num_preemptions_total": preemptions,
            "prefix_cache_queries_total": self.cache_queries,
            "prefix_cache_hits_total": self.cache_hits,
            "prompt_tokens_total": self.prompt_tokens,
            "generation_tokens_total": self.generation_tokens,
        }
        for name, about in _COUNTERS.items():
            _family(lines, name, about, "counter", [(labels, counters[name])])
        reasons = [
            (f'engine="0",finished_reason="{reason}",model_name="{_label(model)}"', count)
            for reason, count in self.finished.items()
        ]
        _family(lines, "request_success_total", "Count of successfully processed requests.", "counter", reasons)
        rejected = [(f'model_name="{_label(model)}",reason="max_num_queued_reqs"', self.rejections)]
        about = "Number of admission attempts rejected by a queue limit, by reason."
        _family(lines, "admission_rejections_total", about, "counter", rejected)
        for name, (about, _) in _HISTOGRAMS.items():
            _render_histogram(lines, name, about, self.histograms[name], labels)
        config = ",".join(
            f'{key}="{_label(str(value))}"' for key, value in sorted({**cache_config, "engine": 0}.items())
        )
        _family(lines, "cache_config_info", "Information of the LLMEngine CacheConfig", "gauge", [(config, 1)])
        for name, value in (process or {}).items():
            lines += [f"# HELP {name} {ABOUT[name]}", f"# TYPE {name} gauge", f"{name} {float(value)!r}"]
        return ("\n".join(lines) + "\n").encode()


def _label(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _head(lines: list[str], name: str, about: str, kind: str) -> None:
    lines.append(f"# HELP vllm:{name} {about}")
    lines.append(f"# TYPE vllm:{name} {kind}")


def _family(lines: list[str], name: str, about: str, kind: str, samples: Sequence[tuple[str, float]]) -> None:
    _head(lines, name, about, kind)
    lines.extend(f"vllm:{name}{{{labels}}} {float(value)!r}" for labels, value in samples)


def _render_histogram(lines: list[str], name: str, about: str, histogram: Histogram, labels: str) -> None:
    _head(lines, name, about, "histogram")
    total = 0
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        total += count
        edge = "+Inf" if bound is None else repr(bound)
        lines.append(f'vllm:{name}_bucket{{{labels},le="{edge}"}} {float(total)!r}')
    lines.append(f"vllm:{name}_count{{{labels}}} {float(total)!r}")
    lines.append(f"vllm:{name}_sum{{{labels}}} {histogram.sum!r}")
