"""The tables of what the GPUs say of themselves: by stage, and a row a GPU.

Numbers are those of the `gpu` blocks; where GPUs were lost there are no sums, and the page says so.
"""

from __future__ import annotations

from tokenswarm.reports.html.reported import REPLAY, Gpus, answered, by_stage, gpus, replayed
from tokenswarm.reports.html.svg import escape
from tokenswarm.reports.html.tables import Cell, Filled, filled, joined, titled
from tokenswarm.reports.html.units import celsius, hertz, joules, size, three, throttled, watts
from tokenswarm.reports.numbers import MISSING, duration, ratio
from tokenswarm.result.summary import Summary
from tokenswarm.telemetry.gpu import Gpu

HOW_TO_GET = (
    "Start python -m exporters.gpu on the machine of the GPUs and name its page in telemetry.gpu_exporters; "
    "telemetry.price_per_gpu_hour adds the cost of a token."
)


_NO_CPU_ENERGY = {
    "absent": "No energy of a CPU package: the machine tells none (powercap).",
    "permission": "The energy of the CPU packages is there and was not read: the kernel lets only root. Start the "
    "exporter as root, or let its group read /sys/class/powercap/*/energy_uj.",
}


def gpu_tables(summary: Summary) -> str:
    """By stage and by GPU; or one sentence on how to get them."""
    block = gpus(summary)
    if block is None:
        return f"<p>No GPU was watched in this run. {escape(HOW_TO_GET, 1_000)}</p>"
    parts = []
    if replayed(block):
        parts.append(
            '<p class="warn">Recorded values: an exporter replays a file (backend replay). Power, energy and cost '
            "below are not measured in this run.</p>"
        )
    if not block.sources:
        parts.append(f"<p>No GPU was watched in this run, only the price is known. {escape(HOW_TO_GET, 1_000)}</p>")
    elif not answered(block):
        parts.append("<p>The GPU exporters gave nothing in the steady windows (see below).</p>")
    elif not block.count:
        parts.append("<p>The GPU exporters showed no GPU.</p>")
    lost = [one for one in block.gpus if one.lost]
    if lost:
        parts.append(
            f'<p class="warn">{len(lost)} of {len(block.gpus)} GPUs did not answer throughout the steady windows, so '
            "there are no sums.</p>"
        )
    parts.append(joined(_by_stage(summary, block), _each(block), _cpu(summary), missing="Not known of them"))
    for why in sorted({one.cpu.why_not for _, _, one in by_stage(summary, gpus) if one.cpu is not None} - {""}):
        parts.append(f"<p>{escape(_NO_CPU_ENERGY.get(why, why), 1_000)}</p>")
    return "".join(parts)


def _cpu(summary: Summary) -> Filled:
    """By stage, where any tells it."""
    head: tuple[Cell, ...] = (
        "", ("power", "mean, all packages"), ("energy", "all packages"), ("DRAM", "energy"),
        ("J/token", "output tokens"), ("tokens/J", "output tokens"),
    )  # fmt: skip
    lines: list[list[Cell]] = []
    for name, _, block in by_stage(summary, gpus):
        one = block.cpu
        if one is not None and one.energy_j is not None:
            numbers = three(one.j_per_output_token), three(one.output_tokens_per_j)
            lines.append([name, watts(one.power_w_mean), joules(one.energy_j), joules(one.dram_energy_j), *numbers])
    if not lines:
        return "", []
    note = "Of the CPU packages (RAPL) of the exporters' machines, not of a GPU, and in no sum with theirs."
    return titled("Energy of the CPU", filled(head, lines), note)


def _by_stage(summary: Summary, whole: Gpus) -> Filled:
    head: tuple[Cell, ...] = (
        "", ("power", "mean, all GPUs"), ("energy", "all GPUs"), ("utilization", "kernels ran"),
        ("memory used", "highest, all GPUs"), ("J/token", "output tokens"), ("tokens/s/W", "= tokens/J"),
        (f"cost, {whole.currency}" if whole.currency else "cost", "1M output tokens"),
        ("clocks held down", "the GPU with the most"), "GPUs",
    )  # fmt: skip
    lines: list[list[Cell]] = []
    for name, _, block in by_stage(summary, gpus):
        lines.append(
            [
                name,
                watts(block.power_w_mean),
                joules(block.energy_j),
                ratio(block.utilization_ratio_mean),
                size(block.memory_used_bytes_max),
                three(block.j_per_output_token),
                three(block.output_tokens_per_s_per_w),
                three(block.cost_per_million_output_tokens),
                _most_throttled(block),
                str(block.count) if block.count else MISSING,
            ]
        )
    note = "Output tokens are the client's of the same stage. On stages of less than 30 s energy is rough."
    if whole.price_per_gpu_hour is not None:
        note += f" Cost: {whole.price_per_gpu_hour:g} {whole.currency or ''} a GPU and hour."
    return titled("Energy and cost", filled(head, lines), note)


def _most_throttled(block: Gpus) -> Cell:
    """Of the GPU whose clocks were held down for the longest time."""
    most = max(block.gpus, key=lambda one: max(one.throttle_s.values(), default=-1.0), default=None)
    return MISSING if most is None else throttled(most.throttle_s, most.observed_s)


_EACH_HEAD: tuple[Cell, ...] = (
    "GPU", "state", ("power", "mean"), ("energy", "observed"), ("utilization", "kernels ran"),
    ("memory used", "highest"), ("temperature", "highest"), ("SM clock", "lowest, highest"),
    ("clocks held down", "by reason"), ("XIDs", "driver's errors"),
)  # fmt: skip


def _each(block: Gpus) -> Filled:
    if not block.gpus:
        return "", []
    note = "Each GPU by stage: stages[].gpu.gpus in summary.json."
    shown, missing = titled("Each GPU", filled(_EACH_HEAD, [_gpu_line(one) for one in block.gpus], (0, 1)), note)
    return f'<div class="cards">{shown}</div>', missing


def _gpu_line(one: Gpu) -> list[Cell]:
    state = "recorded values" if one.backend == REPLAY else "answered"
    return [
        (", ".join(word for word in (f"GPU {one.index}" if one.index else "", one.name) if word) or "GPU", one.gpu),
        (f"{state}, lost" if one.lost and one.backend == REPLAY else "lost" if one.lost else state, _backend(one)),
        _pair(watts(one.power_w_mean), watts(one.power_w_max), "max"),
        _pair(joules(one.energy_j), duration(one.observed_s), "in"),
        ratio(one.utilization_ratio_mean),
        _pair(size(one.memory_used_bytes_max), size(one.memory_total_bytes), "of"),
        _pair(celsius(one.temperature_c_max), celsius(one.temperature_memory_c_max), "memory"),
        _clocks(one),
        throttled(one.throttle_s, one.observed_s),
        ", ".join(f"{xid} ({n}×)" for xid, n in sorted(one.xids.items())) or "none",
    ]


def _backend(one: Gpu) -> str:
    return f"backend {one.backend}" if one.backend else ""


def _clocks(one: Gpu) -> Cell:
    lowest, highest = hertz(one.clock_sm_hz_min), hertz(one.clock_sm_hz_max)
    if MISSING in (lowest, highest):
        return lowest
    more = [f"of {limit}" if (limit := hertz(one.clock_sm_hz_limit)) != MISSING else ""]
    more += [f"memory {clock}" if (clock := hertz(one.clock_mem_hz_min)) != MISSING else ""]
    return f"{lowest} to {highest}", *filter(None, more)


def _pair(first: str, second: str, word: str) -> Cell:
    return first if second == MISSING else (first, f"{word} {second}")
