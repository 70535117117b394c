"""Why the instrument was not as good as it could be, by name: what workers saw of themselves and their machine.

Each cause has a size (a share of the time) from which it is told, and a sentence with its mend; the largest come first.
"""

from __future__ import annotations

import ipaddress
import urllib.parse

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.rules.evidence import Evidence, ms
from tokenswarm.measure.instrument import WorkerReport
from tokenswarm.profile.profile import Profile
from tokenswarm.result.summary import Summary

WAITED = 0.02  # of a worker's time: ready to run, and another had its core
THROTTLED = 0.001
GC_PAUSE_S = 0.02
BUSY = 0.7  # of a core: from here on what comes waits for what went before
SUSPENDED_S = 0.05
ENGINE_SHARE = 0.5  # of the cores: an engine that used so much is what others had to wait for
CAUSES_MAX = 2

MEND_ENGINE = (
    "give it one core less (`engine.num_thread` for Ollama, `--threads` in llama.cpp, a CPU set), or test from another "
    "machine"
)


def on_this_machine(profile: Profile) -> bool:
    """Whether a target is said to be where we are: a loopback address or its name."""
    return any(is_loopback(urllib.parse.urlsplit(url).hostname or "") for url in profile.target)


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine by its very name."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def causes(evidence: Evidence, summary: Summary) -> list[str]:
    """Sentences, the weightiest first; [] where nothing of the client's stands out."""
    found: list[tuple[float, str]] = []
    for worker in summary.instrument.workers:
        found += _of_worker(evidence, worker)
    step_s = summary.instrument.clock_step_s_max
    if summary.instrument.stamps_unsure and step_s > 0.001:
        found.append((step_s, f"The wall clock was set by {ms(step_s)}: requests that ran then are known less well."))
    found.sort(key=lambda cause: -cause[0])
    return list(dict.fromkeys(sentence for _, sentence in found))[:CAUSES_MAX]


def _of_worker(evidence: Evidence, worker: WorkerReport) -> list[tuple[float, str]]:
    found = []
    elapsed_s = next((w.elapsed_ns / NS_PER_S for w in evidence.merged.workers if w.worker == worker.worker), 0.0)
    throttled = worker.throttled_s / elapsed_s if elapsed_s else 0.0
    if worker.suspended_s > SUSPENDED_S:
        found.append((1.0, f"The machine of worker {worker.worker} slept for {ms(worker.suspended_s)}: keep it awake."))
    if throttled > THROTTLED:
        sentence = (
            f"The container's CPU limit held worker {worker.worker} back for {throttled:.1%} of the time: raise it."
        )
        found.append((throttled, sentence))
    elif worker.waited_ratio > WAITED:
        found.append((worker.waited_ratio, _waited(evidence, worker)))
    if worker.gc_pause_s_max > GC_PAUSE_S:
        sentence = f"Python's garbage collector stopped worker {worker.worker} for up to {ms(worker.gc_pause_s_max)}."
        found.append((worker.gc_pause_ratio, sentence))
    if worker.cpu_ratio_max > BUSY:
        sentence = f"Worker {worker.worker} was busy with its own work, {worker.cpu_ratio_max:.0%} of a core: use more."
        found.append((worker.cpu_ratio_max - BUSY, sentence))
    return found


def _waited(evidence: Evidence, worker: WorkerReport) -> str:
    """Whose fault it was is said only where it was seen."""
    share, beside = f"{worker.waited_ratio:.0%}", evidence.beside
    kept = f"kept worker {worker.worker} waiting for {share} of the time"
    if beside is not None and beside.host == worker.host:
        used = f"{beside.cores:.1f} of {beside.of} core{'s' * (beside.of > 1)}"
        if beside.cores >= ENGINE_SHARE * beside.of:
            return f"The engine on this machine used {used} and {kept}: {MEND_ENGINE}."
        return f"Something on this machine {kept}, and not the engine, which used {used}: end what else runs here."
    if on_this_machine(evidence.profile):
        return f"Something on this machine {kept}. If it is the engine, {MEND_ENGINE}."
    return (
        f"Something else on its machine kept worker {worker.worker} waiting for a core for {share} of the time (CPU "
        f"pressure {worker.pressure_ratio:.0%}): give each worker a core of its own."
    )
