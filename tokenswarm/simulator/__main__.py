"""`python -m tokenswarm.simulator`: the same as `tokenswarm simulate`."""

import sys

from tokenswarm import descriptors
from tokenswarm.simulator.command import main

if __name__ == "__main__":
    descriptors.raise_limit()
    sys.exit(main())
