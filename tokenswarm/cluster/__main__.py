"""`python -m tokenswarm.cluster HOST PORT`: one worker of `tokenswarm run`, started by the master on this machine."""

from __future__ import annotations

import sys

from tokenswarm import descriptors
from tokenswarm.cluster import parent, web_later
from tokenswarm.errors import UserError
from tokenswarm.own_process import loading
from tokenswarm.profile.environment import in_github, run_token
from tokenswarm.reports.pipelines import github
from tokenswarm.terminal import outlive_listeners


def main() -> int:
    web_later.put_off()
    with loading():
        from tokenswarm.cluster.launch import run_worker  # and Locust

    parent.die_with_it()
    parent.share_with_it()
    if in_github():
        github.disarm_output()
    descriptors.raise_limit()
    outlive_listeners()
    try:
        return run_worker(sys.argv[1], int(sys.argv[2]), run_token(), remote=False)
    except UserError as error:
        print(f"tokenswarm worker: {error}", file=sys.stderr, flush=True)
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
