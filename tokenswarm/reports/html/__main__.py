"""`python -m tokenswarm.reports.html FOLDER`: report.html of a finished run, made by a process of its own.

A million rows are seconds of work, which a master that still hears its workers must not do itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenswarm.errors import UserError
from tokenswarm.own_process import loading
from tokenswarm.terminal import leave_the_end_to_our_parent


def main() -> int:
    """Write the page; what hinders it is one sentence on stderr, and the exit code."""
    leave_the_end_to_our_parent()
    with loading():
        from tokenswarm.reports.saved import read_summary, write_page

    folder = Path(sys.argv[1])
    try:
        write_page(folder, read_summary(folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
