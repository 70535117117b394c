"""Pages of an engine with many series, as vLLM has them with many ranks: every line grows from look to look."""

from __future__ import annotations

from tokenswarm.telemetry.names import VLLM

EDGES = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)


def page(look: int, series: int = 5_000) -> bytes:
    """The page of one replica at its look number `look`: `series` lines or a few more, all of which are read."""
    lines: list[str] = []
    ranks = 0
    while len(lines) < series:
        lines += _rank(ranks, look)
        ranks += 1
    return ("\n".join(lines) + "\n").encode()


def _rank(rank: int, look: int) -> list[str]:
    labels = f'engine="{rank}",model_name="some/model-70b"'
    lines = []
    for number, row in enumerate(VLLM.rows):
        value = (number + 1) * (rank + look + 1)
        if row.kind == "histogram":
            counts = [value * (n + 1) for n in range(len(EDGES) + 1)]
            edges = [*map(str, map(float, EDGES)), "+Inf"]
            lines += [f'{row.names[0]}_bucket{{{labels},le="{le}"}} {n}.0' for le, n in zip(edges, counts, strict=True)]
            lines += [
                f"{row.names[0]}_count{{{labels}}} {counts[-1]}.0",
                f"{row.names[0]}_sum{{{labels}}} {value * 1.7}",
            ]
        elif row.kind == "counter_by_label":
            lines += [f'{row.names[0]}{{{labels},{row.by}="{why}"}} {value}.0' for why in ("stop", "length", "abort")]
        else:
            lines.append(f"{row.names[0]}{{{labels}}} {0.01 * rank if row.kind == 'mean_level' else value}")
    return lines
