"""No stamp before its send, whatever lies between two looks at two clocks; what can't be known is counted."""

from __future__ import annotations

import random
import socket
import struct
import sys
import time
from collections.abc import Iterator

import gevent
import pytest
from exchanges import READERS, Setup, ask, stamped_at_once, stamping
from raw_server import LAST_CHUNK, chunk, content, head, raw_server

from tokenswarm.client import transport
from tokenswarm.client.pool import Pool
from tokenswarm.client.response import Response
from tokenswarm.client.stamps import SLACK_NS, SO_TIMESTAMPNS, ClockPair, keep_stamping
from tokenswarm.client.transport import Connection, make_target
from tokenswarm.clock import monotonic_ns, realtime_ns
from tokenswarm.profile.target import Tls
from tokenswarm.record import Outcome

MS = 1_000_000
HEAD = head("text/plain", "content-length: 999999", chunked=False)


class World:
    """Two clocks that a machine stops looking at in between: reading one takes 60 ns, or a pause of up to 20 ms."""

    def __init__(self, seed: int, pauses: float, drift_ppm: float = 0.0) -> None:
        self.now_ns, self.set_ns = 10**15, 0  # the true time, on the monotonic clock; how far the wall clock was set
        self.pauses, self.drift_ppm, self.random = pauses, drift_ppm, random.Random(seed)

    def wall(self, at_ns: int) -> int:
        return 10**18 + at_ns + self.set_ns + int((at_ns - 10**15) * self.drift_ppm / 1e6)

    def _pass(self) -> None:
        self.now_ns += 60
        if self.random.random() < self.pauses:
            self.now_ns += self.random.choice((20_000, MS, 5 * MS, 20 * MS))

    def monotonic(self) -> int:
        self._pass()
        return self.now_ns

    def realtime(self) -> int:
        self._pass()
        return self.wall(self.now_ns)


class Reader:
    """A connection whose reads and clocks are the world's. `read` gives (stamp, unsure reads so far)."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        monkeypatch.setattr(transport, "monotonic_ns", world.monotonic)
        monkeypatch.setattr(transport, "realtime_ns", world.realtime)
        monkeypatch.setattr(Connection, "clocks", ClockPair(world.monotonic, world.realtime))
        self._pair = socket.socketpair()
        self._connection = Connection(gevent.socket.socket(fileno=self._pair[0].detach()), None, (None, None), 0)
        self._connection._recvmsg = self._recvmsg  # type: ignore[assignment]
        self.response = Response()
        self.response.last_read_ns = world.now_ns
        self._connection.receive(self.response, lambda: None, lambda: None)
        self._data, self._stamp_ns = HEAD, 0

    def _recvmsg(self, *_: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        return self._data, [(1, 35, struct.pack("qq", *divmod(self._stamp_ns, 10**9)))], 0, None

    def read(self, arrived_wall_ns: int) -> int:
        self._stamp_ns = arrived_wall_ns
        self._connection._on_readable()
        self._data = b"x"
        return self.response.reads[-1][0]

    def close(self) -> None:
        self._connection.close()
        self._pair[1].close()


@pytest.mark.parametrize(
    ("pauses", "drift_ppm", "error_ns_max"),
    # At the worst slewing a short pause (20 µs) can hide as much of the drift.
    [(0.0, 0, SLACK_NS), (0.001, 0, SLACK_NS), (0.05, 30, SLACK_NS), (0.05, 500, 30_000), (0.05, -500, 30_000)],
)
def test_pauses_between_the_clocks_move_no_stamp(
    monkeypatch: pytest.MonkeyPatch, pauses: float, drift_ppm: float, error_ns_max: int
) -> None:
    world = World(7, pauses, drift_ppm)
    reader = Reader(world, monkeypatch)
    worst_ns = 0
    for _ in range(20_000):
        world.now_ns += world.random.randrange(2 * MS)
        arrived_ns = world.now_ns
        world.now_ns += 8_000  # the kernel wakes us
        unsure = reader.response.unsure_reads
        error_ns = reader.read(world.wall(arrived_ns)) - arrived_ns
        if reader.response.unsure_reads == unsure:
            worst_ns = max(worst_ns, abs(error_ns))
        assert error_ns >= -error_ns_max, "before it was sent"
    reader.close()

    assert worst_ns <= error_ns_max
    assert reader.response.unsure_reads <= (20 if pauses > 0.01 else 0)


def test_where_no_look_is_tight_it_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that pauses at each look: the stamp stays inside what is possible, and nobody claims to know it."""
    world = World(3, pauses=1.0)
    reader = Reader(world, monkeypatch)
    for number in range(1, 200):
        world.now_ns += 30 * MS
        arrived_ns, floor_ns = world.now_ns, reader.response.last_read_ns
        stamp_ns = reader.read(world.wall(arrived_ns))
        assert floor_ns <= stamp_ns <= world.now_ns
        assert reader.response.unsure_reads == number
    reader.close()


@pytest.mark.parametrize("drift_ppm", [-400.0, 30.0, 400.0])
def test_a_clock_that_drifts_while_nothing_is_read_was_not_set(
    monkeypatch: pytest.MonkeyPatch, drift_ppm: float
) -> None:
    """Ten minutes before the first token, or between a run's stages."""
    world = World(9, 0.0, drift_ppm)
    reader = Reader(world, monkeypatch)
    for _ in range(20):
        world.now_ns += 600 * 10**9
        arrived_ns = world.now_ns
        world.now_ns += 8_000
        assert abs(reader.read(world.wall(arrived_ns)) - arrived_ns) <= SLACK_NS
    reader.close()

    assert reader.response.unsure_reads == 0


