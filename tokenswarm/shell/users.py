"""Locust users that replay conversations, and the hooks that make plain `locust -f locustfiles/…` do the whole job.

A closed-loop user is a concurrency slot: it sends the next prompt when the last answer has ended (plus think time).
"""

from __future__ import annotations

from typing import ClassVar

import gevent
from locust import User, task

from tokenswarm.shell.worker import Worker


class ReplayUser(User):
    """Replays one conversation after another, turn by turn, until the run drains.

    Subclasses in locustfiles say what to replay: `api` ("chat", "completions", "generate") and `conversations`
    ("single", "multi"); a profile given on the command line wins.
    """

    abstract = True
    api: ClassVar[str] = "chat"
    conversations: ClassVar[str] = "multi"

    @task
    def replay(self) -> None:
        worker: Worker = self.environment.tokenswarm_worker
        worker.ready.wait()
        conversation = worker.replay()
        while (prompt := conversation.next_prompt()) is not None:
            record = worker.send(prompt)
            if record is None:
                worker.gone.wait()  # draining: this slot has nothing more to do; the run stops it
                return
            if not record.ok:
                break  # the rest of the conversation would build on an answer that never came
            conversation.answered(record.text)
            gevent.sleep(worker.profile.load.think_time)
