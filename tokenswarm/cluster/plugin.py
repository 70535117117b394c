"""What makes plain `locust -f locustfiles/chat.py …` a whole measurement: importing this module hooks Locust's events.

Locust still parses the command line, starts users, shows its web UI. Its `--run-time` is taken over, because Locust's
own end of a run drops requests that are still streaming; exit codes are ours.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from signal import SIGINT, SIGTERM, default_int_handler, signal
from typing import Any, NoReturn

import gevent
from locust import argument_parser, env, events
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner
from rich.console import Console, RenderableType
from rich.text import Text
from yaml.nodes import Node

from tokenswarm import descriptors
from tokenswarm.client.pool import check_descriptors
from tokenswarm.cluster import web_edits, web_tab
from tokenswarm.cluster.conclusion import TOO_LATE, Company, Reached, Run, kept, open_run
from tokenswarm.cluster.controller import Controller
from tokenswarm.cluster.entrance import check_port, is_loopback, read_data_set, say
from tokenswarm.cluster.look import look
from tokenswarm.cluster.members import Cluster
from tokenswarm.cluster.plain_options import refuse_mistakes, refuse_several, say_run_time, watch_files
from tokenswarm.cluster.plain_signals import Waiting, ctrl_c, heed_until_ready
from tokenswarm.cluster.runners import Master
from tokenswarm.cluster.runners import Worker as Runner
from tokenswarm.cluster.worker import Worker
from tokenswarm.errors import ConfigError, ExitCode, UserError
from tokenswarm.profile import options, typed_yaml
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.engine import Engine, same_api
from tokenswarm.profile.environment import forget_no_width, in_github, run_token
from tokenswarm.profile.load import ENDLESS_S, Stage
from tokenswarm.profile.phases import Phases
from tokenswarm.profile.profile import Profile
from tokenswarm.reports.pipelines import github
from tokenswarm.terminal import end_signals, outlive_listeners, wait_for_nobody

WARMUP_SHARE_MAX = 0.2  # of --run-time, where the user did not set --warmup

# Locust rebuilds its whole parser once for each option of each spawn message: 60-100 ms during which no stream is read.
argument_parser.default_args_dict = functools.cache(argument_parser.default_args_dict)

log = logging.getLogger("tokenswarm")


class PlainMaster(Master):
    """The master of plain `locust --master`: on loopback, unless there is a token to tell workers from strangers."""

    def __init__(self, environment: Environment, master_bind_host: str, master_bind_port: int) -> None:
        self.greenlet = None  # Locust's __del__ looks at it, be there a runner or not
        try:
            check_port("--master-bind-port", master_bind_port)
            if not run_token() and not is_loopback(master_bind_host):
                raise ConfigError(
                    f"--master-bind-host {master_bind_host}: workers of other machines need a secret: export "
                    "TOKENSWARM_RUN_TOKEN with the same random word on every machine"
                )
            super().__init__(environment, master_bind_host, master_bind_port)
        except UserError as error:
            _exit(error)

    def quit(self) -> None:
        super().quit()
        self.environment.tokenswarm_plugin.refuse_too_few()


class PlainWorker(Runner):
    """The worker of plain `locust --worker`."""

    def __init__(self, environment: Environment, master_host: str, master_port: int) -> None:
        try:
            super().__init__(environment, master_host, master_port, run_token())
        except UserError as error:
            _exit(error)


env.MasterRunner, env.WorkerRunner = PlainMaster, PlainWorker  # Locust makes its runners by these names


class Plugin:
    """One Locust process: a worker's side, a master's side, or both (a local run)."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._options = vars(environment.parsed_options)
        if not self._options.get("run_profile") and self._options.get("rate") is None:
            own = environment.user_classes[0].rate
            self._options["rate"] = None if own is None else str(own)
        self._cluster: Cluster | None = None
        self._controller: Controller | None = None
        self._task: gevent.Greenlet | None = None
        self._main = gevent.getcurrent()
        self._waiting: Waiting | None = None
        self._run: Run | None = None  # the next one
        self._current: Run | None = None
        self._tab = web_tab.add(environment)
        web_edits.guard(environment, lambda: web_edits.at(self._task, self._controller, self._current))
        self._run_time = self._options.get("run_time")
        environment.parsed_options.run_time = None  # the controller ends the run
        logging.getLogger("locust.main").addFilter(functools.partial(say_run_time, self._run_time))
        self._headless = environment.web_ui is None
        self._shown_rate = self._show_rate()
        self._rates_of_users = {self._options.get("rate")}  # that nobody typed into the form's own field
        self._last: list[RenderableType] = []  # to be shown below Locust's own tables
        environment.events.quit.add_listener(self._on_quit)
        token = run_token()
        if not isinstance(environment.runner, WorkerRunner):
            self._cluster = Cluster(environment, token)
            if isinstance(environment.runner, Master) and not token:
                say("workers can join from this machine only; export TOKENSWARM_RUN_TOKEN everywhere to let others in")
            web_tab.say_who_may_come(environment)
            environment.events.test_start.add_listener(self._on_start)
            environment.events.test_stopping.add_listener(self._on_stopping)
            environment.events.quitting.add_listener(self._on_quitting)
        if not isinstance(environment.runner, MasterRunner):
            worker = environment.tokenswarm_worker = Worker(environment, token)
            worker.hello()
            if isinstance(environment.runner, WorkerRunner):
                gevent.spawn(self._leave_when_gone, worker)
                environment.events.quitting.add_listener(lambda **_: self._end_worker(worker))
            else:
                gevent.spawn(self._lose_when_gone, worker)
        begins = self._cluster is not None and (environment.web_ui is None or self._options.get("autostart"))
        if begins:
            self._open()
        signal(SIGINT, default_int_handler)
        self._waiting = Waiting(self._dismiss) if begins else None
        gevent.signal_handler(SIGTERM, wait_for_nobody)
        for number in set(end_signals()) - {SIGINT, SIGTERM}:  # Locust knows these
            gevent.signal_handler(number, os.kill, os.getpid(), SIGTERM)

    def _dismiss(self) -> None:
        """The workers that came for a run that does not begin."""
        runner = self._environment.runner
        if isinstance(runner, MasterRunner):
            MasterRunner.quit(runner)

    def refuse_too_few(self) -> None:
        """Locust's master gave up waiting for workers; it would exit with 1, which is a bug's."""
        wanted, seconds = (self._options.get(name) for name in ("expect_workers", "expect_workers_max_wait"))
        if self._cluster is None or self._task is not None or not self._headless or not seconds:
            return
        if (here := len(self._cluster.members)) < wanted:
            _exit(self._cluster.strangers.too_few(here, wanted, seconds))

    def _show_rate(self) -> int:
        """--rate where the web UI's form asks for the number of users: there it can be changed."""
        try:
            shown = max(1, round(float(self._options.get("rate") or 0)))
        except ValueError:
            return 0  # a ramp, or nonsense that is told where it is read
        if self._options.get("rate") and not self._headless:
            self._environment.parsed_options.num_users = shown
        return shown

    def _open(self) -> None:
        """Check everything that can be wrong before there is load."""
        self._run = self._open_run()
        users = self._run.profile.load.stages[0].users or self._idle_users(self._run.profile.load.stages[0])
        rate = self._options.get("spawn_rate") or self._run.profile.load.spawn_rate
        self._environment.parsed_options.num_users = users
        self._environment.parsed_options.spawn_rate = rate or float(users)

    def _idle_users(self, stage: Stage) -> int:
        """Locust's users in an open loop, who send nothing: one a worker; in the web UI as many as the rate, which
        they show, and change.
        """
        if self._headless:
            return max(1, int(self._options.get("expect_workers") or 1))
        return max(1, round(stage.rate[0] if stage.rate else 1))

    def _open_run(self) -> Run:
        refuse_several(self._environment)
        profile = self._profile()
        if isinstance(self._environment.runner, LocalRunner):
            check_descriptors(profile.load.under_way, 1)
            read_data_set(profile)
        tables = not self._options.get("only_summary") and (self._headless or self._options.get("print_stats"))
        run = open_run(look(profile), self._options["results"], command=sys.argv, alone=not tables)
        if self._headless:
            run.show = self._last.append
        return run

    def _profile(self) -> Profile:
        user = self._environment.user_classes[0]
        api = same_api(self._options.get("engine") or Engine().kind, user.api)
        more: list[tuple[str, Node]] = [
            ("engine.api", typed_yaml.literal(api, "locustfile")),
            ("dataset.conversations", typed_yaml.literal(user.conversations, "locustfile")),
        ]
        if self._options.get("run_profile"):
            more = []  # the profile says what is replayed
        if self._environment.host:
            more.append(("target", typed_yaml.literal(self._environment.host, "--host")))
        more += self._load_overrides()
        return options.read_profile(self._options.get("run_profile"), self._options, more)

    def _load_overrides(self) -> list[tuple[str, Node]]:
        """Locust's -u, -r and -t, or our --rate, as stage 0."""
        users, rate, seconds = (self._options.get(n) for n in ("num_users", "spawn_rate", "run_time"))
        arrivals = self._options["rate"] = self._options.get("rate") or None  # "": the form's field was left empty
        if arrivals is not None:
            in_its_field = arrivals not in self._rates_of_users
            if users and not self._headless and not in_its_field and users != self._shown_rate:
                self._options["rate"] = str(users)  # typed into the form
                self._rates_of_users.add(str(users))
            users = rate = None
        seconds = seconds or self._run_time
        found: list[tuple[str, Node]] = []
        if rate:
            found.append(("load.spawn_rate", typed_yaml.literal(str(rate), "--spawn-rate")))
        if self._environment.stop_timeout:
            found.append(("phases.drain", typed_yaml.literal(str(self._environment.stop_timeout), "--stop-timeout")))
        if users is None and arrivals is None and self._options.get("run_profile"):
            return found
        if seconds:
            warmup = self._options.get("warmup")
            if warmup is None and self._options.get("requests") is not None:
                warmup = "0"
            elif warmup is None:
                warmup = min(Phases().warmup, float(seconds) * WARMUP_SHARE_MAX)
                found.append(("phases.warmup", typed_yaml.literal(f"{warmup}", "--run-time")))
            window = float(seconds) - profiles.seconds(str(warmup), "--warmup")
            duration = f"{window}" if window > 0 else "0"
        else:
            duration = str(ENDLESS_S)
        if arrivals is None:
            self._options.pop("duration", None)  # of an earlier run at a rate
            shown = "1" if users is None else str(users)
            return found + options.one_stage("users", shown, "--users, --run-time", duration)
        self._options["duration"] = duration  # beside --rate
        return found

    def _on_start(self, **_: Any) -> None:
        """Locust begins to start users: they wait until the controller has everything ready. Who is not in is late."""
        assert self._cluster is not None
        self._cluster.closed = True
        if self._waiting is not None:
            self._waiting.over()
            self._waiting = None
        if self._task is None or self._task.ready():
            self._controller, self._task = None, gevent.spawn(self._drive)

    def _drive(self) -> None:
        environment, cluster = self._environment, self._cluster
        assert cluster is not None
        code = ExitCode.INTERNAL
        try:
            run = self._current = self._run or self._open_run()
            self._run = None  # a second run from the web UI gets a folder of its own
            company = Company(run, lambda: cluster.in_run)
            watchers = [*company.watchers, *([self._tab] if self._tab else [])]
            controller = self._controller = Controller(environment, cluster, run.profile, run.folder, watchers)
            with ctrl_c(self._on_ctrl_c):
                code = company.accompany(lambda: controller.run(self._count_workers(), start_users=False))
            if company.summary is not None:
                self._tell(f"the run is over: {company.summary.verdict.status}, results in {run.folder.path}")
        except UserError as error:
            self._tell(f"the run did not begin: {error}", error)
            code = error.exit_code
        finally:
            environment.process_exit_code = int(code)
            cluster.closed = self._headless  # the web UI may begin another run, with more workers
            quits_s = 0 if self._headless else self._options.get("autoquit", -1)
            if quits_s >= 0:
                gevent.sleep(quits_s)
                environment.runner.quit()
                if environment.web_ui is not None:  # which Locust's main waits for
                    environment.web_ui.stop()
            else:
                environment.runner.stop()

    def _tell(self, sentence: str, error: UserError | None = None) -> None:
        """Where the user looks: below the last table, or in the page (LOGS, and EXCEPTIONS if it is one)."""
        if not self._headless:
            log.log(logging.INFO if error is None else logging.ERROR, sentence)
            if error is not None:
                self._environment.runner.log_exception("tokenswarm", sentence, sentence)
        elif error is not None:
            self._last.append(Text.assemble(("tokenswarm: ", "bold"), str(error)))

    def _on_quit(self, **_: Any) -> None:
        """Behind Locust's tables of all requests: the result, or why there is none."""
        for text in self._last:
            Console(stderr=isinstance(text, Text), soft_wrap=isinstance(text, Text)).print(text)
        self._last.clear()

    def _count_workers(self) -> int:
        """Workers that take part: those that are there."""
        runner = self._environment.runner
        return 1 if isinstance(runner, LocalRunner) else max(1, runner.worker_count)

    def _on_stopping(self, **_: Any) -> None:
        """The web UI's stop button: end the run as it should end, before Locust stops the users."""
        self._end(told=False)

    def _on_quitting(self, **_: Any) -> None:
        """Ctrl-C or SIGTERM in a headless run (or the quit that we asked for: then nothing is left to do)."""
        self._end(told=True)

    def _on_ctrl_c(self) -> None:
        if self._controller is not None and self._controller.asked:
            self._end(told=True)
        else:
            gevent.kill(self._main, KeyboardInterrupt)  # as Locust expects it

    def _end(self, *, told: bool) -> None:
        """`told`: by a signal, of which a second one ends it at once. A run that is being concluded is waited for."""
        controller, run, task = self._controller, self._current, self._task
        if task is None or task.ready() or gevent.getcurrent() is task:
            return
        if controller is None or run is None:
            if not told:
                task.kill(web_edits.stopped())
            return
        if not controller.active and told is (run.reached is Reached.BEGUN):
            return
        try:
            if told and controller.asked:
                raise KeyboardInterrupt
            controller.interrupt(signal=told)
            if told and (run.reached is Reached.COUNTED or not controller.interrupted):
                say(TOO_LATE)
            task.join()
        except KeyboardInterrupt:
            say(f"interrupted twice: stopping at once. {kept(run.folder)}")
            sys.exit(int(ExitCode.INTERRUPTED))

    def _end_worker(self, worker: Worker) -> None:
        """A signal ends this worker in the middle of a run: its streams are drained, its rows handed over."""
        if worker.busy and not worker.gone.is_set():
            worker.end("")
            try:
                worker.gone.wait()
            except KeyboardInterrupt:
                sys.exit(int(ExitCode.INTERRUPTED))
            self._environment.process_exit_code = int(worker.exit_code)

    def _lose_when_gone(self, worker: Worker) -> None:
        """A bug stopped the worker of this process: nobody waits for its final report."""
        worker.gone.wait()
        say(worker.last_words())
        if self._controller is not None:
            self._controller.process_ended(os.getpid(), int(worker.exit_code))

    def _leave_when_gone(self, worker: Worker) -> None:
        with ctrl_c(lambda: gevent.kill(self._main, KeyboardInterrupt)):
            worker.gone.wait()
        words = worker.last_words()
        if words:
            log.error(words)
        self._environment.process_exit_code = int(worker.exit_code)
        self._environment.runner.quit()


def _exit(error: UserError) -> NoReturn:
    say(str(error))
    sys.exit(int(error.exit_code))


def _on_init(environment: Environment, **_: Any) -> None:
    descriptors.raise_limit()
    try:
        refuse_mistakes(environment, sys.argv[1:])
        plugin = Plugin(environment)
        environment.tokenswarm_plugin = plugin
        gevent.spawn(web_tab.refuse_no_login, environment, _exit)
    except UserError as error:
        _exit(error)


def _on_parser(parser: Any, **_: Any) -> None:
    outlive_listeners()  # before Locust's logging takes hold of stderr
    heed_until_ready()
    forget_no_width()
    if in_github():
        github.disarm_output()
    options.add_arguments(parser, locust=True)
    watch_files(parser, _exit)
    parser.set_defaults(web_host=web_tab.LOOPBACK)
    try:
        if not run_token():
            parser.set_defaults(master_bind_host="127.0.0.1")
    except UserError as error:
        _exit(error)


events.init_command_line_parser.add_listener(_on_parser)
events.init.add_listener(_on_init)
