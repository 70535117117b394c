"""The tables of what the engine says of itself: its batch and work, its latencies, the durations it sends with answers.

A column without any value is left out, and a sentence names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenswarm.reports.cells import LATENCY_NAMES
from tokenswarm.reports.html import path
from tokenswarm.reports.html.figure import PERCENTILE_NAMES, best_percentile, load_name
from tokenswarm.reports.html.reported import Engine, Told, answered, by_stage, durations, engine
from tokenswarm.reports.html.svg import escape
from tokenswarm.reports.html.tables import Cell, Filled, count, filled, joined, table, titled
from tokenswarm.reports.html.units import bucket, counts, exact, percentile, top
from tokenswarm.reports.numbers import MISSING, duration, quantity, ratio
from tokenswarm.result.stat import Stat
from tokenswarm.result.summary import Summary
from tokenswarm.telemetry.histogram import Split
from tokenswarm.telemetry.names import ENGINES
from tokenswarm.telemetry.server import LevelBlock, TokensCompared

HOW_TO_GET = (
    "telemetry.engine_metrics: auto asks the /metrics of each target (Ollama: /api/ps); a list of URLs names other "
    "pages. Understood are Ollama, the embedded engine, " + ", ".join(one.title for one in ENGINES.values()) + "."
)

_NAMES = {**LATENCY_NAMES, "queue_s": "queue", "prefill_s": "prefill", "decode_s": "decode"}
_PARTS = ("queue_s", "prefill_s", "ttft_s", "itl_s", "tpot_s", "decode_s", "e2e_s")
"""The engine's latencies, in the order in which a request meets them."""

_DURATIONS = {"total_s": "total", "load_s": "load", "queue_s": "queue", "prefill_s": "prefill", "decode_s": "decode"}
_DURATIONS |= {"ttft_s": "first token, without the queue", "tokens_per_s": "tokens/s of a request"}


def engine_tables(summary: Summary) -> str:
    """Batch and work, latencies, and what came with each answer; or one sentence on how to get them."""
    block = engine(summary)
    if block is None or not answered(block):
        asked = "None was read in this run" if block is None else "They were asked for, but gave nothing (see below)"
        none = f"<p>No engine metrics. {escape(asked)}. {escape(HOW_TO_GET, 1_000)}</p>"
        return none + _with_answers(summary) + _tokens_with_answers(summary)
    own = _batch(summary), _tokens(summary), *_by_stage(summary)
    between = *path.replicas(summary), path.requests(summary), path.routers(summary)
    tables = joined(*own, *between, missing="Not reported by the engine")
    return tables + _distributions(summary, block) + _with_answers(summary) + _tokens_with_answers(summary)


def level(found: LevelBlock | None) -> Cell:
    """Mean over time; below it the largest reading."""
    if found is None or found.mean is None:
        return MISSING if found is None or found.max is None else f"max {top(found.max)}"
    return quantity(found.mean), f"max {top(found.max)}"


def _share(found: LevelBlock) -> Cell:
    return MISSING if found.mean is None else (ratio(found.mean), f"max {ratio(found.max)}")


_BATCH_HEAD: tuple[Cell, ...] = (
    "", ("in the batch", "mean"), ("waiting", "mean"), ("KV-cache in use", "mean"), "preemptions",
    ("tokens a step", "prefill, decode"), ("ended", "by reason"), ("refused", "by reason"),
    ("models loaded", "mean"), ("on the GPU", "of the models"),
)  # fmt: skip
_OLLAMAS = ("models loaded", "on the GPU")  # nobody misses them elsewhere


def _batch(summary: Summary) -> Filled:
    lines: list[list[Cell]] = [
        [
            name,
            level(block.running),
            level(block.waiting),
            _share(block.kv_cache_usage),
            MISSING if block.preemptions is None else count(block.preemptions),
            quantity(block.tokens_per_step_mean),
            _reasons(block.finished),
            _reasons(block.rejected),
            level(block.models_loaded),
            ratio(block.vram_ratio_mean),
        ]
        for name, _, block in by_stage(summary, engine)
    ]
    shown, missing = titled("In the engine", filled(_BATCH_HEAD, lines, (0, 6, 7)))
    return shown, [name for name in missing if name not in _OLLAMAS]


