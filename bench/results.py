"""Runs in, bench/RESULTS.md out: for each experiment a table of goal, measured and met, and the sender's own error.

A round counts only if the sender's lateness p99 (for single stamps: the time that its sends took) is within the
accuracy that is judged; the others are counted as not usable. Bold: not met.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import goals
from bench.experiments import STAMP_STREAMS, Climb, Plan, Profiled, mb_per_1000
from bench.goals import ACCURACY_MS, CLIENTS, FLOOR_RATIO, OURS, met, spread
from bench.runs import DISTURBED, Run
from tokenswarm.client.which_reader import reader_name

OWN = (
    "## Do the bars",
    "## Arrivals",
    "## A server that stands still",
    "## Searches",
    "## What bars cost",
    "## Does a comparison",
    "## Does a rule cry wolf",
    "## What a token costs the embedded engine",
    "## What a dashboard's dearest query takes",
)
PACKAGES = ("tokenswarm", "gevent", "httptools", "msgspec", "locust", "geventhttpclient", "aiohttp")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def render(plan: Plan, found: dict[str, Any], profiles: list[Profiled], took_s: float) -> str:
    """The whole file."""
    parts = [_heading(plan, took_s)]
    parts += [SECTIONS[name](found[name]) for name in SECTIONS if name in found]
    parts += [_profile(each) for each in profiles]
    return "\n".join(parts)


def own_sections(text: str) -> str:
    """The sections of RESULTS.md that are made by themselves, as by `python -m bench --truth 200`: they stand last."""
    return "".join(section for section in _sections(text) if section.startswith(OWN))


def with_section(text: str, section: str) -> str:
    """`text` with a section that is made by itself in place of the one of the same name, or behind all others."""
    head, parts = section.partition("\n")[0], _sections(text)
    places = [place for place, part in enumerate(parts) if part.partition("\n")[0] == head]
    parts[places[0] if places else len(parts) :] = [section] + (parts[places[0] + 1 :] if places else [])
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _sections(text: str) -> list[str]:
    """`text` cut before each of its headings."""
    return [part for part in re.split(r"^(?=## )", text, flags=re.MULTILINE) if part]


def _heading(plan: Plan, took_s: float) -> str:
    rows = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {took_s:.0f} s",
        "machine": machine(),
        "load average before the end": ", ".join(f"{load:.1f}" for load in os.getloadavg()) + " (1, 5, 15 min)",
        "reader of `tokenswarm`": reader_name(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "rounds": f"{plan.rounds}, clients in turn, {plan.seconds:g} s and the end of open streams each",
        "streams": f"{plan.pace.tokens} tokens, first after {plan.pace.ttft_ms:g} ms, then a gap of "
        f"{plan.pace.itl_ms:g} ms ± {plan.pace.jitter:.0%}; one request after another on each",
    }
    text = "# What this machine measured\n\nWritten by `make bench`; docs/performance.md says how to read it.\n\n"
    if plan.name == "quick":
        text += "**A quick run: it shows that everything works. Its figures rest on too little to be quoted.**\n\n"
    return text + table(("", ""), rows.items())


def machine() -> str:
    return f"{_cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _levels(runs: list[Run]) -> list[int]:
    return sorted({run.streams for run in runs})


def _of(runs: list[Run], client: str, streams: int) -> list[Run]:
    return [run for run in runs if run.client == client and run.streams == streams]


def _sender(runs: list[Run]) -> str:
    """The sender's own lateness and what disturbed the rounds."""
    late = [f"{max(run.lateness_ms[name] for run in runs):.2f}" for name in ("p50", "p99", "max")]
    disturbed = sum(run.disturbed for run in runs)
    return " / ".join(late) + (f", {disturbed} of {len(runs)} disturbed" if disturbed else "")


