"""`tokenswarm run`: this process is the master, starts its workers or waits for remote ones, and owns the exit code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

from tokenswarm.client import preflight
from tokenswarm.cluster.conclusion import TOO_LATE, Company, Reached, Run, kept, open_run
from tokenswarm.cluster.controller import Controller
from tokenswarm.cluster.entrance import address_of, say
from tokenswarm.cluster.launch import LocalWorkers, make_environment, new_token
from tokenswarm.cluster.look import Looked
from tokenswarm.cluster.members import Cluster
from tokenswarm.cluster.runners import Master, make_master
from tokenswarm.cluster.stages import Searching
from tokenswarm.errors import ExitCode, UserError
from tokenswarm.profile.plan import plan
from tokenswarm.reports.output import form_of
from tokenswarm.terminal import end_signals

DRAINS = "interrupted: open streams get a few seconds, then the results are written (again to stop at once)"


def run_profile(
    looked: Looked,
    given: dict[str, Any],
    began: Callable[[Path], object] = lambda _: None,
    searching: Searching | None = None,
) -> int:
    """Run a profile that was checked (entrance.py) and whose target was looked at (look.py); `given`: parsed
    `tokenswarm run` options; `began` hears where its results go. Raises UserError before any load.
    """
    remote = given["expect_workers"]
    host, port, token = address_of(given["bind"], remote)
    if remote is None:
        token = token or new_token()
    environment = make_environment()
    runner = make_master(environment, host, port)  # before the results folder: a taken port leaves none behind
    cluster = Cluster(environment, token)
    command = shlex.split(given["started_by"]) if given["started_by"] else sys.argv
    try:
        run = open_run(looked, given["results"], command=command, quiet=given["quiet"])
    except UserError:
        if runner.clients:
            runner.quit()
        raise
    began(run.folder.path)
    run.form = form_of(given)
    if not given["quiet"]:
        say(plan(run.profile) if searching is None else searching.plan)
    if remote is not None:
        say(f"waiting for {remote} worker{'s' * (remote > 1)} on {host}:{port}")
    if searching is not None:
        searching.unreachable = preflight.reach(looked.profile)
        searching.serves_nobody = preflight.serve(looked.profile)
    run.search = searching
    return _drive(run, runner, cluster, token, remote)


def _drive(run: Run, runner: Master, cluster: Cluster, token: str, remote: int | None) -> int:
    company = Company(run, lambda: cluster.in_run)
    if run.search is not None:
        run.search.restarts = company.restarts
        run.search.silences = run.stills.silences
    controller = Controller(runner.environment, cluster, run.profile, run.folder, company.watchers, run.search)
    for number in end_signals():  # to the very end: there is an exit code, and no load any more
        gevent.signal_handler(number, lambda: _interrupt(controller, run))
    count = remote or run.profile.workers
    workers = LocalWorkers(0 if remote else count, runner.server.port, token)
    workers.watch(controller.process_ended)
    try:
        return int(company.accompany(lambda: controller.run(count, start_users=True)))
    finally:
        runner.quit()
        workers.stop()


def _interrupt(controller: Controller, run: Run) -> None:
    """The first signal ends the load in order; a second one, or one when nobody reads its result, ends the process.

    Once the load is over the first one changes nothing: the run is whole, its files and its exit code are its own.
    """
    if run.reached is Reached.TOLD:
        return
    if run.reached is Reached.WRITTEN:
        say(f"interrupted: the results are in {run.folder.path}, and stdout did not take them all")
        sys.exit(int(ExitCode.INTERRUPTED))
    if controller.asked:
        say(f"interrupted twice: stopping at once. {kept(run.folder)}")
        sys.exit(int(ExitCode.INTERRUPTED))
    controller.interrupt(signal=True)
    say(DRAINS if controller.interrupted and run.reached is Reached.BEGUN else TOO_LATE)
