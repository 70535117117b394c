"""Locust users that replay conversations, and the hooks that make plain `locust -f locustfiles/…` do the whole job.

A closed-loop user is a concurrency slot: it sends the next prompt when the last answer has ended (plus think time).
After a failure it steps back (patience.py). In an open loop users send nothing: the worker's lane does (lane.py).
"""

from __future__ import annotations

from typing import ClassVar

import gevent
from locust import User, task
from locust.exception import StopUser

from tokenswarm.cluster.patience import StepBack
from tokenswarm.cluster.worker import Worker
from tokenswarm.errors import DatasetError


class ReplayUser(User):  # type: ignore[misc]  # Locust is untyped for us, see pyproject.toml
    """Replays one conversation after another, turn by turn, until the run drains.

    Subclasses in locustfiles say what to replay: `api` ("chat", "completions", "generate"), `conversations` ("single",
    "multi") and, for an open loop, `rate` (requests a second); a profile given on the command line wins.
    """

    abstract = True
    api: ClassVar[str] = "chat"
    conversations: ClassVar[str] = "multi"
    rate: ClassVar[float | None] = None
    _step_back: StepBack | None = None
    _asks = _stopped = False  # whether a request of this user is under way; whether it was stopped meanwhile

    def stop(self, force: bool = False) -> bool:
        """A stopped user takes no answer away: it leaves Locust's count at once, and ends with its request."""
        if not self._asks:
            return bool(super().stop(force))
        self._stopped = True
        self.group.discard(self.greenlet)
        return True

    @task  # type: ignore[untyped-decorator]  # as above
    def replay(self) -> None:
        worker: Worker = self.environment.tokenswarm_worker
        worker.begun.wait()
        if worker.profile.load.open:
            worker.gone.wait()  # the lane sends (lane.py): this user only shows that there is load
            return
        if self._step_back is None:
            self._step_back = worker.new_step_back()
        try:
            conversation = worker.replay()
        except DatasetError as error:
            worker.lose_data(error)
            worker.gone.wait()  # as below
            return
        prompt = conversation.next_prompt()
        while prompt is not None:
            self._asks = True
            record = worker.send(prompt)
            self._asks = False
            if self._stopped:
                raise StopUser
            if record is None:
                worker.gone.wait()  # draining: this slot has nothing more to do; the run stops it
                return
            gevent.sleep(self._step_back.after(record))
            if not record.ok:
                return  # the rest of the conversation would build on an answer that never came
            prompt = conversation.next_prompt(record.text)
