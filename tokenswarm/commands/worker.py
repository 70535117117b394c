"""`tokenswarm worker`: join the master of a run from another machine."""

from __future__ import annotations

from tokenswarm.cluster import web_later
from tokenswarm.cluster.entrance import check_port
from tokenswarm.own_process import loading
from tokenswarm.profile import options
from tokenswarm.profile.environment import run_token


def main(words: list[str]) -> int:
    """Work for a master until it says so, or is gone; raises UserError."""
    parser = options.parser_of("worker")
    parser.add_argument(
        "--master-host", required=True, metavar="HOST", help="the machine of the master, as it is named from here"
    )
    parser.add_argument(
        "--master-port",
        required=True,
        metavar="PORT",
        type=int,
        help="the port that the master told; TOKENSWARM_RUN_TOKEN must hold its word",
    )
    given = parser.parse_args(words)
    check_port("--master-port", given.master_port)
    web_later.put_off()
    with loading():
        from tokenswarm.cluster.launch import run_worker  # after the words: gevent and Locust take a third of a second

    return run_worker(given.master_host, given.master_port, run_token())
