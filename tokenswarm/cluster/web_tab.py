"""Locust's web UI: who reaches it, and its tab "Token latency": TTFT, ITL, TPOT, merged live. Its own rows stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from flask import Response, request
from locust.env import Environment

from tokenswarm.cluster.entrance import refuse_taken, say
from tokenswarm.errors import ConfigError
from tokenswarm.measure.snapshot import LATENCIES, Merged, total
from tokenswarm.profile.load import Stage
from tokenswarm.result.stat import latency

LOOPBACK = str(b"127.0.0.1", "ascii")
"""Where Locust's web UI listens if the user says nothing. An object of its own: it is told from a user's same word."""
KEY = "token-latency"
COLUMNS = ("p50", "p90", "p95", "p99", "mean", "max")
_STRUCTURE = [
    {"key": "name", "title": "Metric (ms)"},
    {"key": "n", "title": "Samples"},
    *({"key": key, "title": key if key.startswith("p") else key.title()} for key in COLUMNS),
]


def say_who_may_come(environment: Environment) -> None:
    """Where it listens, and how to open it: behind a login it may be seen by everybody. ConfigError where it can't."""
    web_ui = environment.web_ui
    if web_ui is None:
        return
    if not 0 <= web_ui.port <= 65_535:
        raise ConfigError(f"--web-port {web_ui.port} must be from 1 to 65535")
    mine = web_ui.host is LOOPBACK
    if mine and environment.parsed_options.web_login:
        web_ui.host = ""
    refuse_taken(web_ui.host or "*", web_ui.port)
    if web_ui.host is LOOPBACK:
        say(f"the web UI listens on {LOOPBACK} only; --web-host 0.0.0.0 opens it to everybody, without a login")
    elif mine:
        say(f"the web UI asks for a login and listens on every interface, port {web_ui.port}")


def refuse_no_login(environment: Environment, refuse: Callable[[ConfigError], object]) -> None:
    """--web-login where no locustfile says who may log in: Locust's page would be an error for everybody. To be asked
    once all of them had their say.
    """
    asked = environment.web_ui is not None and environment.parsed_options.web_login
    if asked and environment.web_ui.app.secret_key is None:
        refuse(
            ConfigError(
                "--web-login: the locustfile does not say who may log in: it has to set `web_ui.app.secret_key` and "
                "`web_ui.auth_args`, as in Locust's examples; without the option the page is this machine's alone"
            )
        )


class WebTab:
    """Keeps the newest sums of the run and shows them. A watcher of the controller."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def phase(self, number: int, phase: str, stage: Stage | None, seconds: float) -> None:
        """Nothing: the table is of the whole run."""

    def note(self, text: str) -> None:
        """Nothing: notes go to the console."""

    def tick(self, merged: Merged) -> None:
        measured = [block for block in merged.blocks if block.phase == "steady"]
        block = total(measured or merged.blocks)  # until a window opens, what there is
        rows = []
        for name in LATENCIES:
            shown = latency(block, name)  # as in every report: no percentile that the sample doesn't carry
            row: dict[str, Any] = {"name": name, "safe_name": name, "n": shown.n}
            rows.append({**row, **{key: _ms(getattr(shown, key)) for key in COLUMNS}})
        self._rows = rows

    def rows(self) -> list[dict[str, Any]]:
        return self._rows


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def add(environment: Environment) -> WebTab | None:
    """Put the tab into the web UI; None where there is none (headless, worker)."""
    web_ui = environment.web_ui
    if web_ui is None:
        return None
    tab = WebTab()
    update = web_ui.update_template_args

    def update_with_tab() -> None:
        update()
        web_ui.template_args["extended_tabs"] = [{"title": "Token latency", "key": KEY}]
        web_ui.template_args["extended_tables"] = [{"key": KEY, "structure": _STRUCTURE}]

    web_ui.update_template_args = update_with_tab

    def add_rows(response: Response) -> Response:
        if request.path == "/stats/requests" and response.is_json:
            extended = {"extended_stats": [{"key": KEY, "data": tab.rows()}]}
            response.set_data(json.dumps({**response.get_json(), **extended}))
        return response

    web_ui.app.after_request(add_rows)
    return tab
