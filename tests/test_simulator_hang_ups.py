"""Clients of the embedded engine that hang up in the middle: it sends them nothing more, and has no word for it."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from simulator_process import PATHS, Server, request_bytes, simulator

from tokenswarm.simulator.answer import Answer

RESET = struct.pack("ii", 1, 0)
FAULTS = ("", "blocks:50", "cork:0.05", "gzip", "pause:0.05", "slow_first:0.1", "ping:3")


def hang_up(server: Server, request: bytes, *, reset: bool) -> None:
    with server.open() as sock:
        sock.sendall(request)
        assert sock.recv(100)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


@pytest.mark.parametrize("preset", ["instant", "paced", "small-gpu"])
def test_clients_that_hang_up_cost_no_word_and_each_is_counted(preset: str, tmp_path: Path) -> None:
    with (tmp_path / "errors").open("w+", encoding="utf-8") as errors:
        with simulator("--preset", preset, "--allow-fault-header", errors=errors) as server:
            for reset in (True, False):
                for fault in FAULTS:
                    headers = {"x-sim-fault": fault} if fault else None
                    for api in PATHS:
                        hang_up(server, request_bytes(api, tokens=4000, headers=headers), reset=reset)
                hang_up(server, b"GET /sim/truth?tokens=1 HTTP/1.1\r\nhost: x\r\n\r\n", reset=reset)
            totals = server.await_truth(lambda totals: totals["in_flight"] == 0)["totals"]
        errors.seek(0)

        assert errors.read() == ""
    ends = ("completed", "disconnected", "faulted", "rejected", "refused")
    assert totals["received"] == sum(totals[name] for name in ends) == 2 * len(FAULTS) * len(PATHS)


def test_nothing_is_written_to_who_has_hung_up(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio logs the fifth such write; how many a whole engine makes depends on when it hears of the end."""

    async def write() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        answer = Answer.__new__(Answer)
        answer.transport = writer.transport
        writer.transport.abort()
        for _ in range(10):
            answer.write(b"data: {}\n\n")
        server.close()

    asyncio.run(write())
    assert caplog.text == ""