def _accuracy(runs: list[Run]) -> str:
    text = (
        "## Truth of TTFT and ITL\n\n"
        "What the client says − what was sent, ms: median (min..max) over rounds; the goal is for the absolute value. "
        "The last column is the sender's own lateness, p50 / p99 / max of the worst round, and in how many rounds "
        f"another program took more than {DISTURBED:.0%} of a core.\n\n"
    )
    for streams in _levels(runs):
        goal_ms = dict(zip(("p50", "p99"), ACCURACY_MS[streams], strict=True))
        rows = []
        for client in CLIENTS[:-1]:
            rounds = _of(runs, client, streams)
            usable = [run for run in rounds if run.lateness_ms["p99"] <= goal_ms["p99"]]
            for metric in ("ttft_ns", "itl_ns"):
                rows.append(_accuracy_row(client, metric, rounds, usable, goal_ms))
        head = ("client", "metric", "p50 off by", "p99 off by", "met", "usable rounds", "sender late, ms")
        goal = f"goal: p50 within {goal_ms['p50']:g}, p99 within {goal_ms['p99']:g} ms"
        text += f"{streams} streams a core; {goal}\n\n" + table(head, rows) + "\n"
    return text + _lost(runs)


def _accuracy_row(
    client: str, metric: str, rounds: list[Run], usable: list[Run], goal_ms: dict[str, float]
) -> list[str]:
    cells, verdicts = [], []
    for quantile, limit in goal_ms.items():
        off = spread([run.off_ms(metric, quantile) for run in rounds])
        cells.append(off.show(2) if off else "–")
        verdicts.append(met(spread([abs(run.off_ms(metric, quantile)) for run in usable]), limit))
    verdict = " / ".join(verdicts) if client == "tokenswarm" else "–"
    name = metric.removesuffix("_ns").upper()
    return [client, name, *cells, verdict, f"{len(usable)} of {len(rounds)}", _sender(rounds)]


def _lost(runs: list[Run]) -> str:
    bad = [f"{run.client} at {run.streams}" for run in runs if not run.exact]
    return f"Events sent and received differ, or requests failed: {', '.join(bad)}.\n" if bad else ""


def _cpu(runs: list[Run]) -> str:
    text = (
        "\n## CPU per event\n\nAll that the client process did, user and system, from the end of the ramp to the end "
        "of the load, divided by the events of that time, and what of that was system; the same runs as above. "
        "`epoll` is the floor: recv and a count of events, no HTTP, no JSON. The ratio is to that floor in the same "
        "round. A client that has to wait, for its core or because it is saturated, finds more events in a read, and "
        "looks cheaper than it is: rounds that were disturbed do not count for the goal.\n\n"
    )
    for streams in [level for level in _levels(runs) if level in FLOOR_RATIO]:
        floor = _of(runs, "epoll", streams)
        rows = []
        for client in CLIENTS:
            rounds = _of(runs, client, streams)
            calm = [a.cpu_us / b.cpu_us for a, b in zip(rounds, floor, strict=True) if not a.disturbed | b.disturbed]
            cpu, rate = spread([run.cpu_us for run in rounds]), spread([run.events_per_s for run in rounds])
            core = spread([100 * run.cpu_ratio for run in rounds])
            kernel = spread([run.system_us for run in rounds])
            ratio = spread([a.cpu_us / b.cpu_us for a, b in zip(rounds, floor, strict=True)])
            if cpu and rate and core and ratio and kernel:
                verdict = met(spread(calm), FLOOR_RATIO[streams]) if client == OURS[0] else "–"
                row = [client, rate.show(0), core.show(0), cpu.show(1), kernel.show(1), ratio.show(2), verdict]
                rows.append([*row, f"{len(calm)} of {len(rounds)}"])
        head = ("client", "events/s", "% of a core", "µs an event", "system", "ratio", "met", "undisturbed rounds")
        text += f"{streams} streams; goal: {FLOOR_RATIO[streams]:g} times the floor\n\n" + table(head, rows) + "\n"
    return text


