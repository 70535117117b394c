"""`python -m exporters.load`."""

import sys

from exporters.load.command import main

if __name__ == "__main__":
    sys.exit(main())
