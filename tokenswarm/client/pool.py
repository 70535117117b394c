"""Kept connections of one worker to one target, and whether its users will find descriptors for them."""

from __future__ import annotations

import math

from tokenswarm import descriptors
from tokenswarm.client.opening import open_connection
from tokenswarm.client.response import Response
from tokenswarm.client.stamps import keep_stamping
from tokenswarm.client.transport import Connection, Target
from tokenswarm.errors import ConfigError

RESERVE = 64  # descriptors of a worker that are no user's: the master, files, the event loop, what probes open


def check_descriptors(users: int, workers: int) -> None:
    """Raises ConfigError where this process can't have a connection open for each user of its share."""
    share, limit = math.ceil(users / workers), descriptors.limit()
    if share + RESERVE > limit:
        raise ConfigError(
            f"{share} users of one worker need {share + RESERVE} file descriptors, and this process may have {limit}: "
            f"raise the hard limit (`ulimit -Hn {share + RESERVE}`, LimitNOFILE= of a systemd unit), or use "
            f"{math.ceil(users / max(1, limit - RESERVE))} workers or more"
        )


def room() -> int:
    """Connections that this process may have open at once."""
    return max(1, descriptors.limit() - RESERVE)


class Pool:
    """Kept connections, newest first. `fresh` opens one for each request."""

    def __init__(self, target: Target, connect_timeout_s: float, fresh: bool) -> None:
        self.target = target
        self.fresh = fresh
        self._timeout_s = connect_timeout_s
        self._idle: list[Connection] = []
        keep_stamping()

    def take(self) -> Connection:
        """A kept connection that is still alive, or a new one. Raises TransportError."""
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_alive:
                return connection
            connection.close()
        return self.open()

    def open(self) -> Connection:
        """A new connection, whatever is kept. Raises TransportError."""
        return open_connection(self.target, self._timeout_s)

    def give_back(self, connection: Connection, response: Response) -> None:
        """Keep the connection if the answer ended cleanly and the server lets us."""
        connection.stop()
        clean = response.complete and response.error is None and not response.trailing
        if clean and response.keep_alive and not response.closed_by_peer and not self.fresh:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
