"""Locust users that replay conversations, and the hooks that make plain `locust -f locustfiles/…` do the whole job.

A closed-loop user is a concurrency slot: it sends the next prompt when the last answer has ended (plus think time).
"""

from __future__ import annotations

from typing import ClassVar

import gevent
from locust import User, task

from tokenswarm.cluster.worker import Worker
from tokenswarm.record import Outcome

STEP_BACK_S_MAX = 1.0


class ReplayUser(User):  # type: ignore[misc]  # Locust is untyped for us, see pyproject.toml
    """Replays one conversation after another, turn by turn, until the run drains.

    Subclasses in locustfiles say what to replay: `api` ("chat", "completions", "generate") and `conversations`
    ("single", "multi"); a profile given on the command line wins.
    """

    abstract = True
    api: ClassVar[str] = "chat"
    conversations: ClassVar[str] = "multi"
    _failures_in_a_row = 0

    @task  # type: ignore[untyped-decorator]  # as above
    def replay(self) -> None:
        worker: Worker = self.environment.tokenswarm_worker
        worker.ready.wait()
        conversation = worker.replay()
        prompt = conversation.next_prompt()
        while prompt is not None:
            record = worker.send(prompt)
            if record is None:
                worker.gone.wait()  # draining: this slot has nothing more to do; the run stops it
                return
            if not record.ok:
                self._step_back(record.outcome)
                return  # the rest of the conversation would build on an answer that never came
            self._failures_in_a_row = 0
            gevent.sleep(worker.profile.load.think_time)
            prompt = conversation.next_prompt(record.text)

    def _step_back(self, outcome: Outcome) -> None:
        """Where no connection comes about, wait a little longer each time: a dead target must not cost a whole core."""
        if outcome in (Outcome.CONNECT, Outcome.TLS, Outcome.DNS, Outcome.RESET):
            self._failures_in_a_row += 1
            gevent.sleep(min(STEP_BACK_S_MAX, 0.05 * 2**self._failures_in_a_row))