_TOKENS_HEAD: tuple[Cell, ...] = (
    "", ("prompt tokens/s", "and tokens"), ("from the prefix cache", "of prompt tokens"),
    ("output tokens/s", "and tokens"), ("client's output", "tokens/s"), ("difference", "engine − client"),
)  # fmt: skip


def _tokens(summary: Summary) -> Filled:
    lines: list[list[Cell]] = []
    for name, _, block in by_stage(summary, engine):
        compared = block.output_tokens_compared
        lines.append(
            [
                name,
                _rate(block.prompt_tokens_per_s, block.prompt_tokens),
                ratio(block.prefix_cache_hit_ratio),
                _rate(block.generation_tokens_per_s, block.generation_tokens),
                MISSING if compared is None else quantity(compared.client_per_s),
                MISSING if compared is None else _difference(compared),
            ]
        )
    return titled("Tokens, engine beside client", filled(_TOKENS_HEAD, lines))


def _rate(per_s: float | None, tokens: int | None) -> Cell:
    return MISSING if tokens is None else (quantity(per_s), exact(tokens))


def _difference(found: TokensCompared) -> Cell:
    """Engine − client, and whether that is more than could be nothing."""
    difference = f"{found.difference_ratio:+.2%}".replace("-", "−")
    return difference, f"{'agree' if found.agree else 'DIFFER'}: up to ±{ratio(found.tolerance_ratio)} is nothing"


def _reasons(by_name: Mapping[str, int]) -> Cell:
    return (count(sum(by_name.values())), counts(by_name)) if by_name else MISSING


_CLIENTS = ("ttft_s", "itl_s", "tpot_s", "e2e_s")
"""The latencies that the client measures, too."""


def _by_stage(summary: Summary) -> tuple[Filled, Filled]:
    """Means, and where the highest percentile with enough samples lies."""
    note = (
        "Means; below them the highest percentile that has enough samples, with the engine as the bucket it lies in. "
        "The engine's TTFT begins when the request reached its API server and ends when the token left the engine; the "
        "client's holds the network and the engine's HTTP side, too."
    )
    first = _latency_table(summary, ("queue_s", "prefill_s", "ttft_s"))
    after = _latency_table(summary, ("itl_s", "tpot_s", "decode_s", "e2e_s"))
    return (
        titled("Until the first token, engine beside client", first, note),
        titled("After it, engine beside client", after, "" if first[0] else note),
    )


def _latency_table(summary: Summary, fields: Sequence[str]) -> Filled:
    head: list[Cell] = [""]
    for field in fields:
        head += [(_NAMES[field], "engine"), (_NAMES[field], "client")] if field in _CLIENTS else [_NAMES[field]]
    lines: list[list[Cell]] = []
    for name, part, block in by_stage(summary, engine):
        line: list[Cell] = [name]
        for field in fields:
            own = block.latency.get(field)
            line.append(_split(own))
            if field in _CLIENTS:
                line.append(_client(part, field) if own is not None and own.n else MISSING)
        lines.append(line)
    return filled(head, lines)


def _split(found: Split | None) -> Cell:
    if found is None or not found.n:
        return MISSING
    highest = next((name for name in ("p99", "p90", "p50") if name in found.ranges), None)
    return duration(found.mean), f"{highest} {bucket(found, highest)}" if highest else ""


def _client(part: Told, field: str) -> Cell:
    found: Stat = getattr(part.latency, field)
    if found.mean is None:
        return MISSING
    highest = best_percentile([found], among=("p99", "p90", "p50"))
    below = f"{PERCENTILE_NAMES[highest]} {duration(getattr(found, highest))}" if highest else ""
    return duration(found.mean), below


