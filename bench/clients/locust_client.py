"""Locust as users write it: FastHttpUser, `client.iter_lines`, `json.loads`, a stamp where the line comes out."""

from __future__ import annotations

import json
import time

import gevent
from locust import FastHttpUser
from locust.env import Environment

from bench.clients.measure import TICK_S, Options, Tally, options


class StreamUser(FastHttpUser):  # type: ignore[misc]  # Locust exports it untyped
    abstract = True
    connection_timeout = network_timeout = 60.0
    tally: Tally
    chosen: Options

    def ask(self) -> None:
        sent_ns = time.perf_counter_ns()
        stamps = []
        for line in self.client.iter_lines(self.chosen.path, method="POST", json=self.chosen.body):
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            choices = json.loads(line[6:])["choices"]
            if choices and (choices[0]["delta"].get("content") if "delta" in choices[0] else choices[0]["text"]):
                stamps.append(time.perf_counter_ns())
                self.tally.events += 1
        self.tally.stream(sent_ns, stamps)
        self.tally.errors += len(stamps) != self.chosen.tokens


def main() -> None:
    chosen = options()
    StreamUser.host = f"http://127.0.0.1:{chosen.port}"
    environment = Environment(user_classes=[StreamUser])
    tally = Tally(chosen)
    ticker = gevent.spawn(_tick, tally)
    gevent.joinall([gevent.spawn(_user, number, chosen, tally, environment) for number in range(chosen.streams)])
    ticker.kill()
    tally.report()


def _user(number: int, chosen: Options, tally: Tally, environment: Environment) -> None:
    user = StreamUser(environment)
    user.tally, user.chosen = tally, chosen
    gevent.sleep(chosen.start_s(number))
    sent = 0
    while tally.more(sent):
        tally.open += 1
        user.ask()
        tally.open -= 1
        sent += 1


def _tick(tally: Tally) -> None:
    while True:
        tally.tick()
        gevent.sleep(TICK_S)


if __name__ == "__main__":
    main()
