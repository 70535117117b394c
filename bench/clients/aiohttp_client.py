"""aiohttp as users write it: one session, `async for line in response.content`, `json.loads`; uvloop if installed."""

from __future__ import annotations

import asyncio
import json
import time
from importlib import import_module
from importlib.util import find_spec

import aiohttp

from bench.clients.measure import TICK_S, Options, Tally, options

UVLOOP = find_spec("uvloop") is not None


async def ask(session: aiohttp.ClientSession, chosen: Options, tally: Tally) -> None:
    sent_ns = time.perf_counter_ns()
    stamps = []
    async with session.post(f"http://127.0.0.1:{chosen.port}{chosen.path}", json=chosen.body) as response:
        async for line in response.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            choices = json.loads(line[6:])["choices"]
            if choices and (choices[0]["delta"].get("content") if "delta" in choices[0] else choices[0]["text"]):
                stamps.append(time.perf_counter_ns())
                tally.events += 1
    tally.stream(sent_ns, stamps)
    tally.errors += len(stamps) != chosen.tokens


async def run(chosen: Options) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        tally = Tally(chosen)
        ticker = asyncio.create_task(_tick(tally))
        await asyncio.gather(*(_user(number, chosen, tally, session) for number in range(chosen.streams)))
        ticker.cancel()
    tally.extra = {"loop": "uvloop" if UVLOOP else "asyncio"}
    tally.report()


async def _user(number: int, chosen: Options, tally: Tally, session: aiohttp.ClientSession) -> None:
    await asyncio.sleep(chosen.start_s(number))
    sent = 0
    while tally.more(sent):
        tally.open += 1
        await ask(session, chosen, tally)
        tally.open -= 1
        sent += 1


async def _tick(tally: Tally) -> None:
    while True:
        tally.tick()
        await asyncio.sleep(TICK_S)


if __name__ == "__main__":
    (import_module("uvloop") if UVLOOP else asyncio).run(run(options()))