def _distributions(summary: Summary, block: Engine) -> str:
    """The engine's distributions over the whole run, with the bucket of each percentile."""
    lines: list[list[Cell]] = []
    for field in (*_PARTS, *(name for name in block.latency if name not in _PARTS)):
        found = block.latency.get(field)
        if found is not None and found.n:
            values = [percentile(found, name) for name in ("p50", "p90", "p99")]
            lines.append([_NAMES.get(field, field), exact(found.n), duration(found.mean), *values])
    if not lines:
        return ""
    title = "The engine's distributions" + (", all stages together" if len(summary.stages) > 1 else "")
    note = (
        "A value with its bucket is what histogram_quantile would show; in the lowest bucket there is only ≤, and with "
        "too few samples –. p50 and p90 of each stage: stages[].server.metrics.latency in summary.json."
    )
    shown = table(("", "n", "mean", "p50", "p90", "p99"), lines)
    return f'<h3>{title}</h3>{shown}<p class="small">{escape(note, 1_000)}</p>'


def _with_answers(summary: Summary) -> str:
    """Durations that come with each answer: of Ollama, of vLLM with --enable-per-request-metrics, of llama.cpp."""
    found = durations(summary)
    ordered = sorted(found, key=lambda name: list(_DURATIONS).index(name) if name in _DURATIONS else len(_DURATIONS))
    lines: list[Sequence[Cell]] = []
    for name in ordered:
        stat = found[name]
        show = quantity if name.endswith("_per_s") or not name.endswith("_s") else duration
        values = [show(value) for value in (stat.mean, stat.p50, stat.p90, stat.p95, stat.p99, stat.max)]
        lines.append([_DURATIONS.get(name, name), count(stat.n), *values])
    if not lines:
        return ""
    note = "Of the steady requests, as the engine said with each answer."
    note += " Queue: total − load − prefill − decode (Ollama), or the engine's own (vLLM)."
    if "ttft_s" in found:
        note += (
            " First token: vLLM's time_to_first_token_ms, which begins when the request enters the batch; queue + this "
            "is what its metrics call TTFT."
        )
    if summary.server.get("load_s"):
        note += (
            " Ollama's queue holds 3 to 5 ms that are none; its load tells something from 0.25 s on: a model was cold, "
            "or the request waited for the scheduler. No sums: slots that share a prefill are each charged with it."
        )
    shown = table(("", "n", "mean", "p50", "p90", "p95", "p99", "max"), lines)
    return f'<h3>Durations that came with the answers</h3>{shown}<p class="small">{escape(note)}</p>'


_ANSWERS_HEAD: tuple[Cell, ...] = (
    "", "prompt", ("from the prefix cache", "of the prompt"), "output", ("reasoning", "tokens"),
    ("reasoning", "events before the answer"), "drafted", ("accepted", "of the drafted"),
)  # fmt: skip


def _tokens_with_answers(summary: Summary) -> str:
    """What the counts that came with the answers are made of; where nothing but prompt and output came, nothing."""
    lines: list[list[Cell]] = []
    parts: list[tuple[str, Told]] = [(load_name(stage), stage) for stage in summary.stages]
    for name, part in [*parts, ("all stages", summary)] if len(parts) != 1 else parts:
        tokens = part.tokens
        lines.append(
            [
                name,
                exact(tokens.input),
                _part(tokens.cached, tokens.input),
                exact(tokens.output),
                _part(tokens.reasoning, tokens.output),
                exact(tokens.reasoning_events) if tokens.reasoning_events else MISSING,
                exact(tokens.drafted) if tokens.drafted else MISSING,
                _part(tokens.accepted, tokens.drafted),
            ]
        )
    told = summary.tokens
    if not (told.cached or told.reasoning or told.reasoning_events or told.drafted):
        return ""
    note = (
        "Of the steady requests. Drafted and accepted: tokens of a speculative decoder, and those that the model took."
    )
    return titled("Tokens that came with the answers", filled(_ANSWERS_HEAD, lines), note)[0]


def _part(tokens: int, of: int) -> Cell:
    return (exact(tokens), ratio(tokens / of)) if tokens and of else MISSING
