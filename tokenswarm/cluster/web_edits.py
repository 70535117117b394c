"""Locust's web UI lets its user edit a run that goes on. Its load may change, which the report tells; what it measures
may not: a run has one target and one workload, so the form is refused with a sentence, and the run goes on as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from flask import Response, jsonify, request
from locust.env import Environment

LOAD = {"user_count", "spawn_rate", "run_time"}  # what of the form is the load alone
NAMES = {"user_classes": "user classes", "shape_class": "shape class"}

log = logging.getLogger("tokenswarm")


def guard(environment: Environment, running: Callable[[], bool]) -> None:
    """From now on, if there is a web UI. `running`: whether a run goes on."""
    web_ui = environment.web_ui
    if web_ui is None:
        return
    began: dict[str, list[str]] = {}

    def look() -> Response | None:
        form = {key: _values(request.form.getlist(key), key) for key in request.form}
        if not running():
            began.clear()
            began.update(form)
            return None
        now = {**form, **began, **_of(environment)}  # what nobody knows has not changed
        if form.get("user_classes") == _values(environment.available_user_classes or (), ""):
            kept = request.form.copy()  # the page's form of a run that goes on says all, and doesn't show them
            kept.setlist("user_classes", now["user_classes"])
            request.form = kept  # type: ignore[assignment]  # a MultiDict, too
            del form["user_classes"]
        changed = [NAMES.get(key, key) for key, values in form.items() if key not in LOAD and values != now[key]]
        if not changed:
            return None
        sentence = (
            f"the run goes on as it was: its {' and '.join(changed)} can't be changed while it runs; "
            "stop it and begin another one"
        )
        log.error(sentence)
        environment.runner.log_exception("tokenswarm", sentence, sentence)
        return jsonify({"success": False, "message": sentence, "host": environment.host})

    views = web_ui.app.view_functions
    begin = views["locust.swarm"]
    views["locust.swarm"] = web_ui.auth_required_if_enabled(lambda: look() or begin())


def _values(values: Iterable[str], key: str) -> list[str]:
    """As they are compared: in any order, a URL with or without its last slash."""
    found = sorted(value.strip() for value in values)
    return [value.rstrip("/") for value in found] if key == "host" else found


def _of(environment: Environment) -> dict[str, list[str]]:
    shape = environment.shape_class
    return {
        "host": _values([environment.host or ""], "host"),
        "user_classes": _values([user.__name__ for user in environment.user_classes], ""),
        "shape_class": [type(shape).__name__ if shape else "Default"],
    }
