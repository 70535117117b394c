"""`python -m grafana.build` writes grafana/dashboards/*.json; with --check it only says which are out of date (exit 1).

Needs grafana-foundation-sdk==0.0.21. That pin matters: versions 1769699998!10.1.0 sort above it on PyPI and hold the
types of Grafana 10.1.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import capacity, compare, live, reconcile, soak

FOLDER = Path(__file__).resolve().parent / "dashboards"
DASHBOARDS = {
    "a-live": live.build,
    "b-throughput-vs-batch": capacity.build,
    "c-soak": soak.build,
    "d-client-and-server": reconcile.build,
    "e-compare-runs": compare.build,
}


def text(dashboard: Dashboard) -> str:
    """The dashboard as it is committed."""
    return JSONEncoder(sort_keys=True, indent=1).encode(dashboard) + "\n"


def main(argv: list[str]) -> int:
    """Write or check all dashboards; the exit code."""
    stale = []
    for name, build in DASHBOARDS.items():
        path, wanted = FOLDER / f"{name}.json", text(build())
        if not path.exists() or path.read_text(encoding="utf-8") != wanted:
            stale.append(path.name)
            if argv != ["--check"]:
                path.write_text(wanted, encoding="utf-8")
    if stale:
        print(("out of date, run python -m grafana.build: " if argv == ["--check"] else "wrote ") + ", ".join(stale))
    return int(bool(stale) and argv == ["--check"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
