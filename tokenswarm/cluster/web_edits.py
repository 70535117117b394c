"""Locust's web UI lets its user edit a run that goes on. Its load may change, which the report tells; what it measures
may not: a run has one target and one workload, so the form is refused with a sentence, and the run goes on as it was.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterable

import gevent
from flask import Response, jsonify, request
from locust.env import Environment

from tokenswarm.cluster.conclusion import Reached, Run
from tokenswarm.cluster.controller import Controller
from tokenswarm.errors import ConfigError

LOAD = {"user_count", "spawn_rate", "run_time"}  # what of the form is the load alone
NAMES = {"user_classes": "user classes", "shape_class": "shape class"}

log = logging.getLogger("tokenswarm")


class At(enum.Enum):
    """Where a run is, when somebody edits it."""

    NONE = enum.auto()
    LOOKS = enum.auto()  # at its target; its load was read from the form already
    RUNS = enum.auto()
    ENDS = enum.auto()  # it takes no load any more, and another one can't begin yet


WAIT = {
    At.LOOKS: "the run still looks at its target, so its load can't be changed yet: try again once it has begun",
    At.ENDS: "the run before is still being ended, and its report written: nothing was begun, try again in a moment",
}


def at(task: gevent.Greenlet | None, controller: Controller | None, run: Run | None) -> At:
    """`task` drives the newest run; `controller`, once its target was looked at, and `run` are of it."""
    if task is None or task.ready():
        return At.NONE
    if controller is None or run is None:
        return At.LOOKS
    return At.ENDS if controller.ending or run.reached > Reached.BEGUN else At.RUNS


def stopped() -> ConfigError:
    """What ends a look at a target that nobody waits for any more."""
    return ConfigError("it was stopped while it still looked at its target")


def guard(environment: Environment, where: Callable[[], At]) -> None:
    """From now on, if there is a web UI. `where` the newest run is."""
    web_ui = environment.web_ui
    if web_ui is None:
        return
    began: dict[str, list[str]] = {}
    stops: list[object] = []  # under way: each of them stops what runs once the run before is over

    def look() -> Response | None:
        form = {key: _values(request.form.getlist(key), key) for key in request.form}
        now = At.ENDS if stops else where()
        if now is At.NONE:
            began.clear()
            began.update(form)
            return None
        if now is At.ENDS:
            return _refused(environment, WAIT[now])
        known = {**form, **began, **_of(environment)}  # what nobody knows has not changed
        if form.get("user_classes") == _values(environment.available_user_classes or (), ""):
            kept = request.form.copy()  # the page's form of a run that goes on says all, and doesn't show them
            kept.setlist("user_classes", known["user_classes"])
            request.form = kept  # type: ignore[assignment]  # a MultiDict, too
            del form["user_classes"]
        different = [key for key, values in form.items() if values != known[key]]
        changed = [NAMES.get(key, key) for key in different if key not in LOAD]
        if changed:
            return _refused(
                environment,
                f"the run goes on as it was: its {' and '.join(changed)} can't be changed while it runs; "
                "stop it and begin another one",
            )
        return _refused(environment, WAIT[now]) if different and now is At.LOOKS else None

    views = web_ui.app.view_functions
    begin, end = views["locust.swarm"], views["locust.stop"]

    def stop() -> Response:
        stops.append(None)
        try:
            return end()  # type: ignore[no-any-return]  # Flask's own, of any type
        finally:
            stops.pop()

    views["locust.swarm"] = web_ui.auth_required_if_enabled(lambda: look() or begin())
    views["locust.stop"] = web_ui.auth_required_if_enabled(stop)


def _refused(environment: Environment, sentence: str) -> Response:
    """Told in LOGS and EXCEPTIONS as well."""
    log.error(sentence)
    environment.runner.log_exception("tokenswarm", sentence, sentence)
    return jsonify({"success": False, "message": sentence, "host": environment.host})


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