def _stamps(runs: list[Run]) -> str:
    def show(name: str) -> str:
        errors = spread([run.result["error_ns"][name] / 1000 for run in runs])
        return errors.show(1) if errors else "–"

    usable = [run for run in runs if run.truth["send_ns"]["p99"] / 1000 <= goals.STAMP_ERROR_P99_US]
    p99 = spread([run.result["error_ns"]["p99"] / 1000 for run in usable])
    sends = spread([run.truth["send_ns"]["p99"] / 1000 for run in runs])
    rate = spread([run.events_per_s for run in runs])
    merged = spread([100 * run.result["merged_events"] / run.result["events"] for run in runs])
    row = [show(name) for name in ("p50", "p99", "p999", "max")] + [met(p99, goals.STAMP_ERROR_P99_US)]
    row += [merged.show(3) if merged else "–", sends.show(1) if sends else "–", _sender(runs)]
    return (
        f"## Error of single stamps\n\n{STAMP_STREAMS} streams, {rate.show(0) if rate else '–'} events/s: receive "
        "stamp − the send time that the token itself carries, µs. The truth is read just before the send: it is known "
        f"to within the time that a send takes. Goal: p99 within {goals.STAMP_ERROR_P99_US:g} µs. An event that shares "
        "a read with a later one has the later one's stamp, and counts here as that wrong.\n\n"
        + table(("p50", "p99", "p99.9", "max", "met", "merged, %", "send takes, p99", "sender late, ms"), [row])
    )


def _capacity(climbs: dict[str, Climb]) -> str:
    rows = []
    for client, climb in climbs.items():
        held = spread([climb.held.events_per_s]) if climb.held else spread([0.0])
        verdict = met(held, goals.CAPACITY_EVENTS_PER_S, at_least=True) if client == "tokenswarm" else "–"
        if verdict.startswith("**") and (climb.sender_limited or climb.broke is None):
            verdict = "not usable: the sender's limit" if climb.sender_limited else "not tried further"
        row = [client, f"{climb.held.streams}" if climb.held else "–", held.show(0) if held else "–"]
        row += [f"{100 * climb.held.cpu_ratio:.0f}" if climb.held else "–", _broke(climb), verdict]
        rows.append([*row, _sender([run for run in climb[:2] if run is not None])])
    return (
        "## Capacity of one core\n\nMost events/s with TTFT p99 within "
        f"{goals.CAPACITY_TTFT_P99_MS:g} ms of the truth: more streams step by step until a step fails twice. Goal: "
        f"{goals.CAPACITY_EVENTS_PER_S} events/s.\n\n"
        + table(("client", "streams", "events/s", "% of a core", "next step", "met", "sender late, ms"), rows)
    )


def _broke(climb: Climb) -> str:
    if climb.broke is None:
        return "held all steps"
    off_ms = climb.broke.off_ms("ttft_ns", "p99")
    return f"{climb.broke.streams} streams: {climb.broke.events_per_s:.0f} events/s, TTFT p99 off by {off_ms:.2f} ms"


def _memory(runs: list[Run]) -> str:
    rows = []
    for client in CLIENTS[:-1]:
        mb = spread([mb_per_1000(run) for run in runs if run.client == client])
        assert mb is not None
        rows.append([client, mb.show(1), met(mb, goals.MEMORY_MB) if client == "tokenswarm" else "–"])
    return (
        f"## Memory\n\nRSS above that before the first connection while {runs[0].streams} streams of 128 tokens were "
        f"open, MB per 1 000 streams. Goal: {goals.MEMORY_MB:g} MB.\n\n" + table(("client", "MB", "met"), rows)
    )


