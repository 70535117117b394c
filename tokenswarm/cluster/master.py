"""`tokenswarm run`: this process is the master, starts its workers or waits for remote ones, and owns the exit code."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

from tokenswarm.client.pool import check_descriptors
from tokenswarm.cluster.conclusion import Company, Run, open_run, read_data_set, say
from tokenswarm.cluster.controller import Controller
from tokenswarm.cluster.launch import LocalWorkers, make_environment, new_token
from tokenswarm.cluster.members import Cluster
from tokenswarm.cluster.runners import Master, is_loopback, make_master
from tokenswarm.cluster.stages import Searching, for_search
from tokenswarm.errors import ConfigError, ExitCode, UserError
from tokenswarm.profile import options
from tokenswarm.profile.environment import run_token
from tokenswarm.profile.plan import plan
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.slo import Slo
from tokenswarm.reports.output import form_of


def run_profile(given: dict[str, Any], began: Callable[[Path], object] = lambda _: None) -> int:
    """Run the profile of parsed `tokenswarm run` options; `began` hears where its results go.

    Raises UserError before any load.
    """
    profile = options.read_profile(given["profile"], given, options.of_run(given))
    searching = _searching(profile) if given.get("search") else None
    if searching is not None:
        profile = for_search(profile)
    remote = given["expect_workers"]
    if remote is None:
        check_descriptors(profile.load.under_way, profile.workers)
        read_data_set(profile)
    host, port, token = _address(given["bind"], remote)
    environment = make_environment()
    runner = make_master(environment, host, port)  # before the results folder: a taken port leaves none behind
    cluster = Cluster(environment, token)
    command = shlex.split(given["started_by"]) if given["started_by"] else sys.argv
    try:
        run = open_run(profile, given["results"], command=command, quiet=given["quiet"])
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
    run.search = searching
    return _drive(run, runner, cluster, token, remote)


def _searching(profile: Profile) -> Searching:
    """The search that the profile asks for. Raises ConfigError where it has no bounds, or nothing to keep."""
    if profile.search.rate is None and profile.search.users is None:
        raise ConfigError(
            "a search needs bounds: --rate 1,64, or --users 1,64, or `search.rate: [1, 64]` in the profile"
        )
    if profile.slo == Slo():
        raise ConfigError("a search needs limits to keep: `slo` in the profile, or --slo FILE")
    if profile.load.kind == "trace":
        raise ConfigError("`load.kind: trace` can't be searched: it has arrivals of its own; say poisson or constant")
    if profile.load.requests is not None:
        raise ConfigError("`load.requests` ends a run and no search, whose tries end once they are decided")
    return Searching(profile)


def _address(bind: str | None, remote: int | None) -> tuple[str, int, str]:
    """(host, port, token): loopback and a free port for local workers; for remote ones what the user says."""
    token = run_token()
    if remote is None:
        return "127.0.0.1", 0, token or new_token()
    if remote < 1:
        raise ConfigError("--expect-workers takes 1 or more")
    host, _, port = (bind or "127.0.0.1:5557").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--bind {bind}: write HOST:PORT, for example 0.0.0.0:5557")
    if not token and not is_loopback(host):
        raise ConfigError(
            "remote workers need a secret: export TOKENSWARM_RUN_TOKEN with the same random word on every machine"
        )
    return host, int(port), token


def _drive(run: Run, runner: Master, cluster: Cluster, token: str, remote: int | None) -> int:
    company = Company(run, lambda: cluster.in_run)
    controller = Controller(runner.environment, cluster, run.profile, run.folder, company.watchers, run.search)
    signals = [
        gevent.signal_handler(number, lambda: _interrupt(controller, run)) for number in (signal.SIGINT, signal.SIGTERM)
    ]
    count = remote or run.profile.workers
    workers = LocalWorkers(0 if remote else count, runner.server.port, token)
    workers.watch(controller.process_ended)
    try:
        return int(company.accompany(lambda: controller.run(count, start_users=True)))
    finally:
        runner.quit()
        workers.stop()
        for watcher in signals:
            watcher.cancel()


def _interrupt(controller: Controller, run: Run) -> None:
    """The first signal ends the run in order; a second one ends the process."""
    if controller.interrupted:
        say(
            f"interrupted twice: stopping at once. What the workers wrote is in {run.folder.spool}: "
            f"`tokenswarm report --merge {run.folder.path}` makes a partial result of it"
        )
        sys.exit(int(ExitCode.INTERRUPTED))
    say("interrupted: open streams get a few seconds, then the results are written (again to stop at once)")
    controller.interrupt(signal=True)
