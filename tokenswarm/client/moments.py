"""What is known of the moments of one exchange when it has ended, and what is not."""

from __future__ import annotations

from tokenswarm.client.response import Response
from tokenswarm.client.transport import Connection
from tokenswarm.measure.snapshot import Instrument
from tokenswarm.measure.timeline import Timeline


def settle(connection: Connection, response: Response, timeline: Timeline, instrument: Instrument) -> None:
    """Tell the timeline when the request was sent and how surely its reads are known; while the socket is open."""
    if not connection.sent.at_ns:  # it broke while it was sent
        return
    timeline.one_a_read = connection.settle(timeline.reads)
    sent = connection.sent
    timeline.sent_ns, timeline.sent_high_ns = sent.at_ns, sent.high_ns
    timeline.first_low_ns, timeline.unsure = response.first_low_ns, tuple(response.unsure)
    timeline.lows = response.lows
    instrument.stamps_unsure += response.unsure_reads
    instrument.sends_stamped += sent.stamped
    instrument.sends_unstamped += not sent.stamped
