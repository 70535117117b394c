"""A name with several addresses: connections take them in turn, and what fails comes last for a while."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from exchanges import ANSWER, Setup, ask
from raw_server import AGAIN, LAST_CHUNK, RawServer, chunk, head, raw_server

from tokenswarm.client.sending import Client
from tokenswarm.client.transport import Address
from tokenswarm.profile.phases import Timeouts
from tokenswarm.profile.target import Tls
from tokenswarm.profile.typed_yaml import Seconds
from tokenswarm.record import Outcome

PLAYED = (head(), 0.05, chunk(ANSWER) + LAST_CHUNK)
SCRIPT = (*PLAYED, AGAIN, *PLAYED)


@pytest.fixture
def setup() -> Iterator[Setup]:
    found = Setup()
    yield found
    found.close()


@pytest.fixture
def servers() -> Iterator[list[RawServer]]:
    with raw_server(SCRIPT) as one, raw_server(SCRIPT, host="127.0.0.2") as two, raw_server(SCRIPT) as three:
        yield [one, two, three]


@pytest.fixture
def dead() -> Iterator[int]:
    """A port of 127.0.0.1 where nobody listens, and nobody else will meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def address(port: int, host: str = "127.0.0.1") -> Address:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (host, port))


def client_of(setup: Setup, addresses: list[Address], turn: int = 0, **options: object) -> Client:
    """A client whose target's name was resolved to these."""
    client = setup.client(1, **options)  # type: ignore[arg-type]  # options of Setup.client
    client.pool.target.addresses = list(addresses)
    client.pool.target.turn = turn
    return client


def users(client: Client, count: int, requests: int = 1) -> None:
    tasks = [gevent.spawn(lambda n: [ask(client, n) for _ in range(requests)], n) for n in range(count)]
    gevent.joinall(tasks, timeout=60, raise_error=True)


def of(servers: list[RawServer]) -> list[Address]:
    return [address(s.port, "127.0.0.2" if n == 1 else "127.0.0.1") for n, s in enumerate(servers)]


def test_users_share_the_addresses_of_a_name(setup: Setup, servers: list[RawServer]) -> None:
    users(client_of(setup, of(servers)), 12, requests=2)

    assert [r.outcome for r in setup.records] == [Outcome.OK] * 24
    assert [server.connections for server in servers] == [4, 4, 4]


def test_so_do_workers_with_a_user_each(setup: Setup, servers: list[RawServer]) -> None:
    for index in range(6):
        ask(client_of(setup, of(servers), turn=index))

    assert [server.connections for server in servers] == [2, 2, 2]


def test_fresh_connections_share_them_too(setup: Setup, servers: list[RawServer]) -> None:
    users(client_of(setup, of(servers), fresh=True), 2, requests=6)

    assert [server.connections for server in servers] == [4, 4, 4]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_address_that_refuses_leaves_its_share_to_the_others(
    setup: Setup, servers: list[RawServer], dead: int, place: int
) -> None:
    addresses = of(servers)
    addresses[place] = address(dead)
    users(client_of(setup, addresses), 12)

    assert [r.outcome for r in setup.records] == [Outcome.OK] * 12
    connections = [server.connections for n, server in enumerate(servers) if n != place]
    assert sum(connections) == 12
    assert min(connections) >= 4


def test_all_refuse(setup: Setup, dead: int) -> None:
    client = client_of(setup, [address(dead), address(dead)])

    assert (ask(client).outcome, client.pool.target.addresses) == (Outcome.CONNECT, []), "looked up again next time"


def test_an_address_that_is_silent_costs_one_request(setup: Setup, servers: list[RawServer]) -> None:
    """It takes connections and says nothing (to TLS): in vain for one request, not for a third of them."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        limits = Timeouts(connect=Seconds(0.5), first_token=Seconds(5), idle_token=Seconds(5), total=Seconds(9))
        client = client_of(setup, [], timeouts=limits, url="https://127.0.0.1:{}", tls=Tls(verify=False))
        client.pool.target.addresses = [address(silent.getsockname()[1]), *of(servers)[:2]]
        first = ask(client)
        client.pool.target.tls = None  # the others speak no TLS here; what is asked is who gets a connection
        users(client, 6)

    assert (first.outcome, first.error_kind) == (Outcome.CONNECT, "connect timeout")
    assert [r.outcome for r in setup.records[1:]] == [Outcome.OK] * 6
    assert [server.connections for server in servers] == [3, 3, 0]


def test_the_family_that_answers_is_tried_first_from_then_on(setup: Setup, servers: list[RawServer]) -> None:
    """localhost is ::1, too, where most servers don't listen: that is no second server."""
    client = client_of(setup, [address(servers[0].port, "::1"), *of(servers)[:2]], fresh=True)
    users(client, 1)
    users(client, 6)

    assert [a[4][0] for a in client.pool.target.addresses] == ["127.0.0.1", "127.0.0.2", "::1"]
    assert [r.outcome for r in setup.records] == [Outcome.OK] * 7
    assert abs(servers[0].connections - servers[1].connections) <= 1


FEW_PORTS = """
import sys, gevent
sys.path.insert(0, {tests!r})
from exchanges import Setup, ask
from raw_server import LAST_CHUNK, chunk, content, head, raw_server
from tokenswarm.record import Outcome
setup = Setup()
with raw_server((head(), 0.5, chunk(content("a", "stop")) + LAST_CHUNK)) as server:
    client = setup.client(server, fresh=True)
    gevent.joinall([gevent.spawn(ask, client, n) for n in range(20)], timeout=60, raise_error=True)
    assert client.pool.target.addresses, "the name is not to blame"
for record in setup.records:
    print(record.outcome.value, record.error_kind.replace(" ", "-"))
"""


def test_no_local_ports_left() -> None:
    """Ten ports and twenty connections at once, in a network namespace of its own."""
    inside = 'ip link set lo up && echo "50000 50009" > /proc/sys/net/ipv4/ip_local_port_range && exec "$@"'
    python = [sys.executable, "-c", FEW_PORTS.format(tests=str(Path(__file__).parent))]
    command = ["unshare", "--net", "sh", "-c", inside, "-", *python]
    if os.geteuid() or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root, unshare and ip")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[1]
    )
    if done.returncode and "Operation not permitted" in done.stderr:
        pytest.skip("no network namespace may be made here")

    assert done.returncode == 0, done.stderr
    counted = Counter(done.stdout.splitlines())
    assert set(counted) == {"ok ", "connect no-local-ports"}, counted
    assert counted.total() == 20
    assert 8 <= counted["ok "] <= 10, "a port is left for the listener or not"