@pytest.mark.parametrize("step_ns", [-3600 * 10**9, -10 * MS, 2 * MS, 10 * MS, 15 * 10**9, 3600 * 10**9])
def test_a_wall_clock_that_is_set_spoils_one_read(monkeypatch: pytest.MonkeyPatch, step_ns: int) -> None:
    """Between an arrival and its read, where nothing can tell; later reads are right again."""
    world = World(5, pauses=0.0)
    reader = Reader(world, monkeypatch)
    errors = []
    for number in range(100):
        world.now_ns += 20 * MS
        arrived_ns, floor_ns = world.now_ns, reader.response.last_read_ns
        arrived_wall_ns = world.wall(arrived_ns)
        world.now_ns += 8_000
        if number == 50:
            world.set_ns += step_ns
        stamp_ns = reader.read(arrived_wall_ns)
        assert floor_ns <= stamp_ns <= world.now_ns
        errors.append(stamp_ns - arrived_ns)
    reader.close()

    assert reader.response.unsure_reads == 1
    assert [abs(e) <= SLACK_NS for e in errors] == [True] * 50 + [abs(errors[50]) <= SLACK_NS] + [True] * 49
    assert 0 <= errors[50] < 50_000, "what is not known is the moment of the read"


@pytest.fixture(params=READERS)
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    found = Setup(request.param)
    yield found
    found.close()


@pytest.mark.parametrize("step_ns", [3 * MS, -3 * MS, 400_000])
def test_what_waited_when_the_clock_was_set_is_unsure_whoever_found_it_set(
    monkeypatch: pytest.MonkeyPatch, step_ns: int
) -> None:
    """Its stamp is of the clock before, and may well lie between the read before and now by the clock after."""
    world = World(5, pauses=0.0)
    reader = Reader(world, monkeypatch)
    first_ns = reader.read(world.wall(world.now_ns))
    stamp_ns = world.wall(world.now_ns + 5 * MS)
    world.now_ns += 10 * MS
    world.set_ns += step_ns
    Connection.clocks.look()  # as the read of another stream does
    assert reader.read(stamp_ns) == reader.response.last_read_ns
    assert [low_ns for low_ns, _ in reader.response.unsure] == [first_ns]
    reader.read(world.wall(world.now_ns))
    assert len(reader.response.unsure) == 1
    reader.close()


def test_what_came_after_a_look_found_nothing_has_stamps_of_the_clock_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(6, pauses=0.0)
    reader = Reader(world, monkeypatch)
    reader.read(world.wall(world.now_ns))
    world.set_ns += 3 * MS
    Connection.clocks.look()
    monkeypatch.setattr(Connection, "polled_ns", world.monotonic())
    world.now_ns += 10 * MS
    assert reader.read(world.wall(world.now_ns)) == pytest.approx(world.now_ns, abs=1000)
    assert reader.response.unsure == ()
    reader.close()


def test_a_stream_read_with_paused_clocks(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real sockets and real stamps: each event says when it was sent, and each 7th look at the wall clock waits."""
    if not sys.platform.startswith("linux"):
        pytest.skip("kernel receive stamps are Linux's")
    looks = 0

    def paused() -> int:
        nonlocal looks
        looks += 1
        if looks % 7 == 0:
            time.sleep(0.004)
        return realtime_ns()

    class Stamped(bytes):
        """A content event that holds the moment of its sending."""

    monkeypatch.setattr(transport, "realtime_ns", paused)
    monkeypatch.setattr(Connection, "clocks", ClockPair(monotonic_ns, paused))
    sent: list[int] = []

    def script() -> Iterator[bytes | float]:
        yield head()
        for _ in range(200):
            yield 0.003
            sent.append(monotonic_ns())
            yield chunk(content("a"))
        yield chunk(content("b", "stop")) + LAST_CHUNK

    with raw_server(script()) as server:  # type: ignore[arg-type]  # played once
        record = ask(setup.client(server))

    assert (record.outcome, record.stamp, record.events) == (Outcome.OK, "kernel", 201)
    early = [got - was for got, was in zip(record.token_stamps_ns[:200], sent, strict=True) if got < was - SLACK_NS]
    assert early == []
    assert record.sent_ns <= record.headers_ns <= record.first_ns
    assert setup.recorder.instrument.stamps_unsure <= 2


def test_a_wide_look_does_not_replace_what_a_tight_one_said() -> None:
    """While every look is torn apart by pauses the offset is the one that was known, to SLACK_NS."""
    world = World(3, 0.0)
    clocks = ClockPair(world.monotonic, world.realtime)
    for _ in range(20):
        world.pauses = 1.0
        clocks.look()
        world.pauses = 0.0
        assert abs(clocks.offset_ns - (world.wall(world.now_ns) - world.now_ns)) <= SLACK_NS


def test_durations_are_those_of_the_monotonic_clock() -> None:
    before_ns = time.monotonic_ns()
    now_ns = monotonic_ns()
    assert before_ns <= now_ns <= time.monotonic_ns()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernel receive stamps are Linux's")
def test_stamping_lasts_from_one_connection_to_the_next() -> None:
    """Between two users' connections the kernel must not leave off: what the next one gets at once had no stamp."""
    keep_stamping.cache_clear()
    pool = Pool(make_target("http://127.0.0.1:1", Tls()), 5.0, fresh=True)
    assert keep_stamping.cache_info().currsize == 1, "the pool keeps none"
    kept = keep_stamping()
    assert kept is not None
    assert kept.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS)
    pool.close()
    stamping.cache_clear()
    stamping()
    assert all(stamped_at_once() for _ in range(300))