def _costs(found: dict[str, list[float]]) -> str:
    add = spread([s * 1e6 for s in found["recorder_add"]])
    drawn = spread([row_s / min(found["report_decode"]) for row_s in found["report_row"]])
    look = spread([s * 1e6 for s in found["look"]])
    names = {
        "insert": ("Sketch.add, a value", "–"),
        "gap": ("Gaps.add, a gap", "–"),
        "recorder_add": ("Recorder.add, an answer of 128 tokens", met(add, goals.RECORDER_ADD_US)),
        "row": ("a row of requests.jsonl, the same answer", "–"),
        "report_decode": ("its line decoded, all that report.html wants of it", "–"),
        "report_row": ("the same drawn in report.html", met(drawn, goals.REPORT_ROW_RATIO)),
        "look": ("a look at ten engines of 5 000 series each", met(look, goals.LOOK_US)),
    }
    rows = []
    for name, (title, verdict) in names.items():
        cost = spread([s * 1e6 for s in found[name]])
        assert cost is not None
        rows.append([title, cost.show(2), verdict])
    return (
        "## Single calls\n\nµs: median (min..max) of repetitions. Goals: Recorder.add within "
        f"{goals.RECORDER_ADD_US:g} µs; a look within {goals.LOOK_US:g} µs of CPU; a row drawn within "
        f"{goals.REPORT_ROW_RATIO:g} times what its line takes to decode.\n\n" + table(("call", "µs", "met"), rows)
    )


def _instructions(found: dict[str, float]) -> str:
    text = (
        "## Instructions of an event\n\nIn user space, of the hot path replayed from memory: receive, decode, mark, "
        "count, a row; an answer of 128 tokens, an event a read. They do not depend on what else the machine does. "
    )
    if not found:
        return text + "Not counted: there is no valgrind here.\n"
    ours, python = (found[client] for client in OURS)
    verdict = met(spread([ours / python]), goals.INSTRUCTIONS_RATIO)
    rows = [[OURS[0], f"{ours:.0f}", f"{ours / python:.2f}", verdict], [OURS[1], f"{python:.0f}", "1.00", "–"]]
    text += f"Goal: {goals.INSTRUCTIONS_RATIO:g} of Python's.\n\n"
    return text + table(("client", "instructions", "ratio", "met"), rows)


def _profile(profiled: Profiled) -> str:
    rows = [[f"`{name}`", f"{share:.0%}", f"{calls:.2f}"] for name, share, calls in profiled.lines]
    return (
        f"## Where the time goes at {profiled.streams} streams\n\nA goal was missed there. Share of the time in each "
        "function itself, without the event loop (cProfile, which makes small functions look dearer than they are).\n\n"
        + table(("function", "share", "calls an event"), rows)
    )


def missed_at(found: dict[str, Any]) -> list[int]:
    """The numbers of streams at which tokenswarm missed a goal that a profile can explain, ascending."""
    missed = set()
    for streams in _levels(found.get("accuracy", [])):
        rounds = _of(found["accuracy"], "tokenswarm", streams)
        pairs = zip(rounds, _of(found["accuracy"], "epoll", streams), strict=False)
        ratio = spread([ours.cpu_us / floor.cpu_us for ours, floor in pairs if not ours.disturbed | floor.disturbed])
        texts = [met(ratio, FLOOR_RATIO[streams])] if streams in FLOOR_RATIO else []
        for metric in ("ttft_ns", "itl_ns"):
            for quantile, limit in zip(("p50", "p99"), ACCURACY_MS[streams], strict=True):
                texts.append(met(spread([abs(run.off_ms(metric, quantile)) for run in rounds]), limit))
        missed |= {streams} if "**no**" in texts else set()
    climb = found.get("capacity", {}).get("tokenswarm")
    if (
        climb
        and climb.broke
        and not climb.sender_limited
        and (not climb.held or climb.held.events_per_s < goals.CAPACITY_EVENTS_PER_S)
    ):
        missed.add(climb.broke.streams)
    return sorted(missed)


SECTIONS: dict[str, Callable[[Any], str]] = {
    "accuracy": lambda runs: _accuracy(runs) + _cpu(runs),
    "stamps": _stamps,
    "capacity": _capacity,
    "memory": _memory,
    "costs": _costs,
    "instructions": _instructions,
}
