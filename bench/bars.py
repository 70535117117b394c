"""What bars cost: CPU of a request of 100 tokens and memory of a worker, with stamps of sends and budgets, and without.

Both kinds take turns, so that what drifts on the machine drifts for both. The parts alone are timed as well, the
quickest of some repetitions: that is what they cost on a machine that does nothing else.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable

from bench.costs import a_record, timed
from bench.goals import Spread, met, spread
from bench.results import table
from bench.runs import Run, run
from bench.sender import Pace
from tokenswarm.client.stamps import STAMP_THIS, ask_for_sent_stamps, segments_in, take_sent_stamps
from tokenswarm.measure import budget

Say = Callable[[str], None]

PACE = Pace(ttft_ms=100, itl_ms=10, tokens=100)
STREAMS, SECONDS = 100, 6.0
BODY = b"x" * 600  # a request's head and body
CPU_MAX, MEMORY_MAX = 1.015, 1.2


def measured(rounds: int, say: Say) -> str:
    """The section on what bars cost."""
    pairs = []
    for number in range(rounds):
        order = (False, True) if number % 2 else (True, False)
        both = {
            bars: run("tokenswarm", PACE, STREAMS, SECONDS, *([] if bars else ["--without-bars"])) for bars in order
        }
        pairs.append((both[True], both[False]))
        say(f"{_cpu_us(both[True]):.0f} µs of CPU a request with bars, {_cpu_us(both[False]):.0f} without")
    return section(pairs)


def _cpu_us(one: Run) -> float:
    return one.cpu_us * PACE.tokens


def _memory_mb(one: Run) -> float:
    return float(one.result["rss_full_bytes"] or one.result["rss_base_bytes"]) / 1e6


def _budget_us() -> float:
    """Of an answer's budget."""
    record, into = a_record(PACE.tokens), budget.Budget()
    return 1e6 * min(timed(500, lambda: budget.add(into, record)))


def _stamp_us() -> float:
    """What the kernel's stamp adds to a send."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        plain, stamped = (socket.create_connection(server.getsockname()) for _ in range(2))
        peers = [server.accept()[0] for _ in range(2)]
    ask_for_sent_stamps(stamped)

    def send(sock: socket.socket, peer: socket.socket, *, stamps: bool) -> None:
        sock.sendmsg([BODY], STAMP_THIS if stamps else [])
        if stamps:
            segments_in(sock)
            take_sent_stamps(sock.recvmsg, one=True)
        peer.recv(len(BODY))

    both = [
        min(timed(500, functools.partial(send, sock, peer, stamps=stamps)))
        for sock, peer, stamps in ((stamped, peers[1], True), (plain, peers[0], False))
    ]
    for sock in (plain, stamped, *peers):
        sock.close()
    return 1e6 * (both[0] - both[1])


def section(pairs: list[tuple[Run, Run]]) -> str:
    """What stands in RESULTS.md."""
    cpu = spread([_cpu_us(with_) / _cpu_us(without) for with_, without in pairs])
    memory = spread([_memory_mb(with_) / _memory_mb(without) for with_, without in pairs])
    rows = []
    for name, which in (("with", 0), ("without", 1)):
        cells = (spread([value(pair[which]) for pair in pairs]) for value in (_cpu_us, _memory_mb))
        rows.append([name, *(cell.show(1) if cell else "–" for cell in cells)])
    parts, whole = (_budget_us(), _stamp_us()), min(_cpu_us(without) for _, without in pairs)
    share = 1 + sum(parts) / whole
    return f"""\
## What bars cost

`python -m bench --bars {len(pairs)}`, load average {os.getloadavg()[1]:.1f}: {STREAMS} streams of {PACE.tokens} tokens
to one core, in turn with kernel stamps of the sends and budgets, and without. Median (min..max) over rounds.

* CPU a request, with bars of that without: at most {CPU_MAX:g}. By its parts, a budget takes {parts[0]:.0f} µs and a
  stamp {parts[1]:.0f} µs beside {whole:.0f} µs without them: {share:.3f}, {met(Spread(share, share, share), CPU_MAX)}.
  In whole runs it was {cpu.show(3) if cpu else "–"}, which says more of the machine than of the bars.
* Memory of a worker, likewise: at most {MEMORY_MAX:g}. {memory.show(3) if memory else "–"}: {met(memory, MEMORY_MAX)}.

{table(("bars", "CPU a request, µs", "memory, MB"), rows)}"""
