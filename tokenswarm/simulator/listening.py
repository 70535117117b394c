"""The embedded engine's loop and its listening socket, until a signal."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from tokenswarm.errors import ConfigError
from tokenswarm.simulator.pacer import Pacer
from tokenswarm.simulator.routes import application
from tokenswarm.simulator.server import Settings, Simulator
from tokenswarm.terminal import end_signals


class NotOurs(logging.Filter):
    """Bytes that are no HTTP are answered with 400 and are their sender's matter, as is a page that nobody waits for:
    no traceback for them. (A router asks each engine in HTTP/2 whether it is one of gRPC.)"""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | ConnectionError))


DRAIN_S = 1.0
"""How long a signal lets running answers go on."""


async def serve(settings: Settings, pacer: Pacer, host: str, port: int) -> None:
    """Listen, say so, and serve until a signal. ConfigError if the address can't be had. `pacer`: the running loop's
    selector."""
    logging.getLogger("aiohttp.server").addFilter(NotOurs())
    sim = Simulator(settings, pacer)
    # handler_cancellation: a client that leaves cancels its handler, which aborts its sequences.
    runner = web.AppRunner(application(sim), handler_cancellation=True, access_log=None, shutdown_timeout=DRAIN_S)
    await runner.setup()
    stop = asyncio.Event()
    for number in end_signals():
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        try:
            # The default of 128 would drop connections of a client that opens a thousand at once.
            site = web.TCPSite(runner, host, port, backlog=4096, ssl_context=settings.tls)
            await site.start()
        except (OSError, UnicodeError) as error:  # the latter: a name that none can be
            raise ConfigError(
                f"can't listen on {host}:{port}: {getattr(error, 'strerror', None) or error}; choose another "
                f"{'--host' if isinstance(error, (socket.gaierror, UnicodeError)) else '--port'}"
            ) from None
        bound = runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        print(f"simulating {settings.model} on http{'s' * (settings.tls is not None)}://{shown}:{bound[1]}", flush=True)
        # A full collection visits every request that is kept for the truth: tens of ms. What is old now is set aside,
        # and full collections become rare.
        gc.freeze()
        gc.set_threshold(20_000, 50, 1000)
        await stop.wait()
    finally:
        await runner.cleanup()
