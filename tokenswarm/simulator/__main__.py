"""`python -m tokenswarm.simulator`: the same as `tokenswarm simulate`."""

import sys

from tokenswarm.simulator.command import main

if __name__ == "__main__":
    sys.exit(main())
